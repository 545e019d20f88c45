"""A registry: names (as they appear in YAML) to classes.

Every kind of part that a user may add from outside (De-ID target, decoder, adversary, mechanism, attack) has one
registry, whose ``contract`` says what an entry has to be. Installed packages add entries by an entry point of the
group ``ppreid_plugin.components``: the module it names is imported at the first look-up, and its decorators run.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any, Generic, TypeVar

T = TypeVar("T")

ENTRY_POINT_GROUP = "ppreid_plugin.components"

_log = logging.getLogger(__name__)
_entry_points_loaded = False


def closest(name: str, names: list[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``names``, or an empty string.

    Example:
        >>> closest("pixelize", ["blur", "pixelate"])
        " Did you mean 'pixelate'?"
    """
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


class Registry(Generic[T]):
    """Names to classes of one kind.

    Args:
        kind: what an entry is, in words, as it appears in messages: ``"De-ID target"``.
        contract: the base class whose docstring says what an entry must offer.

    Example:
        >>> fruits = Registry("fruit", contract=object)
        >>> @fruits.register("apple")
        ... class Apple: ...
        >>> fruits.names()
        ['apple']
        >>> fruits.get("aple")
        Traceback (most recent call last):
        ...
        ValueError: fruit is 'aple'; registered: apple. Did you mean 'apple'?
    """

    def __init__(self, kind: str, contract: type) -> None:
        self.kind = kind
        self.contract = contract
        self._entries: dict[str, T] = {}

    def register(self, name: str, *, override: bool = False) -> Callable[[T], T]:
        """Return a class decorator that enters the class under ``name``.

        Raises:
            ValueError: ``name`` is taken and ``override`` is False.
            TypeError: the decorated object is not a subclass of the contract.
        """

        def decorate(entry: T) -> T:
            if name in self._entries and not override:
                raise ValueError(
                    f"{self.kind} '{name}' is registered already ({self._entries[name]!r}); "
                    "choose another name, or say override=True to replace it."
                )
            if not (isinstance(entry, type) and issubclass(entry, self.contract)):
                raise TypeError(f"{self.kind} '{name}' must be a subclass of {self.contract.__name__}, got {entry!r}.")
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str, *, key: str | None = None) -> T:
        """Return the entry ``name``; ``key`` is the config key to name in the error.

        Raises:
            ValueError: no such entry; the message lists all names and the nearest one.
        """
        load_entry_points()
        if name not in self._entries:
            names = self.names()
            raise ValueError(
                f"{key or self.kind} is {name!r}; registered: {', '.join(names) or 'none'}.{closest(str(name), names)}"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        load_entry_points()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        load_entry_points()
        return name in self._entries


def check_arguments(
    arguments: Iterable[str], takers: Iterable[Callable[..., object]], *, key: str, given: Iterable[str] = ()
) -> None:
    """Check that each of ``arguments`` is a parameter of at least one of ``takers``, and is not ``given`` elsewhere.

    Raises:
        ValueError: naming ``key``, the argument, and what is allowed.

    Example:
        >>> check_arguments(["blocks"], [lambda blocks=8: None], key="privacy.deid.kwargs")
    """
    allowed: set[str] = set()
    for taker in takers:
        parameters = inspect.signature(taker).parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        allowed |= set(parameters)
    allowed.difference_update(given)
    for argument in arguments:
        if argument not in allowed:
            names = sorted(allowed)
            raise ValueError(
                f"{key} has '{argument}'; allowed: {', '.join(names) or 'none'}.{closest(argument, names)}"
            )


def parse_options(parts: Iterable[str], *, what: str, example: str) -> dict[str, Any]:
    """Return the values of NAME=VALUE parts by name: Python literals or words; empty parts are passed over.

    Raises:
        ValueError: a part that is not NAME=VALUE; ``what`` it belongs to is named, with an ``example``. A name given
            twice.
    """
    options: dict[str, Any] = {}
    for part in filter(None, parts):
        key, separator, value = part.partition("=")
        if not separator or not key or not value:
            raise ValueError(f"{what}: '{part}' must be NAME=VALUE, such as {example}.")
        if key in options:
            raise ValueError(f"{what} gives '{key}' twice; give it once.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def parse_weights(spec: str, *, key: str, check: Callable[[str], object]) -> dict[str, float]:
    """Parse ``"one"`` or ``"one:1.0,two:0.5"`` into names and weights.

    Args:
        spec: names, each with a weight or at weight 1.
        key: config key to name in errors.
        check: called with each name; raises ValueError for one that does not exist.

    Raises:
        ValueError: an unknown name, a weight that is no number > 0, a name given twice.

    Example:
        >>> parse_weights("mse:1.0,ssim:0.2", key="privacy.deid.loss", check=str)
        {'mse': 1.0, 'ssim': 0.2}
    """
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, _, text = part.strip().partition(":")
        check(name)
        try:
            weight = float(text) if text else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"{key} gives '{name}' the weight '{text}', must be a number > 0.")
        if name in weights:
            raise ValueError(f"{key} names '{name}' twice; give each once, as NAME:WEIGHT.")
        weights[name] = weight
    return weights


def load_entry_points() -> None:
    """Import what installed packages offer under ``ppreid_plugin.components``, once.

    A package that fails to import is logged and left out: one broken extension must not break training.
    """
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            _log.warning("extension %s (%s) could not be loaded: %s", entry_point.name, entry_point.value, error)
