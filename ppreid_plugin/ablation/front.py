"""The front of an ablation: rows that no other row beats in both matching and leakage, as a list and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..report.curves import svg
from ..report.figures import STYLES, pyplot

_TITLES = {"of the reference's": "rank-1 of reconstructions, of the reference's"}
_COLUMNS = 3  # panels beside each other


def undominated(utilities: Sequence[float], leakages: Sequence[float]) -> list[bool]:
    """Return for each point whether no other has at least its utility and at most its leakage, and one of them better.

    Example:
        >>> undominated([0.8, 0.7, 0.6], [1.0, 0.5, 0.6])
        [True, True, False]
    """
    points = list(zip(utilities, leakages, strict=True))
    return [
        not any(u >= utility and k <= leakage and (u, k) != (utility, leakage) for u, k in points)
        for utility, leakage in points
    ]


def fronts(summary: Mapping[str, Any], metric: str) -> dict[str, list[str]]:
    """Return the names of the rows on the front of mAP and each leakage column, from the largest mAP down.

    Rows without one of the two figures are no points.

    Args:
        summary: from `table.summarize`.
        metric: distance of mAP.
    """
    panels = {column: _points(summary, metric, column) for column in leakages(summary)}
    return {
        column: [one.row for one in sorted(points, key=lambda one: -one.utility) if one.on_front]
        for column, points in panels.items()
        if points
    }


def front_picture(summary: Mapping[str, Any], metric: str) -> bytes | None:
    """Return the panels as SVG, mAP over each leakage with the front joined; None: fewer than three rows have both.

    Args:
        summary: from `table.summarize`.
        metric: distance of mAP.
    """
    panels = {column: _points(summary, metric, column) for column in leakages(summary)}
    panels = {column: points for column, points in panels.items() if len(points) > 2}
    if not panels:
        return None
    across = min(_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure, axes = pyplot().subplots(down, across, figsize=(4.4 * across, 3.8 * down), squeeze=False)
    for axis, (column, points) in zip(axes.flat, panels.items(), strict=False):
        for one in points:
            color, marker = STYLES[0] if one.on_front else STYLES[1]
            place = 100 * one.leakage, 100 * one.utility
            axis.plot(*place, color=color, marker=marker, linestyle="none")
            axis.annotate(one.row, place, xytext=(4, 3), textcoords="offset points", fontsize=6)
        line = sorted((100 * one.leakage, 100 * one.utility) for one in points if one.on_front)
        axis.plot(*zip(*line, strict=True), color=STYLES[0][0], linewidth=1)
        axis.set_xlabel(f"{_TITLES.get(column, column)} (%)")
        axis.set_ylabel(f"mAP, {metric} (%)")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return svg(figure)


def leakages(summary: Mapping[str, Any]) -> list[str]:
    """Return the columns of a table in which less is less leakage.

    L_deid is none of them: where a feature shows less of the image, it shows less of T(x) too.

    Args:
        summary: from `table.summarize`.
    """
    names = [column["name"] for column in summary["columns"]]
    return [name for name in names if name.endswith(" leakage") or name in _TITLES]


class _Point(NamedTuple):
    row: str
    utility: float
    leakage: float
    on_front: bool


def _points(summary: Mapping[str, Any], metric: str, column: str) -> list[_Point]:
    """Return the rows that have both mAP and this leakage."""
    cells = {
        name: (row.get(f"mAP ({metric})", {}).get("mean"), row.get(column, {}).get("mean"))
        for name, row in summary["rows"].items()
    }
    known = {name: cell for name, cell in cells.items() if None not in cell}
    kept = undominated([u for u, _ in known.values()], [k for _, k in known.values()])
    return [_Point(name, *cell, on) for (name, cell), on in zip(known.items(), kept, strict=True)]
