"""Training batches shared out to ranks: together they see the batches that one process would see."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from .. import ranks
from ..components import isolated_rng

# their batches are made of equal parts of several domains, of which every rank gets its share
_OF_DOMAINS = ("RandomDomainSampler", "RandomDatasetSampler")


class RankSampler(Sampler[int]):
    """A rank's share of the batches of another sampler, which draws the same on every rank.

    Args:
        sampler: of all ranks together; what it draws from global generators is drawn from ``seed`` and epoch.
        batch_size: of all ranks together; a rank gets an equal share, of consecutive images, so that
            RandomIdentitySampler's images of a person stay together (of samplers by domain, every n-th image).
        rank, world_size: which share, of how many.
        seed: of the draws.

    Raises:
        ValueError: a batch that does not divide.
    """

    def __init__(self, sampler: Any, batch_size: int, *, rank: int, world_size: int, seed: int) -> None:
        check_shares(batch_size, world_size, getattr(sampler, "num_instances", 1))
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw; the same epoch has the same one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[int]:
        with _seeded([self.seed, self.epoch]):
            order = list(self.sampler)
        share = self.batch_size // self.world_size
        strided = type(self.sampler).__name__ in _OF_DOMAINS
        mine = slice(self.rank, None, self.world_size) if strided else slice(self.rank * share, (self.rank + 1) * share)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield from order[start : start + self.batch_size][mine]


def check_shares(batch_size: int, world_size: int, num_instances: int = 1) -> None:
    """Check that a batch divides among ranks, images of a person together.

    Raises:
        ValueError: it does not; sizes that do are named.
    """
    unit = world_size * num_instances
    if world_size > 1 and batch_size % unit:
        fits = max(1, round(batch_size / unit)) * unit
        people = f" in groups of {num_instances} images a person" if num_instances > 1 else ""
        raise ValueError(
            f"train.batch_size is {batch_size} with {world_size} processes; each takes an equal share of it{people}. "
            f"Append: train.batch_size {fits}"
        )


def share_batches(datamanager: Any, seed: int) -> None:
    """Let a data manager's train loader give this rank's share of each batch, in place; nothing with one rank."""
    size = ranks.world_size()
    if size == 1:
        return
    loader = datamanager.train_loader
    datamanager.train_loader = DataLoader(
        loader.dataset,
        sampler=RankSampler(loader.sampler, loader.batch_size, rank=ranks.rank(), world_size=size, seed=seed),
        batch_size=loader.batch_size // size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=True,
    )


@contextmanager
def _seeded(seed: list[int]) -> Iterator[None]:
    """Seed the global generators inside the block and restore them: torchreid's samplers draw from all three."""
    state, numpy_state = random.getstate(), np.random.get_state()
    drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
    try:
        with isolated_rng(drawn):
            random.seed(drawn)
            np.random.seed(drawn)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
