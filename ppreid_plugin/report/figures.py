"""Figures: rows of images side by side, and t-SNE maps. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_PERPLEXITY = 15.0


def image_rows(rows: Mapping[str, Tensor], path: str | Path, *, height_px: int = 192) -> None:
    """Write a picture with one titled row of images an entry.

    Args:
        rows: title to images (n, 3, H, W) in [0, 1]; sizes may differ between rows.
        path: PNG to write.
        height_px: height of every image in the picture, in pixels.

    Raises:
        ValueError: no rows, or rows of different length.
    """
    lengths = {len(images) for images in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"rows hold {sorted(lengths)} images, must hold equally many (and at least one row).")
    plt = _pyplot()
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
    figure.savefig(path, dpi=110)
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
    from sklearn.manifold import TSNE

    counts = {pid: int((pids == pid).sum()) for pid in np.unique(pids)}
    shown = sorted(counts, key=lambda pid: (-counts[pid], pid))[:people]
    rows = np.flatnonzero(np.isin(pids, shown))
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(features), figsize=(4.2 * len(features), 4.2), squeeze=False)
    for axis, (title, values) in zip(axes[0], features.items(), strict=True):
        chosen = np.asarray(values)[rows]
        perplexity = min(_PERPLEXITY, max(1.0, (len(rows) - 1) / 3))
        placed = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(chosen)
        for index, pid in enumerate(shown):
            mine = pids[rows] == pid
            axis.scatter(*placed[mine].T, s=14, color=plt.get_cmap("tab10")(index % 10))
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def load_images(paths: list[str], height: int, width: int) -> Tensor:
    """Load images as (n, 3, height, width), RGB in [0, 1]."""
    from ..data.images import read_image

    arrays = [np.asarray(read_image(path).resize((width, height))) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def _pyplot():  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
