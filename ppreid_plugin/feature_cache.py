"""The cache of clean features: a folder for each set of images, weights and settings, found by their digest.

Clean features are the unprotected gallery. The cache is off unless a folder is named, its files can be read by the
owner alone and say ``privacy: clean``, a gallery that is protected never gets into it, and `purge` empties it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torch import nn

from .feature_shards import ABOUT, FeatureShards
from .features import unwrap
from .toolbox import version


def cached_shards(
    folder: str | Path,
    engine: Any,
    loader: Any,
    items: Sequence[Any],
    description: str,
    *,
    fast: bool,
    keep: bool = True,
) -> FeatureShards:
    """Return the shards of a set in the cache: those of the same weights, images, transform, libraries and settings.

    Args:
        folder: of the cache; made (mode 0700) if it is not there.
        engine: whose model extracts.
        loader: torchreid data loader of the set.
        items: tuples (path(s), pid, camid, ...) in the loader's order.
        description: what the set is, for whoever looks at the cache.
        fast: as `extract`'s.
        keep: as `FeatureShards`'s.

    Raises:
        OSError: an image that is not there.
    """
    from . import __version__

    dataset, model = loader.dataset, unwrap(engine._models["model"])
    about = {
        "set": description,
        "rows": len(items),
        "model": type(model).__name__,
        "weights": weights_digest(model),
        "images": images_digest(items),
        "transform": repr(dataset.transform),
        "clips": [getattr(dataset, "seq_len", None), getattr(dataset, "sample_method", None)],
        "engine": [type(engine).__name__, getattr(engine, "pooling_method", None)],
        # what decides about the last bits of a feature
        "fast": fast,
        "bfloat16": bool(getattr(engine, "amp", False)),
        "device": "cuda" if engine.use_gpu else "cpu",
        "batch_size": loader.batch_size,
        "versions": {
            "ppreid_plugin": __version__,
            "torchreid": version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "Pillow": str(PIL.__version__),
        },
    }
    decides = {name: value for name, value in about.items() if name != "set"}  # what a tool calls it changes no feature
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]
    Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    return FeatureShards(Path(folder, key), len(items), loader.batch_size, about=about, keep=keep)


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def images_digest(items: Sequence[Any]) -> str:
    """Return a digest of image files in order: their paths, sizes and times of change."""
    digest = hashlib.sha256()
    for item in items:
        paths = [item[0]] if isinstance(item[0], str) else item[0]
        for path in paths:
            found = os.stat(path)
            digest.update(f"{os.path.abspath(path)}\0{found.st_size} {found.st_mtime_ns}\0".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def purge(folder: str | Path) -> int:
    """Delete every set of features in a cache, and nothing else; return how many there were.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"test.feature_cache is '{folder}', which is not there: nothing to purge.")
    found = [path.parent for path in Path(folder).glob(f"*/{ABOUT}") if _is_clean(path)]
    for entry in found:
        shutil.rmtree(entry)
    return len(found)


def _is_clean(about: Path) -> bool:
    try:
        return bool(json.loads(about.read_text(encoding="utf-8"))["privacy"] == "clean")
    except (ValueError, KeyError, TypeError):
        return False
