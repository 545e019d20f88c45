"""The contract of an attacker, and the registry that outside packages add theirs to."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ..registry import Registry


class Attack(ABC):
    """Contract of an attacker: fitted on people outside the gallery, then scored on the gallery's.

    Leakage of its channel is ``(attack - floor) / (attack on clean features - floor)``: 0 at the floor, 1 as bad as
    unprotected.

    Shape:
        features: (n, d); labels: (n,), what the attacker is after (pids, an attribute, a camera).
    """

    @abstractmethod
    def fit(self, features: np.ndarray, labels: np.ndarray) -> Attack:
        """Train on people outside the gallery, passed through the same protection; return self."""

    @abstractmethod
    def attack(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Return the primary figure on the gallery's people, a fraction."""

    @abstractmethod
    def floor(self, labels: np.ndarray) -> float:
        """Return the figure of an attacker that does not look at the features."""

    @abstractmethod
    def ceiling(self, labels: np.ndarray) -> float:
        """Return the figure of an attacker that knows everything."""


ATTACKS: Registry[type[Attack]] = Registry("attack", contract=Attack)
register_attack = ATTACKS.register
