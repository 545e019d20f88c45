"""Budgets and leakage in plain words, from manifests and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import leakage_figures, percent

_VACUOUS = 99.0  # percent; a bound from here on says so
_READABLE = 14  # from this epsilon on, e^epsilon is written in powers of ten


def factor(epsilon: float) -> str:
    """Return e^epsilon as it is said: ``7.39``, ``2,981``, ``8.9e6``.

    Example:
        >>> factor(2.0), factor(8.0), factor(16.0)
        ('7.39', '2,981', '8.9e6')
    """
    if epsilon >= _READABLE:
        power = math.floor(epsilon / math.log(10))
        return f"{math.exp(epsilon - power * math.log(10)):.1f}e{power}"
    return f"{math.exp(epsilon):.3g}" if epsilon < math.log(1000) else f"{math.exp(epsilon):,.0f}"


def strength(epsilon: float) -> str:
    """Return what an epsilon is worth on its own, in one clause; the borders are ours."""
    if epsilon <= 1:
        return "a strong promise"
    if epsilon <= 4:
        return "a moderate promise"
    if epsilon <= 10:
        return "a weak promise on its own"
    return "next to no promise on its own"


def unit_words(unit: str) -> str:
    """Return the unit of privacy in words."""
    return "one person (all of his rows together)" if unit == "person" else "one image (one row of the gallery)"


def largest_epsilon(manifest: Mapping[str, Any]) -> float:
    """Return the largest budget of a unit in a release: people may have budgets of their own."""
    levels = manifest.get("individual_budgets") or ()
    return float(max([level["epsilon"] for level in levels], default=manifest["epsilon"]))


def budget_in_words(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the budget of a release promises, sentence by sentence, from its manifest alone."""
    epsilon, delta, unit = largest_epsilon(manifest), float(manifest["delta"]), str(manifest["unit"])
    most = "up to " if epsilon > float(manifest["epsilon"]) else ""
    slip = f", but for a probability of {delta:g} (δ)" if delta else ""
    said = [
        f"ε is {most}{epsilon:g} for {unit_words(unit)}. Whatever somebody believes about that {unit} beforehand, the "
        f"release changes the odds between any two candidates by a factor of at most e^{epsilon:g} = "
        f"{factor(epsilon)}{slip}. That is {strength(epsilon)}."
    ]
    levels = manifest.get("individual_budgets")
    if levels:
        said.append(
            "Some people have budgets of their own: "
            + ", ".join(f"ε {level['epsilon']:g} for {level['rows']} rows" for level in levels)
            + ". Who asked for more protection can be seen in the release."
        )
    person, rows = manifest.get("person_level"), manifest.get("rows_a_person")
    if unit == "image" and person and rows:
        said.append(
            f"A person with {rows['median']} rows (the median) has a total of ε {person['epsilon_at_median']:.4g}, one "
            f"with {rows['largest']} rows (the largest number) of ε {person['epsilon_at_largest']:.4g}, at δ "
            f"{person['delta']:g}. That total, not ε of one image, is what a person is promised: "
            f"{strength(float(person['epsilon_at_largest']))}."
        )
    bounds, people = manifest.get("bounds") or {}, manifest.get("people")
    if "row_to_person" in bounds and people:
        said.append(
            f"Among {people} people, equally likely beforehand ({percent(1 / people)} % each), no attacker tells "
            f"whose one released row is with a probability above {_at_most(bounds['row_to_person'])}."
        )
    if "query_to_row" in bounds:
        said.append(
            "Somebody who has a picture of a person finds that person's row first with a probability of at most "
            f"{_at_most(bounds['query_to_row'])}."
        )
    if "auc" in bounds:
        said.append(f"Two known values of one row are told apart with an AUC of at most {_at_most(bounds['auc'])}.")
    return said


def _at_most(bound: float) -> str:
    shown = percent(bound)
    return f"{shown} %" + (", which rules out next to nothing" if float(shown) >= _VACUOUS else "")


def protected_in_words(manifest: Mapping[str, Any]) -> str:
    """Return what a release protects, and against whom."""
    mechanism = manifest["mechanism"]
    name = mechanism.get("mechanism") if isinstance(mechanism, Mapping) else mechanism
    people = f" of {manifest['people']} people" if manifest.get("people") else ""
    return (
        f"Release {manifest['release']}: {manifest['rows']} rows{people}, {manifest['protocol']} protocol. Protected "
        f"is what {unit_words(str(manifest['unit']))} looked like to the encoder, by the mechanism {name}, drawn once "
        "with operating-system entropy: against anyone who gets the released rows, also one who knows the mechanism, "
        "the encoder and all other rows."
    )


def leakage_in_words(record: Mapping[str, Any]) -> list[str]:
    """Return the two maxima of a leakage record in words; empty where there are none."""
    said = []
    figures = leakage_figures(record)
    known = ", ".join(name for name, one in figures if one["leakage"] is not None)
    unknown = ", ".join(name for name, one in figures if one["leakage"] is None)
    for key, name in (
        ("task_max", "what re-identification itself is (recognizing and linking people)"),
        ("non_task_max", "everything else that has a figure"),
    ):
        largest = record.get(key)
        if largest:
            said.append(
                f"Of {name}, the most that leaks is {percent(largest['leakage'])} % of what unprotected features give "
                f"away (95 %: {percent(largest['low'])} to {percent(largest['high'])}), channel {largest['channel']}."
            )
    if said:
        said.append(f"Figures are there of {known}" + (f"; n/a: {unknown}" if unknown else "") + "; of nothing else.")
    return said


def not_covered(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what no release covers: what their manifests say, or what every manifest would."""
    from ..dp.manifest import NOT_COVERED

    said = [str(line) for manifest in manifests for line in manifest.get("not_covered", ())]
    return list(dict.fromkeys(said or NOT_COVERED))
