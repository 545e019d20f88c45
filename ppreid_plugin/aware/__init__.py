"""Training that knows stage 2: the release's noise, or its codebook, inside the encoder's loss.

It acts while stage 1 trains and takes its noise from stage 2: it imports :mod:`ppreid_plugin.dp`, which knows nothing
of it.
"""

from .codebook import LearnedCodebook
from .contrastive import supervised_contrastive
from .noise import ReleaseNoise
from .release_aware import ReleaseAware

__all__ = [
    "LearnedCodebook",
    "ReleaseAware",
    "ReleaseNoise",
    "supervised_contrastive",
]
