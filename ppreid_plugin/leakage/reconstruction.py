"""Reconstruction: the image of a person, made again from the feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ..suppression.deid import standalone_deid_target
from .attack import Attack, Figure, register_attack
from .data import LeakageSet
from .image_scores import in_chunks, mean_over_people, psnr, ssim
from .inversion import Inversion, fit_inversion
from .inversion_decoder import STEPS, to_images
from .judge import Judge, has_matches
from .perceptual import lpips_distance

TEST_ROWS = 3000  # more make the figures slow, not better: errors are over people
_CHUNK = 512


@register_attack("reconstruction")
class ReconstructionAttack(Attack):
    """Inverts features into images of 64 x 32 by a decoder larger than that of stage 1.

    The best of several models on held-out training people counts (:func:`.inversion.fit_inversion`). Where the training
    rows carry their clean features and can be noised again, the decoder learns from both, with fresh noise each epoch.

    The figure is SSIM at 64 x 32, averaged over people. Its floor is that of the best image without features: the mean
    training image, or one moved from it towards larger SSIM (our definition: the decoders learn what SSIM rewards, and
    against the mean image alone they would seem to find something in features that hold nothing). Others: ``psnr`` in
    dB, ``mean_image_ssim``, ``mean_image_psnr``, ``target_ssim`` (of the De-ID image T(x) against x), ``lpips`` and
    ``mean_image_lpips`` where available; with a judge ``rank1`` of the reconstructions, ``rank1_originals`` of the true
    images at 64 x 32 and ``rank1_target`` of T(x), among real images of other cameras; ``people``, ``rows``.

    Args:
        seed: of the choice of held-out people, of the models and of the noise they draw.
        deid_target: registered De-ID target T at its default strength.
        judge: independent Re-ID model; None: no rank-1.
        steps: batches of 256 that a decoder learns from.
        test_rows: rows to attack, drawn from all the same way for every seed; 0: all.

    Raises:
        ValueError: an unknown target, or one that learns from training images.
    """

    channel = "reconstruction"

    def __init__(
        self,
        *,
        seed: int = 0,
        deid_target: str = "pixelate",
        judge: Judge | None = None,
        steps: int = STEPS,
        test_rows: int = TEST_ROWS,
    ) -> None:
        super().__init__(seed=seed)
        self.deid_target = standalone_deid_target(deid_target, key="deid_target")()
        self.judge = judge
        self.steps, self.test_rows = steps, test_rows
        self._inversion: Inversion | None = None

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check that both have images, and the judge people that were seen by two cameras.

        Raises:
            ValueError: they do not.
        """
        _with_images(train, "training rows")
        rows = self._attacked(test)
        if self.judge is not None and not has_matches(rows.pids, rows.camids):
            raise ValueError(
                "the rows to attack hold nobody with images of two cameras, so the judge has nobody to find in another "
                "one. Give camids, or leave --judge-model out."
            )

    def fit(self, train: LeakageSet) -> Self:
        """Fit the models on training people, and keep the best on those held out.

        Raises:
            ValueError: rows without images, or of one person.
        """
        self._inversion = fit_inversion(_with_images(train, "training rows"), steps=self.steps, seed=self.seed)
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Reconstruct the gallery's images and compare them with the true ones.

        Raises:
            RuntimeError: not fitted.
            ValueError: rows without images.
        """
        inversion = self._fitted
        rows = self._attacked(test)
        images = to_images(rows.pictures.load())
        made = inversion(rows.features)
        score, error = _over_people(ssim, made, images, rows)
        others = {
            "held_out": inversion.held_out,
            "psnr": _over_people(psnr, made, images, rows)[0],
            "people": float(len(np.unique(rows.pids))),
            "rows": float(len(rows)),
        }
        mean = inversion.mean_image.expand_as(images)
        target = torch.cat([self.deid_target(part) for part in images.split(_CHUNK)])
        others["mean_image_ssim"] = _over_people(ssim, mean, images, rows)[0]
        others["mean_image_psnr"] = _over_people(psnr, mean, images, rows)[0]
        others["target_ssim"] = _over_people(ssim, target, images, rows)[0]
        for name, some in (("lpips", made), ("mean_image_lpips", mean)):
            if (distances := lpips_distance(some, images)) is not None:
                others[name] = mean_over_people(distances.double().numpy(), rows.pids)[0]
        if self.judge is not None:
            for name, some in (("rank1", made), ("rank1_originals", images), ("rank1_target", target)):
                rank1 = self.judge.rank1(some, rows.pictures, rows.pids, rows.camids)
                others |= {} if rank1 is None else {name: rank1}
        return {"": Figure(score, error, inversion.name, others)}

    def reconstruct(self, features: np.ndarray) -> Tensor:
        """Return the images (n, 3, 64, 32), in [0, 1], that the fitted attack makes of features (n, d).

        Raises:
            RuntimeError: not fitted.
        """
        return self._fitted(np.asarray(features, dtype=np.float32))

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Return the SSIM of the best image without features, which is the training people's.

        Raises:
            RuntimeError: not fitted.
            ValueError: rows without images.
        """
        constant = self._fitted.constant
        rows = self._attacked(test)
        images = to_images(rows.pictures.load())
        return {"": _over_people(ssim, constant.expand_as(images), images, rows)[0]}

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """Return 1."""
        return {"": 1.0}

    @property
    def _fitted(self) -> Inversion:
        if self._inversion is None:
            raise RuntimeError("the attack on reconstruction is not fitted; call fit(train) first.")
        return self._inversion

    def _attacked(self, test: LeakageSet) -> LeakageSet:
        rows = _with_images(test, "rows to attack")
        if not 0 < self.test_rows < len(rows):
            return rows
        return rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[: self.test_rows]))


def _with_images(rows: LeakageSet, what: str) -> LeakageSet:
    if rows.images is None:
        raise ValueError(
            f"the {what} have no images: nothing says what to reconstruct. Add the array images (n, H, W, 3), uint8, "
            "or name the folder that paths or row_ids are relative to (--images-root). A prototype (unit person) is no "
            "image's feature and has none. Or leave reconstruction out of --attacks."
        )
    return rows.people_of(what)


def _over_people(score: Callable[..., Tensor], made: Tensor, images: Tensor, rows: LeakageSet) -> tuple[float, float]:
    return mean_over_people(in_chunks(score, made, images, size=_CHUNK).double().numpy(), rows.pids)
