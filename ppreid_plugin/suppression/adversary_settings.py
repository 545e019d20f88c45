"""The settings of adversaries: what is allowed, and how several adversaries are written in a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..number_checks import is_number, require_not_negative, require_positive, require_whole
from ..registry import closest, parse_options
from .adversary_members import PEOPLE

INPUTS = ("reconstruction", "feature")
SCHEDULES = ("reversal", "alternating")

_NOT_WRITTEN = ("self", "settings", "make_scheduler", "seed", "name")  # arguments that no one adversary is given alone


_NUMBERS: dict[str, Callable[[str, Any], object]] = {
    "weight": require_not_negative,
    "steps": require_whole,
    "lr": partial(require_positive, hint="such as 0.001"),
    "weight_decay": require_not_negative,
    "ensemble": require_whole,
    "restart_epochs": partial(require_whole, least=0, hint="0: never"),
}
_OTHERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ramp": (lambda x: isinstance(x, bool), "True or False"),
    "dropout": (lambda x: is_number(x) and 0 <= x < 1, "a number in [0, 1)"),
    "held_out_people": (lambda x: is_number(x) and 0 < x < 1, "a number in (0, 1)"),
}
_WORDS = {"input": INPUTS, "schedule": SCHEDULES, "people": PEOPLE}


def check_settings(settings: Mapping[str, Any], *, prefix: str = "adversary ") -> None:
    """Check values of adversaries' settings by name; ``prefix`` stands before the name in errors.

    Raises:
        ValueError: a word that is not allowed (the nearest is named), a number out of range.
    """
    for name, value in settings.items():
        if name in _WORDS and value not in _WORDS[name]:
            raise ValueError(
                f"{prefix}{name} is {value!r}; allowed: {', '.join(_WORDS[name])}."
                f"{closest(str(value), list(_WORDS[name]))}"
            )
        if name in _NUMBERS:
            _NUMBERS[name](prefix + name, value)
        if name in _OTHERS and not _OTHERS[name][0](value):
            raise ValueError(f"{prefix}{name} is {value!r}, must be {_OTHERS[name][1]}.")


@dataclass(frozen=True)
class AdversarySpec:
    """An adversary as ``privacy.adversary.names`` writes it: ``identity`` or ``identity:weight=0.1+input=feature``.

    Attributes:
        kind: registered adversary.
        options: settings that differ from those of all adversaries.
        place: 1 for the first of that kind, 2 for the second, ...
    """

    kind: str
    options: Mapping[str, Any]
    place: int = 1

    @classmethod
    def parse_all(cls, names: Sequence[str]) -> list[AdversarySpec]:
        """Parse the entries of ``privacy.adversary.names``.

        Raises:
            ValueError: an option that is not KEY=VALUE or stands twice; the same entry twice.

        Example:
            >>> [spec.options for spec in AdversarySpec.parse_all(["identity", "camera:weight=1+schedule=alternating"])]
            [{}, {'weight': 1, 'schedule': 'alternating'}]
        """
        specs: list[AdversarySpec] = []
        for text in map(str, names):
            kind, _, rest = text.partition(":")
            what = f"privacy.adversary.names '{text}'"
            options = parse_options(rest.split("+"), what=what, example="identity:weight=0.1+input=reconstruction")
            earlier = [spec for spec in specs if spec.kind == kind]
            if any(spec.options == options for spec in earlier):
                raise ValueError(
                    f"{what} stands twice; give it once, or another setting, such as {kind}:input=feature."
                )
            specs.append(cls(kind, options, len(earlier) + 1))
        return specs

    def check(self, adversary: type[Any]) -> None:
        """Check that the adversary's class takes the options.

        Raises:
            ValueError: one that it does not take; the nearest is named.
        """
        allowed = sorted(settings_of(adversary))
        for key in self.options:
            if key not in allowed:
                raise ValueError(
                    f"privacy.adversary.names gives '{self.kind}' the option '{key}'; allowed: {', '.join(allowed)}."
                    f"{closest(key, allowed)}"
                )

    def name(self, adversary: type[Any]) -> str | None:
        """Return the name of its figures and checkpoints; None: the class's own."""
        return None if self.place == 1 else f"{adversary.name}_{self.place}"


def settings_of(adversary: type[Any]) -> set[str]:
    """Return the names of the keyword arguments of an adversary's class and of its bases."""
    found: set[str] = set()
    for part in adversary.__mro__:
        if "__init__" in vars(part) and part is not object:
            found |= set(inspect.signature(vars(part)["__init__"]).parameters)
    return found - {*_NOT_WRITTEN, "args", "kwargs"}
