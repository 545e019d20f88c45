"""The contract of an attacker, and the registry that outside packages add theirs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import Self

from ..registry import Registry
from .data import LeakageSet


@dataclass(frozen=True)
class Figure:
    """What one attacker reached once.

    Attributes:
        score: the channel's primary figure, a fraction.
        standard_error: of the score over the people it was measured on.
        attacker: which model it was: ``logistic``, ``mlp``, ...
        others: further figures by name.
        tpr: of a score that is an AUC, the ROC curve: true positive rates at :data:`.linkage_figures.ROC_FPRS`.
    """

    score: float
    standard_error: float
    attacker: str
    others: Mapping[str, float] = field(default_factory=dict)
    tpr: tuple[float, ...] = ()


class Attack(ABC):
    """Contract of an attacker: fitted on people outside the gallery, then scored on the gallery's.

    An entry measures one channel. Its features come protected as the gallery's are, so an attacker learns what the
    protection leaves; it may use everything public: camids, the mechanism and its parameters (``test.protection``).
    Leakage of a figure is ``(attack - floor) / (attack on clean features - floor)``: 0 at the floor, 1 as bad as
    unprotected.

    A channel may have several figures (one an attribute); they are named by the keys of what :meth:`attack` returns,
    and a channel with a single figure names it ``""``.

    Args:
        seed: of everything that the attacker draws.

    Attributes:
        channel: name in reports.
        task: whether it is what Re-ID itself is (identification, linkage), read beside mAP, and not the headline.
        from_gallery: whether it can learn from some of the gallery's people, to attack the others.
    """

    channel: ClassVar[str]
    task: ClassVar[bool] = False
    from_gallery: ClassVar[bool] = True

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Raise ValueError where labels, or whatever else the attack needs, are missing: before anything is trained."""
        self.floor(test)

    @abstractmethod
    def fit(self, train: LeakageSet) -> Self:
        """Train on people outside the gallery, passed through the same protection; return self."""

    @abstractmethod
    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Return the figures on the gallery's people."""

    @abstractmethod
    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Return the figures of an attacker that does not look at the features."""

    @abstractmethod
    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """Return the figures of an attacker that knows everything."""


ATTACKS: Registry[type[Attack]] = Registry("attack", contract=Attack)
register_attack = ATTACKS.register
