"""Figures: rows of images side by side, and t-SNE maps. Drawn without a display."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..leakage.scores import combine

_PERPLEXITY = 15.0
# color-blind-safe (Okabe and Ito 2008), with a marker each
STYLES = list(zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "os^Dvx", strict=True))


def image_rows(
    rows: Mapping[str, Tensor], path: str | Path, *, height_px: int = 192, mark: Mapping[str, str] | None = None
) -> None:
    """Write a picture with one titled row of images an entry.

    Args:
        rows: title to images (n, 3, H, W) in [0, 1]; sizes may differ between rows.
        path: PNG to write.
        height_px: height of every image in the picture, in pixels.
        mark: text chunks of the file, which say whom it shows (:func:`.pictures.picture_mark`).

    Raises:
        ValueError: no rows, or rows of different length.
    """
    lengths = {len(images) for images in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"rows hold {sorted(lengths)} images, must hold equally many (and at least one row).")
    plt = pyplot()
    count = lengths.pop()
    figure, axes = plt.subplots(len(rows), count, figsize=(0.9 * count + 1.4, 1.85 * len(rows)), squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        size = (height_px, round(height_px * images.shape[-1] / images.shape[-2]))
        shown = F.interpolate(images.detach().float().cpu().clamp(0, 1), size=size, mode="nearest-exact")
        for axis, image in zip(line, shown, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110, metadata=dict(mark or {}))
    plt.close(figure)


def tsne_maps(
    features: Mapping[str, np.ndarray | Tensor], pids: np.ndarray, path: str | Path, *, people: int = 10, seed: int = 1
) -> None:
    """Write t-SNE maps side by side: the same rows in several feature spaces, colored by person.

    Args:
        features: title to features (n, d); all of the same n rows. Maps are made with cosine distance.
        pids: (n,), persons of the rows; the ``people`` with most rows are shown.
        path: PNG to write.
        people: how many people to show, at most.
        seed: seed of the maps' start.
    """
    counts = {pid: int((pids == pid).sum()) for pid in np.unique(pids)}
    shown = sorted(counts, key=lambda pid: (-counts[pid], pid))[:people]
    rows = np.flatnonzero(np.isin(pids, shown))
    plt = pyplot()
    figure, axes = plt.subplots(1, len(features), figsize=(4.2 * len(features), 4.2), squeeze=False)
    for axis, (title, values) in zip(axes[0], features.items(), strict=True):
        placed = tsne_places(np.asarray(values)[rows], seed=seed)
        for index, pid in enumerate(shown):
            mine = pids[rows] == pid
            axis.scatter(*placed[mine].T, s=14, color=plt.get_cmap("tab10")(index % 10))
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tsne_places(features: np.ndarray, *, seed: int) -> np.ndarray:
    """Return where t-SNE puts rows (n, d): (n, 2), by cosine distance; the same rows and seed, the same places.

    Raises:
        ValueError: fewer than four rows.
    """
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise ValueError(f"t-SNE of {len(features)} rows says nothing. Give at least 4.")
    perplexity = min(_PERPLEXITY, max(1.0, (len(features) - 1) / 3))
    made = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(features)
    return np.asarray(made)


def budget_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rank-1 (in the anonymous protocol mAP, where no bound holds) over epsilon, one panel a unit and protocol.

    Args:
        rows: of a sweep.
        path: picture to write.

    Raises:
        ValueError: no rows.
    """
    panels = list(dict.fromkeys((row["unit"], row["protocol"]) for row in rows))
    if not panels:
        raise ValueError("there are no rows to draw. Sweep at least one mechanism and budget.")
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        budget_panel(axis, [row for row in rows if (row["unit"], row["protocol"]) == panel])
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def budget_panel(axis: Any, rows: Sequence[Mapping[str, Any]], *, legend_size: float = 6) -> None:
    """Draw one panel of :func:`budget_curves`: a line is a mechanism's mean over the seeds, bars are 95 % intervals.

    The dashed line is the bound on rank-1 where one holds.

    Args:
        axis: of matplotlib.
        rows: of a sweep, all of one unit and protocol.
        legend_size: font size, in points.
    """
    unit, protocol = rows[0]["unit"], rows[0]["protocol"]
    free = [row for row in rows if not _is_budget(row["epsilon"])]  # of the mechanism that adds no noise
    rows = [row for row in rows if _is_budget(row["epsilon"])]
    bounds = {row["epsilon"]: 100 * row["bound"] for row in rows if row["bound"] is not None}
    metric, name = ("mAP", "mAP") if protocol == "anonymous" and not bounds else ("rank1", "rank-1")
    chosen = any(row["chosen_on"] != "nothing" for row in rows)
    lines: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        small = " (small cells, public prior)" if row["prior_is_public"] else ""
        line = f"chosen on validation people{small}" if chosen else _line_name(row)
        lines.setdefault(line, {}).setdefault(row["epsilon"], []).append(row[metric])
    for (line, values), (color, marker) in zip(lines.items(), itertools.cycle(STYLES), strict=False):
        epsilons = sorted(values)
        found = [combine(values[epsilon], [0.0] * len(values[epsilon])) for epsilon in epsilons]
        means, halves = [100 * one.value for one in found], [100 * (one.high - one.value) for one in found]
        axis.errorbar(epsilons, means, halves, color=color, marker=marker, markersize=4, capsize=2, label=line)
    if free:
        axis.axhline(100 * free[0][metric], color="gray", linestyle=":", linewidth=1, label="no noise: not protected")
    if bounds:
        axis.plot(*zip(*sorted(bounds.items()), strict=True), "k--", linewidth=1, label="bound on rank-1")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row["epsilon"] for row in rows}), [f"{e:g}" for e in sorted({r["epsilon"] for r in rows})])
    axis.set_ylim(bottom=0)
    axis.set_xlabel(f"epsilon of one {unit}")
    axis.set_ylabel(f"{name} (%)")
    axis.set_title(f"{unit} unit, {protocol}", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=legend_size)


def _is_budget(epsilon: Any) -> bool:
    return isinstance(epsilon, (int, float)) and math.isfinite(epsilon)


def _line_name(row: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in row["params"].items())
    return f"{row['mechanism']} {options}".strip()


def load_images(paths: list[str], height: int, width: int) -> Tensor:
    """Load images as (n, 3, height, width), RGB in [0, 1]."""
    from ..data.images import read_image

    arrays = [np.asarray(read_image(path).resize((width, height))) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def pyplot() -> Any:
    """Return ``matplotlib.pyplot`` without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
