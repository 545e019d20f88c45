"""The DP gallery component: what the engine's evaluation does to gallery features (stage 2).

Rows are normalized, put through a public transform that was fitted on the training split, normalized, passed through
the mechanism, and normalized again. Queries take the same way without the mechanism. Matching is by cosine. A mechanism
with a codebook has it fitted on the training split, too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Component
from ..registry import check_arguments
from .calibration import person_level_epsilon
from .mechanisms import MECHANISMS, Mechanism, build_mechanism
from .prior import Prior, fit_prior
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
        fit_images: training images that transform and codebook are fitted on (0: all).
        background_pids: pids that are no person.
        seed: seed of the research noise.
        options: further arguments of the mechanism; of `fit_prior` too (``codewords``, ``set_size``, ``kind``,
            ``min_people``, ``prior_is_public``, ...) where the mechanism takes a codebook and none is given.

    Raises:
        ValueError: epsilon, delta, unit or a name out of range, an argument that nothing takes.
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
        options = dict(options or {})
        self._budget: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "clip_norm": clip_norm}
        self._mechanism_name = mechanism
        entry = MECHANISMS.get(mechanism, key="privacy.gallery.mechanism")
        self._own_arguments = frozenset(inspect.signature(entry).parameters)
        takers: list[Callable[..., Any]] = [entry, fit_prior] if "codebook" in self._own_arguments else [entry]
        check_arguments(options, takers, key="privacy.gallery.kwargs")
        self.fits_prior = "codebook" in self._own_arguments and "codebook" not in options
        self._prior_options: dict[str, Any] = {}
        if self.fits_prior:
            self._prior_options = {"seed": seed, **options}
            if "codewords" not in options:
                raise ValueError(
                    f"mechanism '{mechanism}' needs a codebook: its size is missing. Append for example: "
                    "privacy.gallery.kwargs.codewords 1024 privacy.gallery.kwargs.set_size 4"
                )
            # of the right kind and budget, so that errors come before training; `fit` makes the one that is used
            options = {"codebook": np.eye(2)}
        self._mechanism: Mechanism = build_mechanism(mechanism, **self._budget, **options)
        self._ready = not self.fits_prior
        self.prior: Prior | None = None
        self.public_transform = build_transform(transform)
        self.unit = unit
        self.fit_images = fit_images
        self.background_pids = tuple(background_pids)
        self.seed = seed

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism; one with a codebook is there after `fit`."""
        if not self._ready:
            raise RuntimeError(
                f"the codebook of '{self._mechanism_name}' is not fitted; call fit(features, pids) first."
            )
        return self._mechanism

    @property
    def label(self) -> str:
        """Mechanism and budget as one word, for folders and tags: ``gaussian_epsilon_16``."""
        return f"{self.mechanism.name}_epsilon_{self.mechanism.epsilon:g}"

    @property
    def needs_training_features(self) -> bool:
        """Whether anything has to be fitted."""
        return self.public_transform.needs_fit or self.fits_prior

    def fit(self, train_features: Tensor | None, train_pids: np.ndarray | None = None) -> DPGallery:
        """Fit the public transform, and the codebook if there is one, on the training split; never on the gallery.

        Args:
            train_features: (n, d), of people outside the gallery; None where nothing is fitted.
            train_pids: (n,), their labels: needed for a codebook and for transforms that learn from labels.
        """
        if not self.needs_training_features:
            return self
        if train_features is None:
            raise ValueError("transform and codebook need features of the training split.")
        if self.public_transform.needs_fit:
            self.public_transform.fit(train_features, train_pids)
        if self.fits_prior:
            if train_pids is None:
                raise ValueError("a codebook needs the pids of the training rows, to count the people in its cells.")
            self.prior = fit_prior(self.transform(train_features), train_pids, **self._prior_options)
            taken = {key: value for key, value in self.prior.options().items() if key in self._own_arguments}
            self._mechanism = build_mechanism(self._mechanism_name, **self._budget, **taken)
            self._ready = True
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
            "prior": None if self.prior is None else self.prior.describe(),
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
