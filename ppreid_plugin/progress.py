"""Progress of long steps: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TextIO, TypeVar

T = TypeVar("T", covariant=True)

_LINE_EVERY_S = 15.0


class Tee:
    """Stands in for ``sys.stdout``: writes to a console and to a log.

    Args:
        console: what ``sys.stdout`` was; a progress bar puts itself in its place for a while.
        log: open text file.
    """

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self.console = console
        self.log = log

    def write(self, text: str) -> int:
        """Write to both."""
        self.log.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Flush both."""
        self.console.flush()
        self.log.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "console":  # not set yet (copying): do not recurse
            raise AttributeError(name)
        return getattr(self.console, name)


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
        from rich.console import Console
        from rich.file_proxy import FileProxy
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        start = time.perf_counter()
        tee = sys.stdout if isinstance(sys.stdout, Tee) else None
        terminal = tee.console if tee else sys.stdout
        console = Console(file=terminal)
        with Progress(*columns, console=console, transient=True, redirect_stdout=tee is None) as progress:
            if tee:  # what is printed goes above the bar, and to the log without it
                tee.console = FileProxy(console, terminal)  # type: ignore[assignment]
            try:
                task = progress.add_task(self.description, total=len(self), rate="")
                for done, item in enumerate(self.items, 1):
                    yield item
                    rate = done * self.per_item / max(time.perf_counter() - start, 1e-9)
                    progress.update(task, advance=1, rate=_speed(rate, self.unit))
            finally:
                if tee:
                    tee.console = terminal

    def _lines(self) -> Iterator[T]:
        start = last = time.perf_counter()
        for done, item in enumerate(self.items, 1):
            yield item
            now = time.perf_counter()
            if now - last >= _LINE_EVERY_S:
                last = now
                rate = done / (now - start)
                left = (len(self) - done) / rate
                speed = _speed(rate * self.per_item, self.unit)
                print(f"{self.description}: {done}/{len(self)}, {speed}, {left:.0f} s left", flush=True)


def _speed(rate: float, unit: str) -> str:
    """Return units a second, or how long slow ones take each."""
    return f"{rate:.0f} {unit}/s" if rate >= 1 else f"{1 / rate:.0f} s each"
