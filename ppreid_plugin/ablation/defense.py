"""What becomes of the features of a trained model: the contract of a defense, and the registry of the comparison.

A defense changes the gallery, and mostly the query too. Attackers get their own people through the same defense, with
the same key where it has one: who may have pictures matched can send his own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ..evaluation import Extracted
from ..leakage import LeakageSet
from ..registry import Registry, check_arguments, parse_options

Matrix = npt.NDArray[np.float32]


class Defense(ABC):
    """Contract of a defense on features.

    Constructor arguments are keywords with defaults; they are written ``NAME:KEY=VALUE,...`` in a plan.

    Attributes:
        random: whether every seed of the attacks gets a draw of its own; the figures of retrieval are then means over
            the same draws.
        cosine_only: whether the gallery may be matched by cosine only.
        attributes: those that it names, which the labels must have.
        all_attributes: whether it takes out all that are probed, so that some must be.
    """

    random: ClassVar[bool] = False
    cosine_only: ClassVar[bool] = False
    attributes: tuple[str, ...] = ()
    all_attributes: bool = False

    @property
    def needs_columns(self) -> bool:
        """Whether `check_columns` looks at the number of columns, for which a model is built."""
        return type(self).check_columns is not Defense.check_columns

    def check_columns(self, columns: int) -> None:  # noqa: B027  (most take features of any size)
        """Check that features of so many columns will do, before anything is trained.

        Raises:
            ValueError: they will not.
        """

    def fit(self, train: LeakageSet) -> Self:
        """Learn what is needed from people outside the gallery; return self."""
        return self

    @abstractmethod
    def protect(self, rows: LeakageSet, seed: int) -> LeakageSet:
        """Return rows as a gallery is released; ``seed`` is that of a draw, where the defense draws."""

    @abstractmethod
    def matched(self, query: Extracted, gallery: Extracted, seed: int) -> tuple[Extracted, Extracted]:
        """Return query and gallery as they are matched."""


class RowDefense(Defense):
    """A defense that does the same to each row of query and gallery, and looks at no other row."""

    @abstractmethod
    def apply(self, features: Matrix) -> Matrix:
        """Return the changed rows: (n, d) to (n, k)."""

    def protect(self, rows: LeakageSet, seed: int) -> LeakageSet:
        """Return the rows, with their former features for attackers who learn from both; queries are changed alike."""
        made = self.apply(rows.features)
        return rows.with_features(made, clean=rows.features, queries=made)

    def matched(self, query: Extracted, gallery: Extracted, seed: int) -> tuple[Extracted, Extracted]:
        """Return both changed."""
        made = [one.with_features(torch.from_numpy(self.apply(one.features.numpy()))) for one in (query, gallery)]
        return made[0], made[1]


DEFENSES: Registry[type[Defense]] = Registry("defense", contract=Defense)
register_defense = DEFENSES.register


def build_defense(text: str) -> Defense:
    """Return the defense that is written ``NAME:KEY=VALUE,...``, not fitted.

    Raises:
        ValueError: an unknown name or argument, one given twice, or a value out of range.

    Example:
        >>> build_defense("quantize:bits=1").bits
        1
    """
    name, _, rest = text.partition(":")
    what = f"defense '{text}'"
    options = parse_options(rest.split(","), what=what, example="bits=1")
    kind = DEFENSES.get(name)
    check_arguments(options, [kind], key=what)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ValueError(f"{what}: {error}.") from None
    return kind(**options)
