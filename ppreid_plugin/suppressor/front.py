"""What suppression costs in matching, weight by weight, on training people that were held out: what to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..leakage import LeakageSet, measure_leakage
from ..leakage.image_components import named_components
from ..leakage.judge import has_matches
from ..retrieval import evaluate
from .transform import Suppressor


@dataclass(frozen=True)
class FrontPoint:
    """Figures at one weight, as fractions.

    Attributes:
        erasure: the weight; None: the features as they are.
        image_erasure: that of the image components; None: the features as they are, or none are suppressed.
        rank1, mAP: of the held-out people's images among each other, cosine, their own camera's left out.
        leakage: by attribute, (attacker - floor) / (attacker on the features as they are - floor); None where these
            stand too close to the floor.
        reconstruction: the same of the SSIM of inversions; None: no image components are suppressed, so it was not
            measured.
    """

    erasure: float | None
    rank1: float
    mAP: float  # noqa: N815 (as in the papers)
    leakage: dict[str, float | None]
    image_erasure: float | None = None
    reconstruction: float | None = None


@dataclass(frozen=True)
class Front:
    """The points, and which attributes were suppressed.

    Attributes:
        points: the features as they are first, then by weight as given.
        suppressed: names; the others were never shown to the suppressor.
        held_out_people, attack_seeds: what was judged on, and by how many attackers each.
        image_components: how many of the images and of their upper quarter are suppressed, too.
    """

    points: list[FrontPoint]
    suppressed: list[str]
    held_out_people: int
    attack_seeds: int
    image_components: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the points as a table, in percent: mean and largest leakage of what was suppressed, mean of the rest.

        Example:
            >>> print(Front([FrontPoint(3.0, 0.8, 0.6, {"hat": 0.5, "bag": 0.7})], ["hat"], 9, 1).table())
              erasure    rank-1    mAP    suppressed    largest    others
            ---------  --------  -----  ------------  ---------  --------
                    3      80.0   60.0          50.0       50.0      70.0
        """
        lines = []
        for point in self.points:
            shares = [
                [leakage for name, leakage in point.leakage.items() if leakage is not None and wanted(name)]
                for wanted in (self.suppressed.__contains__, lambda name: name not in self.suppressed)
            ]
            figures = [point.rank1, point.mAP, _mean(shares[0]), max(shares[0], default=None), _mean(shares[1])]
            weights = [point.erasure]
            if self.image_components:
                figures.append(point.reconstruction)
                weights.append(point.image_erasure)
            shown = ["-" if one is None else f"{100 * one:.1f}" for one in figures]
            lines.append([*("none" if one is None else f"{one:g}" for one in weights), *shown])
        headers = ["erasure", "rank-1", "mAP", "suppressed", "largest", "others"]
        if self.image_components:
            headers = ["erasure", "of images", *headers[1:], "inversion"]
        return tabulate(lines, headers=headers, disable_numparse=True, colalign=("right",) * len(headers))


def hold_out(rows: LeakageSet, people: int, seed: int) -> tuple[LeakageSet, LeakageSet]:
    """Return the rows to fit on, and those of ``people`` people drawn at random.

    Raises:
        ValueError: fewer than 2 people are left on either side.
    """
    pids = np.unique(rows.people.pids)
    if not 2 <= people <= len(pids) - 2:
        raise ValueError(f"{people} people to hold out of {len(pids)}; must be 2 to {len(pids) - 2}, such as a fifth.")
    held = np.isin(rows.pids, np.random.default_rng(seed).permutation(pids)[:people])
    return rows.take(~held), rows.take(held)


def suppressor_front(
    train: LeakageSet,
    held_out: LeakageSet,
    suppressed: Sequence[str],
    weights: Sequence[float],
    *,
    image_components: int = 0,
    head_components: int = 0,
    image_weights: Sequence[float] = (300.0,),
    attack_seeds: int = 1,
    resume: str | Path | None = None,
    **settings: Any,
) -> Front:
    """Fit a suppressor for every weight and judge it on people whom it has not seen.

    Fresh attackers (`ppreid_plugin.leakage`: attributes, and reconstruction where image components are suppressed)
    learn from the fit's people, from features suppressed and as they are, and are scored on the held-out ones.

    Args:
        train: rows with attributes, or images, to fit on, (n, d).
        held_out: the same of other people, to judge on.
        suppressed: names of the attributes to suppress; none: image components alone.
        weights: of the erasure.
        image_components: principal components of the training images to suppress.
        head_components: those of their upper quarter.
        image_weights: of their erasure; a point for each pair of weights.
        attack_seeds: attackers each.
        resume: JSON file that keeps finished attacks.
        settings: of `SuppressorFit`, but for the weight.

    Raises:
        ValueError: an attribute that is not there, nobody held out with rows of two cameras, and what fitting and
            attacks say.
    """
    if missing := sorted(set(suppressed) - set(train.attributes)):
        raise ValueError(f"the training rows have no attribute {', '.join(missing)}.")
    if not has_matches(held_out.pids, held_out.camids):
        raise ValueError(
            "of the people held out of --train nobody has rows of two cameras, so matching, which leaves a query's own "
            "camera out, has nobody to find. Give rows of more cameras, with their camids, or hold more people out."
        )
    train, held_out = _told_apart(train, held_out, suppressed)
    concepts = train.concepts(suppressed) if suppressed else None
    shown = image_components + head_components
    numbers = named_components(train, image_components, head_components)
    attacks = [*(["attributes"] if held_out.attributes else []), *(["reconstruction"] if shown else [])]
    whole = 1.0 if shown else None
    points = [FrontPoint(None, *_ranked(held_out), dict.fromkeys(held_out.attributes, 1.0), None, whole)]
    pairs = product(weights if suppressed else weights[:1], image_weights if shown else (None,))
    for weight, image_weight in pairs:
        given = settings if image_weight is None else {**settings, "image_erasure": image_weight}
        fitted = Suppressor(erasure=weight, **given).fit_people(train.features, train.pids, concepts, numbers=numbers)
        made, judged = (
            rows.with_features(np.asarray(fitted.transform(rows.features)), clean=rows.features)
            for rows in (train, held_out)
        )
        found = measure_leakage(
            made, judged, held_out, train, attacks=attacks, seeds=attack_seeds, resume=resume
        ).channels
        leakage = {name: figure["leakage"] for name, figure in found.get("attributes", {}).items()}
        inverted = found["reconstruction"]["leakage"] if shown else None
        points.append(FrontPoint(weight, *_ranked(judged), leakage, image_weight, inverted))
    told = {name for point in points[1:] for name, leakage in point.leakage.items() if leakage is not None}
    points[0] = replace(points[0], leakage={name: 1.0 if name in told else None for name in points[0].leakage})
    return Front(points, list(suppressed), len(np.unique(held_out.people.pids)), attack_seeds, shown)


def _told_apart(train: LeakageSet, held_out: LeakageSet, suppressed: Sequence[str]) -> tuple[LeakageSet, LeakageSet]:
    """Return the sets without the attributes, of those not suppressed, in which one of the sets does not differ."""
    kept = [
        name
        for name in held_out.attributes
        if name in suppressed
        or all(
            len(np.unique(labels[labels >= 0])) > 1
            for labels in (one.people.attributes[name] for one in (train, held_out))
        )
    ]
    return (
        replace(train, attributes={name: train.attributes[name] for name in kept}),
        replace(held_out, attributes={name: held_out.attributes[name] for name in kept}),
    )


def _ranked(rows: LeakageSet) -> tuple[float, float]:
    ranking = evaluate(rows.features, rows.features, rows.pids, rows.pids, rows.camids, rows.camids)
    return ranking.rank1, ranking.mAP


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
