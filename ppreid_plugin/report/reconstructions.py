"""Originals, De-ID targets and what the decoder makes of the features, of generated people only.

A picture of real people is never drawn here: a run writes its pictures unasked.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.validation import VALIDATION
from ..suppression import DeIDDecoder
from .figures import image_rows, load_images
from .pictures import GENERATED, is_generated, picture_mark
from .record import environment

PEOPLE = 8
_GRID = (128, 64)  # pixels of an image in TensorBoard


@torch.no_grad()
def example_reconstructions(engine: Any, target: str, *, people: int = PEOPLE) -> dict[str, Tensor] | None:
    """Return titled rows of images of a target's first query people: originals, targets, reconstructions.

    Args:
        engine: with a De-ID decoder among its components.
        target: name of a target data set of its data manager.
        people: how many, at most.

    Returns:
        None where the people of the data set exist, where no decoder reads the feature, and where it has not learned.
    """
    decoder = next((part for part in engine.components if isinstance(part, DeIDDecoder)), None)
    if decoder is None or decoder.input != "feature" or target == VALIDATION:
        return None
    items = engine.datamanager.test_dataset[target]["query"]
    if not decoder.has_learned or not items or not isinstance(items[0][0], str):
        return None
    firsts = {item[1]: place for place, item in reversed(list(enumerate(items)))}
    places = sorted(firsts.values())[:people]
    paths = [items[place][0] for place in places]
    if not all(map(is_generated, paths)):
        return None
    engine.set_model_mode("eval")
    device = next(engine.model.parameters()).device
    dataset = engine.test_loader[target]["query"].dataset
    batch = torch.stack([dataset[place]["img"] for place in places]).to(device)
    decoded = decoder.decode(engine.extract_features(batch)).cpu()
    images = load_images(paths, engine.datamanager.height, engine.datamanager.width)
    wanted = decoder.deidentify(images, paths)
    return {"original": images, "target T(x)": wanted[:, :3], "decoded from\nthe feature": decoded[:, :3]}


def write_reconstructions(engine: Any, folder: str | Path, *, command: Sequence[str], seed: int) -> list[Path]:
    """Write ``reconstructions_<target>.png`` for each target of generated people; return the files."""
    written = []
    for target in engine.datamanager.test_loader:
        rows = example_reconstructions(engine, target)
        if rows is not None:
            path = Path(folder) / f"reconstructions_{target}.png"
            image_rows(rows, path, mark=run_mark(f"Reconstructions, {target}", command=command, seed=seed))
            written.append(path)
    return written


def run_mark(kind: str, *, command: Sequence[str], seed: int) -> dict[str, str]:
    """Return the mark of a picture of generated people that a run writes."""
    machine = environment("cuda" if torch.cuda.is_available() else "cpu")
    return picture_mark(
        GENERATED,
        kind=kind,
        command=shlex.join(["python", *command]),
        seed=str(seed),
        commit=machine["commit"],
        device=machine["device"],
    )


def image_grid(rows: dict[str, Tensor]) -> Tensor:
    """Return rows of images (n, 3, H, W) as one picture (3, rows * 128, n * 64), for TensorBoard."""
    lines = [F.interpolate(images.float().clamp(0, 1), size=_GRID, mode="nearest-exact") for images in rows.values()]
    return torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1)
