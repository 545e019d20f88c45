"""Command line of De-ID images as features: ``tools/deid_features.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..dp.feature_files import load_arrays, require_arrays, row_names, save_features
from ..number_checks import require_whole
from ..suppression.deid import DeIDTarget
from ..suppression.image_transforms import parse_image_transform
from .deid_features import deid_features
from .images import ImageFiles, RowImages, row_images

_MADE_BY = "deid "  # begins what a file names for its model


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/deid_features.py``."""
    made = argparse.ArgumentParser(
        description="Write de-identified images as files of features, with the labels of the files given: so every "
        "attacker can be asked what the De-ID target itself gives away, by tools/measure_leakage.py --train "
        "OUT/train.npz --test OUT/gallery.npz --clean gallery.npz --clean-train train.npz. They are unprotected "
        "personal data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--features", nargs="+", required=True, metavar="FILE", help="files of features whose images are taken")
    add("--images-root", metavar="DIR", help="folder that paths or row_ids are relative to, where files hold no images")
    add("--target", default="pixelate", help="De-ID target: NAME[:KEY=VALUE+...], such as pixelate:blocks=4")
    add("--height", type=int, default=256, help="height of the model's input in pixels: there images are de-identified")
    add("--width", type=int, default=128, help="its width")
    add("--out", required=True, metavar="DIR", help="folder to write into, a file of the same name for each; made")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def deid_features_command(argv: Sequence[str]) -> list[Path]:
    """Write the files that the command line asks for; return their paths.

    Raises:
        ValueError: an unknown target or argument, a size out of range, rows without images, two files of one name, a
            file in the way that is not of this command; nothing is written then.
        FileNotFoundError, ImageError: a file that is not there or cannot be read.
    """
    args = parser().parse_args(argv)
    target = cast(DeIDTarget, parse_image_transform(args.target, key="--target"))  # None is for torchreid's own names
    for flag in ("height", "width"):
        require_whole(f"--{flag}", getattr(args, flag), hint="pixels")
    made_by = f"{_MADE_BY}{args.target} at {args.height} x {args.width}"
    sources = [Path(path) for path in args.features]
    paths = [Path(args.out) / f"{source.stem}.npz" for source in sources]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"--features has two files that would be written as '{path}'. Run them one by one.")
        _require_free(path, made_by)
    arrays = [load_arrays(source) for source in sources]
    images = [_images(source, found, args.images_root) for source, found in zip(sources, arrays, strict=True)]
    rows = deid_features(images, target, height=args.height, width=args.width)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for path, found, features in zip(paths, arrays, rows, strict=True):
        kept = {name: values for name, values in found.items() if name not in ("features", "privacy", "model")}
        save_features(path, {**kept, "features": features}, model=made_by)
        print(f"{len(features)} rows of {features.shape[1]} columns: '{path}'")
    return paths


def _require_free(path: Path, made_by: str) -> None:
    """Raise ValueError if another file is in the way: the features that the images are of, or another target's."""
    if not path.exists():
        return
    there = str(load_arrays(path, ["model"]).get("model", ""))
    if not there.startswith(_MADE_BY):
        raise ValueError(f"'{path}' exists, and holds no De-ID images: it would be lost. Name another folder: --out")
    if there != made_by:
        raise ValueError(
            f"'{path}' exists, and holds the images of another target ({there.removeprefix(_MADE_BY)}): files of two "
            "targets must not be compared. Name another folder: --out"
        )


def _images(source: Path, arrays: dict[str, Any], root: str | None) -> RowImages:
    require_arrays(source, arrays, ("pids", "camids"))
    try:
        images = row_images(arrays, row_names(arrays), root)
    except ValueError as error:
        raise ValueError(f"'{source}' {error}") from None
    if images is None:
        raise ValueError(f"'{source}' holds no images. Name the folder that its row_ids are relative to: --images-root")
    if len(images) != len(arrays["pids"]):
        raise ValueError(f"'{source}' has {len(images)} images for {len(arrays['pids'])} rows.")
    if isinstance(images, ImageFiles):
        images.check()
    return images
