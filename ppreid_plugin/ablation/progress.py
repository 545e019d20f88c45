"""Time left of work whose steps differ in kind: each kind is estimated from what its finished steps took."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class TimeLeft:
    """Counts expected steps by kind and says how long the rest will take; a step that several rows share counts once.

    Example:
        >>> left = TimeLeft()
        >>> left.expect("training", "a")
        >>> str(left)
        ''
    """

    def __init__(self) -> None:
        self._expected: dict[str, set[Hashable]] = {}
        self._seconds: dict[str, list[float]] = {}

    def expect(self, kind: str, what: Hashable) -> None:
        """Expect a step."""
        self._expected.setdefault(kind, set()).add(what)

    @contextmanager
    def step(self, kind: str, what: Hashable, *, count: bool = True) -> Iterator[None]:
        """Time a step; ``count`` is False for one that turns out to be finished."""
        start = time.monotonic()
        yield
        if count:
            self._seconds.setdefault(kind, []).append(time.monotonic() - start)
        self._expected.get(kind, set()).discard(what)

    def seconds(self) -> float | None:
        """Return the seconds left, or None before one step of each kind is finished."""
        total = 0.0
        for kind, rest in self._expected.items():
            took = self._seconds.get(kind)
            if rest and not took:
                return None
            total += len(rest) * sum(took) / len(took) if took else 0.0
        return total

    def __str__(self) -> str:
        left = self.seconds()
        if left is None or not any(self._seconds.values()):
            return ""
        return f"; about {left / 60:.0f} min left" if left >= 90 else f"; about {left:.0f} s left"
