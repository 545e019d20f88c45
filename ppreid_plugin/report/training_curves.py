"""Curves of a training run: Re-ID loss and accuracy beside what the adversaries reach, one point an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training_log import TRAINING_LOG, read_training_log
from .figures import STYLES, pyplot

TRAINING_PICTURE = "training.png"
_ACCURACY = "acc"
_ADVERSARY_ACCURACY = "acc_adversary_"
_ADVERSARY_LOSSES = ("loss_adversary_", "held_out_loss_adversary_")


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
    accuracies = [name for name in names if name == _ACCURACY or name.startswith(_ADVERSARY_ACCURACY)]
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
    _lines(axes[0], lines, task, solid=True)
    against = [name for name in names if name.startswith(_ADVERSARY_LOSSES)]
    axes[0].set_ylabel("Re-ID loss")
    if against:
        other = axes[0].twinx()
        _lines(other, lines, against, solid=False, skip=len(task))
        other.set_ylabel("adversaries' loss (dashed)")
        other.set_ylim(bottom=0)
        other.legend(fontsize=7, loc="upper right")
    _lines(axes[1], lines, [name for name in accuracies if name == _ACCURACY], solid=True)
    _lines(axes[1], lines, [name for name in accuracies if name != _ACCURACY], solid=False, skip=len(task))
    axes[1].set_ylabel("accuracy on training batches (%)")
    axes[1].set_ylim(0, 100)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.get_lines():
            axis.legend(fontsize=7, loc="lower left")
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


def _lines(
    axis: Any, lines: Sequence[Mapping[str, float]], names: Sequence[str], *, solid: bool, skip: int = 0
) -> None:
    styles = itertools.islice(itertools.cycle(STYLES), skip, None)
    for name, (color, marker) in zip(names, styles, strict=False):
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        shown = {"acc": "Re-ID (training people)", "loss": "Re-ID"}.get(name, name.replace("_", " "))
        style = "-" if solid else "--"
        axis.plot(*zip(*points, strict=True), style, color=color, marker=marker, markersize=3, label=shown)
