"""Features of a set in files of a few hundred rows: what an interrupted extraction goes on from, and ranks share.

A shard is written whole or not at all, readable by the owner alone, and the same whoever writes it: rows are cut at
whole batches, so a row's batch, and with it the last bit of its feature, is the same in any run over these images (on a
CPU with the same number of threads).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import ranks
from .dp.journal import write_file

_LEAST_ROWS = 256  # half a megabyte of 512 columns: seconds to make, and few enough files for a million rows
ABOUT = "about.json"


class ShardError(RuntimeError):
    """Shards that do not make up the set; the message names the folder."""


class FeatureShards:
    """The shards of one set in a folder of its own.

    Args:
        folder: made (mode 0700) if it is not there.
        rows: number of rows of the set.
        batch_size: shards are whole batches.
        about: what the features are of, for whoever looks at the folder.
        keep: False removes the folder once all ranks have read it.
    """

    def __init__(
        self, folder: str | Path, rows: int, batch_size: int, *, about: dict[str, object], keep: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.rows = rows
        self.shard_rows = batch_size * -(-_LEAST_ROWS // batch_size)
        self.keep = keep
        self._queue: list[int] = []
        self._made: list[Tensor] = []
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.folder / ABOUT).is_file():
            text = json.dumps({"privacy": "clean", **about}, indent=1, sort_keys=True)
            write_file(self.folder / ABOUT, text.encode(), mode=0o600)

    def missing_rows(self) -> list[int]:
        """Return the rows that this rank has to extract and `add`, in order."""
        rank, size = ranks.rank(), ranks.world_size()
        self._queue = [n for n in range(-(-self.rows // self.shard_rows)) if n % size == rank and not self._is_there(n)]
        self._made = []
        return [row for number in self._queue for row in self._span(number)]

    def add(self, features: Tensor) -> None:
        """Take the features of the next rows of `missing_rows`; shards that are full are written."""
        self._made.append(features)
        while self._queue and sum(map(len, self._made)) >= len(self._span(self._queue[0])):
            number, joined = self._queue.pop(0), torch.cat(self._made)
            count = len(self._span(number))
            data = save({"features": joined[:count].contiguous()}, metadata={"privacy": "clean"})
            write_file(self._path(number), data, mode=0o600)
            self._made = [joined[count:]] if len(joined) > count else []

    def join(self) -> Tensor:
        """Return all rows (n, d) in order, once every rank has written its own.

        Raises:
            ShardError: a shard is missing or does not fit.
        """
        ranks.barrier()
        parts = []
        for number in range(-(-self.rows // self.shard_rows)):
            if not self._is_there(number):
                raise ShardError(
                    f"'{self.folder}' lacks rows {self._span(number)[0]} to {self._span(number)[-1]}: they were "
                    "removed or changed while the features were extracted. Start again; what is there is used."
                )
            with safe_open(self._path(number), framework="pt") as stored:
                parts.append(stored.get_tensor("features"))
        if not self.keep:
            ranks.barrier()
            if ranks.is_first():
                shutil.rmtree(self.folder)
        return torch.cat(parts)

    def _span(self, number: int) -> range:
        return range(number * self.shard_rows, min(self.rows, (number + 1) * self.shard_rows))

    def _path(self, number: int) -> Path:
        return self.folder / f"rows-{number * self.shard_rows:09d}.safetensors"

    def _is_there(self, number: int) -> bool:
        """Whether the shard is there and whole; a damaged one counts as missing and is written again."""
        try:
            with safe_open(self._path(number), framework="pt") as stored:
                rows, columns = stored.get_slice("features").get_shape()
        except (OSError, SafetensorError, ValueError):
            return False
        return rows == len(self._span(number)) and columns > 0
