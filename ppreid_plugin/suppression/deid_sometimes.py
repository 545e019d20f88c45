"""Mixed images: some as they are, some de-identified, for the baseline that trains on both.

Source:
    Zhang, Ye, Yang, Learnable Privacy-Preserving Anonymization for Pedestrian Images, ACM Multimedia 2022 (its Re-ID
    baseline sees raw and anonymized images; the share is our choice).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .deid import DEID_TARGETS, build_deid_target, register_deid_target
from .deid_noise import NoisyTarget


@register_deid_target("sometimes")
class Sometimes(NoisyTarget):
    """De-identifies a share of the images, and leaves the others as they are.

    Which ones is drawn anew each time for training images; for test images it belongs to the image, as noise does.

    Args:
        target: registered De-ID target at its default strength.
        share: probability that an image is de-identified, in [0, 1].
        seed: of what belongs to an image.

    Shape:
        images: (B, 3, H, W). Output: the same.

    Raises:
        ValueError: an unknown target, one that needs training images, or a share out of range.

    Example:
        >>> images = torch.rand(4, 3, 16, 8)
        >>> bool((Sometimes(share=0.0)(images) == images).all())
        True
    """

    def __init__(self, target: str = "pixelate", share: float = 0.5, seed: int = 1) -> None:
        super().__init__(seed)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"share is {share!r}, must lie in [0, 1] (0.5: every other image).")
        kind = DEID_TARGETS.get(target, key="the target of 'sometimes'")
        if not kind.is_image_transform or issubclass(kind, Sometimes):
            raise ValueError(f"the target of 'sometimes' is {target!r}, which is no transform of one image.")
        self.target, self.share = target, share
        self._apply = build_deid_target(target, seed=seed)

    def check_size(self, height: int, width: int) -> None:
        """Check what the target checks."""
        self._apply.check_size(height, width)

    def noise_shape(self, height: int, width: int) -> tuple[int, int]:
        """One number an image (the first of its channels')."""
        return 1, 1

    def perturb(self, images: Tensor, uniform: Tensor) -> Tensor:
        """De-identify the images whose number is below the share."""
        return self._mixed(images, uniform, self._apply(images))

    def fresh(self, images: Tensor) -> Tensor:
        """Draw the images anew, and the noise of those that are de-identified."""
        uniform = torch.rand(len(images), 1, 1, 1, device=images.device)
        return self._mixed(images, uniform, self._apply.fresh(images))

    def _mixed(self, images: Tensor, uniform: Tensor, made: Tensor) -> Tensor:
        return torch.where(uniform[:, :1, :1, :1] < self.share, made, images)
