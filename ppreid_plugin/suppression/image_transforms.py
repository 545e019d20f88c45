"""De-ID targets as transforms of torchreid's images: anonymization before the model instead of in its features.

torchreid builds its transforms from names that it knows and drops others without a word. So the names of De-ID targets
in ``data.transforms`` and ``data.transforms_test`` are put in here, between ``ToTensor`` and ``Normalize``: after
torchreid's flips, crops and color jitter, before its random erasing, in the order in which they are named.

Training images are noised anew each time they are read, from the random generator of the loader's worker, which torch
seeds from ``train.seed``. Test images have the noise that belongs to them, as the targets do: an evaluation can be
repeated and does not move the training's generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..registry import check_arguments, closest, parse_options
from .deid import DEID_TARGETS, DeIDTarget
from .deid_noise import DPPixelate

TORCHREID_TRANSFORMS = ("color_jitter", "random_crop", "random_erase", "random_flip", "random_patch")


class ImageTransform:
    """One De-ID target as a torchvision transform.

    Args:
        spec: as in the configuration, for messages and ``repr``.
        target: what it does.
        fresh: draw noise anew at each call (training), or the noise that belongs to the image (test).

    Shape:
        image: (3, H, W), RGB in [0, 1]. Output: the same.
    """

    def __init__(self, spec: str, target: DeIDTarget, *, fresh: bool) -> None:
        self.spec = spec
        self.target = target
        self.fresh = fresh

    def __call__(self, image: Tensor) -> Tensor:
        """De-identify one image."""
        apply = self.target.fresh if self.fresh else self.target
        return apply(image[None])[0]

    def __repr__(self) -> str:
        arguments = inspect.signature(type(self.target)).parameters
        told = {name: _shown(getattr(self.target, name)) for name in arguments if hasattr(self.target, name)}
        name, _, given = self.spec.partition(":")
        # arguments that the target keeps under another name stand as they were written
        written = dict(part.partition("=")[::2] for part in given.split("+") if part)
        for key, value in written.items():
            told.setdefault(key, value)
        return f"{name}({', '.join(f'{key}={value}' for key, value in told.items())})"


def _shown(value: object) -> str:
    """Return a value as text that is the same in every process: of a function its name, not its address."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def image_transform_names() -> list[str]:
    """Names of the De-ID targets that can be image transforms, sorted."""
    return [name for name in DEID_TARGETS.names() if DEID_TARGETS.get(name).is_image_transform]


def parse_image_transform(spec: str, *, key: str = "data.transforms", known: Sequence[str] = ()) -> DeIDTarget | None:
    """Return the De-ID target that a transform's name and arguments stand for.

    Args:
        spec: ``pixelate``, or with arguments ``dp_pixelate:epsilon=2+blocks=16``.
        key: config key to name in errors.
        known: further names that are allowed there, torchreid's own; None is returned for these.

    Raises:
        ValueError: an unknown name, an argument that the target does not take or that is out of range.

    Example:
        >>> parse_image_transform("dp_pixelate:epsilon=2.0+blocks=16").epsilon
        2.0
    """
    name, _, given = spec.partition(":")
    if spec.lower() in known:
        return None
    names = image_transform_names()
    if name not in names:
        allowed = sorted([*known, *names])
        raise ValueError(f"{key} is {spec!r}; allowed: {', '.join(allowed)}.{closest(name, allowed)}")
    what = f"{key} '{name}'"
    options = parse_options(given.split("+"), what=what, example="blocks=8")
    check_arguments(options, [DEID_TARGETS.get(name)], key=what)
    return DEID_TARGETS.get(name)(**options)


def check_image_transforms(
    specs: Sequence[str], *, key: str, height: int, width: int, known: Sequence[str] = ()
) -> None:
    """Check the names and arguments of ``data.transforms`` or ``data.transforms_test``.

    Raises:
        ValueError: as `parse_image_transform`; one that does not take images of height x width pixels.
    """
    for spec in specs:
        target = parse_image_transform(str(spec), key=key, known=known)
        if target is not None:
            try:
                target.check_size(height, width)
            except ValueError as error:
                raise ValueError(f"{key} has {spec!r}: {error}") from None


def insert_image_transforms(compose: Any, specs: Sequence[str], *, fresh: bool) -> list[ImageTransform]:
    """Put the De-ID targets among ``specs`` into a torchvision ``Compose``, in place, before its ``Normalize``.

    In place, since torchreid's data sets share the object. Nothing changes where no De-ID target is named.

    Raises:
        ValueError: as `parse_image_transform`, or no ``Normalize`` in ``compose``.
    """
    made = []
    for spec in specs:
        target = parse_image_transform(str(spec), known=TORCHREID_TRANSFORMS)
        if target is not None:
            made.append(ImageTransform(str(spec), target, fresh=fresh))
    if made:
        steps = compose.transforms
        place = next((i for i, step in enumerate(steps) if hasattr(step, "mean") and hasattr(step, "std")), None)
        if place is None:
            raise ValueError("image transforms go before Normalize, but torchreid's transform has none.")
        steps[place:place] = made
    return made


def describe_guarantee(transforms: Sequence[ImageTransform], epochs: int) -> str:
    """One line on what training on `DPPixelate`'s images spends; empty if it is not among ``transforms``."""
    # a second one would only see what the first let through
    spent = next((t.target.image_epsilon for t in transforms if isinstance(t.target, DPPixelate)), None)
    if spent is None:
        return ""
    return (
        f"dp_pixelate: epsilon {spent:g} each time an image is read, {spent * epochs:g} over {epochs} epochs, for "
        "images that differ in 'neighborhood' pixels; labels and validation images are not covered; research noise"
    )
