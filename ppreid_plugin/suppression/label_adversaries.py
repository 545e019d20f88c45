"""Adversaries that predict labels which people share: attributes of the person, the camera of the image."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Batch, Context
from ..data.attributes import UNKNOWN, label_table, load_attributes, pids_by_label
from ..data.checks import DataError
from ..registry import closest
from .adversary import Adversary, register_adversary
from .adversary_networks import classifier

_log = logging.getLogger(__name__)


class LabelAdversary(Adversary):
    r"""One network with a head for each label; class-balanced cross entropy, bounded by log(classes) for each label.

    A sample's loss of a label with C classes is weighted by :math:`n / (C n_c)`, n images of which :math:`n_c` show its
    class c, so that who knows nothing answers uniformly and is at log C, whatever the shares of the classes; a label
    that is not known (-1) has weight 0. By default ``people`` is ``cross_fit``: labels are shared between people, so
    what counts is what holds for others than those learned.

    A subclass says the labels: `prepare` and `labels_of`.
    """

    default_people = "cross_fit"

    @abstractmethod
    def prepare(self, context: Context) -> Tensor:
        """Return the labels (images, labels) of the training split: classes from 0, -1 not known. Called once."""

    @abstractmethod
    def labels_of(self, batch: Batch) -> Tensor:
        """Return the labels (B, labels) of a batch."""

    def build(self, context: Context) -> None:
        """Count the classes, then make the networks."""
        labels = self.prepare(context)
        counts = [torch.bincount(column[column >= 0]) for column in labels.unbind(1)]
        self._classes = [len(count) for count in counts]
        balance = [count.sum() / (len(count) * count.clamp(min=1)) for count in counts]
        self._balance = [weights.float().to(context.device) for weights in balance]
        super().build(context)

    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return a classifier whose logits are those of all heads, one after the other."""
        return classifier(input_shape, sum(self._classes), self.dropout)

    def chance_loss(self, context: Context) -> Tensor:
        """Log of the number of classes of each label."""
        return torch.tensor([math.log(count) for count in self._classes], device=context.device)

    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each sample and label, natural logarithm; 0 where the label is not known."""
        pairs = zip(outputs.split(self._classes, 1), self.labels_of(batch).unbind(1), strict=True)
        losses = [F.cross_entropy(head, label, ignore_index=UNKNOWN, reduction="none") for head, label in pairs]
        return torch.stack(losses, 1)

    def sample_weights(self, batch: Batch) -> Tensor:
        """Return n / (C n_c) of each sample's class; 0 where it is not known."""
        columns = zip(self._balance, self.labels_of(batch).unbind(1), strict=True)
        return torch.stack([torch.where(y == UNKNOWN, 0.0, balance[y.clamp(min=0)]) for balance, y in columns], 1)

    def forgetting(self, module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
        """Divergence from the uniform posterior, of each sample and label."""
        heads = outputs.split(self._classes, 1)
        return torch.stack([super(LabelAdversary, self).forgetting(module, head, batch) for head in heads], 1)

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Balanced accuracy of the batch in percent, averaged over the labels."""
        hits, weights = [], self.sample_weights(batch)
        for head, label in zip(outputs.split(self._classes, 1), self.labels_of(batch).unbind(1), strict=True):
            hits.append((head.argmax(1) == label).float())
        totals = weights.sum(0)
        shares = (torch.stack(hits, 1) * weights).sum(0)[totals > 0] / totals[totals > 0]
        return {f"acc_{self.name}": 100.0 * float(shares.mean())}


@register_adversary("attributes")
class AttributesAdversary(LabelAdversary):
    """Predicts attributes of the person (gender, age, bag, ...), by labels of people in a file.

    Args:
        labels: file of labels (`ppreid_plugin.data.attributes.load_attributes`); ``SOURCE=FILE`` where there are
            several training data sets: the people of the others have none.
        attributes: names of those to predict, as a list or ``gender|age``; empty: all in which the training people
            differ and of whose classes an average one has two people or more (others name the person).
        settings: of every adversary.

    Raises:
        ValueError: no file, an attribute that it does not have or that all training people share.
        DataError: file names without a pid, a source that is none, or nobody in training has labels.
    """

    name = "adversary_attributes"

    def __init__(self, *, labels: str = "", attributes: str | Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**settings)
        if not labels:
            raise ValueError(
                "the adversary 'attributes' has no labels of people. Set privacy.adversary.labels to "
                "market_attribute.mat, the generated pedestrians' attributes.csv, or .npz with pids and attr_<name>."
            )
        source, separator, file = labels.partition("=")
        self.source, self.labels = (source, file) if separator else ("", labels)
        self.attributes = attributes.split("|") if isinstance(attributes, str) and attributes else list(attributes)

    def prepare(self, context: Context) -> Tensor:
        """Read the labels and give them to torchreid's numbering of the people."""
        people = load_attributes(self.labels)
        pids = pids_by_label(context.train_items, dsetid=self._dsetid(context))
        known = {label: people[pid] for label, pid in pids.items() if pid in people}
        if not known:
            raise DataError(
                f"none of the {context.num_classes} training people has labels in '{self.labels}': pids "
                f"{sorted(pids.values())[:5]}, ..., labels of {sorted(people)[:5]}, .... Give the labels of the "
                "training data set: privacy.adversary.labels."
            )
        names = sorted({name for labels in known.values() for name in labels})
        for name in self.attributes:
            if name not in names:
                raise ValueError(
                    f"privacy.adversary.attributes has '{name}'; '{self.labels}' has: {', '.join(names)}."
                    f"{closest(name, names)}"
                )
        chosen = list(self.attributes) or names
        table = torch.from_numpy(label_table(known, chosen, context.num_classes))
        columns = dict(zip(chosen, table.unbind(1), strict=True))
        self.attributes = self._worth_predicting(columns)
        table = torch.stack([columns[name] for name in self.attributes], 1)
        _log.info(
            "%s: %d of %d training people have labels in '%s'; attributes: %s",
            *(self.name, len(known), context.num_classes, self.labels, ", ".join(self.attributes)),
        )
        self._table = table.to(context.device)
        return table[torch.tensor([item[1] for item in context.train_items])]

    def labels_of(self, batch: Batch) -> Tensor:
        """Labels of the batch's people."""
        return self._table[batch.pids]

    def _worth_predicting(self, columns: Mapping[str, Tensor]) -> list[str]:
        """Return the attributes that say something, and not who it is; those that were named, or an error."""
        people = {name: int((column != UNKNOWN).sum()) for name, column in columns.items()}
        classes = {name: int(column.max()) + 1 for name, column in columns.items()}
        alike = [name for name in columns if classes[name] < 2]
        if self.attributes and alike:
            raise ValueError(
                f"privacy.adversary.attributes has {', '.join(alike)}, in which all training people with labels are "
                "alike: there is nothing to learn. Leave it out."
            )
        if self.attributes:
            return list(columns)
        worth = [name for name in columns if classes[name] >= 2 and people[name] >= 2 * classes[name]]
        if not worth:
            raise ValueError(
                f"'{self.labels}' has no attribute whose classes training people share (two each on average). Name "
                "those to predict: privacy.adversary.attributes."
            )
        return worth

    def _dsetid(self, context: Context) -> int | None:
        if not self.source and len(context.sources) <= 1:
            return None
        if self.source not in context.sources:
            given = f"'{self.source}'" if self.source else "no data set"
            raise DataError(
                f"privacy.adversary.labels names {given}, and there are the sources {', '.join(context.sources)}: pids "
                f"repeat between data sets. Write whose labels they are: {(context.sources or ('SOURCE',))[0]}=FILE."
            )
        return context.sources.index(self.source)


@register_adversary("camera")
class CameraAdversary(LabelAdversary):
    """Predicts the camera of the image.

    Args:
        settings: of every adversary.

    Raises:
        DataError: the training images are of one camera.
    """

    name = "adversary_camera"

    def prepare(self, context: Context) -> Tensor:
        """Number the cameras of the training split from 0."""
        camids = torch.tensor([int(item[2]) for item in context.train_items])
        self._cameras = camids.unique().to(context.device)
        if len(self._cameras) < 2:
            raise DataError(
                f"the training images are of {len(self._cameras)} camera: the adversary 'camera' has nothing to learn. "
                "Leave it out of privacy.adversary.names."
            )
        return torch.searchsorted(self._cameras.cpu(), camids)[:, None]

    def labels_of(self, batch: Batch) -> Tensor:
        """Cameras of the batch's images; a clip's camera for each of its images."""
        camids = batch.data["camid"].to(self._cameras.device)
        if len(camids) < len(batch.pids):
            camids = camids.repeat_interleave(len(batch.pids) // len(camids))
        return torch.searchsorted(self._cameras, camids)[:, None]
