"""The table: figures of every row, mean and 95 % interval over seeds, and what is left after the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from ..leakage.scores import CONFIDENCE

Record = Mapping[str, Any]

# what the score of a channel's named figures is called
_SCORES = {"patches": "recovered", "membership": "AUC"}


@dataclass(frozen=True)
class Column:
    """A figure of the table.

    Attributes:
        name: its heading.
        read: the figure of one row and seed, or None.
        percent: whether it is a fraction that is shown in percent.
    """

    name: str
    read: Callable[[Record], float | None]
    percent: bool = True


def columns(records: Sequence[Record], metric: str) -> list[Column]:
    """Return the columns that any of the records has a figure for; docs/ablation.md defines each.

    Args:
        records: of all rows and seeds.
        metric: distance of the retrieval figures.
    """
    other = "euclidean" if metric == "cosine" else "cosine"
    made = [
        *(
            Column(f"{title} ({metric})", _reader("retrieval", metric, name))
            for title, name in (("rank-1", "rank1"), ("rank-5", "rank5"), ("mAP", "mAP"), ("mINP", "mINP"))
        ),
        Column(f"mAP ({other})", _reader("retrieval", other, "mAP")),
    ]
    channels = dict.fromkeys(name for record in records for name in record.get("leakage", {}).get("channels", {}))
    for channel in channels:
        if channel == "attributes":
            made += [Column("attributes, mean leakage", _mean_leakage), Column("attributes, max leakage", _max_leakage)]
            continue
        if channel == "identification":
            made.append(Column("identification top-1", _reader("leakage", "channels", channel, "score")))
        if channel == "reconstruction":
            made.append(Column("reconstruction SSIM", _reader("leakage", "channels", channel, "score"), percent=False))
        path = ("leakage", "channels", channel)
        if named := _named(records, channel):
            for figure in named:
                made.append(Column(f"{figure} {_SCORES.get(channel, 'score')}", _reader(*path, figure, "score")))
                made.append(Column(f"{figure} leakage", _reader(*path, figure, "leakage")))
            continue
        made.append(Column(f"{channel} leakage", _reader(*path, "leakage")))
    path = ("leakage", "channels", "reconstruction")
    made += [
        Column("rank-1 of reconstructions", _reader(*path, "others", "rank1")),
        Column("of the reference's", _judged_share),
        Column("L_deid of the reference's", _reader("deid", "ratio")),
        Column("step cost", _reader("step_cost"), percent=False),
    ]
    return [column for column in made if any(column.read(record) is not None for record in records)]


def summarize(found: Mapping[str, Sequence[Record]], metric: str) -> dict[str, Any]:
    """Return by row and column the values of the seeds, their mean and interval, and the same of paired differences.

    The interval is Student's over seeds; None with one seed. Differences are to the reference's figure of the same
    seed, the first row's.

    Args:
        found: records by row, in the order of the seeds.
        metric: distance of the retrieval figures.
    """
    reference = next(iter(found.values()))
    kinds = columns([record for records in found.values() for record in records], metric)
    rows: dict[str, dict[str, Any]] = {}
    for name, records in found.items():
        rows[name] = {}
        for column in kinds:
            values = [column.read(record) for record in records]
            bases = [column.read(record) for record in reference]
            pairs = [None if a is None or b is None else a - b for a, b in zip(values, bases, strict=True)]
            rows[name][column.name] = {**_over_seeds(values), "minus_reference": _over_seeds(pairs)}
    return {"columns": [{"name": c.name, "percent": c.percent} for c in kinds], "rows": rows}


def render(summary: Mapping[str, Any], style: str, *, differences: bool = False) -> str:
    """Return the table as text.

    Args:
        summary: from `summarize`.
        style: of the library tabulate: simple, pipe (Markdown), latex_booktabs.
        differences: the paired differences instead of the figures.
    """
    kinds = summary["columns"]
    lines = []
    for number, (name, cells) in enumerate(summary["rows"].items()):
        if differences and number == 0:
            continue
        shown = [cells[kind["name"]] for kind in kinds]
        picked = [cell["minus_reference"] if differences else cell for cell in shown]
        lines.append(
            [name, *(_cell(one, kind["percent"], differences) for one, kind in zip(picked, kinds, strict=True))]
        )
    headers = ["row", *(kind["name"] + (" %" if kind["percent"] else "") for kind in kinds)]
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True)


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    made: dict[str, Any] = {"values": list(values), "mean": None, "low": None, "high": None}
    if not known:
        return made
    made["mean"] = mean = float(np.mean(known))
    if len(known) > 1:
        freedom = len(known) - 1
        half = float(student.ppf((1 + CONFIDENCE) / 2, freedom) * np.std(known, ddof=1) / math.sqrt(len(known)))
        made |= {"low": mean - half, "high": mean + half}
    return made


def _cell(cell: Mapping[str, Any], percent: bool, signed: bool) -> str:
    if cell["mean"] is None:
        return "-"
    factor, digits = (100, 1) if percent else (1, 3)
    text = f"{factor * cell['mean']:{'+' if signed else ''}.{digits}f}"
    if cell["low"] is not None:
        text += f" ± {factor * (cell['high'] - cell['mean']):.{digits}f}"
    return text + ("*" if None in cell["values"] else "")


def _reader(*path: str) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, (int, float)) else None

    return read


def _named(records: Sequence[Record], channel: str) -> list[str]:
    """Return the names of a channel's figures in all records; none, where it has one figure without a name."""
    channels = [record.get("leakage", {}).get("channels", {}).get(channel, {}) for record in records]
    figures = {name: figure for one in channels for name, figure in one.items()}
    return [name for name, figure in figures.items() if isinstance(figure, Mapping) and "score" in figure]


def _attribute_leakages(record: Record) -> list[float]:
    channel = record.get("leakage", {}).get("channels", {}).get("attributes", {})
    return [figure["leakage"] for figure in channel.values() if figure["leakage"] is not None]


def _mean_leakage(record: Record) -> float | None:
    known = _attribute_leakages(record)
    return sum(known) / len(known) if known else None


def _max_leakage(record: Record) -> float | None:
    return max(_attribute_leakages(record), default=None)


def _judged_share(record: Record) -> float | None:
    channel = record.get("leakage", {}).get("channels", {}).get("reconstruction", {})
    own, clean = channel.get("others", {}).get("rank1"), channel.get("clean_others", {}).get("rank1")
    return own / clean if own is not None and clean else None
