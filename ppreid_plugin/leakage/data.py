"""What an attacker gets: features of some people, with the labels that it learns from or is scored by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dp.arrays import to_rows
from .images import RowImages

_SMALLEST, _LARGEST = 1e-9, 1e12  # the largest number of features


@dataclass(frozen=True, eq=False)
class LeakageSet:
    """Rows of features with labels.

    Args:
        features: (n, d), float; kept as float32.
        pids, camids: (n,), whole numbers.
        attributes: by name, (n,), whole numbers from 0; -1 where a row's label is not known.
        row_ids: (n,), names of the rows; empty: none known.
        background_pids: pids that are no person: attackers leave their rows out.
        protection: what the features went through, for attackers that adapt to it: the component or a stored release's
            manifest; None: clean features.
        clean: (n, k), the same rows as they reach the noise, which whoever protects rows of his own knows; None: not
            known. Attackers may learn from it, never from that of the rows they are scored on.
        queries: (n, any), the same rows as queries reach the matching, where these are changed as the gallery is; None:
            they are matched as they are. Of use to whoever sends pictures of his own and asks what is near them.
        redraw: gives the features, (n, d), of the same rows with other noise, by its seed; None: there is no noise, or
            nobody can draw it again. For training rows, as ``clean``.
        images: of the rows; None: not known, or there are none (prototypes).

    Raises:
        ValueError: shapes that differ, no rows, NaN or infinity (rows are named), features so large or small that their
            squares leave float32, labels that are no whole numbers, attributes below -1.
    """

    features: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int64]
    attributes: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    row_ids: tuple[str, ...] = ()
    background_pids: tuple[int, ...] = (0,)
    protection: Any = None
    clean: npt.NDArray[np.float32] | None = None
    queries: npt.NDArray[np.float32] | None = None
    redraw: Callable[[int], npt.NDArray[np.float32]] | None = None
    images: RowImages | None = None

    def __post_init__(self) -> None:
        rows, _ = to_rows(self.features)
        object.__setattr__(self, "features", _in_range("features", rows.float().cpu().numpy()))
        for name in ("clean", "queries"):
            if (given := getattr(self, name)) is not None:
                others, _ = to_rows(given)
                if len(others) != len(rows):
                    raise ValueError(
                        f"{name} holds {len(others)} rows, features {len(rows)}: they must be the same rows."
                    )
                object.__setattr__(self, name, _in_range(name, others.float().cpu().numpy()))
        labels = {"pids": self.pids, "camids": self.camids}
        labels |= {f"attributes[{name}]": values for name, values in self.attributes.items()}
        for name, values in labels.items():
            array = np.asarray(values)
            if array.shape != (len(rows),) or array.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} has shape {array.shape} and type {array.dtype}, must be ({len(rows)},), whole numbers: "
                    "one a row of features."
                )
            if name not in ("pids", "camids") and len(array) and array.min() < -1:
                raise ValueError(f"{name} holds {array.min()}, must be at least 0, or -1 where not known.")
        for name in ("pids", "camids"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype(np.int64))
        kept = {name: np.asarray(values).astype(np.int64) for name, values in self.attributes.items()}
        object.__setattr__(self, "attributes", kept)
        object.__setattr__(self, "row_ids", tuple(str(row_id) for row_id in self.row_ids))
        if not len(rows):
            raise ValueError("features holds no rows. Give the features of at least one image.")
        if self.row_ids and len(self.row_ids) != len(rows):
            raise ValueError(f"row_ids holds {len(self.row_ids)} names for {len(rows)} rows of features.")
        if self.images is not None and len(self.images) != len(rows):
            raise ValueError(f"there are {len(self.images)} images for {len(rows)} rows of features.")

    def __len__(self) -> int:
        return len(self.features)

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> LeakageSet:
        """Return the rows that ``chosen`` marks or names by position."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        again = self.redraw
        return dataclasses.replace(
            self,
            features=self.features[places],
            pids=self.pids[places],
            camids=self.camids[places],
            attributes={name: values[places] for name, values in self.attributes.items()},
            row_ids=tuple(self.row_ids[place] for place in places.tolist()) if self.row_ids else (),
            clean=None if self.clean is None else self.clean[places],
            queries=None if self.queries is None else self.queries[places],
            redraw=None if again is None else lambda seed: again(seed)[places],
            images=None if self.images is None else self.images.take(places),
        )

    def with_features(
        self,
        features: npt.ArrayLike,
        protection: Any = None,
        clean: npt.NDArray[np.float32] | None = None,
        queries: npt.NDArray[np.float32] | None = None,
        redraw: Callable[[int], npt.NDArray[np.float32]] | None = None,
    ) -> LeakageSet:
        """Return the same rows with other features, (n, any)."""
        return dataclasses.replace(
            self, features=np.asarray(features), protection=protection, clean=clean, queries=queries, redraw=redraw
        )

    def concepts(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the attributes of these names side by side, (n, number of names); -1 where not known."""
        return np.stack([self.attributes[name] for name in names], axis=1)

    @property
    def people(self) -> LeakageSet:
        """The rows of people: without background."""
        return self.take(~np.isin(self.pids, np.asarray(self.background_pids, dtype=np.int64)))

    def people_of(self, what: str) -> LeakageSet:
        """Return the rows of people; ``what`` names the rows in the error.

        Raises:
            ValueError: all rows are background.
        """
        if np.isin(self.pids, self.background_pids).all():
            raise ValueError(f"the {what} are all of background pids: nobody is left. Check --background-pids.")
        return self.people

    @property
    def pictures(self) -> RowImages:
        """The images, which must be known.

        Raises:
            ValueError: they are not.
        """
        if self.images is None:
            raise ValueError("the rows have no images.")
        return self.images


def _in_range(name: str, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows whose squares, and sums of many, float32 holds; ValueError for others."""
    largest = float(np.abs(rows).max(initial=0.0))
    if largest and not _SMALLEST <= largest <= _LARGEST:
        raise ValueError(
            f"{name} reach {largest:.3g} at most, which must be 0 or lie between {_SMALLEST:g} and {_LARGEST:g}: their "
            "squares leave float32. Multiply all features of the attack by one number."
        )
    return rows
