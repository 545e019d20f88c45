"""The battery: every attack, several seeds, on protected and on clean features, and what is made of their figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tabulate import tabulate

from ..progress import track
from ..registry import check_arguments
from .attack import ATTACKS, Attack
from .data import LeakageSet
from .finished import FinishedRuns, fingerprint
from .known_people import LEARN_FROM, known_half, split_known, stronger
from .linkage_figures import ROC_FPRS
from .scores import combine, figure_record, maximum

Rows: TypeAlias = LeakageSet | Callable[[int], LeakageSet]  # the same rows for every seed, or by seed: fresh noise


@dataclass(frozen=True)
class Leakage:
    """What the battery measured; figures are fractions.

    Attributes:
        channels: by channel, and for channels of several figures by name below: ``score, low, high`` (95 %), ``floor,
            clean, leakage, attacker``, and beside them errors, further figures and the reason of a missing leakage.
        task_max, non_task_max: the largest leakage of the channels that are what Re-ID itself is, and of the others:
            ``channel, leakage, low, high``; None where none is available.
        meta: what was measured.
    """

    channels: Mapping[str, Any]
    task_max: Mapping[str, Any] | None
    non_task_max: Mapping[str, Any] | None
    meta: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        return asdict(self)

    def figures(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return every figure with its name: ``identification``, ``attributes: hair``, ..."""
        return [one for channel, figures in self.channels.items() for one in _flat(channel, figures)]

    def table(self) -> str:
        """Return the figures as a table, in percent."""
        lines = [
            [
                name,
                figure["attacker"],
                f"{100 * figure['score']:.1f}",
                f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}",
                f"{100 * figure['floor']:.1f}",
                "-" if figure["clean"] is None else f"{100 * figure['clean']:.1f}",
                _share(figure),
            ]
            for name, figure in self.figures()
        ]
        headers = ["channel", "attacker", "score", "95 %", "floor", "clean", "leakage"]
        return tabulate(lines, headers=headers, disable_numparse=True)


def measure_leakage(
    train: Rows,
    test: Rows,
    clean: LeakageSet | None = None,
    clean_train: LeakageSet | None = None,
    *,
    attacks: Sequence[str] = ("attributes", "camera", "identification"),
    seeds: int = 3,
    learn_from: Sequence[str] = ("train",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    resume: str | Path | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Leakage:
    """Run attacks on features, protected or not, and on their clean counterparts.

    Args:
        train: people outside the gallery, protected as ``test`` is; a function of the seed gives fresh noise.
        test: the gallery, as released; a function of the seed where research noise stands for it.
        clean: the gallery unprotected; None: leakage is not available.
        clean_train: people outside the gallery, unprotected: the attackers on ``clean`` learn from them.
        attacks: registered attacks.
        seeds: number of runs, seeds 1, 2, ...
        learn_from: ``train``: attackers learn from ``train``; ``gallery``: from half of the people of ``test``, drawn
            by the seed, and are scored on the others; both: the stronger counts, figure by figure (`stronger`). An
            attack that asks who was trained on learns from ``train`` only.
        options: further arguments of attacks, by attack.
        resume: JSON file that keeps finished runs; what it holds for the same features and labels is not run again.
        meta: further entries of the result's ``meta``.

    Raises:
        ValueError: an unknown attack or argument, seeds below 1, ``learn_from`` as none of these, columns that differ,
            ``clean`` without ``clean_train`` or of other people than ``test``, and what the attacks say about missing
            labels, before anything is trained.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds is {seeds!r}, must be a whole number >= 1; 3 or more give an interval over seeds.")
    kinds = {name: ATTACKS.get(name, key="attacks") for name in dict.fromkeys(attacks)}
    if not kinds:
        raise ValueError(f"attacks is empty; registered: {', '.join(ATTACKS.names())}.")
    given = {name: dict((options or {}).get(name, {})) for name in kinds}
    for name, kind in kinds.items():
        check_arguments(given[name], [kind], key=f"options[{name!r}]")
    sources = attacks_by_source(learn_from, kinds)
    if (clean is None) != (clean_train is None):
        raise ValueError(
            "clean and clean_train must both be given: the attackers on clean features learn from clean training rows."
        )
    sides: dict[str, tuple[Rows, Rows]] = {"protected": (train, test)}
    if clean is not None and clean_train is not None:
        sides["clean"] = (clean_train, clean)
    first = {side: (_rows(one, 1), _rows(other, 1)) for side, (one, other) in sides.items()}
    if clean is not None:
        _check_same_people(first["protected"][1], first["clean"][1])
    from .. import __version__  # the package imports this module while it is initialized

    halved = clean if clean is not None else first["protected"][1]  # whoever is known is known on both sides

    @lru_cache(maxsize=2)  # both sources attack the same rows, one after the other
    def rows_of(side: str, part: int, seed: int) -> LeakageSet:
        return first[side][part] if seed == 1 else _rows(sides[side][part], seed)

    def draw(source: str, side: str, seed: int) -> tuple[LeakageSet, LeakageSet]:
        if source == "train":
            return rows_of(side, 0, seed), rows_of(side, 1, seed)
        return split_known(rows_of(side, 1, seed), known_half(halved, seed))

    for source, names in sources.items():
        for side in sides:
            learned, attacked = draw(source, side, 1)
            _check_columns(side, learned, attacked)
            _check_people(side, attacked)
            for seed in range(1, seeds + 1):  # what is missing is named before training
                if seed > 1 and source == "gallery":  # other halves, of the same rows
                    learned, attacked = split_known(rows_of(side, 1, 1), known_half(halved, seed))
                for name in names:
                    kinds[name](seed=seed, **given[name]).check(learned, attacked)
    store = FinishedRuns(resume)
    plan = [
        (source, side, seed, name)
        for seed in range(1, seeds + 1)
        for side in sides
        for source, names in sources.items()
        for name in names
    ]
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    drawn: tuple[tuple[str, str, int], LeakageSet, LeakageSet, str] | None = None
    for source, side, seed, name in track(plan, "Attacks", unit="attacks"):
        if drawn is None or drawn[0] != (source, side, seed):
            learned, attacked = draw(source, side, seed)
            drawn = ((source, side, seed), learned, attacked, fingerprint(learned, attacked))
        # another version may attack otherwise
        key = f"{__version__} {name} {seed} {drawn[3]}" + (f" {given[name]}" if given[name] else "")
        if (run := store.get(key)) is None:
            run = _run(kinds[name](seed=seed, **given[name]), drawn[1], drawn[2])
            store.put(key, run)
        runs.setdefault((source, side, name), []).append(run)
    channels: dict[str, Any] = {}
    for name, kind in kinds.items():
        found = {
            source: _combined(runs[source, "protected", name], runs.get((source, "clean", name)))
            for source, names in sources.items()
            if name in names
        }
        figures = {
            figure: stronger({source: one[figure] for source, one in found.items() if figure in one})
            for figure in dict.fromkeys(figure for one in found.values() for figure in one)
        }
        channels[kind.channel] = figures[""] if set(figures) == {""} else figures
    tasks = {kind.channel for kind in kinds.values() if kind.task}
    return Leakage(
        channels,
        maximum(one for channel in channels if channel in tasks for one in _flat(channel, channels[channel])),
        maximum(one for channel in channels if channel not in tasks for one in _flat(channel, channels[channel])),
        {
            "seeds": seeds,
            "learn_from": list(learn_from),
            "train": _sizes(first["protected"][0]),
            "test": _sizes(first["protected"][1]),
            **(meta or {}),
        },
    )


def attacks_by_source(learn_from: Sequence[str], kinds: Mapping[str, type[Attack]]) -> dict[str, list[str]]:
    """Return the names of the attacks by whom they learn from.

    Args:
        learn_from: one or more of `LEARN_FROM`.
        kinds: attacks by name.

    Raises:
        ValueError: another word, or an attack that can learn from training people only, and may not.
    """
    if isinstance(learn_from, str) or not learn_from or set(learn_from) - set(LEARN_FROM):
        raise ValueError(f"learn_from is {learn_from!r}, must be one or more of: {', '.join(LEARN_FROM)}.")
    if "train" not in learn_from and (cannot := [name for name, kind in kinds.items() if not kind.from_gallery]):
        raise ValueError(
            f"{', '.join(cannot)} cannot learn from half of the gallery's people: the attack tells them from those of "
            "training. Let it learn from train, too, or leave it out."
        )
    return {
        source: [name for name, kind in kinds.items() if source == "train" or kind.from_gallery]
        for source in LEARN_FROM
        if source in learn_from
    }


def _run(attack: Attack, train: LeakageSet, test: LeakageSet) -> dict[str, Any]:
    figures, floors = attack.fit(train).attack(test), attack.floor(test)
    return {
        name: {**asdict(figure), "others": dict(figure.others), "floor": floors[name]}
        for name, figure in figures.items()
    }


def _combined(
    protected: Sequence[Mapping[str, Any]], clean: Sequence[Mapping[str, Any]] | None
) -> dict[str, dict[str, Any]]:
    figures = {}
    for name in dict.fromkeys(name for run in protected for name in run):
        runs = [run[name] for run in protected if name in run]
        score = combine([run["score"] for run in runs], [run["standard_error"] for run in runs])
        floor = float(np.mean([run["floor"] for run in runs]))
        attacker = Counter(run["attacker"] for run in runs).most_common(1)[0][0]
        unprotected, clean_floor = None, None
        if others := [run[name] for run in clean or () if name in run]:
            unprotected = combine([run["score"] for run in others], [run["standard_error"] for run in others])
            clean_floor = float(np.mean([run["floor"] for run in others]))
        record = figure_record(score, floor, unprotected, attacker=attacker, clean_floor=clean_floor)
        record["others"] = _means([run["others"] for run in runs])
        if others:
            record["clean_others"] = _means([run["others"] for run in others])
        if all(run.get("tpr") for run in runs):
            record["roc"] = _roc(runs, others or None)
        if len(runs) < len(protected):
            record["runs"] = len(runs)  # the other seeds drew too few people for this figure
        figures[name] = record
    return figures


def _means(others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in others[0] if all(isinstance(one.get(name), (int, float)) for one in others)]
    return {name: float(np.mean([one[name] for one in others])) for name in names}


def _roc(
    protected: Sequence[Mapping[str, Any]], clean: Sequence[Mapping[str, Any]] | None
) -> dict[str, list[float] | None]:
    """Return the mean over the seeds of the true positive rate at each false positive rate."""
    known = clean is not None and all(run.get("tpr") for run in clean)
    return {
        "fpr": list(ROC_FPRS),
        "tpr": np.mean([run["tpr"] for run in protected], axis=0).tolist(),
        "clean_tpr": np.mean([run["tpr"] for run in clean], axis=0).tolist() if known and clean else None,
    }


def _flat(channel: str, figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    if "score" in figures and not isinstance(figures["score"], Mapping):
        return [(channel, figures)]
    return [(f"{channel}: {name}", figure) for name, figure in figures.items()]


def _share(figure: Mapping[str, Any]) -> str:
    if figure["leakage"] is None:
        return "-" if figure["clean"] is None else "n/a"
    return f"{100 * figure['leakage']:.1f} ({100 * figure['leakage_low']:.1f} to {100 * figure['leakage_high']:.1f})"


def _rows(rows: Rows, seed: int) -> LeakageSet:
    return rows if isinstance(rows, LeakageSet) else rows(seed)


def _check_columns(side: str, train: LeakageSet, test: LeakageSet) -> None:
    columns = train.features.shape[1], test.features.shape[1]
    if columns[0] != columns[1]:
        raise ValueError(
            f"the {side} training rows have {columns[0]} columns, the rows to attack {columns[1]}: they are not of the "
            "same model, or not protected alike."
        )


def _check_people(side: str, rows: LeakageSet) -> None:
    if len(people := np.unique(rows.people_of(f"{side} rows to attack").pids)) < 2:
        raise ValueError(
            f"the {side} rows to attack are of {len(people)} person: figures have no error without a second one. Give "
            "rows of at least 2 people."
        )


def _check_same_people(test: LeakageSet, clean: LeakageSet) -> None:
    if len(others := np.setxor1d(test.people.pids, clean.people.pids)):
        raise ValueError(
            f"clean and test differ in {len(others)} people, such as pid {others[0]}: leakage is a share of what the "
            "same people's features give away. Take their rows of both (LeakageSet.take)."
        )


def _sizes(rows: LeakageSet) -> dict[str, int]:
    people = rows.people
    return {
        "rows": len(rows),
        "people": len(np.unique(people.pids)),
        "cameras": len(np.unique(people.camids)),
        "columns": rows.features.shape[1],
    }
