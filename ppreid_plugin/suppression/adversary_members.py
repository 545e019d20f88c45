"""The members of an adversary: independently initialized networks, and which training people each learns and attacks.

An adversary that knows its training people by heart recognizes *them*, not their attributes, so that the gradient it
gives teaches the encoder to disguise known people. With ``held_out`` or ``cross_fit`` no member ever takes a step on
the people whose features it attacks. (Cross-fitting: Chernozhukov et al., Econometrics Journal 2018, section 3.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..components import Batch, Trainable

PEOPLE = ("auto", "all", "held_out", "cross_fit")

Fold = tuple[Tensor | None, Tensor | None]


@dataclass
class Member:
    """One network of an adversary.

    Attributes:
        name: as torchreid saves it.
        module: the network.
        optimizer, scheduler: its own; the scheduler may be None.
        learns, attacks: (people,), whether it steps on a person, and gives the encoder a gradient on him; None: all.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    learns: Tensor | None
    attacks: Tensor | None

    @property
    def trainable(self) -> Trainable:
        """What the engine saves and switches."""
        return Trainable(self.module, self.optimizer, self.scheduler)

    def restart(self, fresh: nn.Module) -> None:
        """Take the parameters of ``fresh`` and forget the optimizer's moments; buffers and learning rate are kept."""
        with torch.no_grad():
            for own, new in zip(self.module.parameters(), fresh.parameters(), strict=True):
                own.copy_(new)
        self.optimizer.state.clear()


def people_folds(num_people: int, people: str, held_out: float, seed: int) -> list[Fold]:
    """Return who learns from and who attacks which training people: one (learns, attacks) a fold.

    Args:
        num_people: number of training people N.
        people: ``all`` (one fold of everybody), ``held_out`` (one fold: the attacked people are not learned) or
            ``cross_fit`` (two folds: A learns half 1 and attacks half 2, B the other way round).
        held_out: share of people that ``held_out`` attacks, in (0, 1).
        seed: seed of the random split.

    Shape:
        Output: masks (N,), bool, or None for everybody.

    Raises:
        ValueError: too few people for a split.
    """
    if people == "all":
        return [(None, None)]
    share = 0.5 if people == "cross_fit" else held_out
    count = math.floor(share * num_people + 0.5)
    if not 0 < count < num_people:
        raise ValueError(
            f"privacy.adversary.people is '{people}': {count} of {num_people} training people would be held out from "
            "an adversary, at least one on either side is needed. Set privacy.adversary.people all, or change "
            "privacy.adversary.held_out_people."
        )
    order = torch.randperm(num_people, generator=torch.Generator().manual_seed(seed))
    attacked = torch.zeros(num_people, dtype=torch.bool)
    attacked[order[:count]] = True
    return [(~attacked, attacked)] if people == "held_out" else [(~attacked, attacked), (attacked, ~attacked)]


def rows_of(batch: Batch, mask: Tensor | None) -> Tensor | None:
    """Return the places in the batch of the people in ``mask`` (people,), None for all rows."""
    return None if mask is None else mask.to(batch.pids.device)[batch.pids].nonzero().squeeze(1)


def take(batch: Batch, rows: Tensor | None) -> Batch:
    """Return a batch of these rows, as labels and images; its features and feature map are left out."""
    if rows is None:
        return batch
    data: dict[str, Any] = {}
    for key, value in batch.data.items():
        if isinstance(value, Tensor) and value.ndim and len(value) and len(batch.pids) % len(value) == 0:
            # a video's clips have one label for all of their images
            each = value.repeat_interleave(len(batch.pids) // len(value), dim=0) if key != "img" else value
            data[key] = each[rows.to(value.device)] if len(each) == len(batch.pids) else value
        elif isinstance(value, (list, tuple)) and len(value) == len(batch.pids):
            data[key] = [value[row] for row in rows.tolist()]
    nothing = batch.features.detach()[:0]
    return dataclasses.replace(
        batch, images=batch.images[rows], pids=batch.pids[rows], features=nothing, feature_map=None, data=data
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block: what attacks the encoder is the whole network."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)
