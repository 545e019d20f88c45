"""Methods that change the gallery alone, and match queries as they are: k-same averaging, and stage 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from ..data.validation import some_places
from ..dp.gallery import DPGallery
from ..dp.spec import MechanismSpec
from ..evaluation import Extracted, protected_sets
from ..leakage import LeakageSet
from ..leakage.protection import protect
from ..number_checks import require_whole
from ..report.sweep import make_gallery
from .defense import Defense, Matrix, register_defense


@register_defense("k_same")
class KSame(Defense):
    """Replaces gallery rows in groups of k similar ones by the group's mean; queries are matched as they are.

    A row is drawn, the k - 1 remaining rows that are most similar to it (cosine) join it, and so on; the last group has
    k to 2k - 1 rows. Protects: every published row stands for k rows or more, of whoever they are. Not: k rows may be
    of one person, the mean says what they have in common, and groups depend on all rows: it is not differentially
    private.

    Args:
        k: least number of rows in a group.
        seed: of the draws.

    Source:
        Newton, Sweeney and Malin, IEEE TKDE 2005 (k-Same), here on features in place of pixels.
    """

    def __init__(self, k: int = 5, seed: int = 0) -> None:
        self.k, self.seed = require_whole("k", k, least=2), require_whole("seed", seed, least=0)

    def protect(self, rows: LeakageSet, seed: int) -> LeakageSet:
        """Return every row as its group's mean."""
        return rows.with_features(self.averaged(rows.features), clean=rows.features)

    def matched(self, query: Extracted, gallery: Extracted, seed: int) -> tuple[Extracted, Extracted]:
        """Return the query as it is and the averaged gallery."""
        return query, gallery.with_features(torch.from_numpy(self.averaged(gallery.features.numpy())))

    def averaged(self, features: Matrix) -> Matrix:
        """Return the mean of each row's group, (n, d).

        Raises:
            ValueError: fewer than k rows.
        """
        if len(features) < self.k:
            raise ValueError(f"k_same has k {self.k}, must be <= the {len(features)} rows that it averages.")
        units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
        result = np.empty_like(features)
        grouped = np.zeros(len(features), dtype=bool)
        for row in np.random.default_rng(self.seed).permutation(len(features)):
            if grouped[row]:
                continue
            left = len(features) - np.count_nonzero(grouped)
            if left < 2 * self.k:
                group = np.flatnonzero(~grouped)
            else:
                near = np.where(grouped, -np.inf, units @ units[row])
                near[row] = np.inf
                group = np.argpartition(-near, self.k - 1)[: self.k]
            result[group] = features[group].mean(axis=0)
            grouped[group] = True
        return result


@register_defense("dp")
class DPDefense(Defense):
    """Stage 2: every gallery row goes through a differentially private mechanism once (research noise).

    Protects: (epsilon, delta)-DP for one gallery row. Not: a person's many rows together, training people, queries.

    Args:
        mechanism: registered mechanism.
        epsilon: budget of one row.
        delta: of approximate mechanisms; None: 1e-5.
        transform: public transform, fitted on the training split.
        options: further arguments of the mechanism or of its codebook.
    """

    random = True
    cosine_only = True

    def __init__(
        self,
        mechanism: str = "gaussian",
        epsilon: float = 16.0,
        delta: float | None = None,
        transform: str = "center",
        **options: Any,
    ) -> None:
        self.gallery = make_gallery(
            MechanismSpec(mechanism, options),
            epsilon=epsilon,
            unit="image",
            seed=1,
            delta=delta,
            flags={
                name: f"{name} of defense 'dp'" for name in ("mechanism", "epsilon", "delta", "transform", *options)
            },
            transform=transform,
        )

    @classmethod
    def of(cls, gallery: DPGallery) -> DPDefense:
        """Return the defense that a component of stage 2 is.

        Raises:
            ValueError: the unit is the person; its figures are those of enrolled people, which tools/sweep.py has.
        """
        if gallery.unit != "image":
            raise ValueError(
                f"privacy.gallery.unit is '{gallery.unit}'; an ablation compares galleries row by row. Set "
                "privacy.gallery.unit image in this row; tools/sweep.py evaluates people."
            )
        if gallery.fit_views:
            raise ValueError(
                f"privacy.gallery.fit_views is {gallery.fit_views}; an ablation fits on the training rows that its "
                "attackers learn from. Set privacy.gallery.fit_views 0 in this row."
            )
        made = cls.__new__(cls)
        made.gallery = gallery
        return made

    def fit(self, train: LeakageSet) -> Self:
        """Fit transform and codebook, on as many rows as the component says and on those that an engine takes."""
        some = train.take(some_places(len(train), self.gallery.fit_images, self.gallery.seed))
        self.gallery.fit(torch.from_numpy(some.features), some.pids)
        return self

    def protect(self, rows: LeakageSet, seed: int) -> LeakageSet:
        """Return the rows with fresh noise."""
        return protect(rows, self.gallery, seed)

    def matched(self, query: Extracted, gallery: Extracted, seed: int) -> tuple[Extracted, Extracted]:
        """Return query and gallery as stage 2 matches them."""
        self.gallery.seed = seed
        made, _ = protected_sets(self.gallery, {"query": query, "gallery": gallery})
        return made["query"], made["gallery"]
