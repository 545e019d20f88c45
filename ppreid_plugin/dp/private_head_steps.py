r"""Steps of DP-SGD for a projection head, where one *unit* (an image, or a person with all rows) is one sample.

A person enters Opacus as a sequence: his rows (R, d) are one sample of a batch (B, R, d), his loss is the mean over his
rows, so there is one gradient a person, whatever their number, and it is clipped once. An image is a sequence of one.
Clipping is Opacus's ghost clipping (norms of gradients that are never held one by one; Li et al., ICLR 2022, arXiv
2110.05679), in float64, since its norm of a sequence is a sum that cancels. What differs from Opacus is where the
noise comes from: torch's generator takes 32 bits of a seed on a CPU, which can be tried out one by one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from opacus.accountants import create_accountant
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import nn
from torch.nn import functional as F

from ppreid_plugin.dp.private_head_accounting import HeadBudget

_CHUNK_ELEMENTS = 2**22  # float64 numbers a chunk of units: 32 MiB, a few copies of it


class Noise(Protocol):
    """Where normal and uniform numbers come from; :class:`.ResearchNoise` is one, too."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, sigma: float = 1.0) -> torch.Tensor:
        """Return normal numbers of standard deviation ``sigma``."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` uniform numbers in (0, 1]."""


class EntropyNoise:
    """Numbers made from the operating system's generator: no seed, no state. Not an exact sampler (floating point)."""

    description = "operating system's generator, Box-Muller in float64; not an exact sampler"

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, sigma: float = 1.0) -> torch.Tensor:
        """Return normal numbers by Box and Muller (1958): 64 bits for the radius, so that tails reach 9.4 sigma."""
        count = math.prod(shape)
        bits = np.frombuffer(os.urandom(16 * ((count + 1) // 2)), np.uint64).reshape(2, -1)
        radius = sigma * np.sqrt(-2 * np.log((bits[0] + 0.5) * 2.0**-64))
        angle = bits[1] * (2 * math.pi * 2.0**-64)
        drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        return torch.from_numpy(drawn.reshape(shape)).to(dtype)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return multiples of 2^-53 in (0, 1]."""
        return ((np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53


class HeadModel(nn.Module):
    """Projection and cosine classifier; neither couples rows: no BatchNorm, no batch statistics.

    Args:
        projection: initial weight (dim, d).
        num_classes: outputs of the classifier, which starts at zero.
        scale: factor of the logits, whose other part is the classifier's weight times a row of length 1.

    Shape:
        rows: (B, R, d), float64. Output: (B, R, num_classes).
    """

    def __init__(self, projection: torch.Tensor, num_classes: int, scale: float) -> None:
        super().__init__()
        self.projection = nn.Linear(projection.shape[1], projection.shape[0], bias=False, dtype=torch.float64)
        self.classifier = nn.Linear(projection.shape[0], num_classes, bias=False, dtype=torch.float64)
        self.scale = scale
        with torch.no_grad():
            self.projection.weight.copy_(projection)
            self.classifier.weight.zero_()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.scale * self.classifier(F.normalize(self.projection(rows), dim=-1))


class Batch(NamedTuple):
    """Units as samples: ``rows`` (B, R, d), ``labels`` (B,), ``weights`` (B, R): 1 over a unit's rows, 0 where none."""

    rows: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


class Units:
    """The training rows, gathered into units.

    Args:
        rows: (n, d), float64, length 1.
        labels: (n,), from 0.
        members: rows of each unit, all of one label.
        rows_per_unit: a unit with more is represented by that many, drawn afresh each time.
        numbers_a_row: what a row takes in memory, for the size of a chunk.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        labels: npt.NDArray[np.int64],
        members: Sequence[npt.NDArray[np.int64]],
        rows_per_unit: int,
        numbers_a_row: int,
    ) -> None:
        self._rows, self._labels = rows, torch.from_numpy(labels)
        self._members, self._limit, self._numbers = members, rows_per_unit, numbers_a_row

    def __len__(self) -> int:
        return len(self._members)

    def sample(self, rate: float, noise: Noise) -> npt.NDArray[np.int64]:
        """Return the units of one step, each chosen with probability ``rate`` for itself (Poisson sampling)."""
        return np.flatnonzero(noise.uniform(len(self)) <= rate)

    def batches(self, chosen: npt.NDArray[np.int64], noise: Noise) -> Iterator[Batch]:
        """Yield the chosen units in chunks of bounded memory; nothing if none is chosen."""
        drawn = [self._drawn(self._members[unit], noise) for unit in chosen]
        longest = max(map(len, drawn), default=1)
        step = max(1, _CHUNK_ELEMENTS // (longest * self._numbers))
        for start in range(0, len(drawn), step):
            part = drawn[start : start + step]
            width = max(map(len, part))
            places = torch.from_numpy(np.stack([np.pad(rows, (0, width - len(rows)), mode="edge") for rows in part]))
            counts = torch.tensor([len(rows) for rows in part])[:, None]
            weights = (torch.arange(width) < counts).double() / counts
            yield Batch(self._rows[places], self._labels[places[:, 0]], weights)

    def _drawn(self, rows: npt.NDArray[np.int64], noise: Noise) -> npt.NDArray[np.int64]:
        if len(rows) <= self._limit:
            return rows
        return rows[np.argsort(noise.uniform(len(rows)))[: self._limit]]


class HeadTrainer:
    """Clips a unit's gradient, sums, adds noise and steps, by Opacus; counts the steps for its accountant.

    Args:
        model: what is trained.
        budget: rate, number and noise of the steps.
        clip_norm: bound C on a unit's gradient, all parameters together; the noise has standard deviation
            ``noise_multiplier`` times C, on the sum.
        batch: expected number of units a step, what the noised sum is divided by.
        lr: learning rate of SGD.
        momentum: of SGD.
        noise: where the noise comes from.
    """

    def __init__(
        self,
        model: HeadModel,
        budget: HeadBudget,
        *,
        clip_norm: float,
        batch: float,
        lr: float,
        momentum: float,
        noise: Noise,
    ) -> None:
        self.model = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=clip_norm)
        self.optimizer = _Optimizer(
            torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum),
            noise_multiplier=budget.noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=batch,
        )
        self.optimizer.noise = noise
        self.accountant = create_accountant(mechanism=budget.accountant)
        self.optimizer.attach_step_hook(self.accountant.get_optimizer_hook_fn(budget.sample_rate))

    def step(self, batches: Iterator[Batch]) -> None:
        """Take one step on the units in ``batches``; without any, the step is noise alone."""
        self.optimizer.zero_grad()
        following = next(batches, None)
        if following is None:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
            return
        while (current := following) is not None:
            self.add_clipped(current)
            following = next(batches, None)
            self.optimizer.signal_skip_step(following is not None)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def add_clipped(self, batch: Batch) -> None:
        """Leave in each parameter's ``grad`` the sum over the units of their clipped gradients."""
        losses = unit_losses(self.model, batch)
        with warnings.catch_warnings():  # torch's remark that rows need no gradient, which is as meant
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            losses.sum().backward(retain_graph=True)
            factors = self.model.get_clipping_coef().detach()
            self.model.zero_grad()
            self.model.disable_hooks()
            (factors * losses).sum().backward()
            self.model.enable_hooks()


def unit_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return each unit's loss (B,): the mean cross entropy over its rows, nats."""
    logits = model(batch.rows)
    labels = batch.labels[:, None, None].expand(*logits.shape[:2], 1)
    row_losses = -F.log_softmax(logits, dim=-1).gather(-1, labels)[..., 0]
    return (row_losses * batch.weights).sum(dim=1)


class _Optimizer(DPOptimizerFastGradientClipping):
    noise: Noise

    def add_noise(self) -> None:
        """Add noise to the summed, clipped gradients."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total = parameter.summed_grad
            drawn = self.noise.normal(tuple(total.shape), total.dtype, std) if std else torch.zeros_like(total)
            parameter.grad = (total + drawn).view_as(parameter)
