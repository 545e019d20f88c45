"""Images as bytes until they are on the device, with the values of ``ToTensor`` and ``Normalize``, a batch at once.

A quarter of the bytes pass between loader processes and to the GPU, and a batch is converted in one go.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms


class RawImages:
    """A torchreid test set whose images are bytes, and what makes torchreid's own of them.

    Args:
        dataset: torchreid data set; a shallow copy is changed.
        steps: what its transform does before ``ToTensor``.
        normalize: the last step.
    """

    def __init__(self, dataset: Any, steps: list[Any], normalize: transforms.Normalize) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.transform = transforms.Compose([*steps, _as_bytes])
        self._mean, self._std = (np.asarray(values, dtype=np.float32) for values in (normalize.mean, normalize.std))

    @classmethod
    def of(cls, dataset: Any) -> RawImages | None:
        """Return the set with byte images; None where its transform is not [..., ToTensor, Normalize] of RGB images."""
        steps = list(getattr(getattr(dataset, "transform", None), "transforms", []))
        if len(steps) < 2 or type(steps[-2]) is not transforms.ToTensor or type(steps[-1]) is not transforms.Normalize:
            return None
        pictures = all(
            isinstance(step, (transforms.Resize, transforms.CenterCrop, transforms.Pad)) for step in steps[:-2]
        )
        return cls(dataset, steps[:-2], steps[-1]) if pictures and len(steps[-1].mean) == 3 else None

    def normalized(self, images: Tensor) -> Tensor:
        """Return what the data set's own transform gives, bit for bit on the CPU, channels last in memory.

        Shape:
            images: (..., H, W, 3), uint8. Output: (..., 3, H, W), float32.
        """
        # rows of width * 3 numbers: long enough to be computed in vectors, short enough for the cache
        width = images.shape[-2]
        mean, std = (torch.from_numpy(np.tile(v, width)).to(images.device) for v in (self._mean, self._std))
        made = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        rows, target = images.flatten(-2), made.flatten(-2)
        pieces = zip(rows, target, strict=True) if images.device.type == "cpu" else [(rows, target)]
        for row, place in pieces:
            place.copy_(row).div_(255).sub_(mean).div_(std)
        return made.movedim(-1, -3)


def _as_bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
