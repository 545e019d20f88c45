"""Mixed precision for torchreid's engines, which have none: the model's forward pass in bfloat16, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def model_autocast(engine: Any) -> Iterator[None]:
    """Inside the block ``engine.model(images)`` runs under bfloat16 autocast, if ``engine.amp`` is there and True."""
    if not getattr(engine, "amp", False):
        yield
        return
    model = engine.model
    engine.model = _AutocastModel(model)
    try:
        yield
    finally:
        engine.model = model


class _AutocastModel:
    """Calls a model under bfloat16 autocast and returns float32: losses and distances stay in full precision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            outputs = self.model(images)
        return _float(outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _float(outputs: Any) -> Any:
    return type(outputs)(_float(o) for o in outputs) if isinstance(outputs, (tuple, list)) else outputs.float()
