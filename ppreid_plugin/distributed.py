"""Training on several ranks: the encoder in DistributedDataParallel, the components' gradients averaged beside it.

What is the same on all ranks: weights of the encoder and of every module that has an optimizer, learning rates, the
order of the data. What each rank has of its own: its share of a batch, its augmentation, and what components gather
from batches (running centers, banks of features, counts of use), of which checkpoints hold the first rank's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ranks

# the name that torch 2.14 gave it
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


def distribute(model: nn.Module, *, frozen_first: bool = False, classifier_learns: bool = True) -> nn.Module:
    """Return the model in DistributedDataParallel; as it is with one rank.

    BatchNorm sees a rank's share of a batch, as under DataParallel; its running statistics are averaged at the end of
    each epoch (`average_buffers`) and not with every batch.

    Args:
        model: a torchreid model on its device, whose optimizer is built.
        frozen_first: some layers do not learn in the first epochs (``train.fixbase_epoch``).
        classifier_learns: False for a loss that does not read the logits (triplet loss alone).
    """
    if ranks.world_size() == 1:
        return model
    device = next(model.parameters()).device
    left_out = [] if classifier_learns else _classifier(model)
    for parameter in left_out:  # what has no gradient now is not waited for later
        parameter.requires_grad_(False)
    options: dict[str, Any] = {
        "device_ids": [device] if device.type == "cuda" else None,
        "find_unused_parameters": frozen_first,
        _SYNC_BUFFERS: False,  # the first rank evaluates alone, and must wait for nobody
    }
    wrapped = DistributedDataParallel(model, **options)
    for parameter in left_out:
        parameter.requires_grad_(True)
    return wrapped


def average_gradients(optimizer: Any) -> None:
    """Let each step of an optimizer take the mean of all ranks' gradients; every rank must take as many steps.

    A parameter without gradient on a rank counts as 0 there, and is left out where no rank has one. Nothing with one
    rank, or for what is no torch optimizer.
    """
    if ranks.world_size() > 1 and isinstance(optimizer, torch.optim.Optimizer):
        optimizer.register_step_pre_hook(lambda own, args, kwargs: _average(own))


@torch.no_grad()
def _average(optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = grads[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([*(grad.reshape(-1) for grad in grads), there])  # one message
    dist.all_reduce(flat)
    *sums, there = flat.split([*(grad.numel() for grad in grads), len(parameters)])
    for parameter, total, any_rank in zip(parameters, sums, there.tolist(), strict=True):
        if any_rank:
            parameter.grad = total.view_as(parameter) / ranks.world_size()


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Give every rank the mean of the floating-point buffers: running statistics of all images. Nothing with one."""
    size = ranks.world_size()
    for buffer in model.buffers() if size > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= size


def share_module(module: nn.Module) -> None:
    """Give a module the parameters and buffers that it has on the first rank."""
    ranks.share_from_first([*module.parameters(), *module.buffers()])


class NoWriter:
    """Stands in for TensorBoard's writer on ranks that write nothing."""

    log_dir = None

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the first rank do the block before the others: it downloads, they find the file."""
    if not ranks.is_first():
        ranks.barrier()
    yield
    if ranks.is_first():
        ranks.barrier()


def _classifier(model: nn.Module) -> list[Tensor]:
    named = model.named_parameters()
    return [parameter for name, parameter in named if name.startswith("classifier") and parameter.requires_grad]
