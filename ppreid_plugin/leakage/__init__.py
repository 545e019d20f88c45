"""Leakage: attackers, trained afresh after a defence is fixed, that measure what features give away."""

from .attack import ATTACKS, Attack, Figure, register_attack
from .attributes import AttributesAttack, CameraAttack
from .battery import Leakage, measure_leakage
from .data import LeakageSet
from .erasure import Leace
from .identification import IdentificationAttack
from .linkage import LinkageAttack, link
from .membership import MembershipAttack, gallery_membership
from .membership_canary import canary_membership

__all__ = [
    "ATTACKS",
    "Attack",
    "AttributesAttack",
    "CameraAttack",
    "Figure",
    "IdentificationAttack",
    "Leace",
    "Leakage",
    "LeakageSet",
    "LinkageAttack",
    "MembershipAttack",
    "canary_membership",
    "gallery_membership",
    "link",
    "measure_leakage",
    "register_attack",
]
