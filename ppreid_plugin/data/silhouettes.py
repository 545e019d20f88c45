"""True silhouettes of the generated pedestrians, drawn again from the plan of their data set.

The folder holds pictures only. ``meta.json`` says from which counts, seed and version they were made, so that every
picture's person, pose and occluder can be drawn once more, alone: no byte of the data set changes, and folders made
earlier have silhouettes too.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from .generator import writer
from .generator.camera import CAMERAS
from .generator.person import Person
from .generator.render import silhouette

_FOLDERS = (writer.TRAIN, writer.QUERY, writer.GALLERY)
_SEEN_FROM = 128  # opacity from which a pixel belongs to the person


def silhouette_of(path: str) -> np.ndarray | None:
    """Return where the person of a generated picture is seen.

    Args:
        path: a file of ``synthetic_pedestrians``.

    Shape:
        Output: (256, 128) bool, True = person and what they carry; all False for an empty street. None for a picture
        that was not generated, or by another version of the generator.
    """
    file = Path(path)
    if file.parent.name not in _FOLDERS:
        return None
    shots = _shots(str(file.parent.parent))
    name = f"{file.parent.name}/{file.name}"
    if name not in shots:
        return None
    person, camera, seed = shots[name]
    if person is None:
        return np.zeros((writer.HEIGHT, writer.WIDTH), bool)
    return np.asarray(silhouette(person, CAMERAS[camera], seed) >= _SEEN_FROM)


@functools.lru_cache(maxsize=8)
def _shots(folder: str) -> dict[str, tuple[Person | None, int, int]]:
    """Person, camera and seed of every picture below a data set's folder; empty if it is none of this generator."""
    try:
        meta = json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))
        arguments = meta["num_train_ids"], meta["num_test_ids"], meta["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not all(type(value) is int for value in arguments) or writer.describe(*arguments).items() - meta.items():
        return {}
    shots = {}
    for task in writer.plan(*arguments):
        person, seeds = writer.cast_task(task)
        for (name, camera), seed in zip(task.files, seeds, strict=True):
            shots[name] = (person, camera, seed)
    return shots
