"""Queries of a search: saved features, or images through a model. Both are clean: a query is matched as it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from yacs.config import CfgNode

from ppreid_plugin.build import build_model
from ppreid_plugin.data.images import ImageError, read_image
from ppreid_plugin.dp.feature_files import load_arrays, model_fingerprint, row_names
from ppreid_plugin.search.index import GalleryIndex
from ppreid_plugin.suppression.image_transforms import insert_image_transforms
from ppreid_plugin.toolbox import submodule
from ppreid_plugin.zoo import resolve, weights_of

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")

_BATCH = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Queries:
    """Clean features of queries.

    Attributes:
        names: (q,), what they are called in the answer.
        features: (q, any), float.
        model: fingerprint of the weights that made them; empty where it is not known.
    """

    names: tuple[str, ...]
    features: npt.NDArray[np.floating]
    model: str = ""

    def warn_of_other_weights(self, index: GalleryIndex) -> None:
        """Log a warning if the index was made with other weights: scores between two models mean nothing."""
        made_with = index.record.release["model"]
        if self.model and self.model != made_with:
            _log.warning(
                "release %s was made with other weights (%s) than the queries (%s): hits will be poor.",
                index.record.release["release"],
                made_with,
                self.model,
            )


def load_queries(path: str | Path) -> Queries:
    """Return the queries in a file of features, as ``tools/extract_features.py`` writes them.

    Args:
        path: ``.npz`` or ``.safetensors`` with ``features`` (q, any); ``row_ids`` and ``model`` are used where given.

    Raises:
        FileNotFoundError, ValueError: no such file, another kind of file, or one without features.
    """
    arrays = load_arrays(path)
    if "features" not in arrays:
        raise ValueError(f"'{path}' lacks features; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    features = arrays["features"]
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise ValueError(
            f"'{path}': features have shape {features.shape} and type {features.dtype}, must be (q, d) floating point "
            "with at least one row."
        )
    row_ids = arrays.get("row_ids", np.empty(0))
    if row_ids.ndim != (2 if row_ids.dtype == np.uint8 else 1):
        raise ValueError(f"'{path}': row_ids has shape {row_ids.shape} and type {row_ids.dtype}, must be (q,) names.")
    try:
        names = row_names(arrays) or [str(number) for number in range(len(features))]
    except UnicodeDecodeError:
        raise ValueError(
            f"'{path}': row_ids are bytes that are no UTF-8. Save them as UTF-8 padded with zeros."
        ) from None
    if len(names) != len(features):
        raise ValueError(f"'{path}' holds {len(features)} rows of features and {len(names)} row_ids.")
    return Queries(tuple(names), features, str(arrays.get("model", "")))


def image_queries(cfg: CfgNode, places: Sequence[str]) -> Queries:
    """Extract queries from images with the model and the test-time transform of a configuration.

    Args:
        cfg: names the model and its weights (``model.load_weights``).
        places: image files, and folders whose images are taken in the order of their names.

    Raises:
        ValueError: no weights, no image, or an image that cannot be read.
    """
    weights = weights_of(cfg)
    if not weights:
        raise ValueError(
            "model.load_weights is empty; image queries need a trained model. Append model.load_weights F."
        )
    paths = _image_files(places)
    transforms = submodule("data.transforms")
    size = {"height": cfg.data.height, "width": cfg.data.width}
    _, test = transforms.build_transforms(
        **size, transforms=[], norm_mean=cfg.data.norm_mean, norm_std=cfg.data.norm_std
    )
    insert_image_transforms(test, cfg.data.transforms_test, fresh=False)
    cfg.model.load_weights = resolve(weights)
    model = build_model(cfg, num_classes=1).eval()
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for start in range(0, len(paths), _BATCH):
            images = torch.stack([test(read_image(path)) for path in paths[start : start + _BATCH]])
            found.append(model(images.to(device)).float().cpu())
    return Queries(tuple(paths), torch.cat(found).numpy(), model_fingerprint(cfg.model.load_weights))


def _image_files(places: Sequence[str]) -> list[str]:
    files = []
    for place in map(Path, places):
        if not place.exists():
            raise ImageError(f"image '{place}' does not exist. Name image files, or folders of them.")
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        files += [str(path) for path in inside if not place.is_dir() or path.suffix.lower() in IMAGES]
    if not files:
        raise ImageError(f"'{places[0]}' holds no image ({', '.join(IMAGES)}). Name image files, or folders of them.")
    return files
