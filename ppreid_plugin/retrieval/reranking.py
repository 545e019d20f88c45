r"""k-reciprocal re-ranking in bounded memory: sparse sets instead of matrices over all pairs of images.

Two images are neighbors of each other if each is among the other's nearest. An image is encoded by its reciprocal
neighbors, weighted by distance, and two images are compared by how much of their codes they share (Jaccard). With
:math:`d^*` the distance of :mod:`.distances`, squared and divided by its largest value in the item's row,

.. math:: d = (1 - \lambda) \Bigl(1 - \frac{s}{2 - s}\Bigr) + \lambda d^*, \qquad s = \sum_m \min(v_{qm}, v_{gm})

What is held beside the features is a list of k1 + 1 neighbors and a code of some 100 numbers an image.

Source: Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
Values are those of torchreid's ``re_ranking``, the formulation with sparse products is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from ppreid_plugin.number_checks import is_number, require_whole
from ppreid_plugin.retrieval.checks import Features, positive_mebibytes
from ppreid_plugin.retrieval.distances import FeatureDistances, ItemDistances, MatrixDistances

FloatArray = npt.NDArray[np.float32]

_ITEMS_PER_PRODUCT = 2048  # rows of the sparse products at a time: some MiB
_PAIRS_AT_A_TIME = 2**12  # whose features are gathered side by side: 16 MiB of 512 columns in float32
_SHARED = 2.0 / 3  # a set joins if *more* than so much of it is shared, as in torchreid; the paper: at least so much


@dataclass(frozen=True)
class KReciprocal:
    """The parameters of k-reciprocal re-ranking; the defaults are the paper's.

    Attributes:
        k1: neighbors that reciprocal sets are made of, beside the image itself; half of it for their expansion.
        k2: nearest images whose codes are averaged; 1: none but the image itself.
        lambda_value: share of the original distance, in [0, 1]; 1 leaves the original order.

    Raises:
        ValueError: a value out of range.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            object.__setattr__(self, name, require_whole(name, getattr(self, name)))
        value = self.lambda_value
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"lambda_value is {value!r}, must lie in [0, 1]. The paper's value is 0.3.")


def re_rank(
    query_features: Features,
    gallery_features: Features,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    metric: str = "cosine",
    memory_mb: float = 64.0,
) -> FloatArray:
    """Return re-ranked distances, smaller = closer. To rank by them without holding them: ``evaluate(rerank=...)``.

    Equal distances in a list of neighbors go by item (queries first, then the gallery, by index).

    Args:
        query_features: numpy array or torch tensor of any float type; products run on its device.
        gallery_features: the same for the gallery.
        k1: neighbors, as :class:`KReciprocal`.
        k2: codes averaged, as there.
        lambda_value: share of the original distance, as there.
        metric: ``cosine`` or ``euclidean``, as in torchreid: the latter's distances are squared twice in all.
        memory_mb: MiB for the rows of distances that are held at a time, beside sets, codes and a copy of the features.
    Shape:
        features: (num_query, d) and (num_gallery, d). Output: (num_query, num_gallery), float32.

    Raises:
        ValueError: wrong shapes, types or options; NaN or infinity (rows are named).

    Example:
        >>> query, gallery = np.array([[0.0, 1.0]]), np.array([[0.9, 0.5], [1.0, 0.0], [0.8, 1.0]])
        >>> re_rank(query, gallery, k1=1, k2=1).astype(float).round(2).tolist()
        [[0.78, 1.0, 0.71]]
    """
    options = KReciprocal(k1, k2, lambda_value)
    positive_mebibytes("memory_mb", memory_mb)
    return _gather(FeatureDistances(query_features, gallery_features, metric), options, memory_mb)


def re_rank_distances(
    q_g_dist: Features,
    q_q_dist: Features,
    g_g_dist: Features,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    memory_mb: float = 64.0,
) -> FloatArray:
    """Return what torchreid's ``re_ranking`` returns, to rounding, with little memory beside the three matrices.

    Args:
        q_g_dist: distances between queries and gallery, numpy array or torch tensor.
        q_q_dist: the same among queries.
        g_g_dist: the same within the gallery.
        k1: neighbors, as :class:`KReciprocal`.
        k2: codes averaged, as there.
        lambda_value: share of the original distance, as there.
        memory_mb: as in :func:`re_rank`.
    Shape:
        (num_query, num_gallery), (num_query, num_query), (num_gallery, num_gallery). Output: as the first, float32.

    Raises:
        ValueError: wrong shapes, types or options; NaN or infinity (rows are named).
    """
    options = KReciprocal(k1, k2, lambda_value)
    positive_mebibytes("memory_mb", memory_mb)
    return _gather(MatrixDistances(q_g_dist, q_q_dist, g_g_dist), options, memory_mb)


def re_ranked_chunks(
    distances: ItemDistances, options: KReciprocal, memory_mb: float
) -> Iterator[tuple[int, FloatArray]]:
    """Yield re-ranked distances to the gallery: (number of the first query, (queries, num_gallery))."""
    bytes_a_row = distances.num_items * (distances.element_size + 2)  # beside the distances a mask, and what passes it
    step = int(max(1, memory_mb * 2**20 // bytes_a_row))
    neighbors, largest = _neighbors(distances, max(options.k1 + 1, options.k2), step)
    codes = _codes(distances, neighbors, largest, options)
    queries, by_member = codes[: distances.num_query], codes[distances.num_query :].tocsc()
    for start in range(0, distances.num_query, step):
        stop = min(start + step, distances.num_query)
        rows = _squared(distances.rows(start, stop, first=distances.num_query)).cpu().numpy()
        rows /= largest[start:stop, None]
        rows *= options.lambda_value
        for row, query in zip(rows, range(start, stop), strict=True):
            members = slice(queries.indptr[query], queries.indptr[query + 1])
            row += _jaccard(queries.indices[members], queries.data[members], by_member) * (1 - options.lambda_value)
        yield start, rows


def _gather(distances: ItemDistances, options: KReciprocal, memory_mb: float) -> FloatArray:
    out = np.empty((distances.num_query, distances.num_items - distances.num_query), dtype=np.float32)
    for start, rows in re_ranked_chunks(distances, options, memory_mb):
        out[start : start + len(rows)] = rows
    return out


def _squared(rows: torch.Tensor) -> torch.Tensor:
    return rows.square_().float()


def _neighbors(distances: ItemDistances, count: int, step: int) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Return each item's ``count`` nearest items, itself among them, nearest first, and its largest distance."""
    count = min(count, distances.num_items)
    neighbors = np.empty((distances.num_items, count), dtype=np.int32)
    largest = np.empty(distances.num_items, dtype=np.float32)
    for start in range(0, distances.num_items, step):
        stop = min(start + step, distances.num_items)
        rows = _squared(distances.rows(start, stop))
        largest[start:stop] = rows.amax(dim=1).cpu().numpy()
        last = torch.topk(rows, count, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
        near = torch.nonzero(rows <= last, as_tuple=True)  # more than ``count`` a row where the last one is tied
        item, other, value = (part.cpu().numpy() for part in (*near, rows[near]))
        order = np.lexsort((other, value, item))
        begins = np.searchsorted(item, np.arange(stop - start))
        neighbors[start:stop] = other[order][begins[:, None] + np.arange(count)]
    return neighbors, np.where(largest > 0, largest, np.float32(1))


def _codes(
    distances: ItemDistances, neighbors: npt.NDArray[np.int32], largest: FloatArray, options: KReciprocal
) -> sparse.csr_array:
    """Return the code of every item, (num_items, num_items), rows of sum 1."""
    count = len(neighbors)
    reciprocal = _reciprocal(neighbors[:, : options.k1 + 1])
    halves = _reciprocal(neighbors[:, : int(np.around(options.k1 / 2)) + 1])
    sizes = np.diff(halves.indptr)
    parts = []
    for start in range(0, count, _ITEMS_PER_PRODUCT):
        near = reciprocal[start : start + _ITEMS_PER_PRODUCT]
        shared = (near @ halves).multiply(near).tocoo()  # halves are symmetric: their rows are their columns
        joins = shared.data > _SHARED * sizes[shared.col]
        joined = sparse.csr_array(
            (shared.data[joins], (shared.row[joins], shared.col[joins])), shape=near.shape, dtype=np.int32
        )
        expanded = near + joined @ halves
        parts.append(_weighted(distances, expanded, start, largest))
    codes = sparse.vstack(parts, format="csr")
    if options.k2 == 1:
        return codes
    nearest = neighbors[:, : options.k2]
    return _incidence(nearest, np.float32(1 / nearest.shape[1])) @ codes


def _incidence(neighbors: npt.NDArray[np.int32], value: np.generic) -> sparse.csr_array:
    count, width = neighbors.shape
    data = np.full(neighbors.size, value)
    starts = np.arange(count + 1, dtype=np.int64) * width
    return sparse.csr_array((data, neighbors.ravel(), starts), shape=(count, count))


def _reciprocal(neighbors: npt.NDArray[np.int32]) -> sparse.csr_array:
    listed = _incidence(neighbors, np.int32(1))
    return listed.multiply(listed.T).tocsr()


def _weighted(distances: ItemDistances, members: sparse.csr_array, first: int, largest: FloatArray) -> sparse.csr_array:
    """Return the rows of ``members``, those of the items from ``first`` on, with weights exp(-d) that sum to one."""
    counts = np.diff(members.indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    weights = np.empty(members.nnz, dtype=np.float32)
    for start in range(0, members.nnz, _PAIRS_AT_A_TIME):
        part = slice(start, start + _PAIRS_AT_A_TIME)
        items, others = first + row[part], members.indices[part].astype(np.int64)
        weights[part] = _squared(distances.pairs(items, others)).cpu().numpy() / largest[items]
    np.exp(-weights, out=weights)
    weights /= np.bincount(row, weights, minlength=len(counts))[row]
    return sparse.csr_array((weights, members.indices, members.indptr), shape=members.shape)


def _jaccard(members: npt.NDArray[np.int32], weights: FloatArray, by_member: sparse.csc_array) -> FloatArray:
    """Return the Jaccard distance of one code to all codes of ``by_member``; only shared members are looked at."""
    starts = by_member.indptr[members]
    counts = by_member.indptr[members + 1] - starts
    ends = np.cumsum(counts)
    places = np.arange(counts.sum()) + np.repeat(starts - ends + counts, counts)
    smaller = np.minimum(np.repeat(weights, counts), by_member.data[places])
    shared = np.bincount(by_member.indices[places], smaller, minlength=by_member.shape[0]).astype(np.float32)
    return 1 - shared / (2 - shared)
