r"""A projection head trained with DP-SGD on frozen features: cross entropy, one clipped gradient a unit, noise.

What is published is the projection W (dim, d) of rows of length 1; the classifier above it is thrown away
(post-processing). The guarantee is about the people this head was trained on, and covers *the head only*: the whole
model only if the frozen backbone, and every transform in front of the head, never saw them (:func:`.covered`).

Not paid for, hence not done here: centering by the training mean, a choice of lr, dim or epochs by looking at figures
of this training set. Choose on other people; ``chosen_on`` records on which.

Treated as public: the number of units, and the label space (how many classes there are, not who they are).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import require_clip_norm, to_rows, unit_rows
from ppreid_plugin.dp.noise import ResearchNoise
from ppreid_plugin.dp.numerics import require_delta
from ppreid_plugin.dp.private_head_accounting import HeadBudget, plan_budget
from ppreid_plugin.dp.private_head_steps import EntropyNoise, HeadModel, HeadTrainer, Units
from ppreid_plugin.dp.private_head_transform import PrivateHead, covered
from ppreid_plugin.dp.units import UNITS
from ppreid_plugin.number_checks import is_number, require_positive, require_whole
from ppreid_plugin.progress import track

IMAGE_RATE = 0.1  # of the images, where no batch is given; our choice, on validation people of Market-1501

_log = logging.getLogger(__name__)


def train_private_head(
    features: np.ndarray | torch.Tensor,
    pids: npt.ArrayLike | torch.Tensor,
    *,
    epsilon: float,
    delta: float = 1e-5,
    unit: str = "image",
    dim: int = 128,
    epochs: float = 20,
    batch: int | None = None,
    clip_norm: float = 1.0,
    lr: float = 1.0,
    momentum: float = 0.9,
    scale: float = 8.0,
    rows_per_person: int = 16,
    num_classes: int | None = None,
    accountant: str = "prv",
    seed: int = 1,
    research: bool = False,
    trained_on: str = "",
    backbone_trained_on: Sequence[str] = (),
    backbone: str = "",
    chosen_on: str = "not stated",
) -> PrivateHead:
    r"""Train a head and return its projection with the record of what it guarantees.

    .. math:: W \leftarrow W - \eta\, m_t, \qquad
              g_t = \frac1{B} \Big( \sum_{u \in S_t} \nabla_u \min\big(1, \tfrac{C}{|\nabla_u|}\big)
                    + \mathcal N(0, \sigma^2 C^2 I) \Big)

    with :math:`S_t` a Poisson sample of the units, :math:`\nabla_u` the gradient of the mean cross entropy of the
    unit's rows, and m the momentum of g. Neighboring training sets differ by one unit: there or not (``add/remove``).

    Args:
        features: training rows, frozen; each is scaled to length 1.
        pids: their people.
        epsilon: budget of a unit, > 0; infinity trains without noise.
        delta: failure probability of a unit, in (0, 1); warns above 1 / (10 n) for n units.
        unit: ``image``: one row; ``person``: all rows of a pid.
        dim: columns of the projection, which starts at random orthonormal directions: with ``dim`` = d at the
            features' own cosines.
        epochs: times a unit is expected to be seen; steps = epochs * n / batch, rounded.
        batch: expected units a step, 1 to n; None: all people, or a tenth of the images.
        clip_norm: bound C on a unit's gradient.
        lr: learning rate of the mean gradient.
        momentum: in [0, 1).
        scale: factor of the logits; 8 did better than 16 and 32 on validation people.
        rows_per_person: of a person with more rows, that many are drawn afresh for each step.
        num_classes: size of the label space, pids then being 0 ... num_classes - 1; None takes the distinct pids,
            which treats their number as public.
        accountant: ``prv`` or ``rdp``, see :func:`.plan_budget`.
        seed: of the initial projection; with ``research`` of everything.
        research: draw sampling and noise from ``seed``, for figures that can be repeated. Whoever knows the seed
            subtracts the noise, so the record of such a head says that nothing is covered.
        trained_on: name of this training set.
        backbone_trained_on: names of all data sets that the backbone saw; ``unknown`` if in doubt.
        backbone: fingerprint of its weights; a head is of use with these only.
        chosen_on: on which people dim, lr, epochs and the rest were chosen.

    Shape:
        features: (n, d). pids: (n,).

    Raises:
        ValueError: an argument out of range, fewer than two people, labels that do not fit, a budget that cannot be
            priced, or a training that diverged.

    Guarantee:
        (epsilon, delta)-DP under add/remove of one unit, for the projection, given the backbone. At image level a
        person of k images is protected by group privacy only: next to nothing beyond a few.

    Source:
        Abadi et al., CCS 2016, arXiv 1607.00133 (DP-SGD); a person as the unit: McMahan et al., ICLR 2018, arXiv
        1710.06963.
    """
    rows, _ = to_rows(features)
    people = check_head_settings(
        pids,
        len(rows),
        dim=dim,
        clip_norm=clip_norm,
        lr=lr,
        momentum=momentum,
        scale=scale,
        rows_per_person=rows_per_person,
        num_classes=num_classes,
        seed=seed,
    )
    classes = int(people.max()) + 1 if num_classes is None else num_classes
    members = unit_members(people, unit)
    budget = head_budget(
        len(members), epsilon=epsilon, delta=delta, unit=unit, epochs=epochs, batch=batch, accountant=accountant
    )
    exact = unit_rows(rows.detach().cpu().double())
    generator = np.random.default_rng(seed)
    model = HeadModel(_orthonormal(dim, exact.shape[1], generator), classes, scale)
    noise = ResearchNoise(generator, torch.device("cpu")) if research else EntropyNoise()
    expected = budget.sample_rate * len(members)
    trainer = HeadTrainer(
        model,
        budget,
        clip_norm=float(clip_norm),
        batch=expected,
        lr=float(lr),
        momentum=float(momentum),
        noise=noise,
    )
    units = Units(exact, people, members, rows_per_person, exact.shape[1] + 3 * dim + 3 * classes)
    for _ in track(range(budget.steps), "Training the head", unit="steps"):
        trainer.step(units.batches(units.sample(budget.sample_rate, noise), noise))
    ((noise_multiplier, sample_rate, steps),) = trainer.accountant.history
    done = dataclasses.replace(budget, noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    record: dict[str, Any] = {
        **done.describe(),
        "unit": unit,
        "units": len(members),
        "label_space": f"{classes} classes, treated as public",
        "clip_norm": float(clip_norm),
        "batch": expected,
        "epochs": float(epochs),
        "lr": float(lr),
        "momentum": float(momentum),
        "scale": float(scale),
        "rows_per_person": rows_per_person if unit == "person" else None,
        "seed": int(seed),
        "noise": f"research, seed {seed}: for figures only" if research else EntropyNoise.description,
        "trained_on": trained_on or "not stated",
        "backbone": backbone or "not stated",
        "backbone_trained_on": list(backbone_trained_on),
        "chosen_on": chosen_on,
        "covers": covered(trained_on, backbone_trained_on, noise=noise_multiplier > 0 and not research),
    }
    return PrivateHead(model.projection.weight.detach().numpy(), record)


def check_head_settings(
    pids: npt.ArrayLike | torch.Tensor,
    rows: int,
    *,
    dim: int,
    clip_norm: float,
    lr: float,
    momentum: float,
    scale: float,
    rows_per_person: int,
    num_classes: int | None,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Return labels of people from 0, (n,), if :func:`train_private_head` can be called with these arguments.

    Args:
        pids: as there, and so the rest.
        rows: number of rows of the features.
        dim: columns of the projection.
        clip_norm: bound on a unit's gradient.
        lr: learning rate.
        momentum: in [0, 1).
        scale: of the scores.
        rows_per_person: person unit: rows of a person that are used in a step.
        num_classes: size of the label space; None: as many as there are people.
        seed: of the start.

    Raises:
        ValueError: a value out of range, labels that are none, fewer than two people.
    """
    people = _labels(pids, rows, num_classes)
    require_whole("dim", dim)
    require_whole("rows_per_person", rows_per_person)
    require_whole("seed", seed, least=0)
    require_clip_norm(clip_norm)
    require_positive("lr", lr)
    require_positive("scale", scale)
    if not (is_number(momentum) and 0 <= momentum < 1):
        raise ValueError(f"momentum is {momentum!r}, must be in [0, 1). 0.9 is usual.")
    return people


def head_budget(
    units: int,
    *,
    epsilon: float,
    delta: float = 1e-5,
    unit: str = "image",
    epochs: float = 20,
    batch: int | None = None,
    accountant: str = "prv",
) -> HeadBudget:
    """Return rate, steps and noise of a training on ``units`` units; arguments as of :func:`train_private_head`.

    Raises:
        ValueError: a value out of range, or a budget that cannot be priced.

    Example:
        >>> budget = head_budget(751, epsilon=8.0, unit="person", epochs=20)
        >>> budget.sample_rate, budget.steps, budget.epsilon() <= 8.0
        (1.0, 20, True)
    """
    if batch is None:
        batch = units if unit == "person" else math.ceil(IMAGE_RATE * units)
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or not 1 <= batch <= units:
        raise ValueError(f"batch is {batch!r}, must be a whole number from 1 to {units}, the number of units ({unit}).")
    steps = max(1, round(require_positive("epochs", epochs) * units / batch))
    if require_delta(delta, who="DP-SGD") > 1 / (10 * units):
        _log.warning(
            "delta is %g, above 1 / (10 n) = %g for %d units (%s): a unit may be given away. Use a smaller one.",
            delta,
            1 / (10 * units),
            units,
            unit,
        )
    return plan_budget(epsilon, delta, sample_rate=batch / units, steps=steps, accountant=accountant)


def unit_members(people: npt.NDArray[np.int64], unit: str) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each unit: one each, or all of a person.

    Raises:
        ValueError: unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; allowed: {', '.join(UNITS)}.")
    order = np.argsort(people, kind="stable")
    bounds = np.flatnonzero(np.diff(people[order])) + 1 if unit == "person" else np.arange(1, len(people))
    return np.split(order, bounds)


def _labels(pids: npt.ArrayLike | torch.Tensor, rows: int, num_classes: int | None) -> npt.NDArray[np.int64]:
    labels = pids.detach().cpu().numpy() if isinstance(pids, torch.Tensor) else np.asarray(pids)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise ValueError(f"pids has shape {labels.shape} of {labels.dtype}, must be ({rows},), whole numbers.")
    distinct, of_row = np.unique(labels, return_inverse=True)
    if len(distinct) < 2:
        raise ValueError(f"pids name {len(distinct)} person, a head needs at least 2. Train on more people.")
    if num_classes is None:
        return of_row.astype(np.int64)
    if distinct[0] < 0 or distinct[-1] >= require_whole("num_classes", num_classes):
        raise ValueError(
            f"pids go from {distinct[0]} to {distinct[-1]}, but num_classes is {num_classes}: they must be 0 to "
            f"{num_classes - 1}. Renumber them, or leave num_classes out."
        )
    return labels.astype(np.int64)


def _orthonormal(dim: int, columns: int, generator: np.random.Generator) -> torch.Tensor:
    """Return (dim, columns) with orthonormal rows, or columns where there are fewer of them."""
    tall = np.linalg.qr(generator.standard_normal((max(dim, columns), min(dim, columns))))[0]
    return torch.from_numpy(np.ascontiguousarray(tall if dim >= columns else tall.T))
