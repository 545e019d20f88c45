"""Probes: what a label gives away, read off features by the best of several models on held-out people.

A model is fitted on all folds of the training people but one, for each fold; the fold left out says which model, how
regularized, is the best: nobody who is held out was trained on. The probe is the mean of the models of all folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..number_checks import require_whole
from .probe_models import Columns, Labels, Matrix, Path, Targets, fit_logistic, fit_mlp, fit_trees
from .scores import balanced_accuracy

FAMILIES = ("logistic", "mlp", "trees")
FOLDS = 3


@dataclass(frozen=True)
class Probe:
    """A fitted probe of one set of labels.

    Attributes:
        name: the model: ``logistic``, ``mlp`` or ``trees``.
        learned_from: the rows: ``protected`` as it is asked about, ``clean``, or ``mixed``.
        held_out: balanced accuracy on held-out training people.
        classes: labels of the columns of :meth:`probabilities`.
    """

    name: str
    learned_from: str
    held_out: float
    classes: Labels
    _models: tuple[tuple[Columns, Path], ...]
    _step: int
    _target: int

    def probabilities(self, features: Matrix, camids: Labels | None = None) -> Matrix:
        """Return (n, classes): the mean over the folds' models."""
        return probabilities({"": self}, features, camids)[""]

    def predict(self, features: Matrix, camids: Labels | None = None) -> Labels:
        """Return the most probable label of each row, (n,)."""
        return self.classes[self.probabilities(features, camids).argmax(axis=1)]


def probabilities(probes: Mapping[str, Probe], features: Matrix, camids: Labels | None = None) -> dict[str, Matrix]:
    """Return what each of several probes says of the rows, (n, classes); what they share is computed once."""
    said = {name: np.zeros((len(features), len(probe.classes)), dtype=np.float32) for name, probe in probes.items()}
    models = {id(path): (columns, path) for probe in probes.values() for columns, path in probe._models}
    for columns, path in models.values():
        rows = columns(features, camids)
        for name, probe in sorted(probes.items(), key=lambda item: item[1]._step):
            if any(path is one for _, one in probe._models):
                said[name] += path.answer(rows, probe._step, probe._target) / len(probe._models)
        path.forget()
    return said


def best_probe(
    features: Matrix,
    labels: Labels,
    groups: Labels,
    *,
    camids: Labels | None = None,
    clean: Matrix | None = None,
    families: Sequence[str] = FAMILIES,
    folds: int = FOLDS,
    seed: int = 0,
) -> Probe:
    """Return :func:`fit_probes` for one set of labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels, people = np.repeat([0, 1], 300), np.arange(600) // 3
        >>> rows = rng.normal(size=(600, 4)).astype(np.float32) + 4 * labels[:, None]
        >>> probe = best_probe(rows, labels, people, families=["logistic"])
        >>> bool((probe.predict(rows) == labels).mean() > 0.99)
        True
    """
    return fit_probes(
        features, {"": labels}, groups, camids=camids, clean=clean, families=families, folds=folds, seed=seed
    )[""]


def fit_probes(
    features: Matrix,
    labels: Mapping[str, Labels],
    groups: Labels,
    *,
    camids: Labels | None = None,
    clean: Matrix | None = None,
    families: Sequence[str] = FAMILIES,
    folds: int = FOLDS,
    seed: int = 0,
) -> dict[str, Probe]:
    """Fit a probe for each of several sets of labels, all at once.

    Args:
        features: (n, d), of training people.
        labels: by name, (n,), whole numbers; -1 where not known.
        groups: (n,), person of each row: people are held out whole.
        camids: (n,), further columns, or None: the probe does not get to know the camera.
        clean: (n, d), the same rows unprotected: models learn from these, and from both, too; which counts is still
            what reaches the most on protected rows of held-out people.
        families: models to try.
        folds: parts that the people are split into, >= 2.
        seed: of the split and of the models.

    Raises:
        ValueError: an unknown family, folds out of range, fewer people than folds, a set with fewer than two classes.
    """
    groups = np.asarray(groups)
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families has {unknown[0]!r}; allowed: {', '.join(FAMILIES)}.")
    check_labels(labels, groups, folds)
    classes = {name: np.unique(values[values >= 0]) for name, values in labels.items()}
    places = tuple(np.where(values >= 0, np.searchsorted(classes[name], values), -1) for name, values in labels.items())
    targets = Targets(places, tuple(len(one) for one in classes.values()))
    fold = people_in_folds(groups, folds, seed)
    sources = {"protected": [features]}
    if clean is not None and clean.shape[1] == features.shape[1]:
        sources |= {"clean": [clean], "mixed": [features, clean]}
    best: list[Probe | None] = [None] * len(places)
    for source, parts in sources.items():
        for family in families:
            if source == "mixed" and family == "trees":
                continue  # slow, and neither of its halves gains
            models = [
                _fitted(family, parts, targets, camids, fold != k, (features, fold == k), seed=seed * folds + k)
                for k in range(folds)
            ]
            steps = _best_steps(models, targets, features, camids, fold)
            for target, (found, (step, reached)) in enumerate(zip(classes.values(), steps, strict=True)):
                before = best[target]
                if before is None or reached > before.held_out:
                    best[target] = Probe(family, source, reached, found, tuple(models), step, target)
    return {name: probe for name, probe in zip(labels, best, strict=True) if probe is not None}


def _fitted(
    family: str,
    parts: Sequence[Matrix],
    targets: Targets,
    camids: Labels | None,
    chosen: Labels,
    held_out: tuple[Matrix, Labels],
    *,
    seed: int,
) -> tuple[Columns, Path]:
    inner_camids = None if camids is None else np.tile(camids[chosen], len(parts))
    rows = np.concatenate([part[chosen] for part in parts])
    columns = Columns.fit(rows, inner_camids)
    labels = targets.take(np.tile(np.flatnonzero(chosen), len(parts)))
    fit: Callable[..., Path]
    if family == "mlp":
        features, held = held_out
        held_rows = columns(features[held], None if camids is None else camids[held])
        fit = partial(fit_mlp, held_out=(held_rows, targets.take(held)))
    elif family == "trees":
        fit = partial(fit_trees, features=rows.shape[1])
    else:
        fit = fit_logistic
    return columns, fit(columns(rows, inner_camids), labels, seed=seed)


def _best_steps(
    models: Sequence[tuple[Columns, Path]],
    targets: Targets,
    features: Matrix,
    camids: Labels | None,
    fold: Labels,
) -> list[tuple[int, float]]:
    """Return for each set of labels the step that reaches the most on held-out people of all folds, and how much."""
    steps = max(path.steps for _, path in models)
    answers = np.zeros((len(targets.labels), steps, len(features)), dtype=np.int64)
    for k, (columns, path) in enumerate(models):
        held = np.flatnonzero(fold == k)
        rows = columns(features[held], None if camids is None else camids[held])
        for step in range(steps):
            for target in range(len(targets.labels)):
                answers[target, step, held] = path.answer(rows, step, target).argmax(axis=1)
        path.forget()
    chosen = []
    for labels, said in zip(targets.labels, answers, strict=True):
        known = labels >= 0
        reached = [balanced_accuracy(labels[known], one[known]) for one in said]
        step = int(np.argmax(reached))
        chosen.append((step, reached[step]))
    return chosen


def people_in_folds(groups: Labels, folds: int, seed: int) -> Labels:
    """Return the fold, from 0, of each row, (n,): whole people, drawn by the seed."""
    people, person = np.unique(groups, return_inverse=True)
    part = np.random.default_rng(seed).permutation(len(people)) % folds
    return part[person]


def check_labels(labels: Mapping[str, Labels], groups: Labels, folds: int = FOLDS) -> None:
    """Check that probes can be fitted, as `fit_probes` does.

    Raises:
        ValueError: folds out of range, fewer people than folds, a set with fewer than two classes.
    """
    require_whole("folds", folds, least=2)
    people = len(np.unique(groups))
    if people < folds:
        raise ValueError(
            f"{people} training people are fewer than {folds} folds: nobody could be held out. Give rows of at least "
            f"{folds} people outside the gallery."
        )
    for name, values in labels.items():
        if len(np.unique(values[values >= 0])) < 2:
            raise ValueError(
                f"labels{f' of {name!r}' if name else ''} have fewer than two classes among the training rows: there "
                "is nothing to tell apart. Leave them out."
            )
