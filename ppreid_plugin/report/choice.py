"""Choosing a mechanism and its parameters on validation people, and what that costs against looking at the gallery.

A choice made by its figures on the gallery that is then released has looked at it, which no budget covers. Validation
people are people whom the encoder was not fitted to: held out from training, or of another data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ..dp.spec import MechanismSpec
from ..evaluation import Extracted

VALIDATION = "validation people"
METRICS = {"anonymous": "mAP", "enrolled": "rank1"}  # what is chosen by

Rows = list[dict[str, Any]]


def split_validation(people: Extracted) -> tuple[Extracted, Extracted]:
    """Return query and gallery of the rows of validation people: the first row of each camera of a person, and all.

    A query stands in the gallery too; evaluation drops rows of its own person and camera.

    Raises:
        ValueError: nobody was seen by two cameras.
    """
    pairs = np.stack([people.pids, people.camids], axis=1)
    cameras: dict[int, set[int]] = {}
    for pid, camid in pairs.tolist():
        cameras.setdefault(pid, set()).add(camid)
    firsts = np.sort(np.unique(pairs, axis=0, return_index=True)[1])
    chosen = np.zeros(len(pairs), dtype=bool)
    chosen[[index for index in firsts.tolist() if len(cameras[int(people.pids[index])]) > 1]] = True
    if not chosen.any():
        raise ValueError(f"none of {len(cameras)} validation people was seen by two cameras, so none can be matched.")
    return people.take(chosen), people


def choose(rows: Iterable[dict[str, Any]]) -> Rows:
    """Return for each unit, protocol, epsilon and kind of prior the candidate that is best on these rows.

    Best is the mean over the seeds of mAP (anonymous) or rank-1 (enrolled). Candidates whose prior is declared public
    (small cells) compete among themselves.

    Args:
        rows: of `sweep`, on validation people.

    Returns:
        One entry each with ``unit, protocol, epsilon, prior_is_public, mechanism, params, value``, the last on the
        people it was chosen on, as a fraction.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key, spec, value in _means(rows):
        if key not in best or value > best[key]["value"]:
            named = dict(zip(("unit", "protocol", "epsilon", "prior_is_public"), key, strict=True))
            best[key] = {**named, "mechanism": spec.name, "params": spec.options, "value": value}
    return list(best.values())


def evaluate_choices(
    choices: Rows, run: Callable[[MechanismSpec, str, str, float], Rows], candidates: Iterable[dict[str, Any]] = ()
) -> tuple[Rows, Rows]:
    """Evaluate what was chosen, and compare it with the best candidate on the gallery itself.

    Args:
        choices: from `choose`.
        run: evaluates a mechanism on the gallery: (mechanism, unit, protocol, epsilon) to rows of `sweep`.
        candidates: rows of all candidates on the gallery, to know what looking would have given; none: not compared.

    Returns:
        The rows of the chosen ones, each with ``chosen_on: validation people``; and for each choice ``chosen``,
        ``optimum``, ``gap`` (fractions of the metric) and ``optimum_params``.
    """
    optima = {_key(entry): entry for entry in choose(candidates)}
    rows: Rows = []
    gaps: Rows = []
    for choice in choices:
        spec = MechanismSpec(choice["mechanism"], choice["params"])
        made = run(spec, choice["unit"], choice["protocol"], choice["epsilon"])
        rows += [{**row, "chosen_on": VALIDATION} for row in made]
        metric = METRICS[choice["protocol"]]
        value = float(np.mean([row[metric] for row in made]))
        gap = {**choice, "metric": metric, "validation": choice["value"], "chosen": value}
        del gap["value"]
        if (optimum := optima.get(_key(choice))) is not None:
            looked = max(optimum["value"], value)
            gap |= {"optimum": looked, "gap": looked - value}
            gap["optimum_params"] = str(MechanismSpec(optimum["mechanism"], optimum["params"]))
        gaps.append(gap)
    return rows, gaps


def choice_table(gaps: Sequence[dict[str, Any]]) -> str:
    """A table in percent: what was chosen, its figure on both, and what looking at the gallery would have given."""
    lines = []
    for gap in gaps:
        figures = [gap["validation"], gap["chosen"], gap.get("optimum"), gap.get("gap")]
        lines.append(
            [
                gap["unit"],
                gap["protocol"],
                f"{gap['epsilon']:g}",
                str(MechanismSpec(gap["mechanism"], gap["params"])),
                gap["metric"],
                *("-" if figure is None else f"{100 * figure:.1f}" for figure in figures),
                gap.get("optimum_params", "-"),
            ]
        )
    headers = ["unit", "protocol", "epsilon", "chosen on validation people", "by", "validation", "gallery"]
    headers += ["best on the gallery", "gap", "which"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def _means(rows: Iterable[dict[str, Any]]) -> list[tuple[tuple[Any, ...], MechanismSpec, float]]:
    groups: dict[tuple[tuple[Any, ...], str], tuple[MechanismSpec, list[float]]] = {}
    for row in rows:
        spec = MechanismSpec(row["mechanism"], row["params"])
        groups.setdefault((_key(row), str(spec)), (spec, []))[1].append(row[METRICS[row["protocol"]]])
    return [(key, spec, float(np.mean(values))) for (key, _), (spec, values) in groups.items()]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["unit"], row["protocol"], row["epsilon"], row["prior_is_public"]
