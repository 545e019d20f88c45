"""The De-ID decoder component: it learns to reproduce T(x) from the feature, in the encoder's own backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Batch, Component, Context, Trainable, frozen, isolated_rng
from ..number_checks import require_not_negative, require_positive, require_whole
from ..registry import check_arguments
from .decoder import DECODERS, Decoder
from .deid import DEID_TARGETS, build_deid_target, parse_deid_targets
from .deid_loss import DeIDLoss

_INPUTS = ("feature", "feature_map")


class DeIDDecoder(Component):
    """Trains a decoder from the feature to the de-identified image, and the encoder with it.

    The decoder's parameters receive gradients from the De-ID loss only; whoever else reads the reconstruction (an
    adversary) goes through `decode_frozen`.

    Args:
        targets: a name, ``"pixelate:1.0,blur:0.5"``, or names with weights; each target has 3 output channels.
        weight: factor on the loss in the encoder's objective. At 0 the decoder still learns (from frozen features).
        loss: ``mse``, ``l1``, ``ssim``, or several with weights such as ``mse:1.0,ssim:0.2``.
        scales: scales at which image and target are compared (`DeIDLoss`); what adversaries read stays the full image.
        decoder: registered network.
        input: ``feature`` or ``feature_map``.
        height, width: size of the decoded image in pixels (0: the input's); targets are made at the input's size and
            averaged down to it.
        lr: learning rate of the decoder (Adam).
        options: arguments of the targets (``blocks``, ``sigma``, ...); each target takes those that it has.
        make_scheduler: makes a learning rate scheduler from the optimizer, stepped once an epoch.
        seed: seed of the decoder's initial weights, and of targets with noise.

    Raises:
        ValueError: an unknown name or option, no target, a weight, rate or size out of range, a loss that does not fit
            the image.
    """

    name = "deid_decoder"

    def __init__(
        self,
        targets: str | Mapping[str, float] = "pixelate",
        *,
        weight: float = 10.0,
        loss: str = "mse",
        scales: int = 1,
        decoder: str = "light",
        input: str = "feature",
        height: int = 64,
        width: int = 32,
        lr: float = 1e-3,
        options: Mapping[str, Any] | None = None,
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        seed: int = 1,
    ) -> None:
        if input not in _INPUTS:
            raise ValueError(f"De-ID decoder input is {input!r}; allowed: {', '.join(_INPUTS)}.")
        require_not_negative("De-ID weight", weight)
        for side, pixels in (("height", height), ("width", width)):
            require_whole(f"De-ID decoder {side}", pixels, least=0, hint="pixels; 0: the input's")
        self.target_weights = parse_deid_targets(targets) if isinstance(targets, str) else _checked(targets)
        kinds = [DEID_TARGETS.get(name) for name in self.target_weights]
        check_arguments(options or {}, kinds, key="De-ID decoder options")
        self.targets = {
            name: build_deid_target(name, **{"seed": seed, **dict(options or {})}) for name in self.target_weights
        }
        self.weight = weight
        self.loss = DeIDLoss(loss, scales)
        if height and width:
            self.loss.check_size(height, width)
        self.decoder_name = decoder
        self.input = input
        self.height, self.width = height, width
        self.lr = require_positive("De-ID decoder lr", lr, hint="such as 0.001")
        self.make_scheduler = make_scheduler
        self.seed = seed
        DECODERS.get(decoder, key="privacy.deid.decoder")
        self.network: Decoder | None = None

    def check_images(self, height: int, width: int) -> None:
        """Check that targets and loss take images of this size."""
        for target in self.targets.values():
            target.check_size(height, width)
        self.loss.check_size(self.height or height, self.width or width)

    @property
    def has_learned(self) -> bool:
        """Whether the decoder has taken a step."""
        return bool(self._optimizer.state)

    @property
    def out_channels(self) -> int:
        """Channels of the reconstruction: 3 for each target."""
        return 3 * len(self.targets)

    def build(self, context: Context) -> None:
        """Make the decoder network for the encoder's feature."""
        shape: tuple[int, ...] | None = (context.feature_dim,)
        if self.input == "feature_map":
            shape = context.feature_map_shape
        if shape is None:
            raise ValueError(
                "privacy.deid.input is 'feature_map', but this model has no pooling layer whose input could be read. "
                "Use privacy.deid.input feature."
            )
        self.check_images(context.height, context.width)
        self.height, self.width = self.height or context.height, self.width or context.width
        for target in self.targets.values():
            target.prepare(context)
        with isolated_rng(self.seed):
            self.network = DECODERS.get(self.decoder_name)(shape, self.out_channels, self.height, self.width)
        self.network.to(context.device)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=self.lr)
        self._scheduler = self.make_scheduler(self._optimizer) if self.make_scheduler else None

    def trainables(self) -> dict[str, Trainable]:
        """The decoder network."""
        return {self.name: Trainable(self._network, self._optimizer, self._scheduler)}

    def deidentify(self, images: Tensor, paths: Sequence[str] | None = None) -> Tensor:
        """Return the targets T(x), shape (B, 3 * targets, height, width), for images (B, 3, H, W) in [0, 1].

        Args:
            images: as the encoder sees them.
            paths: their files, for targets that know more about a file than its pixels (``mask``).
        """
        size = (self.height or images.shape[-2], self.width or images.shape[-1])
        targets = self.targets.values()
        made = [target(images) if paths is None else target.of_batch(images, paths) for target in targets]
        return torch.cat([m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="area") for m in made], 1)

    def decode_frozen(self, batch: Batch) -> Tensor:
        """Reconstruction (B, 3 * targets, height, width) whose gradient reaches the encoder, not the decoder."""
        return frozen(self._network, self._input_of(batch))

    @torch.no_grad()
    def decode(self, features: Tensor) -> Tensor:
        """Reconstruct features (n, d) (or maps) into images (n, 3 * targets, height, width), without a graph."""
        return self._network(features)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted De-ID loss, which trains encoder and decoder together."""
        for parameter in self._network.parameters():
            parameter.grad = None
        with torch.no_grad():
            target = self.deidentify(batch.images, batch.data.get("impath"))
        inputs = self._input_of(batch)
        decoded = self._network(inputs if self.weight > 0 else inputs.detach())
        shares = zip(decoded.split(3, 1), target.split(3, 1), self.target_weights.values(), strict=True)
        loss = torch.stack([weight * self.loss(image, wanted) for image, wanted, weight in shares]).sum()
        self._figures = {"loss_deid": float(loss.detach())}
        # at weight 0 the decoder alone learns, at full strength: a probe of what the features hold
        return {"loss_deid": self.weight * loss if self.weight > 0 else loss}

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Step the decoder with the gradients of the joint backward pass."""
        # the joint objective scales the decoder's gradient by `weight` too; Adam's step does not depend on that scale
        self._optimizer.step()
        return self._figures

    @property
    def _network(self) -> Decoder:
        if self.network is None:
            raise RuntimeError("the De-ID decoder has no network yet: give it to an engine, or call build(context).")
        return self.network

    def _input_of(self, batch: Batch) -> Tensor:
        if self.input == "feature":
            return batch.features
        if batch.feature_map is None:
            raise RuntimeError("the engine passed no feature map.")
        return batch.feature_map


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    """Return weights by target, as `parse_deid_targets` would."""
    if not weights:
        raise ValueError("De-ID decoder has no targets. Name one or more, such as {'pixelate': 1.0}.")
    return {name: require_positive(f"De-ID weight of {name!r}", weight) for name, weight in weights.items()}
