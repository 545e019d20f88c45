"""Adversaries that predict labels which people share: attributes of the person, the camera of the image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Batch, Context
from ..data.attributes import UNKNOWN
from ..data.checks import DataError
from .adversary import Adversary, register_adversary
from .adversary_networks import classifier
from .person_labels import PersonLabels, balanced, class_balance


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
        self._balance = [weights.to(context.device) for weights in class_balance(labels)]
        self._classes = [len(weights) for weights in self._balance]
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
        return balanced(self.labels_of(batch), self._balance)

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
        labels, attributes: as `PersonLabels`.
        settings: of every adversary.

    Raises:
        FileNotFoundError, ValueError, DataError: as `PersonLabels`.
    """

    name = "adversary_attributes"

    def __init__(self, *, labels: str = "", attributes: str | Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**settings)
        self._people = PersonLabels(labels, attributes, who="the adversary 'attributes'", key="privacy.adversary")

    @property
    def attributes(self) -> list[str]:
        """Names of those that it predicts; before the training split is known, of those that were asked for."""
        return self._people.attributes

    def prepare(self, context: Context) -> Tensor:
        """Read the labels and give them to torchreid's numbering of the people."""
        table = self._people.prepare(context, self.name)
        return table[torch.tensor([item[1] for item in context.train_items])]

    def labels_of(self, batch: Batch) -> Tensor:
        """Labels of the batch's people."""
        return self._people.of(batch)


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
