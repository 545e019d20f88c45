"""Leakage: attackers, trained afresh after a defence is fixed, that measure what features give away."""

from .attack import ATTACKS, Attack, register_attack

__all__ = ["ATTACKS", "Attack", "register_attack"]
