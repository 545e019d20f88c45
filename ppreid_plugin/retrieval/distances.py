"""Unit rows, and where re-ranking takes its distances from: features or ready matrices, some rows at a time.

Items are the queries followed by the gallery. Distances are torchreid's (:func:`compute_distance_matrix`): one minus
the cosine, or the *squared* Euclidean distance.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from ppreid_plugin.retrieval.checks import Features, IntArray, as_feature_pair, as_matrix, choice, require_finite
from ppreid_plugin.retrieval.equal_rows import EqualRows

METRICS = ("cosine", "euclidean")


class ItemDistances(Protocol):
    """Distances between all items, some rows at a time.

    Attributes:
        num_query: how many of the items are queries; they come first.
        num_items: how many there are.
        element_size: bytes of one distance in :meth:`rows`.
    """

    num_query: int
    num_items: int
    element_size: int

    def rows(self, start: int, stop: int, first: int = 0) -> torch.Tensor:
        """Return float distances of the items ``start`` to ``stop`` to those from ``first`` on, to be overwritten."""

    def pairs(self, items: IntArray, others: IntArray) -> torch.Tensor:
        """Return the distances of pairs of items, (n,)."""


class FeatureDistances:
    """Distances from features, computed where these are. Of rows that are equal they are equal, to any item.

    Args:
        query_features, gallery_features: numpy arrays or torch tensors of any float type, (num_query, d) and
            (num_gallery, d); one copy of both is held.
        metric: ``cosine`` or ``euclidean``.

    Raises:
        ValueError: wrong shapes or types, an unknown metric; NaN or infinity (rows are named).
    """

    def __init__(self, query_features: Features, gallery_features: Features, metric: str) -> None:
        choice("metric", metric, METRICS)
        query, gallery = as_feature_pair(query_features, gallery_features)
        self.num_query, self.num_items = len(query), len(query) + len(gallery)
        self.element_size = query.element_size()
        self._cosine = metric == "cosine"
        self._items = torch.cat([query, gallery])
        self._equal = {0: EqualRows(self._items), len(query): EqualRows(gallery)}  # by the first column of products
        if self._cosine:
            self._items = normalize_rows(self._items)
            return
        # a power of two changes no digit; re-ranking divides by the largest distance, and fourth powers stay in float32
        largest = float(self._items.abs().max())
        if largest > 0:
            self._items = self._items.double().mul_(math.ldexp(1.0, -math.frexp(largest)[1])).to(query.dtype)
        self._squares = self._items.square().sum(dim=1)

    def rows(self, start: int, stop: int, first: int = 0) -> torch.Tensor:
        """Return distances as :class:`ItemDistances` says."""
        products = torch.mm(self._items[start:stop], self._items[first:].T)
        if first in self._equal:
            products = self._equal[first].tie_tensor(products)
        if self._cosine:
            return products.neg_().add_(1)
        return products.mul_(-2).add_(self._squares[start:stop, None]).add_(self._squares[first:])

    def pairs(self, items: IntArray, others: IntArray) -> torch.Tensor:
        """Return distances as :class:`ItemDistances` says."""
        left, right = (torch.from_numpy(side).to(self._items.device) for side in (items, others))
        products = (self._items[left] * self._items[right]).sum(dim=1)
        if self._cosine:
            return 1 - products
        return self._squares[left] + self._squares[right] - 2 * products


class MatrixDistances:
    """Distances from the three matrices that torchreid's ``re_ranking`` takes.

    Args:
        query_gallery: (num_query, num_gallery).
        query_query: (num_query, num_query).
        gallery_gallery: (num_gallery, num_gallery). Of a square matrix that is not symmetric, columns count.

    Raises:
        ValueError: shapes that do not fit together, NaN or infinity (rows are named).
    """

    def __init__(self, query_gallery: Features, query_query: Features, gallery_gallery: Features) -> None:
        self._between = as_matrix("q_g_dist", query_gallery)
        self.num_query, num_gallery = self._between.shape
        self.num_items = self.num_query + num_gallery
        self.element_size = self._between.element_size()
        squares = []
        for name, matrix, side in (("q_q", query_query, self.num_query), ("g_g", gallery_gallery, num_gallery)):
            square = as_matrix(f"{name}_dist", matrix)
            if tuple(square.shape) != (side, side):
                raise ValueError(
                    f"{name}_dist has shape {tuple(square.shape)}, must be ({side}, {side}) beside a q_g_dist of shape "
                    f"{tuple(self._between.shape)}. Compute all three from the same features."
                )
            squares.append(square.to(self._between))
        self._queries, self._gallery = squares
        for name, matrix in (("q_g_dist", self._between), ("q_q_dist", self._queries), ("g_g_dist", self._gallery)):
            require_finite(name, matrix)

    def rows(self, start: int, stop: int, first: int = 0) -> torch.Tensor:
        """Return distances as :class:`ItemDistances` says."""
        q = self.num_query
        of_queries = torch.cat([self._queries[:, start : min(stop, q)].T, self._between[start : min(stop, q)]], dim=1)
        start, stop = max(start - q, 0), max(stop - q, 0)
        of_gallery = torch.cat([self._between[:, start:stop].T, self._gallery[:, start:stop].T], dim=1)
        return torch.cat([of_queries, of_gallery])[:, first:]

    def pairs(self, items: IntArray, others: IntArray) -> torch.Tensor:
        """Return distances as :class:`ItemDistances` says."""
        q = self.num_query
        left, right = (torch.from_numpy(side).to(self._between.device) for side in (items, others))
        out = torch.empty(len(items), dtype=self._between.dtype, device=self._between.device)
        for matrix, rows, columns, chosen in (
            (self._queries, right, left, (left < q) & (right < q)),
            (self._between, left, right - q, (left < q) & (right >= q)),
            (self._between, right, left - q, (left >= q) & (right < q)),
            (self._gallery, right - q, left - q, (left >= q) & (right >= q)),
        ):
            out[chosen] = matrix[rows[chosen], columns[chosen]]
        return out


def ordinary_norms(norms: torch.Tensor) -> bool:
    """Return whether all norms are such that squares stay within float32; no norm of NaN or infinity is."""
    return bool(((norms > 1e-15) & (norms < 1e15)).all())


def normalize_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return every row of (n, d) divided by its L2 norm; zero rows stay zero, no row overflows or underflows."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if ordinary_norms(norms):
        return rows / norms
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, torch.ones_like(largest))
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norms > 0, norms, torch.ones_like(norms))
