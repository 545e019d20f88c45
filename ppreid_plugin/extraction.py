"""Features of a whole data set as files: what sweeps, releases from features, and attackers read.

Such files hold *clean* features: they are the unprotected gallery, and are marked and guarded as that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import build, ranks
from .autocast import model_autocast
from .config import ConfigError, disable_privacy
from .data.csv_dataset import csv_folder_of
from .data.validation import VALIDATION, held_out_set_for_features, training_set_for_features
from .data.views import training_views
from .dp.feature_files import model_fingerprint, save_features
from .evaluation import Extracted
from .extracting import extract
from .feature_cache import cached_shards, purge
from .feature_shards import FeatureShards
from .inference import fast_model
from .number_checks import require_whole
from .zoo import resolve, weights_of

# makes the shards of a split from its loader, its items and its name; None: it is extracted in one go
ShardMaker = Callable[[Any, Sequence[Any], str], FeatureShards | None]

TRAIN_VIEWS = "train_views"  # the training split, and augmented views of it
_SHARDS = ".shards"


def extract_splits(
    engine: Any,
    *,
    root: str = "",
    splits: Sequence[str] = (),
    fast: bool = False,
    make_shards: ShardMaker | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Extract the splits of an engine's data manager with the test-time transform.

    Args:
        engine: a torchreid engine with data manager and model; it is switched to evaluation.
        root: folder that row ids are relative to; images of a CSV data set outside of it are named relative to the
            CSV's folder, others by their whole path; empty keeps the loader's paths.
        splits: names of those wanted; none: all. They are ``train``, ``validation`` (all rows of the people held out),
            ``query`` and ``gallery``; the last two with the target's name in front where there are several targets.
        fast: extract with a copy of the model made for inference (`inference_copy`).
        make_shards: where a split's features are kept while they are extracted.

    Returns:
        For each split ``features`` (n, d) float32, ``pids``, ``camids`` (n,) and ``row_ids`` (n,) text. Training pids
        are torchreid's labels, from 0.

    Raises:
        ValueError: a split that is not there.
        FeatureError: NaN or infinity; the images are named.
    """
    makers = _splits(engine.datamanager)
    _require_splits(splits, list(makers))
    engine.set_model_mode("eval")
    found = {}
    with fast_model(engine, fast), model_autocast(engine):
        for split, make in makers.items():
            if not splits or split in splits:
                loader, items = make()
                shards = make_shards and make_shards(loader, items, split)
                found[split] = _arrays(extract(engine, loader, split, items, fast=fast, shards=shards), items, root)
    return found


def extract_views(
    engine: Any,
    views: int,
    *,
    root: str = "",
    max_images: int = 0,
    seed: int = 0,
    fast: bool = False,
    make_shards: ShardMaker | None = None,
) -> dict[str, np.ndarray]:
    """Extract augmented views of the training split: what transforms and codebooks may be fitted on beside it.

    Args:
        engine: as in `extract_splits`.
        views: of each image.
        root: as there.
        max_images: of that many images, drawn by the seed (0: all).
        seed: of the choice and of the views.
        fast: as there.
        make_shards: as there.

    Returns:
        The arrays of `extract_splits`; a row's id is its image's with ``#view-1`` and so on behind it.
    """
    engine.set_model_mode("eval")
    loader = training_views(engine.datamanager, views, max_images, seed)
    items = loader.dataset.data  # type: ignore[attr-defined]
    shards = make_shards and make_shards(loader, items, TRAIN_VIEWS)
    with fast_model(engine, fast), model_autocast(engine):
        arrays = _arrays(extract(engine, loader, TRAIN_VIEWS, items, fast=fast, shards=shards), items, root)
    count = len(items) // views
    arrays["row_ids"] = np.array([f"{name}#view-{1 + n // count}" for n, name in enumerate(arrays["row_ids"])])
    return arrays


def extract_parser(base: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags of ``tools/extract_features.py`` to those of ``tools/train.py``."""
    base.description = "Extract the features of a data set's splits into files for sweeps, releases and attackers."
    base.add_argument("--out", default="features", help="folder of the files; existing ones are not overwritten")
    base.add_argument("--splits", nargs="+", default=[], help="train, validation, query, gallery; none: all")
    base.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="N",
        help="write train_views.npz too: the training images and N augmented views of each, for --train of sweeps and "
        "releases, whose transform and codebook are fitted on it",
    )
    base.add_argument("--overwrite", action="store_true", help="replace files that are there")
    base.add_argument(
        "--plain", action="store_true", help="the model as torchreid runs it; else a copy made for inference, faster"
    )
    base.add_argument("--purge-cache", action="store_true", help="empty the folder test.feature_cache, and stop")
    return base


def extract_command(cfg: Any, args: argparse.Namespace) -> dict[str, Path]:
    """Write ``SPLIT.npz`` for each split into the folder ``--out``, and ``train_views.npz``; return their paths.

    Under ``torchrun`` each rank extracts its share of the shards, and the first writes the files.

    Raises:
        FileExistsError: a file is there already; nothing is extracted then.
        ConfigError: ``--purge-cache`` without a cache; ``--views`` without the training split.
    """
    out, cache = Path(args.out), cfg.test.feature_cache
    if args.purge_cache:
        if not cache:
            raise ConfigError("--purge-cache needs the cache's folder. Append: test.feature_cache FOLDER")
        print(f"Deleted {purge(cache)} sets of features from '{cache}'")
        return {}
    views = require_whole("--views", args.views, least=0, hint="0: none")
    if views and args.splits and "train" not in args.splits:
        raise ConfigError(f"--views is {views}, and --splits leaves out the split that they are of. Add: train")
    cfg.test.evaluate = True
    protected = cfg.privacy.gallery.enabled
    disable_privacy(cfg)
    if not args.overwrite and (there := sorted(path.name for path in out.glob("*.npz"))):
        wanted = {f"{split}.npz" for split in (*args.splits, *([TRAIN_VIEWS] if views else []))}
        wanted = wanted if args.splits else set(there)
        if found := sorted(wanted & set(there)):
            raise FileExistsError(f"'{out}' holds {', '.join(found)} already. Name another --out, or say --overwrite.")
    engine = build.build_engine(cfg)
    names = list(_splits(engine.datamanager))
    _require_splits(args.splits, names)
    weights = weights_of(cfg)
    fingerprint = model_fingerprint(resolve(weights)) if weights else "untrained"
    out.mkdir(parents=True, exist_ok=True)
    if ranks.world_size() == 1:
        _drop_shards(out)  # of a run in several processes that did not end
    fast = not args.plain

    def make_shards(loader: Any, items: Sequence[Any], split: str) -> FeatureShards | None:
        kept = bool(cache) and not (protected and (split.endswith("gallery") or split == "validation"))
        if not kept and ranks.world_size() == 1:
            return None
        folder = cache if kept else out / _SHARDS  # beside the files that they become
        return cached_shards(folder, engine, loader, items, split, fast=fast, keep=kept)

    written: dict[str, Path] = {}

    def write(split: str, arrays: dict[str, np.ndarray]) -> None:
        written[split] = out / f"{split}.npz"
        if ranks.is_first():
            save_features(written[split], arrays, model=fingerprint)
        print(f"Written: '{written[split]}'")

    common: dict[str, Any] = {"root": cfg.data.root, "fast": fast, "make_shards": make_shards}
    for split in args.splits or names:
        (arrays,) = extract_splits(engine, splits=[split], **common).values()
        write(split, arrays)
        if split == "train" and views:
            more = extract_views(engine, views, seed=cfg.train.seed, **common)
            write(TRAIN_VIEWS, {name: np.concatenate([rows, more[name]]) for name, rows in arrays.items()})
    if ranks.is_first():
        _drop_shards(out)
    print("These files hold clean features, which are the unprotected gallery: keep them as the images themselves.")
    return written


def _drop_shards(out: Path) -> None:
    """Delete the clean features that ranks share beside the files while they are extracted."""
    if (folder := out / _SHARDS).is_dir():
        purge(folder)
        with contextlib.suppress(OSError):  # something of somebody else's lies there
            folder.rmdir()


def _require_splits(splits: Sequence[str], names: Sequence[str]) -> None:
    if unknown := sorted(set(splits) - set(names)):
        raise ValueError(f"--splits has '{unknown[0]}'; there are: {', '.join(names)}.")


def _splits(manager: Any) -> dict[str, Callable[[], tuple[Any, Sequence[Any]]]]:
    """Return what makes the loader and the items of each split, by its name; nothing is made before it is called."""

    def whole(make: Callable[[Any], Any]) -> tuple[Any, Sequence[Any]]:
        loader = make(manager)
        return loader, loader.dataset.data

    def part(target: str, role: str) -> tuple[Any, Sequence[Any]]:
        return manager.test_loader[target][role], manager.test_dataset[target][role]

    splits: dict[str, Callable[[], tuple[Any, Sequence[Any]]]] = {"train": partial(whole, training_set_for_features)}
    if VALIDATION in manager.test_loader:
        splits["validation"] = partial(whole, held_out_set_for_features)
    targets = [name for name in manager.test_loader if name != VALIDATION]
    for target in targets:
        for role in ("query", "gallery"):
            splits[f"{target}_{role}" if len(targets) > 1 else role] = partial(part, target, role)
    return splits


def _arrays(extracted: Extracted, items: Sequence[Any], root: str) -> dict[str, np.ndarray]:
    return {
        "features": extracted.features.numpy(),
        "pids": extracted.pids,
        "camids": extracted.camids,
        "row_ids": np.array([_row_id(item[0], root) for item in items]),
    }


def _row_id(path: str | Sequence[str], root: str) -> str:
    """Return the name of an image for good: what it is called must not depend on where a program was started."""
    first = path if isinstance(path, str) else path[0]  # a tracklet is known by its first frame
    place, base = (Path(os.path.abspath(os.path.expanduser(one))) for one in (first, root))
    if (described := csv_folder_of(first)) is not None:  # own data need no root, so none may count
        return Path(os.path.relpath(place, described.parent)).as_posix()
    if not root:
        return Path(first).as_posix()
    return (place.relative_to(base) if place.is_relative_to(base) else place).as_posix()
