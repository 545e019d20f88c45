"""Erasure of the image while the encoder trains, in closed form: least squares is to reconstruct nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Batch, Context
from ..number_checks import require_not_negative, require_whole
from .bank import BankedComponent, FeatureBank

HEIGHT, WIDTH = 16, 8  # pixels: what pixelation with 8 blocks across leaves of a person


class ImageErasure(BankedComponent):
    r"""Takes the covariance of features and images to 0: Re-ID loss + w L.

    .. math:: L = \frac{\| C \|_F^2}{\operatorname{tr} \operatorname{Cov}(x)}, \qquad C = \operatorname{Cov}(c, x)

    with c the centered unit feature and x the image at 16 x 8 pixels, RGB. Where L = 0 least squares makes the mean
    image of every feature of the training people, and the gradient vanishes; L is never negative, and does not change
    when c or x are turned. The large principal components of the images weigh most. It has no network of its own that
    could know the training people by heart or lag behind, as an inversion adversary does; it says nothing of what a
    decoder that is not linear finds.

    C is taken over the last ``bank`` images, without gradient; a batch's images feel the gradient of L as if they were
    all images. Nothing is pushed before the bank is full.

    Args:
        weight: w, >= 0; at 0 it only watches.
        bank: images kept, at least 2; at most one for each training image is.

    Raises:
        ValueError: a number out of range.

    Source:
        With a linear kernel C is what HSIC measures (Gretton et al., ALT 2005); its closed form on features as they
        are is `ppreid_plugin.leakage.Leace`. The loss as it stands is ours.
    """

    name = "image_erasure"

    def __init__(self, *, weight: float = 100.0, bank: int = 4096) -> None:
        require_not_negative("privacy.image_erasure.weight", weight)
        require_whole("privacy.image_erasure.bank", bank, least=2, hint="such as 4096")
        super().__init__()
        self.weight, self.bank = weight, bank

    def build(self, context: Context) -> None:
        """Make the bank."""
        size = min(self.bank, len(context.train_items))
        self.state = FeatureBank(context.feature_dim, size, (3 * HEIGHT * WIDTH,), torch.float32).to(context.device)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted term (nothing at weight 0, and until the bank is full)."""
        state = self._state
        state.center.update(batch.features.detach())
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            rows = state.center(batch.features)
            shown = F.adaptive_avg_pool2d(batch.images.detach(), (HEIGHT, WIDTH)).flatten(1).to(state.beside)
            state.put(rows.detach(), shown)
            self._figures = {}
            if not state.full:
                return {}
            mean = state.beside.mean(0)
            offsets = state.beside - mean
            covariance = state.rows.T @ offsets / len(offsets)
            variance = offsets.square().sum(1).mean().clamp(min=1e-12)
            # d L / d row = 2 C (x - mean) / (n tr Cov): the mean over the batch of this
            pushed = (rows * ((shown - mean) @ covariance.T)).sum(1)
            term = 2 * pushed.mean() / variance
        self._figures = {"image_erasure_covariance": float(covariance.square().sum() / variance)}
        return {} if self.weight == 0 else {"loss_image_erasure": self.weight * term}
