"""Where attackers compute: the networks among them take a GPU where there is one."""

from __future__ import annotations

import torch


def compute_device() -> torch.device:
    """Return the current CUDA device where there is one, else the CPU; ``CUDA_VISIBLE_DEVICES=`` leaves the GPU out."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
