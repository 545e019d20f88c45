"""The models that probes are made of: logistic, MLP, boosted trees.

Each is fitted for several sets of labels at once and gives a *path*: the same model from strongly to weakly
regularized (penalty of the logistic one, training steps of the MLP, number of trees). Held-out people say how far.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import isolated_rng
from .scores import balanced_accuracy

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PENALTIES = (2.0, 0.7, 0.2, 0.05, 0.003)  # on half the squared weights, beside the mean loss
SOLVER_STEPS = 15
HIDDEN, DROPOUT, LEARNING_RATE, WEIGHT_DECAY, BATCH = 256, 0.3, 2e-3, 1e-2, 256
ROUNDS = (20, 40, 60, 90, 130, 180, 250, 350, 500, 700, 1000, 1400)  # training steps after which the MLP is looked at
PATIENCE, LEAST_STEPS = 4, 350  # rounds without gain before it stops, and steps before that may happen
TREE_COLUMNS, TREE_ROWS, TREE_STAGES, TREE_BINS = 48, 6000, (10, 20, 40, 60), 255
_CONSTANT = 1e-5  # a column that varies less, relative to its size, is rounding (float32: 6e-8 a number)


@dataclass(frozen=True)
class Columns:
    """What a probe sees: features and their norm, standardized by training rows, and one column a camera if told.

    Attributes:
        mean, scale: (d + 1,) of the training rows; scale 0 for a constant column.
        cameras: camids with a column of their own.
    """

    mean: Matrix
    scale: Matrix
    cameras: Labels

    @classmethod
    def fit(cls, features: Matrix, camids: Labels | None) -> Columns:
        """Learn mean and scale of each column from training rows."""
        columns = _with_norm(features)
        mean, deviation = columns.mean(axis=0), columns.std(axis=0)
        varies = deviation > _CONSTANT * np.abs(mean)
        scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0).astype(np.float32)
        return cls(mean, scale, np.unique(camids) if camids is not None else np.zeros(0, dtype=np.int64))

    def __call__(self, features: Matrix, camids: Labels | None) -> Matrix:
        """Return (n, d + 1 + cameras); a camid that no training row had has zeros."""
        columns = (_with_norm(features) - self.mean) * self.scale
        if not len(self.cameras):
            return columns
        if camids is None:
            raise ValueError("the probe was trained with camids; give those of the rows that it is asked about.")
        return np.concatenate([columns, camids[:, None] == self.cameras[None]], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Targets:
    """Labels of rows: several sets, each with its own classes.

    Attributes:
        labels: one array (n,) a set, classes from 0, -1 where not known.
        sizes: number of classes of each.
    """

    labels: tuple[Labels, ...]
    sizes: tuple[int, ...]

    def take(self, rows: npt.NDArray[np.bool_] | Labels) -> Targets:
        """Return the labels of these rows."""
        return Targets(tuple(labels[rows] for labels in self.labels), self.sizes)

    def weights(self, target: int) -> Matrix:
        """Return weights (n,) that sum to 1 and give every class that occurs the same; 0 for unknown labels."""
        labels = self.labels[target]
        counts = np.bincount(labels[labels >= 0], minlength=self.sizes[target])
        each = 1 / (np.maximum(counts, 1) * max(1, np.count_nonzero(counts)))
        return np.where(labels >= 0, each[labels], 0.0).astype(np.float32)


class Path(ABC):
    """A fitted model at several strengths.

    Attributes:
        steps: how many.
    """

    steps: int

    @abstractmethod
    def answer(self, rows: Matrix, step: int, target: int) -> Matrix:
        """Return probabilities (n, classes) of a set of labels; a step beyond the last is the last.

        What was found for these rows is kept for further questions; :meth:`forget` drops it.
        """

    @abstractmethod
    def forget(self) -> None:
        """Drop what was kept."""


class _TorchPath(Path):
    """Snapshots of a network whose output holds the logits of all sets side by side."""

    def __init__(self, model: nn.Module, sizes: tuple[int, ...]) -> None:
        self.model, self.sizes = model, sizes
        self.states: list[dict[str, Tensor]] = []
        self._last: tuple[Matrix, int, Tensor] | None = None

    def keep(self) -> None:
        """Add the network as it is now."""
        self.states.append(copy.deepcopy(self.model.state_dict()))
        self.steps = len(self.states)
        self._last = None

    def answer(self, rows: Matrix, step: int, target: int) -> Matrix:
        step = min(step, self.steps - 1)
        if self._last is None or self._last[0] is not rows or self._last[1] != step:
            self.model.load_state_dict(self.states[step])
            self.model.eval()
            with torch.no_grad():
                self._last = (rows, step, self.model(torch.from_numpy(rows)))
        return self._last[2].split(self.sizes, dim=1)[target].softmax(dim=1).numpy()

    def forget(self) -> None:
        self._last = None


def fit_logistic(rows: Matrix, targets: Targets, *, seed: int = 0, steps: int = len(PENALTIES)) -> Path:
    """Fit multinomial logistic regression, class-balanced, along the penalties: L-BFGS, each starts where one ended."""
    model = nn.Linear(rows.shape[1], sum(targets.sizes))
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    path, inputs = _TorchPath(model, targets.sizes), torch.from_numpy(rows)
    labels, weights = _as_tensors(targets)
    for penalty in PENALTIES[:steps]:
        solver = torch.optim.LBFGS(
            model.parameters(), max_iter=SOLVER_STEPS, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure(solver: torch.optim.Optimizer = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            loss = _loss(model(inputs), labels, weights, targets.sizes) + penalty / 2 * model.weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        path.keep()
    return path


def fit_mlp(rows: Matrix, targets: Targets, *, held_out: tuple[Matrix, Targets], seed: int = 0) -> Path:
    """Fit one hidden layer, class-balanced, until held-out people are not answered better: AdamW, dropout."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(rows.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, sum(targets.sizes))
    )
    for parameter in model.parameters():
        bound = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.0
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    path, inputs = _TorchPath(model, targets.sizes), torch.from_numpy(rows)
    labels, weights = _as_tensors(targets)
    solver = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, since = -1.0, 0
    with isolated_rng(seed):  # dropout draws from the global generator
        for start, end in itertools.pairwise((0, *ROUNDS)):
            model.train()
            for _ in range(start, end):
                chosen = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)
                scaled = [weight[chosen] * (len(inputs) / len(chosen)) for weight in weights]
                loss = _loss(model(inputs[chosen]), [one[chosen] for one in labels], scaled, targets.sizes)
                solver.zero_grad()
                loss.backward()
                solver.step()
            path.keep()
            reached = _mean_score(path, *held_out)
            best, since = (reached, 0) if reached > best else (best, since + 1)
            if since >= PATIENCE and end >= LEAST_STEPS:
                break
    return path


class _OneClass:
    """Stands for trees where fewer than two classes are known: the one there is, if any, is always the answer."""

    def __init__(self, classes: Labels) -> None:
        self.classes_ = classes

    def staged_predict_proba(self, rows: Matrix) -> Iterator[Matrix]:
        yield from itertools.repeat(np.ones((len(rows), len(self.classes_)), dtype=np.float32), TREE_STAGES[-1])


class _TreesPath(Path):
    def __init__(self, models: list[Any], sizes: tuple[int, ...], basis: Matrix, edges: Matrix) -> None:
        self.models, self.sizes, self.basis, self.edges = models, sizes, basis, edges
        self.steps = len(TREE_STAGES)
        self._rows: Matrix | None = None
        self._staged: dict[int, list[Matrix]] = {}

    def answer(self, rows: Matrix, step: int, target: int) -> Matrix:
        if self._rows is not rows:
            self._rows, self._staged = rows, {}
        model = self.models[target]
        if target not in self._staged:
            staged = model.staged_predict_proba(_binned(_tree_columns(rows, self.basis), self.edges))
            self._staged[target] = [stage for count, stage in enumerate(staged, 1) if count in TREE_STAGES]
        found = self._staged[target][min(step, self.steps - 1)]
        result = np.zeros((len(rows), self.sizes[target]), dtype=np.float32)
        result[:, model.classes_] = found
        return result

    def forget(self) -> None:
        self._rows, self._staged = None, {}


def fit_trees(rows: Matrix, targets: Targets, *, features: int, seed: int = 0) -> Path:
    """Fit boosted trees, class-balanced; more than 48 feature columns are reduced to their principal components.

    Args:
        rows: (n, columns); the first ``features`` columns are features, norm and cameras come after them.
        targets: labels; at most 6,000 rows of each set are used, drawn at random.
        features: number of feature columns.
        seed: of the draw.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    basis = np.eye(features, dtype=np.float32)
    if features > TREE_COLUMNS:
        covariance = rows[:, :features].T @ rows[:, :features]
        basis = np.linalg.eigh(covariance)[1][:, -TREE_COLUMNS:].astype(np.float32)
    columns, rng = _tree_columns(rows, basis), np.random.default_rng(seed)
    models: list[Any] = []
    # binned here, once for all sets: the library would find weighted quantiles for each, which takes longer than to fit
    edges = np.quantile(columns, np.linspace(0, 1, TREE_BINS + 1)[1:-1], axis=0).astype(np.float32)
    columns = _binned(columns, edges)
    for labels in targets.labels:
        known = np.flatnonzero(labels >= 0)
        known = rng.permutation(known)[:TREE_ROWS]
        if len(classes := np.unique(labels[known])) < 2:
            models.append(_OneClass(classes))
            continue
        model = HistGradientBoostingClassifier(
            max_iter=TREE_STAGES[-1],
            max_leaf_nodes=15,
            l2_regularization=1.0,
            early_stopping=False,
            class_weight="balanced",
            random_state=seed,
        )
        models.append(model.fit(columns[known], labels[known]))
    return _TreesPath(models, targets.sizes, basis, edges)


def _with_norm(features: Matrix) -> Matrix:
    return np.concatenate([features, np.linalg.norm(features, axis=1, keepdims=True)], axis=1, dtype=np.float32)


def _tree_columns(rows: Matrix, basis: Matrix) -> Matrix:
    return np.concatenate([rows[:, : len(basis)] @ basis, rows[:, len(basis) :]], axis=1)


def _binned(columns: Matrix, edges: Matrix) -> Matrix:
    """Return how many of its column's edges, (bins - 1, columns), each entry has reached."""
    found = [np.searchsorted(edge, column, side="right") for edge, column in zip(edges.T, columns.T, strict=True)]
    return np.stack(found, axis=1).astype(np.float32)


def _as_tensors(targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    labels = [torch.from_numpy(labels) for labels in targets.labels]
    return labels, [torch.from_numpy(targets.weights(target)) for target in range(len(labels))]


def _loss(logits: Tensor, labels: list[Tensor], weights: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    parts = [
        (F.cross_entropy(block, label.clamp(min=0), reduction="none") * weight).sum()
        for block, label, weight in zip(logits.split(sizes, dim=1), labels, weights, strict=True)
    ]
    return torch.stack(parts).sum()


def _mean_score(path: Path, rows: Matrix, targets: Targets) -> float:
    scores = []
    for target, labels in enumerate(targets.labels):
        known = labels >= 0
        if known.any():
            answers = path.answer(rows, path.steps - 1, target).argmax(axis=1)
            scores.append(balanced_accuracy(labels[known], answers[known]))
    return float(np.mean(scores))
