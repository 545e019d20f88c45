"""What training logged, one JSON line an epoch: ``training.jsonl`` beside the checkpoints, from which curves are drawn.

TensorBoard's event files hold torchreid's running means by step; a line here holds the mean of one epoch, can be read
without TensorBoard, and stays right when a run is stopped and continued.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINING_LOG = "training.jsonl"
TRAINING_PICTURE = "training.png"  # its curves, drawn beside it


class TrainingLogError(ValueError):
    """A training log that cannot be read; the message names file and line."""


class EpochLog:
    """Means of the figures of one epoch's steps.

    Args:
        folder: where `TRAINING_LOG` is written; None: nowhere.
        epoch: number of the epoch, from 1.
    """

    def __init__(self, folder: str | Path | None, epoch: int) -> None:
        self.folder = folder
        self.epoch = epoch
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, figures: Mapping[str, Any]) -> None:
        """Take one step's figures; those that are not finite are left out."""
        for name, value in figures.items():
            if math.isfinite(number := float(value)):
                self._values[name].append(number)

    def write(self) -> None:
        """Write the epoch's line in place of any of it or of later epochs: those are of an earlier run."""
        if self.folder is None or not self._values:
            return
        path = Path(self.folder, TRAINING_LOG)
        earlier = [line for line in read_training_log(path) if line["epoch"] < self.epoch] if path.is_file() else []
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        write_training_log(path, [*earlier, {"epoch": self.epoch, **means}])


def write_training_log(path: Path, lines: Sequence[Mapping[str, float]]) -> None:
    """Write the lines, complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def read_training_log(path: str | Path) -> list[dict[str, float]]:
    """Return the lines: ``epoch`` (from 1) and the means of that epoch by name.

    Raises:
        TrainingLogError: a line that is not JSON, or has no epoch.
    """
    lines = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
            raise TrainingLogError(
                f"'{path}' line {number} is no epoch of a training log. Remove the file, or the line."
            )
        lines.append(line)
    return lines
