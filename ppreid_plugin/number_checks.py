"""Numbers that a user sets: one check a kind, and one form of message."""

from __future__ import annotations

import math
import re
from typing import TypeGuard

import numpy as np


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number, maybe NaN or infinite, and no bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def whole_from(text: str) -> int:
    """Return the whole number that stands in a file; Python's own notation (``1_0``) is none.

    Raises:
        ValueError, TypeError: anything else.

    Example:
        >>> whole_from(" -12")
        -12
    """
    if not re.fullmatch(r"\s*-?[0-9]+\s*", text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def require_whole(name: str, value: object, *, least: int = 1, most: int | None = None, hint: str = "") -> int:
    """Return ``value`` as an int if it is a whole number in range.

    Args:
        name: of the argument or key, as the user wrote it.
        value: what was given; 2.0 is no whole number, nor is True.
        least: the smallest that is allowed.
        most: the largest; None: none is too large.
        hint: what the number is, or what is usual; stands in brackets behind the range.

    Raises:
        ValueError: anything else.

    Example:
        >>> require_whole("blocks", 2.5, hint="blocks across the width")
        Traceback (most recent call last):
        ValueError: blocks is 2.5, must be a whole number >= 1 (blocks across the width).
    """
    whole = int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None
    if whole is None or whole < least or (most is not None and whole > most):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(_message(name, value, f"a whole number {allowed}", hint))
    return whole


def require_positive(name: str, value: object, *, hint: str = "such as 1") -> float:
    """Return ``value`` as a float if it is a finite number > 0; arguments as `require_whole`.

    Raises:
        ValueError: anything else (NaN, infinity and a bool too).

    Example:
        >>> require_positive("lr", float("inf"), hint="such as 0.001")
        Traceback (most recent call last):
        ValueError: lr is inf, must be a finite number > 0 (such as 0.001).
    """
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(_message(name, value, "a finite number > 0", hint))
    return float(value)


def require_not_negative(name: str, value: object, *, hint: str = "") -> float:
    """Return ``value`` as a float if it is a finite number >= 0; arguments as `require_whole`.

    Raises:
        ValueError: anything else (NaN, infinity and a bool too).
    """
    if not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(_message(name, value, "a finite number >= 0", hint))
    return float(value)


def _message(name: str, value: object, allowed: str, hint: str) -> str:
    return f"{name} is {value!r}, must be {allowed}{f' ({hint})' if hint else ''}."
