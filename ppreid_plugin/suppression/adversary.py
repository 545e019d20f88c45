"""Adv-ID: adversaries that try to recover identifying information, and the term that trains the encoder against them.

Who learns from what: the adversary from its own loss on *detached* input; the encoder from the bounded, reversed loss,
which passes through decoder and adversary with their parameters frozen; the decoder from neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Batch, Component, Context, Trainable, frozen, isolated_rng
from ..registry import Registry
from .deid_decoder import DeIDDecoder

_INPUTS = ("reconstruction", "feature")
_SCHEDULES = ("reversal",)
_RAMP_STEEPNESS = 10.0  # Ganin and Lempitsky, ICML 2015, section 4.1


class Adversary(Component, ABC):
    r"""Base class of adversaries, and the contract of a registered one.

    A subclass says what it predicts: `make_module`, `sample_losses` and `chance_loss`. The base class does the rest:
    the ``reversal`` schedule adds to the encoder's loss, with the adversary frozen,

    .. math:: -\lambda(p) \, w \, \frac{1}{B} \sum_i \min(\ell_i, \ell_\text{chance})

    so the gradient of a sample is zero once the adversary does no better than chance on it; the adversary then takes a
    step on its own loss. :math:`\lambda(p) = 2 / (1 + e^{-10 p}) - 1` over the training's progress p when ``ramp``.

    Args:
        input: ``reconstruction`` (the De-ID decoder's image, as in the paper) or ``feature``.
        weight: w above, >= 0; at 0 the adversary only watches.
        schedule: ``reversal``.
        ramp: let the weight grow from 0 (Ganin and Lempitsky 2015).
        lr: learning rate of the adversary (Adam).
        make_scheduler: makes a learning rate scheduler from the optimizer, stepped once an epoch.
        seed: seed of the adversary's initial weights.

    Raises:
        ValueError: an unknown input or schedule, a negative weight, no decoder for ``reconstruction``.

    Source:
        Kansal, Wong, Kankanhalli, WACV 2024 (Adv-ID module; layers, weights and schedule are our choice).
    """

    name = "adversary"

    def __init__(
        self,
        *,
        input: str = "reconstruction",
        weight: float = 0.1,
        schedule: str = "reversal",
        ramp: bool = True,
        lr: float = 1e-3,
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        seed: int = 1,
    ) -> None:
        if input not in _INPUTS:
            raise ValueError(f"adversary input is {input!r}; allowed: {', '.join(_INPUTS)}.")
        if schedule not in _SCHEDULES:
            raise ValueError(f"adversary schedule is {schedule!r}; allowed: {', '.join(_SCHEDULES)}.")
        if not weight >= 0:
            raise ValueError(f"adversary weight is {weight}, must be >= 0.")
        self.input = input
        self.weight = weight
        self.schedule = schedule
        self.ramp = ramp
        self.lr = lr
        self.make_scheduler = make_scheduler
        self.seed = seed
        self._decoder: DeIDDecoder | None = None
        self._module: nn.Module | None = None
        self._seen: Tensor | None = None

    @abstractmethod
    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return the adversary's network for inputs (B, *input_shape)."""

    @abstractmethod
    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each sample, shape (B,), from the network's outputs."""

    @abstractmethod
    def chance_loss(self, context: Context) -> float:
        """Return the loss of an adversary that knows nothing: the bound of the encoder's gain."""

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Return further figures to log, such as an accuracy."""
        return {}

    def build(self, context: Context) -> None:
        """Make the network; find the decoder whose reconstruction is read."""
        if self.input == "reconstruction":
            self._decoder = context.find(DeIDDecoder)
            if self._decoder is None:
                raise ValueError(
                    f"{self.name} reads the reconstruction, but there is no DeIDDecoder among the components. "
                    "Add one, or use input='feature' (privacy.adversary.input feature)."
                )
            shape: tuple[int, ...] = (self._decoder.out_channels, self._decoder.height, self._decoder.width)
        else:
            shape = (context.feature_dim,)
        self._bound = self.chance_loss(context)
        with isolated_rng(self.seed):
            self._module = self.make_module(shape, context).to(context.device)
        optimizer = torch.optim.Adam(self._module.parameters(), lr=self.lr)
        scheduler = self.make_scheduler(optimizer) if self.make_scheduler else None
        self._trainable = Trainable(self._module, optimizer, scheduler)

    def trainables(self) -> dict[str, Trainable]:
        """The adversary's network."""
        return {self.name: self._trainable}

    def strength(self, progress: float) -> float:
        """Weight of the adversarial term at ``progress`` in [0, 1]."""
        if not self.ramp:
            return self.weight
        return self.weight * (2.0 / (1.0 + math.exp(-_RAMP_STEEPNESS * progress)) - 1.0)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's adversarial term (nothing at weight 0)."""
        if self._decoder is None:
            read = batch.features
        elif self.weight > 0:
            read = self._decoder.decode_frozen(batch)
        else:
            with torch.no_grad():
                read = self._decoder.decode_frozen(batch)
        self._seen = read.detach()
        if self.weight == 0:
            return {}
        losses = self.sample_losses(frozen(self.module, read), batch)
        return {f"loss_{self.name}": -self.strength(batch.progress) * losses.clamp(max=self._bound).mean()}

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Step the adversary on the detached input of this batch."""
        if self._seen is None:
            return {}
        outputs = self.module(self._seen)
        loss = self.sample_losses(outputs, batch).mean()
        self._trainable.optimizer.zero_grad()
        loss.backward()
        self._trainable.optimizer.step()
        self._seen = None
        return {f"loss_{self.name}": float(loss.detach()), **self.figures(outputs.detach(), batch)}

    @property
    def module(self) -> nn.Module:
        """The adversary's network."""
        if self._module is None:
            raise RuntimeError(f"{self.name} has no network yet: give it to an engine, or call build(context).")
        return self._module


ADVERSARIES: Registry[type[Adversary]] = Registry("adversary", contract=Adversary)
register_adversary = ADVERSARIES.register


@register_adversary("identity")
class IdentityAdversary(Adversary):
    """Closed-set identification of the training people, from the reconstruction (the paper's) or the feature.

    The labels are the Re-ID labels: what it recovers conflicts with Re-ID itself, and ``weight`` is the dial. The loss
    of chance is log(number of people).
    """

    name = "adversary_identity"

    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return three strided convolutions and two dense layers for an image, two dense layers for a feature."""
        classes = context.num_classes
        if len(input_shape) == 1:
            return nn.Sequential(
                nn.LayerNorm(input_shape[0]), nn.Linear(input_shape[0], 256), nn.ReLU(), nn.Linear(256, classes)
            )
        return nn.Sequential(
            nn.Conv2d(input_shape[0], 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((8, 4)),
            nn.Flatten(),
            nn.Linear(64 * 8 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each sample, natural logarithm."""
        return F.cross_entropy(outputs, batch.pids, reduction="none")

    def chance_loss(self, context: Context) -> float:
        """Log of the number of training people."""
        return math.log(context.num_classes)

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Top-1 accuracy of the batch in percent, as torchreid's ``acc``."""
        hits = (outputs.argmax(1) == batch.pids).float().mean()
        return {f"acc_{self.name}": 100.0 * float(hits)}
