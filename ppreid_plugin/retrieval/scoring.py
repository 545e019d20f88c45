"""Scores of all gallery rows for some queries at a time, larger = closer: one matrix product a chunk.

Product and preparation are all that touches every feature. A small gallery is copied once, normalized (or with a column
more), so that the product alone orders the rows. A large one stays as it is, and the scores are finished in place: a
pass over them costs a few percent, a copy would double what the gallery takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.retrieval.checks import positive_mebibytes, require_finite_pair, rows_at_once
from ppreid_plugin.retrieval.distances import normalize_rows, ordinary_norms
from ppreid_plugin.retrieval.equal_rows import EqualRows

Chunks: TypeAlias = Iterator[tuple[int, npt.NDArray[np.floating]]]
Norms: TypeAlias = tuple[torch.Tensor, torch.Tensor] | tuple[()]  # of the rows of queries and gallery

_COPIED = 128 * 2**20  # bytes of a gallery that is copied
_QUERIES = 128  # a product of fewer rows packs the gallery for longer than it multiplies
_BLOCK = 2**18  # gallery rows a product: few queries with more took 1.3 times as long (measured, two cores)
LEAST_MB, _MOST_MB = 72.0, 256.0  # the least: three chunks of Market-1501's queries
_DEVICE_MB = 1024.0  # on a GPU that counts as well: few chunks, each of which fills it
_LEAST_LARGEST, _MOST_LARGEST = 1e-9, 1e9  # numbers between which sums of a row's squares stay within float32
_DEVICE_TILE = 256  # queries; a product on a GPU has tiles, and a part of one takes as long as a whole one


def queries_per_chunk(
    memory_mb: float | None, matrix: torch.Tensor, num_gallery: int, *, on_device: bool = False
) -> int:
    """Return how many rows of scores fit into ``memory_mb`` MiB, at least one.

    Args:
        memory_mb: None: 72, or what 128 queries take, up to 256; on the device 1,024.
        matrix: whose rows are the queries, and whose type the scores have.
        num_gallery: scores a query.
        on_device: whether scores are counted where they are made, a GPU: then in multiples of 256 queries.

    Raises:
        ValueError: no number > 0.
    """
    row = num_gallery * matrix.element_size()
    if memory_mb is None:
        memory_mb = _DEVICE_MB if on_device else min(max(LEAST_MB, _QUERIES * row / 2**20), _MOST_MB)
    step = int(min(len(matrix), max(1, positive_mebibytes("memory_mb", memory_mb) * 2**20 // row)))
    if on_device:
        return step - step % _DEVICE_TILE if _DEVICE_TILE < step < len(matrix) else step
    return math.ceil(len(matrix) / math.ceil(len(matrix) / step))  # alike: a short chunk takes longer


def checked_norms(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> Norms:
    """Return the norms of the rows of both if all are ordinary, (q,) and (n,), else nothing.

    Raises:
        ValueError: features that are not finite.
    """
    norms = _norms(query, gallery)
    if _ordinary(norms, metric):  # NaN and infinity are in no ordinary norm
        return norms
    require_finite_pair(query, gallery)
    return ()


class Products:
    """Scores that do not tie yet, of queries and gallery rows that have been prepared for one product.

    Args:
        query: (q, d), finite.
        gallery: (n, d), of the same type.
        metric: ``cosine`` or ``euclidean``.
        norms: of both, where they are taken for ordinary ones; they are not looked at.
        copied: bytes up to which a gallery is copied; None: 128 MiB.
    """

    def __init__(
        self, query: torch.Tensor, gallery: torch.Tensor, metric: str, norms: Norms = (), copied: int | None = None
    ) -> None:
        of_query, of_gallery = norms or (None, None)
        large = gallery.numel() * gallery.element_size() > (_COPIED if copied is None else copied)
        self._finish = torch.Tensor.div_ if metric == "cosine" else torch.Tensor.sub_
        self._numbers = _numbers(gallery, query, metric, of_gallery) if large else None
        if self._numbers is not None:
            query = _unit(query, of_query) if metric == "cosine" else query
        elif metric == "cosine":
            query, gallery = _unit(query, of_query), _unit(gallery, of_gallery)
        else:
            query, gallery = _lift(query, gallery, of_gallery)
        self.query, self.gallery = query, gallery

    def write(self, queries: slice, rows: slice | torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the scores of these rows for these queries into ``out``, and return it."""
        torch.mm(self.query[queries], self.gallery[rows].T, out=out)
        return out if self._numbers is None else self._finish(out, self._numbers[rows])

    def pairs(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the score of each of these queries and its row, (k,), summed in float64."""
        step = rows_at_once(self.gallery.shape[1])
        found = torch.empty(len(rows), dtype=self.query.dtype, device=self.query.device)
        for out, query, row in zip(found.split(step), queries.split(step), rows.split(step), strict=True):
            out.copy_((self.query[query].double() * self.gallery[row].double()).sum(dim=1))
        return found if self._numbers is None else self._finish(found, self._numbers[rows])

    def chunks(self, step: int, block: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the number of the first query and its and the next ``step`` ones' scores; ``block`` rows a product."""
        every, total = len(self.query), len(self.gallery)
        out = torch.empty(min(step, every), total, dtype=self.query.dtype, device=self.query.device)
        for start in range(0, every, step):
            scores = out[: every - start]
            for first in range(0, total, block):
                self.write(slice(start, start + step), slice(first, first + block), scores[:, first : first + block])
            yield start, scores


def score_chunks(products: Products, equal: EqualRows, step: int) -> Chunks:
    """Yield the number of the first query and scores (queries, num_gallery), to be overwritten; equal rows tie.

    Of ``cosine``: the cosine (of a query with itself 1, of a zero row 0); of ``euclidean``: what orders the rows by
    distance. ``step`` queries a chunk.
    """
    for start, scores in products.chunks(step, _BLOCK):
        yield start, equal.tie(scores.cpu().numpy())


class DeviceScores:
    """What :func:`score_chunks` yields as tensors where the features are, a GPU, which multiplies while it is checked.

    A gallery is copied that takes no more than a chunk of scores may: on a GPU a pass over the scores costs more than
    one over the features. The first product is begun as if all norms were ordinary, and made again if they are not.

    Args:
        query, gallery, metric: as in :class:`Products`, but that they are finite has yet to be checked.
        memory_mb: MiB of a chunk; None: 1,024.

    Raises:
        ValueError: ``memory_mb`` is no number > 0.
    """

    def __init__(self, query: torch.Tensor, gallery: torch.Tensor, metric: str, memory_mb: float | None) -> None:
        step = queries_per_chunk(memory_mb, query, len(gallery), on_device=True)
        copied = max(_COPIED, int((memory_mb or _DEVICE_MB) * 2**20))
        self._arguments = query, gallery, metric
        self._step, self._copied = step, copied
        self._norms = _norms(query, gallery)
        self._side = torch.cuda.Stream(query.device, priority=-1) if query.is_cuda else None
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(query.device))
        self._chunks = Products(*self._arguments, self._norms, copied).chunks(step, len(gallery))
        self._begun: tuple[int, torch.Tensor] | None = next(self._chunks)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Let what is done inside the block not wait for the product; it is done when the block ends."""
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield
        torch.cuda.current_stream(self._side.device).wait_stream(self._side)

    def check(self) -> None:
        """Find rows that are equal and norms that are no ordinary ones; before :meth:`chunks`.

        Raises:
            ValueError: features that are not finite.
        """
        query, gallery, metric = self._arguments
        if not _ordinary(self._norms, metric):  # NaN and infinity are in no ordinary norm
            require_finite_pair(query, gallery)
            self._chunks = Products(*self._arguments, copied=self._copied).chunks(self._step, len(gallery))
            self._begun = None
        self._equal = EqualRows(gallery)

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the number of the first query and scores (queries, num_gallery), which the next take the place of."""
        every = self._chunks if self._begun is None else chain([self._begun], self._chunks)
        for start, scores in every:
            yield start, self._equal.tie_tensor(scores)


def _norms(query: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linalg.vector_norm(query, dim=1), torch.linalg.vector_norm(gallery, dim=1)


def _ordinary(norms: tuple[torch.Tensor, torch.Tensor], metric: str) -> bool:
    """Whether norms are such that squares stay within float32."""
    every = torch.cat(norms)
    if metric == "cosine":
        return ordinary_norms(every)
    return bool((every < _MOST_LARGEST).all() & (every > _LEAST_LARGEST).any())


def _unit(rows: torch.Tensor, ordinary: torch.Tensor | None) -> torch.Tensor:
    return normalize_rows(rows) if ordinary is None else rows / ordinary[:, None]


def _numbers(
    gallery: torch.Tensor, query: torch.Tensor, metric: str, ordinary: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what products with the gallery as it is are divided by, or lessened by if the metric is ``euclidean``.

    None where squares may leave float32.
    """
    if metric == "cosine":
        norms = torch.linalg.vector_norm(gallery, dim=1) if ordinary is None else ordinary
        return norms if ordinary is not None or ordinary_norms(norms) else None
    if ordinary is None and not _LEAST_LARGEST < _largest(query, gallery) < _MOST_LARGEST:
        return None
    parts = gallery.split(rows_at_once(gallery.shape[1], on_device=gallery.is_cuda))
    return torch.cat([part.square().sum(dim=1) for part in parts]).div_(2)  # squares of norms would be rounded


def _lift(
    query: torch.Tensor, gallery: torch.Tensor, ordinary: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append a column so that the product orders by distance: q.g - |g|²/2 = (|q|² - |q - g|²) / 2."""
    largest = _largest(query, gallery) if ordinary is None else 1.0
    if (
        not _LEAST_LARGEST < largest < _MOST_LARGEST
    ):  # outside, squares may leave float32; a power of two changes no order and no digit
        scale = math.ldexp(1.0, min(1000, -math.frexp(largest)[1]))
        query, gallery = (rows.double().mul(scale).to(rows.dtype) for rows in (query, gallery))
    half_squares = gallery.square().sum(dim=1, keepdim=True).div(-2)
    return torch.cat([query, torch.ones_like(query[:, :1])], dim=1), torch.cat([gallery, half_squares], dim=1)


def _largest(*matrices: torch.Tensor) -> float:
    return max(abs(float(bound)) for matrix in matrices for bound in torch.aminmax(matrix))
