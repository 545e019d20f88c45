"""The documentation's picture of every De-ID target, on generated pedestrians."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..components import Context
from ..data.pedestrians import make_pedestrians
from ..suppression import DEID_TARGETS, build_deid_target
from .figures import image_rows, load_images
from .pictures import GENERATED, picture_mark

_PEOPLE = 6
_HEIGHT, _WIDTH = 256, 128
_COMMAND = "python tools/write_docs.py --pictures"
_COLORS = 128  # of the file's palette: a third of the size


def write_deid_targets(path: str | Path, *, seed: int = 3) -> None:
    """Write a picture with a row for the original and for each of the package's De-ID targets, at their defaults.

    Args:
        path: PNG to write.
        seed: of the generated people; the targets have their own default seeds.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = make_pedestrians(folder, _PEOPLE, 1, seed, workers=1)
        files = sorted((root / "bounding_box_train").glob("*.jpg"))
        shown = _one_of_each_person(files)
        everybody = load_images([str(file) for file in files], _HEIGHT, _WIDTH)
        images = load_images(shown, _HEIGHT, _WIDTH)
        rows = {"original": images}
        for name in DEID_TARGETS.names():
            if DEID_TARGETS.get(name).__module__.startswith("ppreid_plugin.") and name not in ("none", "sometimes"):
                target = build_deid_target(name)
                target.prepare(_context(everybody))
                rows[name] = target.of_batch(images, shown)
                if name == "mask":
                    rows["mask, no\nsilhouette"] = target(images)
        image_rows(rows, path)
    _reduce(Path(path), picture_mark(GENERATED, kind="De-ID targets", command=_COMMAND, seed=str(seed)))


def _one_of_each_person(files: list[Path]) -> list[str]:
    """Return a picture of each person, the first of one, the second of the next, ...: by different cameras."""
    groups = [list(group) for _, group in itertools.groupby(files, lambda file: file.name[:4])]
    return [str(group[index % len(group)]) for index, group in enumerate(groups)]


def _context(images: Tensor) -> Context:
    def train_images(max_images: int, seed: int) -> Iterator[Tensor]:
        yield images

    none = (0.0, 0.0, 0.0)
    return Context(1, None, _PEOPLE, _HEIGHT, _WIDTH, none, none, torch.device("cpu"), (), train_images=train_images)


def _reduce(path: Path, mark: dict[str, str]) -> None:
    """Save a picture again with a palette, and with the text chunks that say whom it shows."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in mark.items():
        info.add_text(name, text)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True, pnginfo=info)
