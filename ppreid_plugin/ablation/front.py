"""The front of an ablation: rows that no other row beats in both matching and leakage, as a list and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.curves import svg
from ..report.figures import STYLES, pyplot

# columns of `table.columns` in which less is less leakage
LEAKAGES = (
    "identification leakage",
    "attributes, mean leakage",
    "attributes, max leakage",
    "reconstruction leakage",
    "of the reference's",
    "L_deid of the reference's",
)
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
    found = {}
    for column in LEAKAGES:
        points = _points(summary, metric, column)
        kept = undominated([u for _, u, _ in points], [k for _, _, k in points])
        names = sorted(zip(points, kept, strict=True), key=lambda one: -one[0][1])
        if points:
            found[column] = [name for (name, _, _), on in names if on]
    return found


def front_picture(summary: Mapping[str, Any], metric: str) -> bytes | None:
    """Return the panels as SVG, mAP over each leakage with the front joined; None: fewer than three rows have both.

    Args:
        summary: from `table.summarize`.
        metric: distance of mAP.
    """
    panels = {column: _points(summary, metric, column) for column in LEAKAGES}
    panels = {column: points for column, points in panels.items() if len(points) > 2}
    if not panels:
        return None
    across = min(_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure, axes = pyplot().subplots(down, across, figsize=(4.4 * across, 3.8 * down), squeeze=False)
    for axis, (column, points) in zip(axes.flat, panels.items(), strict=False):
        kept = undominated([u for _, u, _ in points], [k for _, _, k in points])
        for (name, utility, leakage), on in zip(points, kept, strict=True):
            color, marker = STYLES[0] if on else STYLES[1]
            axis.plot(100 * leakage, 100 * utility, color=color, marker=marker, linestyle="none")
            axis.annotate(name, (100 * leakage, 100 * utility), xytext=(4, 3), textcoords="offset points", fontsize=6)
        line = sorted((k, u) for (_, u, k), on in zip(points, kept, strict=True) if on)
        axis.plot(*([100 * one for one in side] for side in zip(*line, strict=True)), color=STYLES[0][0], linewidth=1)
        axis.set_xlabel(f"{_TITLES.get(column, column)} (%)")
        axis.set_ylabel(f"mAP, {metric} (%)")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return svg(figure)


def _points(summary: Mapping[str, Any], metric: str, column: str) -> list[tuple[str, float, float]]:
    """Return (row, mAP, leakage) of the rows that have both."""
    cells = {
        name: (row.get(f"mAP ({metric})", {}).get("mean"), row.get(column, {}).get("mean"))
        for name, row in summary["rows"].items()
    }
    return [(name, u, k) for name, (u, k) in cells.items() if u is not None and k is not None]
