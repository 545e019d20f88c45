"""Curves of a training run: Re-ID loss and accuracy beside what the adversaries reach, one point an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training_log import TRAINING_LOG, TRAINING_PICTURE, read_training_log
from .figures import STYLES, pyplot

_ADVERSARY = "_adversary_"


def training_curves(lines: Sequence[Mapping[str, float]]) -> Any:
    """Return a figure of two panels over epochs: losses (each side has its own axis), and accuracies in percent.

    Args:
        lines: of `read_training_log`.

    Raises:
        ValueError: no lines, or no loss in them.
    """
    names = list(dict.fromkeys(name for line in lines for name in line if name != "epoch"))
    task = [name for name in ("loss", "loss_t", "loss_x") if name in names]
    if not task:
        raise ValueError("the training log holds no loss. Train at least one epoch with a privacy part.")
    against = [name for name in names if _ADVERSARY in name]
    colors = dict.fromkeys([*task, *(name.partition(_ADVERSARY)[2] for name in against)])  # one each, in both panels
    colors.update(zip(colors, itertools.cycle(STYLES), strict=False))
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.0))
    other = axes[0].twinx()
    for name in [*task, *(name for name in against if "loss_" in name)]:
        _draw(other if _ADVERSARY in name else axes[0], lines, name, colors)
    _draw(axes[1], lines, "acc", colors)
    for name in (name for name in against if name.startswith("acc_")):
        _draw(axes[1], lines, name, colors)
    axes[0].set_ylabel("Re-ID loss")
    axes[0].set_title("Re-ID (left scale) and adversaries (right scale)", fontsize=10)
    other.set_ylabel("loss of adversaries")
    other.set_ylim(bottom=0)
    axes[1].set_ylabel("accuracy on training batches (%)")
    axes[1].set_ylim(0, 100)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    shown = [*axes[0].get_lines(), *other.get_lines()]
    for axis, curves in ((axes[0], shown), (axes[1], axes[1].get_lines())):
        labels = [str(curve.get_label()) for curve in curves]
        axis.legend(curves, labels, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    figure.tight_layout()
    return figure


def write_training_curves(folder: str | Path) -> Path | None:
    """Draw the training log in ``folder`` into ``training.png`` beside it; None where there is no log.

    Raises:
        TrainingLogError: a log that cannot be read.
    """
    log = Path(folder, TRAINING_LOG)
    if not log.is_file():
        return None
    figure = training_curves(read_training_log(log))
    path = Path(folder, TRAINING_PICTURE)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
    return path


def _draw(axis: Any, lines: Sequence[Mapping[str, float]], name: str, colors: Mapping[str, Any]) -> None:
    """Draw one figure over the epochs: Re-ID solid, an adversary dashed, its people that it does not learn dotted."""
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    if not points:
        return
    figure, _, adversary = name.partition(_ADVERSARY)
    color, marker = colors.get(adversary or name) or STYLES[0]
    style = "-" if not adversary else ":" if figure.startswith("held_out") else "--"
    words = {"loss": "", "held_out_loss": " (people it does not learn)", "acc": ""}
    shown = f"{adversary.replace('_', ' ')}{words[figure]}" if adversary else f"Re-ID {name.replace('_', ' ')}"
    axis.plot(*zip(*points, strict=True), style, color=color, marker=marker, markersize=3, label=shown)
