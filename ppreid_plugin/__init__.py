"""Privacy-preserving person re-identification: an extension of torchreid.

A user's whole integration is one line more than stock torchreid::

    Engine = ppreid_plugin.with_privacy(torchreid.engine.ImageSoftmaxEngine)
    engine = Engine(datamanager, model, optimizer=optimizer, components=[DeIDDecoder(), IdentityAdversary()])

Importing the package registers the generated pedestrians as a torchreid data set and does nothing else.
"""

from .aware import ReleaseAware
from .components import Component
from .data import pedestrians
from .dp.gallery import DPGallery
from .dp.mechanisms import register_mechanism
from .engine import with_privacy
from .leakage import register_attack
from .suppression import (
    DeIDDecoder,
    IdentityAdversary,
    register_adversary,
    register_decoder,
    register_deid_target,
)
from .suppressor import Suppressor

__version__ = "0.1.0"

__all__ = [
    "Component",
    "DPGallery",
    "DeIDDecoder",
    "IdentityAdversary",
    "ReleaseAware",
    "Suppressor",
    "register_adversary",
    "register_attack",
    "register_decoder",
    "register_deid_target",
    "register_mechanism",
    "with_privacy",
]

pedestrians.register()
