"""The component: a contrastive term between clean queries and gallery rows as stage 2 will release them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ranks
from ..components import Batch, Component, Context, Trainable, isolated_rng
from ..distributed import share_module
from ..number_checks import require_not_negative, require_positive, require_whole
from ..registry import closest
from ..suppression.centering import RunningCenter
from .codebook import LearnedCodebook, checked_sizes, expected_gain, set_mean
from .contrastive import supervised_contrastive
from .noise import ADDITIVE, ReleaseNoise, check_range, draw_epsilon

_log = logging.getLogger(__name__)

CODEBOOKS = ("codebook", "prior_subset")
MECHANISMS = (*CODEBOOKS, *ADDITIVE, "none")
_LEAST_START_ROWS = (
    2048  # rows that the codebook starts from; as many a vector as k-means needs, a few batches to gather
)
_ROWS_A_VECTOR = 16
_COLLAPSED = 0.5  # share of the largest entropy: of 32 vectors of a level the equivalent of 6 is left
_WATCHED = 50  # batches after the start before that is judged


class ReleaseAware(Component):
    r"""Trains the encoder to keep its ranking when the gallery is released: Re-ID loss + w L.

    L is the supervised contrastive loss (`supervised_contrastive`) with clean centered features as queries and, as
    gallery rows, what the mechanism makes of them at a budget drawn anew for every batch.

    *Noise* (``gaussian``, ``privunit``, ``privunit_g``): a draw of the mechanism itself (`ReleaseNoise`).

    *Codebooks* (``prior_subset``; ``codebook`` is the same with sets of one): a learned codebook (`LearnedCodebook`)
    and the mean released row, :math:`E[v | x] = g \bar w_{S(x)} + r \sum_s w_s` in closed form (`expected_gain`). Its
    second part is the same for every row, so it shifts all scores of a query alike and the loss is computed without it;
    what is left of the budget is the gain g, a factor on the temperature. To L are added

    .. math:: \beta\, |c - \text{sg}(w)|^2 + |\text{sg}(c) - w|^2 + \gamma\, G

    with c a row, w the codeword nearest to the mean of its person's rows in the batch, so that a person's images fall
    to one symbol, sg the stopped gradient and G the usage gap (`LearnedCodebook.usage_gap`) against the collapse of all
    people to one symbol.

    ``none`` releases the rows as they are: the control, which tells what the contrastive loss does by itself.

    Batches need several images a person (torchreid's RandomIdentitySampler).

    Args:
        mechanism: one of those above.
        epsilon_min, epsilon_max: range of the budgets of one row, > 0.
        delta: failure probability of an approximate mechanism; None lets it choose.
        weight: w, >= 0; at 0 it only watches: nothing learns.
        temperature: tau of the contrastive loss, in cosines, > 0.
        codewords, levels: size of the codebook, and levels of vectors that make it up.
        set_size: K, codewords in a row's set.
        assignment_temperature: of the softmax over codewords, in cosines, > 0.
        commitment: beta, >= 0.
        usage: gamma, >= 0.
        lr: learning rate of the codebook (Adam).
        make_scheduler: makes a learning rate scheduler from its optimizer, stepped once an epoch.
        seed: of the noise and of the codebook's start.

    Raises:
        ValueError: a name or number out of range; a batch in which nobody has two images.

    Source:
        The training in the loss of which the noise stands is ours; its parts' sources stand in their modules.
    """

    name = "release_aware"

    def __init__(
        self,
        mechanism: str = "prior_subset",
        *,
        epsilon_min: float = 8.0,
        epsilon_max: float = 16.0,
        delta: float | None = None,
        weight: float = 1.0,
        temperature: float = 0.3,
        codewords: int = 1024,
        levels: int = 2,
        set_size: int = 1,
        assignment_temperature: float = 0.05,
        commitment: float = 0.25,
        usage: float = 0.1,
        lr: float = 1e-3,
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        seed: int = 1,
    ) -> None:
        if mechanism not in MECHANISMS:
            raise ValueError(
                f"privacy.aware.mechanism is {mechanism!r}; allowed: {', '.join(MECHANISMS)}."
                f"{closest(str(mechanism), list(MECHANISMS))}"
            )
        check_range(epsilon_min, epsilon_max)
        require_positive("privacy.aware.temperature", temperature, hint="such as 0.3")
        require_positive("privacy.aware.assignment_temperature", assignment_temperature, hint="such as 0.05")
        require_positive("privacy.aware.lr", lr, hint="such as 0.001")
        for key, value in (("weight", weight), ("commitment", commitment), ("usage", usage)):
            require_not_negative(f"privacy.aware.{key}", value)
        for key, number in (("codewords", codewords), ("levels", levels)):
            require_whole(f"privacy.aware.{key}", number)
        self.has_codebook = mechanism in CODEBOOKS
        self.set_size = require_whole("privacy.aware.set_size", set_size)
        if set_size != 1 and mechanism != "prior_subset":
            raise ValueError(f"privacy.aware.set_size is {set_size}, and {mechanism!r} has no sets. Leave it at 1.")
        if delta is not None and mechanism not in ADDITIVE:
            raise ValueError(
                f"privacy.aware.delta is {delta}, and {mechanism!r} is pure or has no budget. Leave it out."
            )
        self._noise: ReleaseNoise | None = None
        if mechanism in ADDITIVE:
            self._noise = ReleaseNoise(mechanism, delta=delta)
            for epsilon in (epsilon_min, epsilon_max):
                self._noise.at(epsilon)
        if self.has_codebook:
            self._start_rows = max(_LEAST_START_ROWS, _ROWS_A_VECTOR * checked_sizes(codewords, levels)[0])
            expected_gain(epsilon_min, codewords, self.set_size)
        self.mechanism = mechanism
        self.epsilon_min, self.epsilon_max = epsilon_min, epsilon_max
        self.weight = weight
        self.temperature = temperature
        self.codewords, self.levels = codewords, levels
        self.assignment_temperature = assignment_temperature
        self.commitment, self.usage = commitment, usage
        self.lr = lr
        self.make_scheduler = make_scheduler
        self.seed = seed
        self.state: ReleaseAwareState | None = None
        self._figures: dict[str, float] = {}
        self._warned = False

    def build(self, context: Context) -> None:
        """Make the center and, for codebooks, the vectors that will learn."""
        codebook = None
        if self.has_codebook:
            codebook = LearnedCodebook(self.codewords, self.levels, context.feature_dim, self.assignment_temperature)
        rows = self._start_rows if self.has_codebook else 0
        self.state = ReleaseAwareState(context.feature_dim, codebook, rows).to(context.device)
        self._optimizer = None if codebook is None else torch.optim.Adam(codebook.parameters(), lr=self.lr)
        self._scheduler = None
        if self.make_scheduler is not None and self._optimizer is not None:
            self._scheduler = self.make_scheduler(self._optimizer)

    def trainables(self) -> dict[str, Trainable]:
        """Center, counters and codebook, saved with the checkpoint."""
        return {self.name: Trainable(self._state, self._optimizer, self._scheduler)}

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted term (nothing at weight 0, and until the codebook has started)."""
        state = self._state
        for parameter in state.parameters():
            parameter.grad = None
        # other ranks, other noise
        generator = np.random.default_rng([self.seed, int(state.steps), *([ranks.rank()] if ranks.rank() else [])])
        state.steps += 1
        state.center.update(batch.features.detach())
        with torch.set_grad_enabled(self.weight > 0):
            rows = state.center(batch.features)
            loss = self._loss(rows, batch.pids, draw_epsilon(self.epsilon_min, self.epsilon_max, generator), generator)
        return {} if loss is None or self.weight == 0 else {"loss_aware": self.weight * loss}

    def start_at_once(self) -> None:
        """Start the codebook from random rows."""
        if (codebook := self._state.codebook) is not None:
            with isolated_rng(self.seed):
                drawn = torch.randn(self._start_rows, len(self._state.center.mean))
            codebook.start(F.normalize(drawn, dim=1), self.seed)

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Step the codebook with the gradients of the joint backward pass."""
        if self._optimizer is not None:
            self._optimizer.step()
        return self._figures

    def _loss(self, rows: Tensor, pids: Tensor, epsilon: float, generator: np.random.Generator) -> Tensor | None:
        codebook = self._state.codebook
        if codebook is None:
            released = rows if self._noise is None else self._noise.release(rows, epsilon, generator)
            loss = supervised_contrastive(rows @ released.T, pids, self.temperature)
            self._figures = {"loss_aware": float(loss.detach())}
            return loss
        if not self._started(codebook, rows):
            self._figures = {}
            return None
        assigned = codebook.assign(rows, self.set_size)
        released = expected_gain(epsilon, len(codebook), self.set_size)[0] * set_mean(assigned, self.set_size)
        contrast = supervised_contrastive(rows @ released.T, pids, self.temperature)
        same = pids[:, None] == pids[None]
        people = F.normalize(same.to(rows) @ rows.detach(), dim=1)
        near = codebook.rows(codebook.nearest(people, 1)[:, 0])
        commitment = (rows - near.detach()).square().sum(1).mean()
        follow = (rows.detach() - near).square().sum(1).mean()
        gap = codebook.usage_gap(assigned)
        others = same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
        symbols = assigned.symbols[:, 0]
        shared = (symbols[:, None] == symbols[None])[others].float().mean()
        self._figures = {
            "loss_aware": float(contrast.detach()),
            "loss_aware_commitment": float(commitment.detach()),
            "aware_shared": 100 * float(shared),
            "aware_used": 100 * codebook.used(),
        }
        self._watch(codebook)
        return contrast + self.commitment * commitment + follow + self.usage * gap

    def _started(self, codebook: LearnedCodebook, rows: Tensor) -> bool:
        """Whether the codebook is there; gather rows until it can be fitted."""
        if not bool(codebook.started) and self._state.gather(rows.detach()):
            codebook.start(self._state.gathered, self.seed)
            share_module(codebook)
            self._state.gathered.zero_()
        return bool(codebook.started)

    def _watch(self, codebook: LearnedCodebook) -> None:
        """Warn once when most vectors have fallen out of use."""
        if codebook.used() < _COLLAPSED and int(codebook.batches) >= _WATCHED and not self._warned:
            self._warned = True
            _log.warning(
                "release_aware: people share few symbols: the codebook's levels use %.0f %% of what equal use would "
                "(in log). Raise privacy.aware.usage (now %g) or lower privacy.aware.commitment (now %g).",
                100 * codebook.used(),
                self.usage,
                self.commitment,
            )

    @property
    def _state(self) -> ReleaseAwareState:
        if self.state is None:
            raise RuntimeError("ReleaseAware has no state yet: give it to an engine, or call build(context).")
        return self.state


class ReleaseAwareState(nn.Module):
    """What has to go on when training is resumed: the center, the number of batches, the codebook or rows to start it.

    Args:
        columns: d.
        codebook: that learns, or None.
        start_rows: unit rows that the codebook is started from.
    """

    steps: Tensor
    gathered: Tensor
    gathered_rows: Tensor

    def __init__(self, columns: int, codebook: LearnedCodebook | None, start_rows: int) -> None:
        super().__init__()
        self.center = RunningCenter(columns)
        self.codebook = codebook
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("gathered", torch.zeros(start_rows, columns))
        self.register_buffer("gathered_rows", torch.zeros((), dtype=torch.int64))

    def gather(self, rows: Tensor) -> bool:
        """Keep rows (B, d) as far as there is room; return whether it is full."""
        begin = int(self.gathered_rows)
        kept = self.gathered[begin : begin + len(rows)]
        kept.copy_(rows[: len(kept)])
        self.gathered_rows += len(kept)
        return begin + len(kept) == len(self.gathered)
