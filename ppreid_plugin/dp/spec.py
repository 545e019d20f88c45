"""A mechanism or transform with its parameters in one word, as command lines take it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ppreid_plugin.registry import parse_options


@dataclass(frozen=True)
class MechanismSpec:
    """A mechanism with its parameters, written ``prior_subset:codewords=1024,set_size=4``.

    Attributes:
        name: registered mechanism.
        options: its further arguments, and those of what prepares it (such as `fit_prior`).
    """

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> MechanismSpec:
        """Parse the written form; values are Python literals or words.

        Raises:
            ValueError: a parameter that is not NAME=VALUE.

        Example:
            >>> MechanismSpec.parse("prior_subset:codewords=1024,kind=residual")
            MechanismSpec(name='prior_subset', options={'codewords': 1024, 'kind': 'residual'})
        """
        name, _, rest = text.partition(":")
        return cls(name, parse_options(rest.split(","), what=f"mechanism '{text}'", example="codewords=1024"))

    @classmethod
    def expand(cls, text: str) -> list[MechanismSpec]:
        """Parse a form with alternatives, ``prior_subset:codewords=1024|4096,set_size=1|4``: one for each combination.

        Example:
            >>> [spec.options["set_size"] for spec in MechanismSpec.expand("prior_subset:codewords=64,set_size=1|4")]
            [1, 4]
        """
        name, separator, rest = text.partition(":")
        parts = [part.partition("=") for part in filter(None, rest.split(","))]
        choices = [[f"{key}{equals}{value}" for value in values.split("|")] for key, equals, values in parts]
        return [cls.parse(name + separator + ",".join(chosen)) for chosen in itertools.product(*choices)]

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def parameter_names(text: str, flag: str) -> dict[str, str]:
    """Return how errors call the parameters in a transform's written form: by the flag that it was given by.

    Example:
        >>> parameter_names("lda:components=64+shrinkage=2", "--transform")
        {'components': 'components of --transform', 'shrinkage': 'shrinkage of --transform'}
    """
    parts = [part.partition("=") for part in str(text).partition(":")[2].split("+")]
    return {name: f"{name} of {flag}" for name, equals, _ in parts if equals}


@contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Let a ValueError of the block that begins with an argument's name begin with the flag that it was given by.

    Args:
        flags: of the arguments.

    Example:
        >>> with naming_flags({"epsilon": "--epsilon"}):
        ...     raise ValueError("epsilon is -1.0, must be > 0.")
        Traceback (most recent call last):
        ValueError: --epsilon is -1.0, must be > 0.
    """
    try:
        yield
    except ValueError as error:
        argument, verb, rest = str(error).partition(" is ")
        if type(error) is not ValueError or not verb or argument not in flags:
            raise
        raise ValueError(f"{flags[argument]} is {rest}") from None
