"""What ``index.json`` must hold: every field that a reader relies on, to the depth at which it is read.

One description for all readers, so that a file that was edited is told as damaged when it is read, and not by a
KeyError where a field is used. Fields that nothing relies on may be missing, or stand beside the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ppreid_plugin.number_checks import is_number

Test: TypeAlias = Callable[[Any], bool]
Shape: TypeAlias = "Mapping[str, Test | Shape]"

METRICS = ("cosine",)  # noise has a length of its own, by which other distances would rank (docs/privacy.md)

_LARGEST = 1e300  # whole numbers too: what is larger is no float
_GENERATION = re.compile(r"rows-\d{4,}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def misfit(content: Any, shape: Shape, name: str = "") -> str | None:
    """Return the dotted name of the first field that is missing or impossible; None if all are as they must be.

    Example:
        >>> misfit({"rows": 3, "release": {"unit": ""}}, {"rows": whole(1), "release": {"unit": text}})
        'release.unit'
    """
    if not isinstance(content, dict):
        return name.removesuffix(".") or "everything"
    for key, asked in shape.items():
        if key not in content:
            return name + key
        value = content[key]
        if isinstance(asked, Mapping):
            if (found := misfit(value, asked, f"{name}{key}.")) is not None:
                return found
        elif not asked(value):
            return name + key
    return None


def whole(least: int, most: int = 2**63 - 1) -> Test:
    """Return a test for whole numbers from ``least`` to ``most``; True is none."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def number(value: Any) -> bool:
    """Whether this is a finite number >= 0, and no bool."""
    return is_number(value) and 0 <= value < _LARGEST


def text(value: Any) -> bool:
    """Whether this is text, and not empty."""
    return isinstance(value, str) and bool(value)


def maybe(asked: Test | Shape) -> Test:
    """Return a test for None, or for what ``asked`` asks for."""
    if isinstance(asked, Mapping):
        return lambda value: value is None or misfit(value, asked) is None
    return lambda value: value is None or asked(value)


def every(asked: Test) -> Test:
    """Return a test for lists all of whose items pass ``asked``."""
    return lambda value: isinstance(value, list) and all(map(asked, value))


PID = whole(-(2**63))


def _any_text(value: Any) -> bool:
    return isinstance(value, str)


def _files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name not in ("", ".", "..")
        and "/" not in name
        and misfit(told, _FILE) is None
        and ("sha256" not in told or _hash(told["sha256"]))  # who must have one, the backend knows
        for name, told in value.items()
    )


def _hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


_FILE: Shape = {"bytes": whole(0)}
_RELEASE: Shape = {
    "release": text,
    "epsilon": number,
    "delta": number,
    "unit": text,
    "adjacency": maybe(text),
    "protocol": text,
    "mechanism": {"mechanism": text},
    "transform": {"transform": text},
    "model": _any_text,
    "background_pids": maybe(every(PID)),
    "person_level": maybe({"delta": number, "epsilon_at_median": number, "epsilon_at_largest": number}),
    "ledger": {
        "scope": text,
        "budget": maybe(number),
        "reservation": maybe(text),
        "ledger_seq": maybe(whole(0)),
        "ledger_head": maybe(text),
    },
    "manifest_sha256": _hash,
}
_ROWS_A_PERSON: Shape = {"release": {"rows_a_person": {"median": number, "largest": number}}}
_RECORD: Shape = {
    "generation": lambda value: isinstance(value, str) and bool(_GENERATION.fullmatch(value)),
    "backend": text,
    "options": lambda value: isinstance(value, dict),  # their backend looks at what is in them
    "rows": whole(1),
    "columns": whole(1),
    "labels": lambda value: value in ([], ["pids"], ["camids"], ["pids", "camids"]),
    "id_bytes": whole(1),
    "metric": lambda value: value in METRICS,
    "release": _RELEASE,
    "opted_out": {"pids": every(PID), "rows": every(text)},
    "files": _files,
    "created": _any_text,
}


def record_misfit(content: Any) -> str | None:
    """Return the first field of an ``index.json`` that is missing or impossible, or None.

    Args:
        content: of the file, without ``format`` and ``version``.
    """
    found = misfit(content, _RECORD)
    if found is None and content["release"]["person_level"] is not None:
        found = misfit(content, _ROWS_A_PERSON)  # the number of rows that the person-level figures are for
    return found or next((key for key in content if key not in _RECORD), None)
