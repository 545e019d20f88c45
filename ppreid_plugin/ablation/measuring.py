"""Figures of one row with one seed: retrieval, and the leakage battery beside the reference row of the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation import Extracted
from ..leakage import Judge, LeakageSet, measure_leakage
from ..retrieval import evaluate
from .defense import Defense
from .deid_probe import DeIDProbe
from .plan import METRICS, Measures

_DRAWS = 1000  # seeds of a row's draws of noise are this times its own seed, and on; attackers' are as many more
_TRAIN_DRAWS = 500

Sets = tuple[LeakageSet, LeakageSet]  # training rows and gallery


def retrieval_figures(
    query: Extracted,
    gallery: Extracted,
    defense: Defense | None,
    *,
    seed: int,
    draws: int,
    exclude_same_camera: bool = True,
) -> dict[str, dict[str, float] | None]:
    """Return rank-1, rank-5, mAP and mINP as fractions, by metric; None where a metric does not apply.

    Args:
        query: clean features.
        gallery: clean features.
        defense: fitted; None: they are matched as they are.
        seed: of the row.
        draws: number of draws that the figures of a random defense are means over: those that are attacked.
        exclude_same_camera: drop gallery rows of the query's pid and camera.
    """
    protocol = "market1501" if exclude_same_camera else "all"
    metrics = [metric for metric in METRICS if metric == "cosine" or defense is None or not defense.cosine_only]
    found: dict[str, list[list[float]]] = {metric: [] for metric in metrics}
    for draw in range(1, draws + 1 if defense is not None and defense.random else 2):
        asked, rows = (query, gallery) if defense is None else defense.matched(query, gallery, _DRAWS * seed + draw)
        for metric in metrics:
            result = evaluate(
                asked.features,
                rows.features,
                asked.pids,
                rows.pids,
                asked.camids,
                rows.camids,
                metric=metric,
                protocol=protocol,
            )
            found[metric].append([result.rank1, result.rank(5), result.mAP, result.mINP])
    names = ("rank1", "rank5", "mAP", "mINP")
    return {
        metric: dict(zip(names, np.mean(found[metric], axis=0).tolist(), strict=True)) if metric in found else None
        for metric in METRICS
    }


def leakage_figures(
    sets: Sets,
    reference: Sets,
    defense: Defense | None,
    *,
    seed: int,
    measures: Measures,
    judge: Judge | None,
    finished: Path,
) -> dict[str, Any]:
    """Return what the battery measures of a row; its clean side is the reference row.

    Args:
        sets: training rows and gallery of the row, before the defense.
        reference: those of the reference row of the same seed.
        defense: fitted; None: there is none.
        seed: of the row.
        measures: attacks and their arguments.
        judge: independent Re-ID model, or None.
        finished: file that keeps finished attacks.
    """
    options: dict[str, Mapping[str, Any]] = {}
    if "reconstruction" in measures.attacks:
        options["reconstruction"] = {
            "deid_target": measures.deid_target or "pixelate",
            "judge": judge,
            "steps": measures.inversion_steps,
            "test_rows": measures.test_rows,
        }
    learned, attacked = sets
    found = measure_leakage(
        _protected(learned, defense, _DRAWS * seed + _TRAIN_DRAWS),
        _protected(attacked, defense, _DRAWS * seed),
        reference[1],
        reference[0],
        attacks=measures.attacks,
        seeds=measures.attack_seeds,
        learn_from=measures.learn_from,
        options=options,
        resume=finished,
    )
    return found.to_json()


def deid_figures(
    probe: DeIDProbe, sets: Sets, reference: Sets, *, defense: Defense | None, seed: int
) -> dict[str, float]:
    """Return L_deid of the row and of the reference, and the first over the second."""
    clean = _clean_loss(probe, *reference, seed)
    if defense is None and sets is reference:
        return {"loss": clean, "reference": clean, "ratio": 1.0}
    train, test = sets
    if defense is not None:
        train, test = defense.protect(train, _DRAWS * seed + _TRAIN_DRAWS + 1), defense.protect(test, _DRAWS * seed + 1)
    own = probe.loss(train, test, seed=seed)
    return {"loss": own, "reference": clean, "ratio": own / clean}


@lru_cache(maxsize=1)  # rows of one seed come one after the other, beside one reference
def _clean_loss(probe: DeIDProbe, train: LeakageSet, test: LeakageSet, seed: int) -> float:
    return probe.loss(train, test, seed=seed)


def _protected(rows: LeakageSet, defense: Defense | None, offset: int) -> Any:
    if defense is None:
        return rows
    if not defense.random:
        return defense.protect(rows, offset)
    return lru_cache(maxsize=1)(lambda seed: defense.protect(rows, offset + seed))
