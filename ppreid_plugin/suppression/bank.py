"""The features of past batches, for what a batch is too small to tell from noise."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..components import Batch, Component, Trainable
from .centering import RunningCenter


class FeatureBank(nn.Module):
    """The center, and the last rows seen from it with something that belongs to each.

    Args:
        columns: d.
        size: n, rows kept.
        beside: shape of what belongs to a row; empty: one number.
        dtype: its type; pids by default.

    Attributes:
        rows, beside: (n, d) and (n, ...); zeros until they were seen.
    """

    rows: Tensor
    beside: Tensor
    seen: Tensor

    def __init__(self, columns: int, size: int, beside: tuple[int, ...] = (), dtype: torch.dtype = torch.int64) -> None:
        super().__init__()
        self.center = RunningCenter(columns)
        self.register_buffer("rows", torch.zeros(size, columns))
        self.register_buffer("beside", torch.zeros(size, *beside, dtype=dtype))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def full(self) -> bool:
        """Whether as many rows were seen as are kept."""
        return int(self.seen) >= len(self.rows)

    @torch.no_grad()
    def put(self, rows: Tensor, beside: Tensor) -> None:
        """Replace the oldest rows, and what belongs to them."""
        size, start = len(self.rows), int(self.seen)
        places = torch.arange(start, start + len(rows), device=rows.device)[-size:] % size
        self.rows[places], self.beside[places] = rows[-size:].to(self.rows), beside[-size:].to(self.beside)
        self.seen += len(rows)


class BankedComponent(Component):
    """A component without parameters that looks at a `FeatureBank`, which `build` makes and checkpoints carry."""

    name: ClassVar[str]
    state: FeatureBank | None = None

    def __init__(self) -> None:
        self._figures: dict[str, float] = {}

    def trainables(self) -> dict[str, Trainable]:
        """Center and bank, saved with the checkpoint: a resumed run goes on with the same rows."""
        return {self.name: Trainable(self._state)}

    def start_at_once(self) -> None:
        """Take the bank for full, of zeros."""
        self._state.seen.fill_(len(self._state.rows))

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Return the figures of the step's loss."""
        return self._figures

    @property
    def _state(self) -> FeatureBank:
        if self.state is None:
            raise RuntimeError(f"{type(self).__name__} has no bank yet: give it to an engine, or call build(context).")
        return self.state
