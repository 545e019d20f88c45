"""Attributes of training people as stage 1 needs them: by torchreid's numbering, with what balances their classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..components import Batch, Context
from ..data.attributes import UNKNOWN, label_table, load_attributes, pids_by_label
from ..data.checks import DataError
from ..registry import closest

_log = logging.getLogger(__name__)


class PersonLabels:
    """Attributes of the training people, from a file of labels by pid.

    Args:
        labels: file of labels (`ppreid_plugin.data.attributes.load_attributes`); ``SOURCE=FILE`` where there are
            several training data sets: the people of the others have none.
        attributes: names of those wanted, as a list or ``gender|age``; empty: all in which the training people
            differ and of whose classes an average one has two people or more (others name the person).
        who: who needs them, in errors.
        key: configuration node of ``labels`` and ``attributes``, in errors.

    Attributes:
        attributes: names of the columns, once prepared.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: no file named, an attribute that it does not have or that all training people share.
        DataError: file names without a pid, a source that is none, or nobody in training has labels.
    """

    def __init__(self, labels: str, attributes: str | Sequence[str], *, who: str, key: str) -> None:
        if not labels:
            raise ValueError(
                f"{who} has no labels of people. Set {key}.labels to market_attribute.mat, the generated pedestrians' "
                "attributes.csv, or .npz with pids and attr_<name>."
            )
        source, separator, file = labels.partition("=")
        self.source, self.labels = (source, file) if separator else ("", labels)
        if not Path(self.labels).is_file():
            raise FileNotFoundError(f"{key}.labels is '{self.labels}', which does not exist.")
        self.attributes = attributes.split("|") if isinstance(attributes, str) and attributes else list(attributes)
        self._key = key
        self._table: Tensor | None = None

    def prepare(self, context: Context, name: str) -> Tensor:
        """Read the labels and give them to torchreid's numbering of the people.

        Args:
            context: with the training split.
            name: of who needs them, for the log.

        Returns:
            Labels (people, attributes): classes from 0, -1 not known.
        """
        people = load_attributes(self.labels)
        pids = pids_by_label(context.train_items, dsetid=self._dsetid(context))
        known = {label: people[pid] for label, pid in pids.items() if pid in people}
        if not known:
            raise DataError(
                f"none of the {context.num_classes} training people has labels in '{self.labels}': pids "
                f"{sorted(pids.values())[:5]}, ..., labels of {sorted(people)[:5]}, .... Give the labels of the "
                f"training data set: {self._key}.labels."
            )
        names = sorted({name for labels in known.values() for name in labels})
        for wanted in self.attributes:
            if wanted not in names:
                raise ValueError(
                    f"{self._key}.attributes has '{wanted}'; '{self.labels}' has: {', '.join(names)}."
                    f"{closest(wanted, names)}"
                )
        chosen = list(self.attributes) or names
        table = torch.from_numpy(label_table(known, chosen, context.num_classes))
        columns = dict(zip(chosen, table.unbind(1), strict=True))
        self.attributes = self._worth_predicting(columns)
        table = torch.stack([columns[name] for name in self.attributes], 1)
        _log.info(
            "%s: %d of %d training people have labels in '%s'; attributes: %s",
            *(name, len(known), context.num_classes, self.labels, ", ".join(self.attributes)),
        )
        self._table = table.to(context.device)
        return table

    def of(self, batch: Batch) -> Tensor:
        """Return the labels (B, attributes) of the batch's people."""
        return self.of_pids(batch.pids)

    def of_pids(self, pids: Tensor) -> Tensor:
        """Return the labels (n, attributes) of training people (n,)."""
        if self._table is None:
            raise RuntimeError("the labels are not read yet: call prepare(context, name).")
        return self._table[pids]

    def _worth_predicting(self, columns: Mapping[str, Tensor]) -> list[str]:
        """Return the attributes that say something, and not who it is; those that were named, or an error."""
        people = {name: int((column != UNKNOWN).sum()) for name, column in columns.items()}
        classes = {name: int(column.max()) + 1 for name, column in columns.items()}
        alike = [name for name in columns if classes[name] < 2]
        if self.attributes and alike:
            raise ValueError(
                f"{self._key}.attributes has {', '.join(alike)}, in which all training people with labels are alike: "
                "there is nothing to learn. Leave it out."
            )
        if self.attributes:
            return list(columns)
        worth = [name for name in columns if classes[name] >= 2 and people[name] >= 2 * classes[name]]
        if not worth:
            raise ValueError(
                f"'{self.labels}' has no attribute whose classes training people share (two each on average). Name "
                f"those to predict: {self._key}.attributes."
            )
        return worth

    def _dsetid(self, context: Context) -> int | None:
        if not self.source and len(context.sources) <= 1:
            return None
        if self.source not in context.sources:
            given = f"'{self.source}'" if self.source else "no data set"
            raise DataError(
                f"{self._key}.labels names {given}, and there are the sources {', '.join(context.sources)}: pids "
                f"repeat between data sets. Write whose labels they are: {(context.sources or ('SOURCE',))[0]}=FILE."
            )
        return context.sources.index(self.source)


def class_balance(labels: Tensor) -> list[Tensor]:
    """Return n / (C n_c) by class of each column of labels (n, columns): n known ones, n_c of them of class c of C."""
    counts = [torch.bincount(column[column >= 0]) for column in labels.unbind(1)]
    return [(count.sum() / (len(count) * count.clamp(min=1))).float() for count in counts]


def balanced(labels: Tensor, balance: Sequence[Tensor]) -> Tensor:
    """Return the weight of each label (B, columns) by `class_balance`; 0 where it is not known."""
    columns = zip(balance, labels.unbind(1), strict=True)
    return torch.stack([torch.where(y == UNKNOWN, 0.0, weights[y.clamp(min=0)]) for weights, y in columns], 1)
