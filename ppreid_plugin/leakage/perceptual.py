"""LPIPS, where it can be had: the package ``lpips`` and the weights of AlexNet on disk. Nothing is downloaded."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .image_scores import in_chunks

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file, in torch's cache
ENLARGED = 2  # AlexNet's first layers leave little of 32 pixels


def lpips_missing() -> str:
    """Return why LPIPS is not available; empty: it is."""
    if find_spec("lpips") is None:
        return "the package lpips is not installed (pip install ppreid_plugin[lpips])"
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    return "" if path.is_file() else f"torch's cache has no {ALEXNET} (torchvision's AlexNet; nothing is downloaded)"


def lpips_distance(images: Tensor, others: Tensor) -> Tensor | None:
    """Return the perceptual distance of each image from its counterpart, 0 = equal; None: not available.

    Shape:
        images, others: (B, 3, H, W), in [0, 1], compared at twice their size. Output: (B,).

    Source:
        Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018; the authors'
        package, version 0.1, AlexNet.
    """
    if lpips_missing():
        return None
    network = _network()

    def distance(some: Tensor, counterparts: Tensor) -> Tensor:
        enlarged = [
            F.interpolate(one, scale_factor=ENLARGED, mode="bilinear", align_corners=False) * 2 - 1
            for one in (some, counterparts)
        ]
        result: Tensor = network(*enlarged)
        return result.flatten()

    return in_chunks(distance, images, others, size=64)


@lru_cache(maxsize=1)
def _network() -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision for weights in a way that is out of date
        return lpips.LPIPS(net="alex", verbose=False).eval()
