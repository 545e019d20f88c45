"""Stage 1, suppression: De-ID targets, decoders and Adv-ID adversaries."""

from .adversary import ADVERSARIES, Adversary, any_takes_labels, register_adversary
from .decoder import DECODERS, Decoder, LightDecoder, register_decoder
from .deid import (
    DEID_TARGETS,
    Blur,
    ColorQuantize,
    DeIDTarget,
    NoDeID,
    Pixelate,
    build_deid_target,
    parse_deid_targets,
    register_deid_target,
    standalone_deid_target,
    taken_by_deid_targets,
)
from .deid_decoder import DeIDDecoder
from .deid_loss import DeIDLoss, parse_deid_loss
from .deid_mask import Mask
from .deid_mean import MeanImage
from .deid_noise import DPPixelate, Noise
from .deid_sometimes import Sometimes
from .distillation import SimilarityDistillation
from .erasure import ClassMeanErasure
from .hdr_decoder import HDRDecoder
from .identity_adversary import IdentityAdversary
from .image_adversary import ImageAdversary
from .image_erasure import ImageErasure
from .image_transforms import ImageTransform, insert_image_transforms, parse_image_transform
from .label_adversaries import AttributesAdversary, CameraAdversary, LabelAdversary

__all__ = [
    "ADVERSARIES",
    "DECODERS",
    "DEID_TARGETS",
    "Adversary",
    "AttributesAdversary",
    "Blur",
    "CameraAdversary",
    "ClassMeanErasure",
    "ColorQuantize",
    "DPPixelate",
    "DeIDDecoder",
    "DeIDLoss",
    "DeIDTarget",
    "Decoder",
    "HDRDecoder",
    "IdentityAdversary",
    "ImageAdversary",
    "ImageErasure",
    "ImageTransform",
    "LabelAdversary",
    "LightDecoder",
    "Mask",
    "MeanImage",
    "NoDeID",
    "Noise",
    "Pixelate",
    "SimilarityDistillation",
    "Sometimes",
    "any_takes_labels",
    "build_deid_target",
    "insert_image_transforms",
    "parse_deid_loss",
    "parse_deid_targets",
    "parse_image_transform",
    "register_adversary",
    "register_decoder",
    "register_deid_target",
    "standalone_deid_target",
    "taken_by_deid_targets",
]
