"""Leakage: attackers, trained afresh after a defence is fixed, that measure what features give away."""

from .attack import ATTACKS, Attack, Figure, register_attack
from .attributes import AttributesAttack, CameraAttack
from .battery import Leakage, measure_leakage
from .cues import FineCues
from .data import LeakageSet
from .deid_features import deid_features
from .erasure import Leace
from .identification import IdentificationAttack
from .image_components import image_components
from .images import ArrayImages, ImageFiles
from .judge import Judge
from .linkage import LinkageAttack, link
from .membership import MembershipAttack, gallery_membership
from .membership_canary import canary_membership
from .patches import PatchAttack
from .reconstruction import ReconstructionAttack

__all__ = [
    "ATTACKS",
    "ArrayImages",
    "Attack",
    "AttributesAttack",
    "CameraAttack",
    "Figure",
    "FineCues",
    "IdentificationAttack",
    "ImageFiles",
    "Judge",
    "Leace",
    "Leakage",
    "LeakageSet",
    "LinkageAttack",
    "MembershipAttack",
    "PatchAttack",
    "ReconstructionAttack",
    "canary_membership",
    "deid_features",
    "gallery_membership",
    "image_components",
    "link",
    "measure_leakage",
    "register_attack",
]
