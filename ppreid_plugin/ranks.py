"""Several processes started by ``torchrun``: who this one is, and the few things that it does with the others.

Without ``torchrun`` (or with one process) there is one rank, and nothing here does anything. NCCL connects the ranks
on CUDA, gloo on the CPU. A rank that fails closes its connections, so that whoever waits for it fails too; one that
hangs is given up after a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


def started() -> int:
    """Return the number of processes that ``torchrun`` started, whether they have joined or not; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Whether this process is the one that writes, prints and evaluates."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def anywhere(flag: bool) -> bool:
    """Whether it is so on any rank."""
    if world_size() == 1:
        return flag
    told = torch.tensor(float(flag), device=_device())
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told > 0)


def from_first(number: float) -> float:
    """Return the number of the first rank on every rank; the others wait for it."""
    if world_size() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64, device=_device())
    dist.broadcast(told, src=0)
    return float(told)


def share_from_first(tensors: Iterator[Tensor] | list[Tensor]) -> None:
    """Give the tensors, in place, the values that they have on the first rank."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


@contextlib.contextmanager
def joined(*, use_gpu: bool, timeout_s: float) -> Iterator[None]:
    """Be one of the ranks that ``torchrun`` started inside the block; ranks but the first print nothing there.

    Args:
        use_gpu: one GPU a rank and NCCL; False: gloo.
        timeout_s: seconds after which a rank that does not answer is given up.

    Raises:
        RuntimeError: fewer GPUs than ranks on this machine.
    """
    if started() == 1:
        yield
        return
    if use_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise RuntimeError(
                f"rank {local} of this machine has no GPU: there are {torch.cuda.device_count()}. Start as many "
                "processes (torchrun --nproc_per_node), or append: use_gpu False"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(seconds=timeout_s))
    with contextlib.nullcontext() if is_first() else _silent():
        yield
    # after an error nothing is waited for: the process ends, and its closed connections tell the others
    dist.destroy_process_group()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.root.setLevel(level)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
