"""Curves of a report as SVG: utility over budgets with the bound, leakage beside floor and ceiling, ROC curves.

Colors are those of Okabe and Ito (2008), each with a marker or line style of its own, so that they can be told apart
by anyone and in black and white.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import Picture
from .collect import Source, reading
from .figures import STYLES, budget_panel, pyplot
from .tables import leakage_figures, protection_words

_WIDE = (5.2, 3.6)  # inches: on a phone its text is still large enough


def safe_name(*parts: str) -> str:
    """Return words as a file name without suffix: lower case letters, digits, ``_`` and ``-``, never empty."""
    return re.sub(r"[^a-z0-9_]+", "-", " ".join(parts).lower()).strip("-")[:80] or "picture"


def svg(figure: Any) -> bytes:
    """Return a matplotlib figure as SVG without date and without addresses in its metadata, and close it."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot().close(figure)
    return stream.getvalue()


def budget_curves_of(source: Source) -> list[Picture]:
    """Return one figure a unit and protocol: rank-1 or mAP over epsilon, intervals over seeds, and the bound."""
    pictures = []
    with reading(source):
        rows = source.record["rows"]
        for unit, protocol in dict.fromkeys((row["unit"], row["protocol"]) for row in rows):
            here = [row for row in rows if (row["unit"], row["protocol"]) == (unit, protocol)]
            figure, axis = pyplot().subplots(figsize=_WIDE)
            budget_panel(axis, here, legend_size=8)
            figure.tight_layout()
            bounded = any(row["bound"] is not None for row in here)
            text = (
                f"{'mAP' if protocol == 'anonymous' and not bounded else 'rank-1'} over ε of one {unit}, "
                f"{protocol} protocol; mean over "
                "the seeds, bars are 95 % intervals. "
                + (
                    "Dashed: the bound that rank-1 cannot exceed."
                    if bounded
                    else "No bound on rank-1 holds here: it is proved for pure mechanisms with one row a person."
                )
            )
            title = f"Utility over budgets: {unit} unit, {protocol}"
            pictures.append(
                Picture(title, f"{safe_name('budget', unit, protocol)}.svg", svg(figure), text, (source.origin,))
            )
    return pictures


def leakage_chart(source: Source) -> Picture | None:
    """Return leakage of every channel with its interval, between floor and unprotected; None: none is available."""
    with reading(source):
        named = [(name, one) for name, one in leakage_figures(source.record) if one["leakage"] is not None]
        if not named:
            return None
        figure, axis = pyplot().subplots(figsize=(_WIDE[0], 1.6 + 0.34 * len(named)))
        for place, (_, one) in enumerate(reversed(named)):
            low, middle, high = (100 * one[key] for key in ("leakage_low", "leakage", "leakage_high"))
            axis.plot([low, high], [place, place], color=STYLES[0][0], linewidth=2)
            axis.plot(middle, place, color=STYLES[0][0], marker="o")
        axis.axvline(0, color="black", linestyle="--", linewidth=1, label="floor")
        axis.axvline(100, color=STYLES[1][0], linestyle="-.", linewidth=1, label="as on clean features")
        axis.set_yticks(range(len(named)), [_label(name) for name, _ in reversed(named)], fontsize=9)
        axis.set_xlabel("leakage (%), 95 % interval")
        axis.set_ylim(-0.6, len(named) - 0.4)
        figure.legend(fontsize=8, loc="upper center", ncols=2)
        figure.tight_layout(rect=(0, 0, 1, 0.93))
        title = f"Leakage by channel: {protection_words(source.record)}"
        text = "Points with 95 % intervals, percent of what the same attackers reach on clean features."
        return Picture(title, f"{safe_name(title)}.svg", svg(figure), text, (source.origin,))


def roc_curves(source: Source) -> list[Picture]:
    """Return one ROC curve a figure that is an AUC (linkage, membership), protected beside clean and chance."""
    pictures = []
    with reading(source):
        for name, one in leakage_figures(source.record):
            curve = one.get("roc")
            if not curve:
                continue
            figure, axis = pyplot().subplots(figsize=(5.0, 4.4))
            fpr = curve["fpr"]
            axis.plot(fpr, curve["tpr"], color=STYLES[0][0], label=f"protected, AUC {one['score']:.3f}")
            if curve.get("clean_tpr"):
                label = f"clean features, AUC {one['clean']:.3f}"
                axis.plot(fpr, curve["clean_tpr"], color=STYLES[1][0], linestyle="-.", label=label)
            axis.plot(fpr, fpr, color="black", linestyle="--", linewidth=1, label="chance")
            axis.set_xscale("log")
            axis.set_xlim(1e-3, 1)
            axis.set_ylim(0, 1.02)
            axis.set_xlabel("false positive rate (log)")
            axis.set_ylabel("true positive rate")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
            figure.tight_layout()
            title = f"ROC, {name}: {protection_words(source.record)}"
            text = (
                "Mean over the seeds of the true positive rate at each false positive rate. The left end matters most: "
                "whom an attacker is sure about."
            )
            pictures.append(Picture(title, f"{safe_name(title)}.svg", svg(figure), text, (source.origin,)))
    return pictures


def leakage_over_budgets(sources: Sequence[Source]) -> Picture | None:
    """Return the largest task and non-task leakage over epsilon, of two budgets or more of one unit."""
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    used = {}
    for source in sources:
        with reading(source):
            protection = (source.record.get("meta") or {}).get("protection") or {}
            epsilon, unit = protection.get("epsilon"), protection.get("unit")
            if not isinstance(epsilon, (int, float)):
                continue
            for key, name in (("task_max", "task"), ("non_task_max", "not task")):
                if source.record.get(key):
                    line = f"{name}, {_mechanism_words(protection)}, ε of one {unit}"
                    lines.setdefault(line, []).append((float(epsilon), source.record[key]))
                    used[source.origin.file] = source.origin
    lines = {name: points for name, points in lines.items() if len({epsilon for epsilon, _ in points}) > 1}
    if not lines:
        return None
    figure, axis = pyplot().subplots(figsize=_WIDE)
    for (name, points), (color, marker) in zip(sorted(lines.items()), itertools.cycle(STYLES), strict=False):
        points = sorted(points, key=lambda point: (point[0], point[1]["leakage"]))
        epsilons, figures = zip(*points, strict=True)
        middle = [100 * one["leakage"] for one in figures]
        below = [max(0.0, 100 * (one["leakage"] - one["low"])) for one in figures]
        above = [max(0.0, 100 * (one["high"] - one["leakage"])) for one in figures]
        axis.errorbar(epsilons, middle, [below, above], color=color, marker=marker, capsize=3, label=_line_label(name))
    budgets = sorted({epsilon for points in lines.values() for epsilon, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{epsilon:g}" for epsilon in budgets])
    axis.set_xlabel("ε")
    axis.set_ylabel("largest leakage (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    text = (
        "The largest leakage of the channels that are Re-ID's own task, and of all others, with 95 % intervals; a line "
        "for each mechanism, and of several records at one ε a point each."
    )
    return Picture("Leakage over budgets", "leakage-over-budgets.svg", svg(figure), text, tuple(used.values()))


def _mechanism_words(protection: Mapping[str, Any]) -> str:
    """Return mechanism and transform without what depends on the budget: what is drawn as one line."""
    mechanism, transform = protection.get("mechanism"), protection.get("transform")
    sizes: list[str] = []
    if isinstance(mechanism, Mapping):
        sizes = [f"{mechanism[key]} {key}" for key in ("codewords", "set_size") if mechanism.get(key)]
        mechanism = mechanism.get("mechanism")
    words = [str(protection.get("written") or mechanism or "unknown"), *sizes]
    if isinstance(transform, Mapping) and transform.get("transform") not in (None, "center"):
        words.append(str(transform["transform"]))
    return ", ".join(words)


def _label(text: str) -> str:
    """Return a name as matplotlib shall draw it: without its mathematics, and not endless."""
    return (text if len(text) <= 40 else text[:39] + "…").replace("$", r"\$")


def _line_label(text: str) -> str:
    """Return a line's name likewise, shortened in the middle: what tells parameters apart stands at its end."""
    return (text if len(text) <= 48 else f"{text[:19]}…{text[-28:]}").replace("$", r"\$")
