"""The judge: a Re-ID model that is not the attacked one, and says whether reconstructions still show who it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint import load_weights
from ..components import isolated_rng
from ..dp.feature_files import model_fingerprint
from ..registry import closest
from ..retrieval.ranking import evaluate
from ..toolbox import model_factory, models
from ..zoo import resolve
from .compute import compute_device
from .images import RowImages
from .inversion_decoder import to_images

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what torchreid's models are trained with
_CHUNK = 64


class Judge:
    """A torchreid model with weights, which ranks real images for reconstructed ones; on a GPU where there is one.

    Args:
        model: torchreid's name of it.
        weights: its checkpoint, or ``zoo:NAME``; trained apart from the model that is attacked.
        height, width: of its input in pixels.

    Raises:
        ValueError: an unknown model.
        FileNotFoundError, CheckpointError: no such file, or weights of another model.
    """

    def __init__(self, model: str, weights: str | Path, *, height: int = 256, width: int = 128) -> None:
        names = sorted(model_factory())
        if model not in names:
            raise ValueError(
                f"the judge's model is {model!r}; torchreid has: {', '.join(names)}.{closest(model, names)}"
            )
        path = resolve(str(weights))
        with isolated_rng(0):
            self._network: Any = models.build_model(model, num_classes=1, pretrained=False)
        load_weights(self._network, path, model_name=model)
        self._device = compute_device()
        self._network.eval().to(self._device)
        self.model, self.fingerprint = model, model_fingerprint(path)
        self.height, self.width = height, width
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def __repr__(self) -> str:
        return f"Judge({self.model!r}, {self.fingerprint!r}, height={self.height}, width={self.width})"

    def features(self, images: Tensor) -> npt.NDArray[np.float32]:
        """Return features (n, d) of images (n, 3, H, W) in [0, 1], enlarged bilinearly where they are smaller.

        They are kept: the true images are asked about again by every seed.
        """
        key = hashlib.sha256(f"{images.shape}".encode() + images.numpy().tobytes()).hexdigest()
        if key not in self._known:
            self._known[key] = self._extract(images)
        return self._known[key]

    def real_features(self, images: RowImages) -> npt.NDArray[np.float32]:
        """Return features (n, d) of real images at the size of the judge's input; they are kept."""
        key = images.fingerprint()
        if key not in self._known:
            self._known[key] = np.concatenate([self._extract(part) for part in self._full_size(images)])
        return self._known[key]

    def rank1(
        self, made: Tensor, real: RowImages, pids: npt.NDArray[np.int64], camids: npt.NDArray[np.int64]
    ) -> float | None:
        """Return the share of images whose nearest real image of another camera is of the same person.

        The gallery is the real images of the same rows; a row's own image, and those of its person and camera, are left
        out for it. Rows without a match in another camera are not counted; None: there is no match at all.

        Shape:
            made: (n, 3, H, W), in [0, 1]. real, pids, camids: (n,).
        """
        if not has_matches(pids, camids):
            return None
        return evaluate(self.features(made), self.real_features(real), pids, pids, camids, camids, max_rank=1).rank1

    def _extract(self, images: Tensor) -> npt.NDArray[np.float32]:
        mean, deviation = (torch.tensor(value, device=self._device).view(3, 1, 1) for value in (MEAN, DEVIATION))
        size, found = (self.height, self.width), []
        with torch.no_grad():
            for part in images.split(_CHUNK):
                part = part.to(self._device)
                if part.shape[-2:] != size:
                    part = F.interpolate(part, size=size, mode="bilinear", align_corners=False, antialias=True)
                found.append(self._network((part - mean) / deviation).float().cpu().numpy())
        return np.concatenate(found)

    def _full_size(self, images: RowImages) -> Iterator[Tensor]:
        for start in range(0, len(images), _CHUNK):
            places = np.arange(start, min(start + _CHUNK, len(images)))
            yield to_images(images.take(places).load(self.height, self.width))


def has_matches(pids: npt.NDArray[np.int64], camids: npt.NDArray[np.int64]) -> bool:
    """Return whether some person has rows of two cameras."""
    seen = np.unique(np.stack([pids, camids], axis=1), axis=0)
    return len(np.unique(seen[:, 0])) < len(seen)
