"""What the starting weights know of people who are not in training, kept while something else is taken out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..components import Batch, Component, Context, Trainable
from ..number_checks import require_not_negative
from .adversary_members import evaluating
from .centering import RunningCenter


class SimilarityDistillation(Component):
    r"""Keeps the similarities between a batch's images that a frozen copy of the starting encoder sees.

    .. math:: L = \frac{1}{B^2} \sum_{ij} (c_i \cdot c_j - t_i \cdot t_j)^2

    c and t are the encoder's and the copy's unit features, each seen from its own running mean. The Re-ID loss knows
    the training people by heart, so it does not say what else suppression destroys; the similarities do, for other
    people, too. It is worth its forward pass where the start is a trained Re-ID model (``model.load_weights``), and
    pointless where it is not.

    Args:
        weight: w, >= 0; at 0 it only watches.

    Raises:
        ValueError: a negative weight.

    Source:
        Tung and Mori, ICCV 2019, arXiv 1907.09682 (similarity-preserving distillation); centered cosines, and no
        normalization of the rows of similarities, are ours.
    """

    name = "distillation"

    def __init__(self, *, weight: float = 50.0) -> None:
        require_not_negative("privacy.distillation.weight", weight)
        self.weight = weight
        self.state: DistillationState | None = None
        self._figures: dict[str, float] = {}

    def build(self, context: Context) -> None:
        """Copy the encoder as it starts."""
        if context.encoder is None:
            raise ValueError("the context has no encoder to copy; give the component to an engine.")
        self._mean, self._std = (
            torch.tensor(values, device=context.device).view(1, 3, 1, 1)
            for values in (context.norm_mean, context.norm_std)
        )
        self.state = DistillationState(context.encoder, context.feature_dim).to(context.device)

    def trainables(self) -> dict[str, Trainable]:
        """The copy and the centers, saved with the checkpoint: a resumed run has the same teacher."""
        return {self.name: Trainable(self._state)}

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss (nothing at weight 0)."""
        state = self._state
        with torch.no_grad(), evaluating(state.teacher):
            taught = state.teacher((batch.images - self._mean) / self._std).flatten(1).float()
        state.center.update(batch.features.detach())
        state.teacher_center.update(taught)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            rows, wanted = state.center(batch.features), state.teacher_center(taught)
            loss = (rows @ rows.T - wanted @ wanted.T).square().mean()
        self._figures = {"loss_distillation": float(loss.detach())}
        return {} if self.weight == 0 else {"loss_distillation": self.weight * loss}

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Return the loss."""
        return self._figures

    @property
    def _state(self) -> DistillationState:
        if self.state is None:
            raise RuntimeError("the distillation has no teacher yet: give it to an engine, or call build(context).")
        return self.state


class DistillationState(nn.Module):
    """The teacher, frozen, and both centers.

    Args:
        encoder: copied as it is.
        columns: d.
    """

    def __init__(self, encoder: nn.Module, columns: int) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.center, self.teacher_center = RunningCenter(columns), RunningCenter(columns)
