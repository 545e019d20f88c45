"""The identity adversary: closed-set identification of the training people."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Batch, Context
from .adversary import Adversary, register_adversary
from .adversary_networks import classifier


@register_adversary("identity")
class IdentityAdversary(Adversary):
    """Closed-set identification of the training people, from the reconstruction (the paper's) or the feature.

    The labels are the Re-ID labels: what it recovers conflicts with Re-ID itself, and ``weight`` is the dial. The loss
    of chance is log(number of people). Nobody can be held out from it.
    """

    name = "adversary_identity"
    labels_are_people = True

    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return a classifier of the training people."""
        return classifier(input_shape, context.num_classes, self.dropout)

    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each sample, natural logarithm."""
        return F.cross_entropy(outputs, batch.pids, reduction="none")

    def chance_loss(self, context: Context) -> float:
        """Log of the number of training people."""
        return math.log(context.num_classes)

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Top-1 accuracy of the batch in percent, as torchreid's ``acc``."""
        hits = (outputs.argmax(1) == batch.pids).float().mean()
        return {f"acc_{self.name}": 100.0 * float(hits)}
