"""Regressions from features to what is seen in a box: ridge, kernel ridge, and a small network.

Each is given with every strength as a candidate of its own; whoever asks chooses by people held out.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from ..components import isolated_rng
from .inversion_decoder import batches

Matrix = npt.NDArray[np.float32]
Predict = Callable[[Matrix], Matrix]

PENALTIES = (1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of ridge, times the number of rows: columns have variance 1
KERNEL_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # the kernel of a row with itself is 1
KERNEL_WIDTHS = (0.25, 1.0, 4.0)  # gamma, as multiples of 1 / median squared distance
KERNEL_ROWS = 1500  # more make it slow: the cost grows with their cube
HIDDEN_UNITS, DROPOUT = 256, 0.3
STEPS, LOOKS, BATCH, RATE, DECAY = 600, 6, 128, 1e-3, 1e-2  # of the network: a candidate at each look


def regressions(features: Matrix, wanted: Matrix, *, seed: int) -> Iterator[tuple[str, Predict]]:
    """Yield fitted regressions with their family: ``ridge``, ``kernel ridge`` or ``decoder``.

    Args:
        features: (n, d).
        wanted: (n, k), centered; columns are weighed by their variance.
        seed: of the rows that the kernel is cut down to, and of the network.
    """
    center, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-30), spread, 1.0)

    def scaled(rows: Matrix) -> Matrix:
        return ((rows - center) / spread).astype(np.float32)

    columns = scaled(features)
    for family, model in itertools.chain(
        _ridges(columns, wanted), _kernel_ridges(columns, wanted, seed), _networks(columns, wanted, seed)
    ):
        yield family, lambda rows, model=model: model(scaled(rows))  # type: ignore[misc]


def _ridges(columns: Matrix, wanted: Matrix) -> Iterator[tuple[str, Predict]]:
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty * len(columns)).fit(columns.astype(np.float64), wanted.astype(np.float64))
        yield "ridge", lambda rows, model=model: model.predict(rows).reshape(len(rows), -1).astype(np.float32)  # type: ignore[misc]


def _kernel_ridges(columns: Matrix, wanted: Matrix, seed: int) -> Iterator[tuple[str, Predict]]:
    """Gaussian kernels: one eigendecomposition serves all penalties of a width."""
    kept = np.sort(np.random.default_rng(seed).permutation(len(columns))[:KERNEL_ROWS])
    known, targets = columns[kept].astype(np.float64), wanted[kept].astype(np.float64)
    distances = _squared_distances(known, known)
    scale = float(np.median(distances[np.triu_indices(len(known), 1)])) if len(known) > 1 else 0.0
    if scale <= 0:
        return
    for width in KERNEL_WIDTHS:
        gamma = width / scale
        values, vectors = np.linalg.eigh(np.exp(-gamma * distances))
        turned = vectors.T @ targets
        for penalty in KERNEL_PENALTIES:
            weights = vectors @ (turned / (np.maximum(values, 0.0) + penalty)[:, None])

            def predict(rows: Matrix, gamma: float = gamma, weights: npt.NDArray[np.float64] = weights) -> Matrix:
                kernel = np.exp(-gamma * _squared_distances(rows.astype(np.float64), known))
                return (kernel @ weights).astype(np.float32)

            yield "kernel ridge", predict


def _networks(columns: Matrix, wanted: Matrix, seed: int) -> Iterator[tuple[str, Predict]]:
    """One hidden layer, as it is after each sixth of its training."""
    with isolated_rng(seed):
        network = nn.Sequential(
            nn.Linear(columns.shape[1], HIDDEN_UNITS),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN_UNITS, wanted.shape[1]),
        )
        solver = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, STEPS)
        inputs, targets = torch.from_numpy(columns), torch.from_numpy(wanted)
        states = []
        for step, chosen in enumerate(itertools.islice(batches(len(inputs), seed, BATCH), STEPS), 1):
            loss = F.mse_loss(network(inputs[chosen]), targets[chosen], reduction="sum") / len(chosen)
            solver.zero_grad()
            loss.backward()
            solver.step()
            schedule.step()
            if step % (STEPS // LOOKS) == 0:
                states.append(copy.deepcopy(network).eval())
    for state in states:
        yield "decoder", lambda rows, state=state: _predicted(state, rows)  # type: ignore[misc]


@torch.no_grad()
def _predicted(network: nn.Module, rows: Matrix) -> Matrix:
    return np.asarray(network(torch.from_numpy(rows)).numpy(), dtype=np.float32)


def _squared_distances(rows: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None] - 2 * rows @ others.T
    return np.maximum(found, 0.0)
