"""Figures of an evaluation whose scores are on a GPU, without a copy of them: only the figures come to the CPU.

Candidates, ranks and sums are torch operations on whole chunks of queries; what is above each positive is counted by a
function that is handed in (:mod:`.counting_kernel`, or any other in a test). Works on CPU tensors too, only slower than
:mod:`.counting`. The ranks are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from ppreid_plugin.retrieval.checks import Labels, as_labels

logger = logging.getLogger(__name__)

Count: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class DeviceCandidates(NamedTuple):
    """The rows of some queries' own pids, by query, then by gallery index.

    ``query`` and ``places`` are (p,), ``ignored`` too (None: none is); query i has those from ``starts[i]`` to
    ``starts[i + 1]``, ``own[i]`` in all.
    """

    query: torch.Tensor
    places: torch.Tensor
    ignored: torch.Tensor | None
    starts: torch.Tensor
    own: torch.Tensor


class DeviceMatches:
    """Finds the :class:`DeviceCandidates` of queries, on the device of their labels.

    Args:
        labels: pids of queries and gallery, camids of queries and gallery: int64, (num_query,) or (num_gallery,).
        exclude_same_camera: take gallery rows of the query's own pid and camera out of its list.
    """

    def __init__(self, labels: list[torch.Tensor], *, exclude_same_camera: bool) -> None:
        query_pids, gallery_pids, self._query_camids, gallery_camids = labels
        ordered, self._by_pid = torch.sort(gallery_pids, stable=True)
        self._camids = gallery_camids[self._by_pid]
        self._stop = torch.searchsorted(ordered, query_pids, right=True)
        self._own = self._stop - torch.searchsorted(ordered, query_pids)
        self._totals = np.concatenate([[0], np.cumsum(self._own.cpu().numpy())])
        self._exclude = exclude_same_camera

    @property
    def any_shared_pid(self) -> bool:
        """Whether any query's pid is in the gallery at all, whatever the camera."""
        return bool(self._totals[-1])

    def of(self, first: int, count: int) -> DeviceCandidates | None:
        """Return the candidates of ``count`` queries from number ``first`` on; None if there are none."""
        total = int(self._totals[first + count] - self._totals[first])
        if not total:
            return None
        span = slice(first, first + count)
        own = self._own[span]
        starts = torch.zeros(count + 1, dtype=torch.int64, device=own.device)
        torch.cumsum(own, 0, out=starts[1:])
        query = torch.repeat_interleave(own, output_size=total)
        place = torch.arange(total, device=own.device) + (self._stop[span] - starts[1:])[query]
        ignored = self._camids[place] == self._query_camids[span][query] if self._exclude else None
        return DeviceCandidates(query, self._by_pid[place], ignored, starts, own)


class DeviceFigures(NamedTuple):
    """Sums over the queries: how many have a match, of AP, of INP, and of those with a match among the first k."""

    valid: int
    precision: float
    inverse_penalty: float
    hits: np.ndarray


def device_figures(
    chunks: Iterable[tuple[int, torch.Tensor]], matches: DeviceMatches, num_query: int, max_rank: int, count: Count
) -> DeviceFigures:
    """Return the sums of which CMC, mAP and mINP are made.

    Args:
        chunks: (number of the first query, scores (queries, num_gallery), larger = closer, no NaN), all queries in
            turn. The scores are overwritten.
        matches: whose rows count.
        num_query: how many there are in all.
        max_rank: length of the curve.
        count: from scores, columns by query (int32) and starts to how many rows are above each, as
            :func:`.counting_kernel.count_above` does.
    """
    figures: torch.Tensor | None = None  # a column a query: AP, INP, rank of the first match (0: none)
    for first, scores in chunks:
        if figures is None:
            figures = torch.zeros(3, num_query, dtype=torch.float64, device=scores.device)
        own = matches.of(first, len(scores))
        if own is None:
            continue
        if own.ignored is not None:  # NaN is above nothing, so these rows are never counted
            line, flat = scores.view(-1), own.query * scores.shape[1] + own.places
            line[flat] = line[flat].masked_fill_(own.ignored, torch.nan)
        above = count(scores, own.places.int(), own.starts)
        figures[:, first : first + len(scores)] = _per_query(above, own, scores.shape[1])
    assert figures is not None, "there is a query at least"  # noqa: S101 (for the type; checked before)
    average, inverse, first_rank = figures
    at = torch.where(first_rank > 0, first_rank, max_rank + 1).clamp_(max=max_rank + 1).long()
    hits = torch.zeros(max_rank + 2, dtype=torch.int64, device=at.device).scatter_add_(0, at, torch.ones_like(at))
    sums = torch.stack([(first_rank > 0).sum(), average.sum(), inverse.sum()])
    every = torch.cat([sums, hits[1:-1].cumsum(0)]).cpu().numpy()
    return DeviceFigures(int(every[0]), float(every[1]), float(every[2]), every[3:])


def _per_query(above: torch.Tensor, own: DeviceCandidates, columns: int) -> torch.Tensor:
    """Return AP, INP and the rank of the first match of each query, (3, q), zeros where it has none."""
    last = columns + 1  # what is ignored goes behind all ranks
    ranks = above.long() + 1
    if own.ignored is not None:
        ranks.masked_fill_(own.ignored, last)
    offset = own.query * (last + 1)
    ranks = torch.sort(ranks + offset).values - offset
    starts, stops = own.starts[:-1], own.starts[1:]
    matched = ranks < last
    before = torch.zeros(len(ranks) + 1, dtype=torch.int64, device=ranks.device)
    torch.cumsum(matched, 0, out=before[1:])
    positives = before[stops] - before[starts]
    place = torch.arange(1, len(ranks) + 1, device=ranks.device) - starts[own.query]
    precision = torch.where(matched, place / ranks.double(), 0.0)
    average = torch.segment_reduce(precision, "sum", lengths=own.own, unsafe=True) / positives
    first = ranks[starts.clamp(max=len(ranks) - 1)]
    inverse = positives / ranks[(starts + positives - 1).clamp_(0, len(ranks) - 1)].double()
    return torch.where(positives > 0, torch.stack([average, inverse, first.double()]), 0.0)


def device_labels(
    names: tuple[str, ...], labels: tuple[Labels, ...], rows: tuple[int, ...], device: torch.device
) -> list[torch.Tensor]:
    """Return labels as int64 tensors on ``device``; those of any other place go there in one copy.

    Raises:
        ValueError: as :func:`.as_labels`.
    """
    there = [
        isinstance(one, torch.Tensor) and one.device == device and one.dtype in _WHOLE and one.shape == (count,)
        for one, count in zip(labels, rows, strict=True)
    ]
    if all(there):
        return [one.detach().long() for one in labels if isinstance(one, torch.Tensor)]
    arrays = [as_labels(*of) for of in zip(names, labels, rows, strict=True)]
    return list(torch.from_numpy(np.concatenate(arrays)).to(device).split(rows))


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@cache
def device_count(device: torch.device, dtype: torch.dtype) -> Count | None:
    """Return the counting kernel if it works on this device for scores of this type, else None, once with a warning."""
    if device.type != "cuda":
        return None
    try:
        from ppreid_plugin.retrieval.counting_kernel import count_above

        scores = torch.zeros(1, 3, dtype=dtype, device=device)
        places = torch.tensor([2], dtype=torch.int32, device=device)
        found = count_above(scores, places, torch.tensor([0, 1], device=device)).tolist()
        if found != [2]:
            raise RuntimeError(f"it counted {found} where it is [2]")
    except Exception as error:  # no Triton, no C compiler for its launcher, a device too old: many types
        why = " ".join(str(error).split())[:200]
        logger.warning("Scores are copied from %s and counted on the CPU: no Triton kernel there (%s).", device, why)
        return None
    return count_above
