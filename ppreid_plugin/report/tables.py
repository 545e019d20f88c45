"""Tables of a report: utility, sweeps, leakage, audits. Percent; intervals are 95 %."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..dp.spec import MechanismSpec
from ..leakage.scores import Combined, combine
from .blocks import Provenance, Table
from .collect import Source, reading

NO_INTERVAL = "A figure without an interval is one run; more seeds give one."
_PLACES = ("data.save_dir", "train.seed", "--seed", "--out")  # options and flags that make no other recipe
_NUMBER = (int, float)


def percent(value: Any) -> str:
    """Return a fraction in percent, or a dash.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3', '-')
    """
    return f"{100 * value:.1f}" if isinstance(value, _NUMBER) and not isinstance(value, bool) else "-"


def budget(value: Any, unit: str = "") -> str:
    """Return an epsilon as written in tables: ``16``, ``80.6 a person``; a dash where there is none."""
    shown = f"{value:.4g}" if isinstance(value, _NUMBER) else "-"
    return shown if shown == "-" or not unit else f"{shown} {'an image' if unit == 'image' else 'a ' + unit}"


def over_seeds(values: Iterable[Any]) -> Combined | None:
    """Return mean and interval (Student's t over the runs, at least two); None: no value."""
    known = [float(value) for value in values if isinstance(value, _NUMBER)]
    return combine(known, [0.0] * len(known)) if known else None


def spread(values: Sequence[Any]) -> str:
    """Return ``12.3 (10.1 to 14.5)`` over several runs, ``12.3`` of one, a dash of none."""
    found = over_seeds(values)
    if found is None:
        return "-"
    if sum(isinstance(value, _NUMBER) for value in values) < 2:
        return percent(found.value)
    return f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"


def utility_table(runs: Sequence[Source]) -> Table | None:
    """Return rank-1, mAP and mINP of runs, clean and protected; runs that differ by their seed only are one line.

    A second run of the same seed is no second draw: the first one counts.
    """
    groups: dict[tuple[Any, ...], dict[Any, list[Any]]] = {}
    used: dict[tuple[str, str], Provenance] = {}
    where: dict[str, list[str]] = {}  # files by recipe
    for source in runs:
        with reading(source):
            for key, figures in _lines(source):
                groups.setdefault(key, {}).setdefault(source.record.get("seed", source.origin.file), figures)
                where.setdefault(key[0], []).append(source.origin.file)
        used[source.origin.file, source.origin.command] = source.origin
    if not groups:
        return None
    many = len(where) > 1
    rows = [
        [
            *([_run_name(where[key[0]])] if many else []),
            *map(str, key[1:]),
            str(len(values)),
            *(spread([one[column] for one in values]) for column in range(4)),
        ]
        for key, values in ((key, list(by_seed.values())) for key, by_seed in groups.items())
    ]
    headers = ["data", "gallery", "protocol", "ε", "ε of a person, median / largest", "runs", "rank-1", "mAP", "mINP"]
    return Table(
        "Utility: what matching still finds",
        [*(["run"] if many else []), *headers, "TPIR at 10 %"],
        rows,
        "mAP of the enrolled protocol is the mean reciprocal rank; TPIR is the true positive identification rate at a "
        f"false positive identification rate of 10 %. {NO_INTERVAL}",
        tuple(used.values()),
    )


def sweep_table(source: Source) -> Table | None:
    """Return utility over budgets: mean and interval over the seeds, with the bound on rank-1 where one holds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    with reading(source):
        for row in source.record["rows"]:
            spec = str(MechanismSpec(row["mechanism"], row["params"]))
            groups.setdefault((spec, row["unit"], row["protocol"], row["epsilon"]), []).append(row)
        rows = []
        for (spec, unit, protocol, epsilon), members in groups.items():
            first = members[0]
            rows.append(
                [
                    spec + (" (public prior)" if first["prior_is_public"] else ""),
                    protocol,
                    budget(epsilon, unit),
                    " / ".join(budget(one) for one in first["person_epsilon"]),
                    str(len(members)),
                    spread([one["rank1"] for one in members]),
                    spread([one["mAP"] for one in members]),
                    percent(first["bound"]),
                    str(first["chosen_on"]),
                ]
            )
    if not rows:
        return None
    headers = ["mechanism", "protocol", "ε", "ε of a person, median / largest", "seeds", "rank-1", "mAP"]
    note = (
        "Research noise: a figure, not a release. Intervals are Student's t over the seeds, not clipped. The bound is "
        "on rank-1, proved for pure mechanisms in the person unit."
    )
    return Table("Utility over budgets", [*headers, "bound on rank-1", "chosen on"], rows, note, (source.origin,))


def leakage_figures(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the figures of a leakage record by name: ``identification``, ``attributes: hair``."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for channel, figures in record["channels"].items():
        if "score" in figures and not isinstance(figures["score"], Mapping):
            found.append((channel, figures))
        else:
            found.extend((f"{channel}: {name}", figure) for name, figure in figures.items())
    return found


def leakage_table(source: Source) -> Table:
    """Return what attackers reached: the figure, its floor, the same on clean features, and the share of that."""
    with reading(source):
        rows = []
        for name, figure in leakage_figures(source.record):
            share = percent(figure["leakage"])
            if figure["leakage"] is not None:
                share += f" ({percent(figure['leakage_low'])} to {percent(figure['leakage_high'])})"
            elif figure["clean"] is not None:
                share = "n/a: " + str(figure["reason"])
            span = f"{percent(figure['score'])} ({percent(figure['low'])} to {percent(figure['high'])})"
            rows.append(
                [name, str(figure["attacker"]), span, percent(figure["floor"]), percent(figure["clean"]), share]
            )
    return Table(
        f"Leakage: {protection_words(source.record)}",
        ["channel", "attacker", "reached", "floor", "on clean features", "leakage"],
        rows,
        "Leakage is (reached - floor) / (on clean features - floor): 0 is what an attacker reaches without looking, "
        "100 is as bad as unprotected. Nothing is clipped: explained variance (patches) and SSIM (reconstruction) may "
        "be negative, and Student's t knows no bounds.",
        (source.origin,),
    )


def further_table(source: Source) -> Table | None:
    """Return the further figures of the attackers, such as equal error rates; None: there are none."""
    with reading(source):
        rows = [
            [name, other, _plain(value), _plain((figure.get("clean_others") or {}).get(other))]
            for name, figure in leakage_figures(source.record)
            for other, value in (figure.get("others") or {}).items()
        ]
    if not rows:
        return None
    note = "Mean over the seeds, as the record holds them: fractions, or numbers where the name says so."
    return Table("Further figures of the attackers", ["channel", "figure", "reached", "on clean features"], rows, note,
                 (source.origin,))  # fmt: skip


def protection_words(record: Mapping[str, Any]) -> str:
    """Return what was attacked, in words: ``release museum-0001, gaussian, ε 16 an image, enrolled``."""
    protection = (record.get("meta") or {}).get("protection")
    if not protection:
        return "features as they were given"
    mechanism = protection.get("mechanism")
    if isinstance(mechanism, Mapping):
        mechanism = mechanism.get("mechanism")
    if mechanism == "none":
        return "no noise: not protected"
    parts = [f"release {protection['release']}"] if protection.get("release") else ["research noise"]
    parts += [str(protection.get("written") or mechanism)] if mechanism else []
    if isinstance(protection.get("epsilon"), _NUMBER):
        parts.append(f"ε {budget(protection['epsilon'], protection.get('unit') or '')}")
    parts += [str(protection["protocol"])] if protection.get("protocol") else []
    return ", ".join(parts)


def audit_table(source: Source) -> Table:
    """Return the budget audit: what attackers show of epsilon, beside the claim."""
    with reading(source):
        rows = [
            [
                str(row["mechanism"]),
                ", ".join(f"{key} {value}" for key, value in row["parameters"].items()) or "-",
                str(row["noise"]),
                f"{row['trials']:,}",
                budget(row["epsilon"]),
                f"{row['epsilon_lower']:.3f}",
                f"{row['epsilon_lower_95']:.3f}",
                _plain(row["epsilon_exact"]),
                "yes" if row["passed"] else "NO",
            ]
            for row in source.record["rows"]
        ]
    headers = ["mechanism", "parameters", "noise", "trials", "claimed ε", "shown, at least", "at least, 95 %"]
    note = "A bound above the claim is a fault. One below it is no proof."
    return Table("Audit: measured over claimed budget", [*headers, "exact", "passed"], rows, note, (source.origin,))


def _lines(source: Source) -> Iterable[tuple[tuple[Any, ...], list[Any]]]:
    record = source.record
    targets = record["targets"] if "targets" in record else {"generated pedestrians (demo)": record["protocols"]}
    recipe = _recipe(record) or source.origin.file
    for target, figures in targets.items():
        clean = figures["clean"]
        yield (recipe, target, "clean", "anonymous", "-", "-"), [*_ranking(clean), None]
        for number, one in enumerate(figures["protected"]):
            unit, mechanism = one["unit"], f"{number + 1}: {one['mechanism']}" if number else one["mechanism"]
            person = " / ".join(budget(one["person_epsilon"][name]) for name in ("median_rows", "largest_rows"))
            told = (budget(one["epsilon"], unit), person)
            if one.get("clean_anonymous"):  # of other rows, as prototypes: not those of the clean gallery above
                yield (
                    (recipe, target, f"clean, beside {mechanism}", "anonymous", "-", "-"),
                    [*_ranking(one["clean_anonymous"]), None],
                )
            yield (
                (recipe, target, f"{mechanism} ({one['noise']})", "anonymous", *told),
                [*_ranking(one["anonymous"]), None],
            )
            if one["enrolled"] is None:
                continue
            for title, ranked, open_set, cost in (
                (f"clean, beside {mechanism}", one["clean_enrolled"], one["clean_open_set"], ("-", "-")),
                (f"{mechanism} ({one['noise']})", one["enrolled"], one["open_set"], told),
            ):
                if ranked is not None:
                    rates = {point["fpir"]: point["tpir"] for point in (open_set or {}).get("points", ())}
                    yield (recipe, target, title, "enrolled", *cost), [
                        ranked["rank1"], ranked["mrr"], None, rates.get(0.1)
                    ]  # fmt: skip


def _ranking(figures: Mapping[str, Any]) -> list[Any]:
    return [figures["rank1"], figures["mAP"], figures["mINP"]]


def _recipe(record: Mapping[str, Any]) -> str:
    """Return command, code and libraries without seed and folder: runs that differ in nothing else are one recipe."""
    command = record.get("command")
    if not isinstance(command, (list, tuple)):
        return ""
    words = [str(word) for word in command]
    dropped = set(itertools.chain(*((place, place + 1) for place, word in enumerate(words) if word in _PLACES)))
    kept = [word for place, word in enumerate(words) if place not in dropped]
    made_by = record.get("environment") or {}
    told = [str(made_by.get(name)) for name in ("commit", "torch", "torchreid")]
    return "\n".join([*kept, *told, str(record.get("processes")), str(record.get("chosen_on"))])


def _run_name(files: Sequence[str]) -> str:
    """Return how a table calls the runs of a recipe: by the folder of the first."""
    first, *others = dict.fromkeys(str(PurePath(file).parent) for file in files)
    return first + (f" and {len(others)} more" if others else "")


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, _NUMBER) and not isinstance(value, bool) else "-"
