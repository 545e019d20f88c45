"""Validation people: held out from training to choose checkpoints and parameters, never the reported gallery.

The people are split off torchreid's training identities after its data manager was built. Their images become a
query set (one image a camera, the first in the data set's order) and a gallery, evaluated as one more target named
`VALIDATION`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..toolbox import submodule
from .checks import DataError

VALIDATION = "validation_people"

Item = tuple[Any, ...]


def held_out_count(ids_fraction: float, people: int) -> int:
    """Return how many of these people `hold_out_people` holds out."""
    return max(2, math.floor(ids_fraction * people))


def hold_out_people(
    datamanager: Any,
    *,
    ids_fraction: float,
    seed: int,
    exclude_same_camera: bool = True,
    build_sampler: Callable[[list[Item]], Any] | None = None,
) -> list[int]:
    """Move a share of the training people of a torchreid data manager into a validation target.

    The manager's training labels are renumbered from 0; `datamanager.num_train_pids`, its train loader and its test
    loaders change in place.

    Args:
        datamanager: torchreid image or video data manager, not used yet.
        ids_fraction: share of the training people, in (0, 1); at least two people are held out and two remain.
        seed: seed of the choice; nothing else is seeded or drawn.
        exclude_same_camera: whether evaluation drops gallery rows of the query's person and camera.
        build_sampler: makes the training sampler from a list of items; None shuffles (RandomSampler).

    Returns:
        The former training labels of the people held out, sorted.

    Raises:
        DataError: too few people, or none of those chosen was seen by two cameras.
    """
    loader = datamanager.train_loader
    trainset = loader.dataset
    labels = sorted({item[1] for item in trainset.train})
    count = held_out_count(ids_fraction, len(labels))
    if len(labels) - count < 2:
        raise DataError(
            f"privacy.validation.ids_fraction is {ids_fraction} of {len(labels)} training people: {count} would be "
            f"held out and {len(labels) - count} remain; at least 2 of each are needed."
        )
    chosen = sorted(np.random.default_rng(seed).permutation(labels)[:count].tolist())
    held_out = set(chosen)
    items = [item for item in trainset.train if item[1] in held_out]
    query, gallery = split_query_gallery(items, exclude_same_camera=exclude_same_camera)
    if not query:
        twice = "by two cameras" if exclude_same_camera else "twice"
        raise DataError(
            f"none of the {count} validation people was seen {twice}, so none can be matched. "
            "Set privacy.validation.ids_fraction higher, or to 0."
        )

    new_label = {label: index for index, label in enumerate(x for x in labels if x not in held_out)}
    trainset.train = [(i[0], new_label[i[1]], *i[2:]) for i in trainset.train if i[1] not in held_out]
    trainset.data = trainset.train
    trainset.num_train_pids = datamanager._num_train_pids = len(new_label)
    if build_sampler is None:
        build_sampler = submodule("data.sampler").RandomSampler
    datamanager.train_loader = loader_like(loader, trainset, sampler=build_sampler(trainset.train), drop_last=True)

    like = next(iter(datamanager.test_loader.values()))["query"]
    datasets = {
        "query": _with_items(trainset, query, datamanager),
        "gallery": _with_items(trainset, gallery, datamanager),
    }
    datamanager.test_loader = {
        VALIDATION: {role: loader_like(like, dataset) for role, dataset in datasets.items()},
        **datamanager.test_loader,
    }
    datamanager.test_dataset = {VALIDATION: {"query": query, "gallery": gallery}, **datamanager.test_dataset}
    return chosen


def training_set_for_features(datamanager: Any, max_images: int = 0, seed: int = 0) -> DataLoader[Any]:
    """Return a loader over the training split with the test-time transform, in order.

    Args:
        datamanager: torchreid data manager.
        max_images: a random subset of that many items (0: all).
        seed: seed of the subset.
    """
    trainset = datamanager.train_loader.dataset
    items = [trainset.train[place] for place in some_places(len(trainset.train), max_images, seed)]
    like = next(iter(datamanager.test_loader.values()))["query"]
    # a loader draws a seed from torch's global generator unless it has one of its own: training must not notice
    generator = torch.Generator().manual_seed(seed)
    return loader_like(like, _with_items(trainset, items, datamanager), generator=generator)


def held_out_set_for_features(datamanager: Any) -> DataLoader[Any]:
    """Return a loader over all images of the people held out, with the test-time transform.

    Where cameras do not matter, no query stands in the gallery: queries come first then, so that the same ones are
    found again (`split_query_gallery`).

    Args:
        datamanager: torchreid data manager with people held out (`hold_out_people`).
    """
    query, gallery = (datamanager.test_dataset[VALIDATION][role] for role in ("query", "gallery"))
    among = set(gallery)
    items = [*(item for item in query if item not in among), *gallery]
    like = datamanager.test_loader[VALIDATION]["gallery"]
    return loader_like(like, _with_items(like.dataset, items, datamanager))


def some_places(count: int, most: int, seed: int) -> np.ndarray:
    """Return the places of ``most`` of ``count`` items, drawn by the seed, in order; all of them for 0."""
    if not 0 < most < count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def split_query_gallery(items: list[Item], *, exclude_same_camera: bool) -> tuple[list[Item], list[Item]]:
    """Return query and gallery of items (anything, pid, camid, ...).

    Query: the first image of a person (and camera). Gallery: all images, or the rest where cameras do not matter. A
    query image may stand in the gallery as well when gallery rows of its own person and camera are dropped.
    """
    places: dict[int, set[Any]] = {}
    for index, item in enumerate(items):
        places.setdefault(item[1], set()).add(item[2] if exclude_same_camera else index)
    query, rest, seen = [], [], set()
    for item in items:
        key = (item[1], item[2]) if exclude_same_camera else (item[1],)
        if len(places[item[1]]) > 1 and key not in seen:
            seen.add(key)
            query.append(item)
        else:
            rest.append(item)
    return query, list(items) if exclude_same_camera else rest


def _with_items(dataset: Any, items: list[Item], datamanager: Any) -> Any:
    clone = copy.copy(dataset)
    clone.data = items
    clone.transform = datamanager.transform_te
    clone.k_tfm = 1
    return clone


def loader_like(loader: DataLoader[Any], dataset: Any, **overrides: Any) -> DataLoader[Any]:
    """Return a loader over another data set with the batch size, processes and memory of ``loader``, in order."""
    arguments: dict[str, Any] = {
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "drop_last": False,
        **overrides,
    }
    return DataLoader(dataset, **arguments)
