"""Erasure of attributes while the encoder trains, in closed form: no adversary that could learn its people by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..components import Batch, Context
from ..number_checks import require_not_negative, require_whole
from .bank import BankedComponent, FeatureBank
from .person_labels import PersonLabels, balanced, class_balance


class ClassMeanErasure(BankedComponent):
    r"""Brings the mean features of an attribute's classes together: Re-ID loss + w L.

    .. math:: L = \frac{1}{A} \sum_a \frac{1}{C_a} \sum_c \Big\| m_{ac} - \frac{1}{C_a} \sum_{c'} m_{ac'} \Big\|^2

    with :math:`m_{ac}` the mean of the centered unit features of the images of class c of attribute a. Where L = 0 the
    nearest-mean classifier, and with it every linear one that weighs classes alike, is at chance on the training
    people; the gradient vanishes there, and L is never negative. It has no parameters of its own, so there is nothing
    that knows the training people by heart: what it pushes is what all people of a class have in common.

    A batch is too small to tell means from noise, so the means are those of the last ``bank`` features, without
    gradient; a batch's images feel the gradient of L as if they were all images (each weighted by n / (C n_c), so that
    a rare class counts as much). Nothing is pushed before the bank is full.

    Args:
        labels, attributes: as `PersonLabels`; attributes that are not erased are what the result is judged by, too.
        weight: w, >= 0; at 0 it only watches.
        bank: features kept, at least 2; at most one for each training image is.

    Raises:
        FileNotFoundError, ValueError, DataError: as `PersonLabels`; a number out of range.

    Source:
        The distance of means is the maximum mean discrepancy under a linear kernel (Gretton et al., JMLR 2012); closed
        forms in place of trained adversaries: Sadeghi, Yu and Boddeti, ICCV 2019; the bank: Wang et al., CVPR 2020,
        arXiv 1912.06798. The loss as it stands is ours.
    """

    name = "erasure"

    def __init__(
        self, labels: str = "", attributes: str | Sequence[str] = (), *, weight: float = 30.0, bank: int = 4096
    ) -> None:
        require_not_negative("privacy.erasure.weight", weight)
        require_whole("privacy.erasure.bank", bank, least=2, hint="such as 4096")
        super().__init__()
        self.weight, self.bank = weight, bank
        self._people = PersonLabels(labels, attributes, who="privacy.erasure", key="privacy.erasure")

    @property
    def attributes(self) -> list[str]:
        """Names of what is erased."""
        return self._people.attributes

    def build(self, context: Context) -> None:
        """Read the labels, and make the bank."""
        people = self._people.prepare(context, self.name)
        images = people[torch.tensor([item[1] for item in context.train_items])]
        # n / (C n_c) with n all images, those of unknown class too: they are part of a batch, and feel nothing
        known = (images >= 0).float().mean(0)
        self._balance = [(w / share).to(context.device) for w, share in zip(class_balance(images), known, strict=True)]
        self.state = FeatureBank(context.feature_dim, min(self.bank, len(images))).to(context.device)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted term (nothing at weight 0, and until the bank is full)."""
        state = self._state
        state.center.update(batch.features.detach())
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            rows = state.center(batch.features)
            state.put(rows.detach(), batch.pids)
            self._figures = {}
            if not state.full:
                return {}
            labels = self._people.of(batch)
            known = self._people.of_pids(state.beside)
            weights = balanced(labels, self._balance)
            term = rows.new_zeros(())
            distance = 0.0
            for column, balance in enumerate(self._balance):
                offsets = class_offsets(state.rows, known[:, column], len(balance))
                # d L / d row = 2 / C * offset / (its class's share of the images): the mean over the batch of this
                pushed = (rows * offsets[labels[:, column].clamp(min=0)]).sum(1)
                term = term + 2 * (weights[:, column] * pushed).mean() / len(self._balance)
                distance += float(offsets.square().sum()) / len(balance) / len(self._balance)
        self._figures = {"erasure_distance": distance}
        return {} if self.weight == 0 else {"loss_erasure": self.weight * term}


def class_offsets(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return each class's mean row less the mean of these means, (classes, d); 0 for a class that no row is of.

    Args:
        rows: (n, d).
        labels: (n,), classes from 0, -1 not known.
        classes: how many there are.
    """
    known = labels >= 0
    sums = rows.new_zeros(classes, rows.shape[1]).index_add(0, labels[known], rows[known])
    counts = torch.bincount(labels[known], minlength=classes)
    there = counts > 0
    means = sums / counts.clamp(min=1)[:, None]
    return torch.where(there[:, None], means - means[there].mean(0), 0.0)
