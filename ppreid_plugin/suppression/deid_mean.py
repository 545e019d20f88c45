"""The De-ID target that says nothing about an image: the mean of the training images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..components import Context
from ..number_checks import require_whole
from .deid import DeIDTarget, register_deid_target


@register_deid_target("mean_image")
class MeanImage(DeIDTarget):
    """The mean of the training images, the same for every image: the floor of what a target can tell.

    Learned in one pass over the training split (without people held out for validation, with the test-time transform,
    so not augmented) when it is first asked for; it never changes afterwards and no other data enter it. A checkpoint
    need not hold it, since the same training split gives the same mean. The mean itself is a statistic of training
    people without any noise: whoever has the decoder can read it.

    Args:
        max_images: a random subset of that many training images (0: all).
        seed: of the choice of the subset.

    Shape:
        images: (B, 3, H, W). Output: the same.

    Raises:
        ValueError: ``max_images`` is no whole number >= 0.
        RuntimeError: asked for an image before an engine prepared it.
    """

    is_image_transform = False

    def __init__(self, max_images: int = 0, seed: int = 1) -> None:
        self.max_images = require_whole("max_images of mean_image", max_images, least=0, hint="0: all")
        self.seed = seed
        self.mean: Tensor | None = None
        self._context: Context | None = None

    def prepare(self, context: Context) -> None:
        """Keep the way to the training images; nothing is read yet.

        Raises:
            ValueError: the context gives no access to training images.
        """
        if context.train_images is None:
            raise ValueError("mean_image learns from training images, which this engine's context does not offer.")
        self._context = context

    def __call__(self, images: Tensor) -> Tensor:
        """Return the mean image, once for every image."""
        if self.mean is None:
            self.mean = self._learn()
        mean = self.mean.to(images.device, images.dtype)
        if mean.shape[-2:] != images.shape[-2:]:
            mean = F.interpolate(mean[None], size=images.shape[-2:], mode="area")[0]
        return mean.expand_as(images)

    def _learn(self) -> Tensor:
        if self._context is None or self._context.train_images is None:
            raise RuntimeError("mean_image has seen no training images: give its DeIDDecoder to an engine first.")
        total: Tensor | None = None
        count = 0
        for batch in self._context.train_images(self.max_images, self.seed):
            part = batch.double().sum(0)
            total = part if total is None else total + part
            count += len(batch)
        if total is None:
            raise RuntimeError("mean_image found no training images: the training split is empty.")
        return (total / count).clamp(0, 1)
