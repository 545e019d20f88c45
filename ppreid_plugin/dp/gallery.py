"""The DP gallery component: what the engine's evaluation does to gallery features (stage 2).

Rows are normalized, put through a public transform that was fitted on the training split, normalized, passed through
the mechanism, and normalized again. Queries take the same way without the mechanism. Matching is by cosine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Component
from .calibration import person_level_epsilon
from .mechanisms import build_mechanism
from .transforms import build_transform

_UNITS = ("image",)


class DPGallery(Component):
    """Protects gallery features under a budget, with *research noise*: seeded, the same draw at each evaluation.

    Nothing that this component makes is a release: a release draws its noise from the operating system, once.

    Args:
        mechanism: registered DP mechanism.
        epsilon: budget of one unit under replace adjacency, > 0.
        delta: failure probability; None lets the mechanism choose (1e-5 if it is approximate, 0 if it is pure).
        clip_norm: bound C on a row's L2 norm; rows have length 1 when they reach the mechanism.
        unit: ``image``: one gallery row (one tracklet for video).
        transform: registered public transform, fitted on the training split only.
        fit_images: training images that the transform is fitted on (0: all).
        background_pids: pids that are no person.
        seed: seed of the research noise.
        options: further arguments of the mechanism.

    Raises:
        ValueError: epsilon, delta, unit or a name out of range.
    """

    name = "dp_gallery"
    in_training = False

    def __init__(
        self,
        mechanism: str = "gaussian",
        *,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float = 1.0,
        unit: str = "image",
        transform: str = "center",
        fit_images: int = 0,
        background_pids: Sequence[int] = (0,),
        seed: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if unit not in _UNITS:
            raise ValueError(f"privacy.gallery.unit is {unit!r}; allowed: {', '.join(_UNITS)}.")
        self.mechanism = build_mechanism(
            mechanism, epsilon=epsilon, delta=delta, clip_norm=clip_norm, **dict(options or {})
        )
        self.public_transform = build_transform(transform)
        self.unit = unit
        self.fit_images = fit_images
        self.background_pids = tuple(background_pids)
        self.seed = seed

    @property
    def needs_training_features(self) -> bool:
        """Whether the public transform has to be fitted."""
        return self.public_transform.needs_fit

    def fit(self, train_features: Tensor | None) -> DPGallery:
        """Fit the public transform on features (n, d) of the training split; never on the gallery."""
        if self.needs_training_features:
            if train_features is None:
                raise ValueError("the public transform needs features of the training split.")
            self.public_transform.fit(train_features)
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Put rows (n, d) through the public transform, normalized before and after; no noise (the query's way)."""
        return _unit_rows(self.public_transform.transform(_unit_rows(features)))

    def protect(self, features: Tensor) -> Tensor:
        """Return protected unit-length rows (n, d): transform, mechanism (research noise), normalization."""
        generator = np.random.default_rng(self.seed)
        noised = self.mechanism.privatize(self.transform(features), generator=generator)
        return _unit_rows(noised)

    def person_level_epsilon(self, rows: float) -> float:
        """Epsilon of a person with that many rows (rounded up), at the mechanism's delta."""
        return person_level_epsilon(self.mechanism, max(1, math.ceil(rows)))

    def describe(self) -> dict[str, Any]:
        """Mechanism, transform, unit and noise source, JSON-ready."""
        return {
            **self.mechanism.describe(),
            "unit": self.unit,
            "adjacency": "replace",
            "transform": self.public_transform.describe(),
            "noise": "research",
        }

    def banner(self) -> str:
        """What a reader has to know before the protected figures."""
        mechanism = self.mechanism
        sigma = (
            ""
            if mechanism.sigma is None
            else f", sigma {mechanism.sigma:.4g} for sensitivity {mechanism.sensitivity:g}"
        )
        return (
            f"##### Protected gallery: {mechanism.name}, epsilon {mechanism.epsilon:g}, delta {mechanism.delta:g} "
            f"for one {self.unit} (replace){sigma} #####\n"
            f"Research noise (seed {self.seed}, the same draw each time): for figures only, not a release."
        )


def _unit_rows(features: Tensor) -> Tensor:
    """Scale rows (n, d) to length 1, in float64; zero rows stay zero."""
    return F.normalize(torch.as_tensor(features, dtype=torch.float64), dim=1, eps=1e-300)
