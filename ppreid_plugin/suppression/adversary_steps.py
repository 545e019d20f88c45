"""One training step of an adversary's members: they learn from detached input, and attack the encoder frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ranks
from ..components import Batch, frozen
from .adversary_members import evaluating, rows_of, take
from .adversary_terms import bounded, weighted_mean

if TYPE_CHECKING:
    from .adversary import Adversary

CHANCE = "chance"  # the figure of `learn` that is not logged


@torch.enable_grad()
def learn(adversary: Adversary, read: Tensor, batch: Batch) -> dict[str, float]:
    """Let every member take its steps on the people that it learns.

    Args:
        adversary: it and its members.
        read: what they read, (B, ...), detached.
        batch: the labels.

    Returns:
        Figures before the first step, averaged over the members; empty if the batch holds nothing for any.
    """
    found: list[dict[str, float]] = []
    for member in adversary.members:
        rows = rows_of(batch, member.learns)
        part, seen = take(batch, rows), read if rows is None else read[rows]
        weights = adversary.sample_weights(part)
        nothing = not len(seen) or (weights is not None and not weights.any())
        if not ranks.anywhere(not nothing):
            continue
        if nothing:  # other ranks take a step, in which this one adds no gradient
            for _ in range(adversary.steps):
                member.optimizer.zero_grad()
                member.optimizer.step()
            continue
        adversary.observe(member.module, part)
        for step in range(adversary.steps):
            outputs = member.module(seen)
            losses = adversary.sample_losses(outputs, part)
            loss = weighted_mean(losses, weights)
            member.optimizer.zero_grad()
            loss.backward()
            member.optimizer.step()
            if step == 0:
                limit = torch.as_tensor(adversary.bounds(member.module, part), dtype=losses.dtype, device=losses.device)
                chance = weighted_mean(limit.expand_as(losses), weights)
                figures = {f"loss_{adversary.name}": float(loss.detach()), CHANCE: float(chance)}
                found.append({**figures, **adversary.figures(outputs.detach(), part)})
    keys = found[0] if found else {}
    return {key: sum(one[key] for one in found) / len(found) for key in keys}


def attack(adversary: Adversary, read: Tensor, batch: Batch) -> tuple[Tensor | None, float | None]:
    """Return the mean of the bounded losses (or of `Adversary.forgetting`), and the loss on people not learned.

    The mean is over members and the samples that each attacks; its gradient reaches ``read`` and no member.

    Args:
        adversary: it and its members.
        read: what they read, (B, ...), with its graph.
        batch: the labels.

    Returns:
        The mean, not weighted yet (None: there is nothing to attack in the batch), and the mean loss on people that
        the attacking member does not learn (None: there are none).
    """
    values: list[Tensor] = []
    weights: list[Tensor] = []
    held_out: list[Tensor] = []
    for member in adversary.members:
        rows = rows_of(batch, member.attacks)
        part, seen = take(batch, rows), read if rows is None else read[rows]
        known = adversary.sample_weights(part)
        if not len(seen) or (known is not None and not known.any()):
            continue
        with evaluating(member.module):
            outputs = frozen(member.module, seen)
        losses = adversary.sample_losses(outputs, part)
        if member.attacks is not None:
            held_out.append(weighted_mean(losses.detach(), known))
        if adversary.schedule == "alternating":
            values.append(adversary.forgetting(member.module, outputs, part))
        else:
            values.append(bounded(losses, adversary.bounds(member.module, part)))
        weights += [] if known is None else [known]
    term = weighted_mean(torch.cat(values), torch.cat(weights) if weights else None) if values else None
    return term, float(torch.stack(held_out).mean()) if held_out else None
