"""Augmented views of training images: further rows that a public transform and a codebook are fitted on.

An encoder knows its training images, and their features lie closer together, a person's to a person's, than those of
people whom it has not seen. Features of images that it was not shown lie more as the gallery's do.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from .validation import loader_like, training_set_for_features

_LARGER = 1.125  # of the input size, that is cropped from; as torchreid's random_crop
_SEEDS = 2**63


class AugmentedView:
    """Flip, crop, color jitter, the test-time transform, and random erasing, drawn from torch's generator alone.

    Strengths are those of torchreid's ``random_flip``, ``random_crop`` (always), ``color_jitter`` and ``random_erase``
    (2 to 33 % of the image in place of 2 to 40 %).

    Args:
        transform: test-time transform, in whose output is erased.
        height, width: input size, in pixels.
    """

    def __init__(self, transform: Any, height: int, width: int) -> None:
        self._steps = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.Resize((round(height * _LARGER), round(width * _LARGER))),
                transforms.RandomCrop((height, width)),
                transforms.ColorJitter(brightness=0.2, contrast=0.15),
                transform,
                transforms.RandomErasing(),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return one view, (3, H, W)."""
        view: Tensor = self._steps(image)
        return view

    def __repr__(self) -> str:
        return f"AugmentedView({self._steps!r})"


class AugmentedViews(Dataset[Any]):
    """Several augmented views of each item of a torchreid test set, one pass over the set after the other.

    A view depends on the seed and its place, not on the loader's processes or on what was drawn before, and torch's
    generator is left as it was.

    Args:
        dataset: torchreid image or video data set; each frame of a clip is augmented by itself.
        views: of each item, at least 1.
        height, width: input size, in pixels.
        seed: of the views.

    Attributes:
        data: the items, ``views`` times.
        transform: says in its ``repr`` what makes the views, the seed too.
    """

    def __init__(self, dataset: Any, views: int, *, height: int, width: int, seed: int) -> None:
        self._dataset = copy.copy(dataset)
        self._dataset.transform = AugmentedView(dataset.transform, height, width)
        self._length = len(dataset.data)
        self._seed = seed
        self.data = [*dataset.data] * views
        self.transform = (self._dataset.transform, seed)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self._seed * 1_000_003 + 1 + index) % _SEEDS)
            return self._dataset[index % self._length]


def training_views(datamanager: Any, views: int, max_images: int = 0, seed: int = 0) -> DataLoader[Any]:
    """Return a loader over augmented views of the training split.

    Args:
        datamanager: torchreid data manager.
        views: of each image.
        max_images: of a random subset of that many items, the one of `training_set_for_features` (0: all).
        seed: of the subset and of the views.
    """
    plain = training_set_for_features(datamanager, max_images, seed)
    dataset = AugmentedViews(plain.dataset, views, height=datamanager.height, width=datamanager.width, seed=seed)
    return loader_like(plain, dataset, generator=plain.generator)
