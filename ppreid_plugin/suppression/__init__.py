"""Stage 1, suppression: De-ID targets, decoders and Adv-ID adversaries."""

from .adversary import ADVERSARIES, Adversary, IdentityAdversary, register_adversary
from .decoder import DECODERS, Decoder, LightDecoder, register_decoder
from .deid import (
    DEID_TARGETS,
    Blur,
    DeIDTarget,
    NoDeID,
    Pixelate,
    build_deid_target,
    parse_deid_targets,
    register_deid_target,
)
from .deid_decoder import DeIDDecoder, DeIDLoss

__all__ = [
    "ADVERSARIES",
    "DECODERS",
    "DEID_TARGETS",
    "Adversary",
    "Blur",
    "DeIDDecoder",
    "DeIDLoss",
    "DeIDTarget",
    "Decoder",
    "IdentityAdversary",
    "LightDecoder",
    "NoDeID",
    "Pixelate",
    "build_deid_target",
    "parse_deid_targets",
    "register_adversary",
    "register_decoder",
    "register_deid_target",
]
