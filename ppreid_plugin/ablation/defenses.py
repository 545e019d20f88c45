"""The other methods that change every row of query and gallery alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ..leakage import Leace, LeakageSet
from ..leakage.image_components import named_components
from ..number_checks import is_number, require_whole
from ..registry import closest
from ..suppressor import Suppressor
from .defense import Matrix, RowDefense, register_defense


@register_defense("projection")
class RandomProjection(RowDefense):
    """Projects rows on random orthonormal directions, the same for query and gallery.

    Protects: what lies outside these directions is gone. Not: the rest, of which d / k is kept of every inner product
    on average (Johnson and Lindenstrauss); the directions hide nothing from whoever has rows before and after.

    Args:
        dims: k, number of directions; at most d.
        seed: of the directions.

    Source:
        Johnson and Lindenstrauss 1984; as a template protection: Teoh et al., Pattern Recognition 2004 (BioHashing).
    """

    def __init__(self, dims: int = 64, seed: int = 0) -> None:
        self.dims, self.seed = require_whole("dims", dims), require_whole("seed", seed, least=0)
        self._directions: npt.NDArray[np.float64] | None = None

    def check_columns(self, columns: int) -> None:
        """Check that there are as many directions."""
        if self.dims > columns:
            raise ValueError(f"projection has dims {self.dims}, must be <= the {columns} columns of the features.")

    def fit(self, train: LeakageSet) -> Self:
        """Draw the directions; the rows say only how many columns there are."""
        columns = train.features.shape[1]
        self.check_columns(columns)
        drawn = np.random.default_rng(self.seed).normal(size=(columns, self.dims))
        self._directions = np.linalg.qr(drawn)[0]
        return self

    def apply(self, features: Matrix) -> Matrix:
        """Return (n, dims)."""
        return (features @ _fitted(self._directions, "projection")).astype(np.float32)


@register_defense("quantize")
class Quantize(RowDefense):
    """Rounds every column to 2^bits values: the middles of equal steps between two quantiles of the training rows.

    Protects: little; it is what compression does, and shows that coarse is not private. Not: anything by a guarantee.

    Args:
        bits: a column, 1 to 16. One bit is the side of the middle that a value lies on.
        tail: share of the training values beyond the outermost steps at either end, in [0, 0.5).
    """

    def __init__(self, bits: int = 2, tail: float = 0.01) -> None:
        require_whole("bits", bits, most=16, hint="a column")
        if not is_number(tail) or not 0 <= tail < 0.5:
            raise ValueError(f"quantize has tail {tail!r}, must be a number that lies in [0, 0.5).")
        self.bits, self.tail = bits, tail
        self._span: npt.NDArray[np.float64] | None = None

    def fit(self, train: LeakageSet) -> Self:
        """Learn the quantiles of each column."""
        self._span = np.quantile(train.features.astype(np.float64), [self.tail, 1 - self.tail], axis=0)
        return self

    def apply(self, features: Matrix) -> Matrix:
        """Return (n, d) with 2^bits values a column."""
        low, high = _fitted(self._span, "quantize")
        step = np.maximum(high - low, np.finfo(np.float64).tiny) / 2**self.bits
        place = np.clip(np.floor((features - low) / step), 0, 2**self.bits - 1)
        return (low + (place + 0.5) * step).astype(np.float32)


@register_defense("permute")
class KeyedPermutation(RowDefense):
    """Permutes the columns by a secret key, the same for query and gallery.

    Protects: features of one key cannot be matched with those of another by whoever knows neither. Not: anything within
    one key. All distances and inner products are preserved, so galleries of two keys can be aligned, and attackers who
    get their own people through the same key lose nothing: its leakage is that of clean features, as the table shows.

    Args:
        key: seed of the permutation, a whole number >= 0.

    Source:
        In the manner of ShuffleBits; here whole columns are permuted.
    """

    def __init__(self, key: int = 0) -> None:
        self.key = require_whole("key", key, least=0)

    def apply(self, features: Matrix) -> Matrix:
        """Return the columns in the key's order."""
        return np.ascontiguousarray(features[:, np.random.default_rng(self.key).permutation(features.shape[1])])


@register_defense("leace")
class LeaceDefense(RowDefense):
    """Erases what is named so that nothing linear finds it in the training rows (`ppreid_plugin.leakage.Leace`).

    Protects: attributes from linear attackers, and the largest components of the images from linear inversion, on
    training rows exactly. Not: from MLPs, trees and convolutions, nor anything that is not named.

    Args:
        attributes: names, separated by +; empty: all that are probed, or none where image components are erased.
        image_components: principal components of the training images (`ppreid_plugin.leakage.image_components`).
        head_components: those of their upper quarter.
    """

    def __init__(self, attributes: str = "", image_components: int = 0, head_components: int = 0) -> None:
        self._named = _Named(attributes, image_components, head_components)
        self.attributes, self.all_attributes = self._named.attributes, self._named.all_attributes
        self._leace = Leace()

    def fit(self, train: LeakageSet) -> Self:
        """Fit on the training rows, their labels and images."""
        concepts, numbers = self._named.of(train, "leace")
        self._leace.fit_concepts(train.features, concepts, numbers=numbers)
        return self

    def apply(self, features: Matrix) -> Matrix:
        """Return the erased rows, (n, d)."""
        return np.asarray(self._leace.transform(features)).astype(np.float32)


@register_defense("suppressor")
class SuppressorDefense(RowDefense):
    """A small network behind the model, trained to match and to suppress (`ppreid_plugin.suppressor.Suppressor`).

    Protects: the named attributes, and the images from inversion, as far as the attackers say. Not: anything by a
    guarantee, nor what is not named.

    Args:
        attributes: names, separated by +; empty: all that are probed, or none where image components are suppressed.
        image_components: principal components of the training images (`ppreid_plugin.leakage.image_components`).
        head_components: those of their upper quarter.
        settings: of `ppreid_plugin.suppressor.SuppressorFit`.
    """

    def __init__(
        self, attributes: str = "", image_components: int = 0, head_components: int = 0, **settings: Any
    ) -> None:
        self._named = _Named(attributes, image_components, head_components)
        self.attributes, self.all_attributes = self._named.attributes, self._named.all_attributes
        self._suppressor = Suppressor(**settings)

    def fit(self, train: LeakageSet) -> Self:
        """Fit on the training rows, their people, labels and images."""
        concepts, numbers = self._named.of(train, "suppressor")
        self._suppressor.fit_people(train.features, train.pids, concepts, numbers=numbers)
        return self

    def apply(self, features: Matrix) -> Matrix:
        """Return the suppressed rows, (n, d)."""
        return np.asarray(self._suppressor.transform(features)).astype(np.float32)


class _Named:
    """What a row names to be taken out: attributes, image components, or both."""

    def __init__(self, attributes: str, components: int, head_components: int) -> None:
        self.attributes = tuple(filter(None, str(attributes).split("+")))
        self.components = require_whole("image_components", components, least=0)
        self.head_components = require_whole("head_components", head_components, least=0)
        self.all_attributes = not (self.attributes or self.components or self.head_components)

    def of(self, train: LeakageSet, who: str) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float64] | None]:
        """Return the labels and the numbers of the training rows; None: nothing of this kind is named."""
        numbers = named_components(train, self.components, self.head_components)
        return self._labels(train, who) if self.attributes or self.all_attributes else None, numbers

    def _labels(self, train: LeakageSet, who: str) -> npt.NDArray[np.int64]:
        known = sorted(train.attributes)
        for name in self.attributes:
            if name not in known:
                raise ValueError(
                    f"{who} has the attribute '{name}'; the labels have: {', '.join(known)}.{closest(name, known)}"
                )
        if not known:
            raise ValueError(f"{who} has no attributes to take out. Give labels: --labels FILE")
        return train.concepts(self.attributes or train.attributes)


def _fitted(learned: npt.NDArray[np.float64] | None, name: str) -> npt.NDArray[np.float64]:
    if learned is None:
        raise RuntimeError(f"defense '{name}' is not fitted; call fit(train) first.")
    return learned
