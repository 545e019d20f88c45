"""The DP gallery component: what the engine's evaluation does to gallery features (stage 2).

Rows are normalized, put through a public transform that was fitted on the training split, normalized, passed through
the mechanism, and normalized again. Queries take the same way without the mechanism (or with it, if they are to be
protected too). Matching is by cosine. A mechanism with a codebook has it fitted on the training split.

In the *person* unit epsilon is what all rows of a person cost together. They are enrolled from some cameras and looked
for in the others: as one prototype a person, the normalized mean of his rows, or as his rows at an equal share each.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..number_checks import require_whole
from ..registry import check_arguments
from .calibration import gaussian_epsilon, person_level_epsilon
from .mechanisms import MECHANISMS, Mechanism, build_mechanism
from .prior import Prior, check_prior_options, fit_prior
from .protected import ProtectedGallery, ProtectedRows, clean_units, unit_rows
from .spec import naming_flags, parameter_names
from .transform_files import require_not_fitted_on
from .transforms import build_transform
from .units import UNITS, Unit

QUERIES = ("clean", "noised")
_GIVEN = ("epsilon", "delta", "clip_norm", "train_features", "train_pids")  # to mechanism and prior, by other ways


class DPGallery(ProtectedGallery):
    """Protects gallery features under a budget, with *research noise*: seeded, the same draw at each evaluation.

    Nothing that this component makes is a release: a release draws its noise from the operating system, once.

    Args:
        mechanism: registered DP mechanism.
        epsilon: budget of one unit under replace adjacency, > 0.
        delta: failure probability; None lets the mechanism choose (1e-5 if it is approximate, 0 if it is pure).
        clip_norm: bound C on a row's L2 norm; rows have length 1 when they reach the mechanism.
        unit: ``image``: one gallery row (one tracklet for video). ``person``: all rows of a pid together; background
            rows stay units of their own.
        prototype: person unit: release one row a person, the mean of his rows; False releases his rows, each at an
            equal share of epsilon (of mu for the Gaussian mechanism).
        enroll_cameras: person unit: camids that people are enrolled from; queries of the others are matched. None: the
            first half of the gallery's cameras.
        max_rows_per_person: rows of one person that are used, spread over his cameras; 0: all.
        transform: registered public transform, fitted on the training split only; ``NAME:FILE`` for a loaded one.
        fit_images: training images that transform and codebook are fitted on (0: all).
        fit_views: augmented views of each of them that they are fitted on beside it, since an encoder knows the images
            that it was trained on (`ppreid_plugin.data.views`).
        background_pids: pids that are no person.
        query: ``clean``: queries are matched as they are. ``noised``: each goes through the mechanism too, a unit of
            its own at the same epsilon.
        seed: seed of the research noise.
        options: further arguments of the mechanism; of `fit_prior` too (``codewords``, ``set_size``, ``kind``,
            ``min_people``, ``prior_is_public``, ...) where the mechanism takes a codebook and none is given.
        called: how errors call arguments, such as by a flag; the others by their configuration keys.

    Raises:
        ValueError: epsilon, delta, unit or a name out of range, an argument that nothing takes.
    """

    def __init__(
        self,
        mechanism: str = "gaussian",
        *,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float = 1.0,
        unit: str = "image",
        prototype: bool = True,
        enroll_cameras: Sequence[int] | None = None,
        max_rows_per_person: int = 0,
        transform: str = "center",
        fit_images: int = 0,
        fit_views: int = 0,
        background_pids: Sequence[int] = (0,),
        query: str = "clean",
        seed: int = 1,
        options: Mapping[str, Any] | None = None,
        called: Mapping[str, str] | None = None,
    ) -> None:
        self._called = dict(called or {})
        for key, value, allowed in (("unit", unit, UNITS), ("query", query, QUERIES)):
            if value not in allowed:
                raise ValueError(f"{self._name(key)} is {value!r}; allowed: {', '.join(allowed)}.")
        require_whole(self._name("max_rows_per_person"), max_rows_per_person, least=0, hint="0: all")
        options = dict(options or {})
        self._budget: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "clip_norm": clip_norm}
        self._mechanism_name = mechanism
        entry = MECHANISMS.get(mechanism, key=self._name("mechanism"))
        self._own_arguments = frozenset(inspect.signature(entry).parameters)
        takers: list[Callable[..., Any]] = [entry, fit_prior] if "codebook" in self._own_arguments else [entry]
        check_arguments(options, takers, key="privacy.gallery.kwargs", given=_GIVEN)
        self.fits_prior = "codebook" in self._own_arguments and "codebook" not in options
        self.prior_options: dict[str, Any] = {}
        self._options = options
        if self.fits_prior:
            self.prior_options = {"seed": seed, **options}
            if "codewords" not in options:
                fix = "Append for example: privacy.gallery.kwargs.codewords 1024 privacy.gallery.kwargs.set_size 4"
                if (flag := self._called.get("mechanism")) is not None:
                    fix = f"Give for example: {flag} {mechanism}:codewords=1024,set_size=4"
                raise ValueError(f"mechanism '{mechanism}' needs a codebook: its size is missing. {fix}")
            # of the right kind and budget, so that errors come before training; `fit` makes the one that is used
            self._options = {"codebook": np.eye(2)}
        self._option_names = {name: self._name(name) for name in self._budget}
        self._option_names |= {name: self._called.get(name, f"privacy.gallery.kwargs.{name}") for name in options}
        with self.naming_options():
            if self.fits_prior:
                check_prior_options(self.prior_options)
            self._mechanism: Mechanism = build_mechanism(mechanism, **self._budget, **self._options)
        self._ready = not self.fits_prior
        self.prior: Prior | None = None
        self.transform_name = transform
        self._parameter_names = parameter_names(transform, self._name("transform"))
        with naming_flags(self._parameter_names):
            self.public_transform = build_transform(transform)
        self.unit = unit
        self.prototype = prototype
        self.enroll_cameras = None if enroll_cameras is None else tuple(enroll_cameras)
        self.max_rows_per_person = max_rows_per_person
        self.fit_images = fit_images
        self.fit_views = require_whole(self._name("fit_views"), fit_views, least=0, hint="0: none")
        self.background_pids = tuple(background_pids)
        self.query = query
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
            self.fit_transform(train_features, train_pids)
        if self.fits_prior:
            if train_pids is None:
                raise ValueError("a codebook needs the pids of the training rows, to count the people in its cells.")
            with self.naming_options():
                prior = fit_prior(self.transform(train_features), train_pids, **self.prior_options)
            self.use_prior(prior)
        return self

    def fit_transform(self, train_features: Tensor, train_pids: np.ndarray | None) -> None:
        """Fit the public transform alone."""
        with naming_flags(self._parameter_names):
            self.public_transform.fit(train_features, train_pids)

    def naming_options(self) -> AbstractContextManager[None]:
        """Let an error of the block that begins with an option or a budget begin with its flag or key."""
        return naming_flags(self._option_names)

    def use_prior(self, prior: Prior) -> None:
        """Take a prior that was fitted elsewhere, on training rows that went through the same transform."""
        self.prior = prior
        self._options = {key: value for key, value in prior.options().items() if key in self._own_arguments}
        with self.naming_options():
            self._mechanism = build_mechanism(self._mechanism_name, **self._budget, **self._options)
        self._ready = True

    def transform(self, features: Tensor) -> Tensor:
        """Put rows (n, d) through the public transform, normalized before and after; no noise (a clean query's way)."""
        return unit_rows(self.public_transform.transform(unit_rows(features)))

    def protect(self, features: Tensor) -> Tensor:
        """Return protected unit-length rows (n, d): transform, mechanism (research noise), normalization."""
        mechanism = self.mechanism
        return self._noised(self.transform(features), mechanism, np.random.default_rng(self.seed))

    def transform_query(self, features: Tensor) -> Tensor:
        """Return query rows (n, d) as they are matched."""
        rows = self.transform(features)
        if self.query == "clean":
            return rows
        return self._noised(rows, self.mechanism, np.random.default_rng([self.seed, 1]))  # not the gallery's draw

    def require_other_people(self, features: Tensor) -> None:
        """Raise ValueError if the public transform was fitted on rows of the gallery ``features`` (n, d)."""
        with naming_flags({"public transform": self._name("transform")}):
            require_not_fitted_on(self.public_transform, features)

    def protect_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the protected gallery (research noise), one row a unit, or a person's rows at a share each."""
        return self._released(features, pids, camids, noised=True)

    def clean_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the same rows without noise: what the protected figures are compared with."""
        return self._released(features, pids, camids, noised=False)

    @property
    def is_whole_gallery(self) -> bool:
        """Whether the protected rows are those of the clean gallery, one for one and in their order."""
        return self.unit == "image" and not self.max_rows_per_person

    def queried(self, camids: np.ndarray) -> np.ndarray:
        """Return which queries are counted: in the person unit those of cameras that nobody was enrolled from.

        Where all cameras enroll (there is one only), all queries are.
        """
        if self.unit == "image" or self.enroll_cameras is None:
            return super().queried(camids)
        others = ~np.isin(camids, self.enroll_cameras)
        return others if others.any() else super().queried(camids)

    def person_level_epsilon(self, rows: float) -> float:
        """Epsilon of a person with that many rows (rounded up), at the mechanism's delta."""
        if self.unit == "person":
            return self.mechanism.epsilon
        return person_level_epsilon(self.mechanism, max(1, math.ceil(rows)))

    def share(self, rows: int) -> Mechanism:
        """Return the mechanism for each of ``rows`` rows of a person, so that they cost epsilon and delta together."""
        whole = self.mechanism
        if rows == 1 or math.isinf(whole.epsilon):
            return whole
        epsilon, delta = whole.epsilon / rows, whole.delta / rows or None
        if whole.sigma is not None:
            epsilon = gaussian_epsilon(math.sqrt(rows) * whole.sigma, whole.delta, whole.sensitivity)
            delta = whole.delta
        if epsilon == 0:
            raise ValueError(
                f"{self._name('epsilon')} {whole.epsilon:g} over {rows} rows of a person leaves nothing for each. Set "
                f"{self._name('max_rows_per_person')} lower, or {self._name('prototype')} True."
            )
        budget = {**self._budget, "epsilon": epsilon, "delta": delta}
        share = f"a row's share of {self._name('epsilon')} {whole.epsilon:g} among {rows} rows of a person"
        with naming_flags({"epsilon": share}):
            return build_mechanism(self._mechanism_name, **budget, **self._options)

    def describe(self) -> dict[str, Any]:
        """Mechanism, transform, unit and noise source, JSON-ready."""
        person = {"prototype": self.prototype, "enroll_cameras": self.enroll_cameras}
        return {
            **self.mechanism.describe(),
            "unit": self.unit,
            **(person if self.unit == "person" else {}),
            "max_rows_per_person": self.max_rows_per_person,
            "adjacency": "replace",
            "transform": self.public_transform.describe(),
            "prior": None if self.prior is None else self.prior.describe(),
            "query": self.query,
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

    def _name(self, argument: str) -> str:
        return self._called.get(argument, f"privacy.gallery.{argument}")

    def _released(self, features: Tensor, pids: np.ndarray, camids: np.ndarray, *, noised: bool) -> ProtectedRows:
        if self.unit == "person" and self.enroll_cameras is None:
            seen = np.unique(camids)
            self.enroll_cameras = tuple(int(camid) for camid in seen[: max(1, len(seen) // 2)])
        cameras = (self.enroll_cameras or ()) if self.unit == "person" else ()
        if cameras and not np.isin(camids, cameras).any():
            raise ValueError(
                f"{self._name('enroll_cameras')} is {list(cameras)}, and the gallery has no row of them; its cameras: "
                f"{np.unique(camids).tolist()}."
            )
        clean, units = clean_units(
            self.transform(features),
            pids,
            camids,
            unit="person" if self.unit == "person" and self.prototype else "image",
            cameras=cameras,
            max_rows_per_person=self.max_rows_per_person,
            background_pids=self.background_pids,
        )
        if not noised:
            return clean
        return dataclasses.replace(clean, features=self._noised_units(clean.features, units))

    def _noised_units(self, rows: Tensor, units: Sequence[Unit]) -> Tensor:
        generator = np.random.default_rng(self.seed)
        if self.unit == "image" or self.prototype:
            return self._noised(rows, self.mechanism, generator)
        pids = np.array([unit.pid for unit in units])
        people, person, counts = np.unique(pids, return_inverse=True, return_counts=True)
        counts[np.isin(people, self.background_pids)] = 1
        shared = counts[person]
        result = torch.empty_like(rows)
        for count in np.unique(shared):
            here = torch.from_numpy(shared == count)
            result[here] = self._noised(rows[here], self.share(int(count)), generator)
        return result

    @staticmethod
    def _noised(rows: Tensor, mechanism: Mechanism, generator: np.random.Generator) -> Tensor:
        return unit_rows(mechanism.privatize(rows, generator=generator))
