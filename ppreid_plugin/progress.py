"""Progress of long steps: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T", covariant=True)

_LINE_EVERY_S = 15.0


class SizedIterable(Protocol[T]):
    """Something with a length that can be iterated, such as a DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T]: ...


class track(Generic[T]):  # noqa: N801  (used like a function, as rich.progress.track)
    """Iterate over ``items`` and show how far it is.

    Args:
        items: what to iterate over; it needs a length.
        description: what is being done, shown before the bar.
        per_item: how many units an item stands for (a batch of 32 images: 32).
        unit: the name of the unit for the rate: ``"images"``.
    """

    def __init__(self, items: SizedIterable[T], description: str, *, per_item: int = 1, unit: str = "it") -> None:
        self.items = items
        self.description = description
        self.per_item = per_item
        self.unit = unit

    def __len__(self) -> int:
        return len(self.items)

    def __getattr__(self, name: str) -> object:
        if name == "items":  # not set yet (unpickling): do not recurse
            raise AttributeError(name)
        return getattr(self.items, name)

    def __iter__(self) -> Iterator[T]:
        return self._bar() if sys.stdout.isatty() else self._lines()

    def _bar(self) -> Iterator[T]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        start = time.perf_counter()
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(self.description, total=len(self), rate="")
            for done, item in enumerate(self.items, 1):
                yield item
                rate = done * self.per_item / max(time.perf_counter() - start, 1e-9)
                progress.update(task, advance=1, rate=f"{rate:.0f} {self.unit}/s")

    def _lines(self) -> Iterator[T]:
        start = last = time.perf_counter()
        for done, item in enumerate(self.items, 1):
            yield item
            now = time.perf_counter()
            if now - last >= _LINE_EVERY_S:
                last = now
                rate = done / (now - start)
                left = (len(self) - done) / rate
                speed = f"{rate * self.per_item:.0f} {self.unit}/s"
                print(f"{self.description}: {done}/{len(self)}, {speed}, {left:.0f} s left", flush=True)
