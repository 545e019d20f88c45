"""The arrays of an index on disk: ``.npy`` files with one entry a row, written in batches and read by memory map."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppreid_plugin.dp.journal import write_all
from ppreid_plugin.search.room import reserve, room_for
from ppreid_plugin.search.source import RowBatch, RowSource

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def label_shapes(source: RowSource) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of a source's label columns: ``row_ids``, and ``pids``, ``camids`` where it has them."""
    labels = {"pids": source.has_pids, "camids": source.has_camids}
    return {"row_ids": (f"|S{source.id_bytes}", ()), **{name: ("<i8", ()) for name, there in labels.items() if there}}


def labels_of(batch: RowBatch) -> dict[str, np.ndarray]:
    """Return the label columns of a batch."""
    named = {"row_ids": batch.row_ids, "pids": batch.pids, "camids": batch.camids}
    return {name: array for name, array in named.items() if array is not None}


def create_columns(folder: Path, shapes: Shapes, rows: int) -> None:
    """Make the files, as long as they will be, over what is there, and reserve their room where the file system can.

    Raises:
        NoRoomError: it has no room for them; none is left behind.
    """
    made: list[Path] = []
    try:
        for name, (dtype, shape) in shapes.items():
            path = file_of(folder, name)
            path.unlink(missing_ok=True)
            made.append(path)
            with room_for(path, rows * np.dtype(dtype).itemsize * math.prod(shape)):
                np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(rows, *shape)).flush()
                reserve(path, path.stat().st_size)
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def write_columns(folder: Path, start: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write entries from row ``start`` on, and bring them to the disk.

    Not by memory map, which would end the process where a file system that reserves nothing is full.
    """
    for name, array in arrays.items():
        path = file_of(folder, name)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        fitting = np.ascontiguousarray(array, dtype=stored.dtype)
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.lseek(descriptor, stored.offset + start * stored.strides[0], os.SEEK_SET)
            with room_for(path):
                write_all(descriptor, fitting.reshape(-1).view(np.uint8).data)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_column(folder: Path, name: str, array: np.ndarray) -> None:
    """Write a whole column at once."""
    create_columns(folder, {name: (array.dtype.str, array.shape[1:])}, len(array))
    write_columns(folder, 0, {name: array})


def open_columns(folder: Path, shapes: Shapes, rows: int) -> dict[str, np.ndarray]:
    """Return the arrays, memory-mapped; what is written into them never reaches the files.

    Raises:
        ValueError: a file that is missing, cut off, or of another type or shape.
    """
    opened = {}
    for name, (dtype, shape) in shapes.items():
        path = file_of(folder, name)
        try:
            # copy on write: torch wants arrays that may be written
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"'{path}' cannot be read ({' '.join(str(error).split())}): the index is damaged. Build it again."
            ) from None
        if (array.shape, array.dtype) != ((rows, *shape), np.dtype(dtype)):
            raise ValueError(
                f"'{path}' holds {array.dtype} of shape {array.shape}, index.json says {np.dtype(dtype)} of shape "
                f"{(rows, *shape)}: the index is damaged. Build it again."
            )
        opened[name] = array
    return opened


def file_of(folder: Path, name: str) -> Path:
    """Return the file of a column."""
    return folder / f"{name}.npy"
