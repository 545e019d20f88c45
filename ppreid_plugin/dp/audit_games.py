"""How a mechanism is attacked in an audit: which rows are released, and which events are counted.

Every trial releases a canary, u or -u, and beside it in the same call a row of the attacker's own, and in another call
rows of the attacker's own only. So there are three views, and events of each:

* the canary as it is released: too little noise, and a bound that is missing or comes too late, for the canary is
  100 times as long as the bound;
* against the attacker's row of the same call: noise shared by rows;
* against the attacker's row at the same place in another call: noise that is kept, or repeated by a fixed seed.

Every trial has an attacker's row of its own: trials that share one would not be independent, and the bounds not valid.
Rows, thresholds and events are fixed before anything is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ppreid_plugin.dp.audit_bounds import Counts, event_epsilon_lower, gaussian_epsilon_lower
from ppreid_plugin.dp.audit_exact import exact_cap_epsilon, exact_symbol_epsilon
from ppreid_plugin.dp.mechanisms import Mechanism
from ppreid_plugin.dp.sphere import PrivUnit, PrivUnitG

Floats = npt.NDArray[np.float64]
Events = list[npt.NDArray[np.bool_]]

LENGTH = 100.0  # of the canary, in units of the bound
_NUMBERS_A_CALL = 2**22  # 32 MiB of float64
_SAME = 1e-6  # two releases closer than this are one
_EXACT_ROWS = 1000


class Game(ABC):
    """Rows, events and bound for one kind of mechanism.

    Args:
        mechanism: to be audited.
        dimension: columns of the rows.

    Attributes:
        method: what the bound is and what it assumes, in words.
        canary: u, (d,).
        own: the attacker's own row, (d,).
    """

    method: str

    def __init__(self, mechanism: Mechanism, dimension: int) -> None:
        self.mechanism, self.dimension = mechanism, dimension
        self.canary: Floats = LENGTH * mechanism.clip_norm * np.eye(dimension)[0]
        self.own: Floats = np.zeros(dimension)

    @abstractmethod
    def events(self, released: np.ndarray, beside: np.ndarray, elsewhere: np.ndarray) -> Events:
        """Return for each event in which trials it happened: three views, (trials, any) -> (trials,) an event."""

    def epsilon_lower(self, counts: Counts, trials: int, failure: float) -> float:
        """Return the lower bound on epsilon that the counts of the events show."""
        return event_epsilon_lower(counts, trials, failure=failure, delta=self.mechanism.delta)

    def epsilon_exact(self) -> float | None:
        """Return epsilon as computed without sampling, None where it is not known how."""
        return None


class GaussianGame(Game):
    """Gaussian noise: the first coordinate, and its differences to the attacker's rows of zeros, against 0."""

    method = "mu from both error rates at threshold 0, converted once; assumes Gaussian noise"

    def events(self, released: np.ndarray, beside: np.ndarray, elsewhere: np.ndarray) -> Events:
        """Return where each of the three scores is above 0."""
        return [released[:, 0] > 0, released[:, 0] > beside[:, 0], released[:, 0] > elsewhere[:, 0]]

    def epsilon_lower(self, counts: Counts, trials: int, failure: float) -> float:
        """Return the bound by mu."""
        return gaussian_epsilon_lower(counts, trials, failure=failure, delta=self.mechanism.delta)


class CapGame(Game):
    """PrivUnit and PrivUnitG: the release lies in the cap around u; it coincides with a release of the same row."""

    method = "Clopper-Pearson on epsilon by the cap event, blind above log(trials / 16); exact ratio of the cap's law"

    def __init__(self, mechanism: PrivUnit | PrivUnitG, dimension: int) -> None:
        super().__init__(mechanism, dimension)
        self.own = self.canary
        self._cap = mechanism.parameters(dimension)
        self._exact = exact_cap_epsilon(mechanism, dimension)

    def events(self, released: np.ndarray, beside: np.ndarray, elsewhere: np.ndarray) -> Events:
        """Return where the release is in the cap, and where it is the attacker's own."""
        inside = released[:, 0] >= self._cap.threshold / self._cap.mean
        return [inside, *(np.abs(released - other).max(axis=1) < _SAME for other in (beside, elsewhere))]

    def epsilon_exact(self) -> float:
        """Return the log ratio of the cap's probabilities."""
        return self._exact


class SymbolGame(Game):
    """Finite mechanisms: the symbol is in the set of u and not in that of -u; it is that of another release of u.

    The canary is the first codeword; releases are rows of the decoder, or the symbols themselves, (trials,).
    """

    method = (
        "Clopper-Pearson on epsilon by u's symbols, blind above log(trials / 16); exact ratio over 1,000 rows and more"
    )

    def __init__(self, mechanism: Any, dimension: int) -> None:
        super().__init__(mechanism, dimension)
        self.canary = self.own = LENGTH * mechanism.codebook[0]
        self._finite = mechanism
        likely, unlikely = mechanism.symbol_probabilities(np.stack([self.canary, -self.canary]))
        self._event = np.append(likely > unlikely, False)  # what is no symbol counts as the last one
        self._symbols = {row.tobytes(): symbol for symbol, row in enumerate(mechanism.decoder)}

    def events(self, released: np.ndarray, beside: np.ndarray, elsewhere: np.ndarray) -> Events:
        """Return where the symbol is in u's set only, and where it is the attacker's own."""
        symbols, *others = (self._to_symbols(view) for view in (released, beside, elsewhere))
        return [self._event[symbols], *(symbols == other for other in others)]

    def epsilon_exact(self) -> float:
        """Return the largest ratio over random rows, codewords (all of them, or as many), opposites, and zeros."""
        random = np.random.default_rng(0).standard_normal((_EXACT_ROWS, self.dimension))
        codebook = self._finite.codebook
        codebook = codebook[:: max(1, len(codebook) // _EXACT_ROWS)]
        return exact_symbol_epsilon(self._finite, np.concatenate([random, codebook, -codebook, 0 * codebook[:1]]))

    def _to_symbols(self, released: np.ndarray) -> npt.NDArray[np.int64]:
        if released.ndim == 1:
            return released
        rows = np.ascontiguousarray(released)
        return np.array([self._symbols.get(row.tobytes(), -1) for row in rows], dtype=np.int64)


class LinearGame(Game):
    """Any other mechanism: the first coordinate against 0 and against the bound, its differences against 0."""

    method = "Clopper-Pearson on epsilon by a linear score of u against -u; weak, and above 4 all but blind"

    def events(self, released: np.ndarray, beside: np.ndarray, elsewhere: np.ndarray) -> Events:
        """Return where each of the four scores is above its threshold."""
        score = released[:, 0]
        return [score > 0, score > self.mechanism.clip_norm, score > beside[:, 0], score > elsewhere[:, 0]]


def game_for(mechanism: Mechanism, dimension: int) -> Game:
    """Return the game for a mechanism, by what it is; the columns of a codebook go before ``dimension``.

    Example:
        >>> from ppreid_plugin.dp.mechanisms import build_mechanism
        >>> type(game_for(build_mechanism("privunit", epsilon=4.0), 16)).__name__
        'CapGame'
    """
    if mechanism.sigma is not None:
        return GaussianGame(mechanism, dimension)
    if isinstance(mechanism, (PrivUnit, PrivUnitG)):
        return CapGame(mechanism, dimension)
    if all(hasattr(mechanism, name) for name in ("symbol_probabilities", "codebook", "decoder")):
        return SymbolGame(mechanism, mechanism.codebook.shape[1])  # type: ignore[attr-defined]
    return LinearGame(mechanism, dimension)


def play(game: Game, draw: Callable[[Floats], np.ndarray], trials: int) -> list[tuple[int, int]]:
    """Release u and -u ``trials`` times each, in memory that does not grow with ``trials``; count every event.

    Args:
        game: which rows and events.
        draw: releases rows, (n, d) -> (n, any) or symbols (n,), with fresh noise.
        trials: releases a side.

    Returns:
        For each event how often it happened for u and for -u.
    """
    counts: list[list[int]] = []
    step = max(1, _NUMBERS_A_CALL // (2 * game.dimension))
    for start in range(0, trials, step):
        own = np.tile(game.own, (2 * min(step, trials - start), 1))
        elsewhere = draw(own.copy())[::2]
        sides = []
        for canary in (game.canary, -game.canary):
            rows = own.copy()  # a mechanism that works in place must not reach the other calls
            rows[::2] = canary
            released = draw(rows)
            sides.append(game.events(released[::2], released[1::2], elsewhere))
        counts.append([int(event.sum()) for side in sides for event in side])
    totals = np.sum(counts, axis=0).tolist()
    return list(zip(totals[: len(totals) // 2], totals[len(totals) // 2 :], strict=True))
