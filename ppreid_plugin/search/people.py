"""The enrolled protocol of a search: people instead of rows, by their best row or by their template.

A template is what :mod:`ppreid_plugin.retrieval.enrolled` defines: the normalized mean of a person's released rows,
without those of one camera if that is asked for. Both use all k rows of one person: read the person-level epsilon
beside them. Ties go by pid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.protected import unit_rows
from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.retrieval.checks import Features, choice
from ppreid_plugin.retrieval.equal_rows import EqualRows
from ppreid_plugin.search.hits import Hits, best
from ppreid_plugin.search.index import GalleryIndex

FUSIONS = ("template", "best")

_BATCH = 16_384
_TEMPLATES_AT_ONCE = 4096
_GROWTH = 4  # times as many rows are looked at where too few people are among them


def search_people(
    index: GalleryIndex, queries: Features, top: int = 10, *, fuse: str = "template", exclude_camera: int | None = None
) -> list[Hits]:
    """Return the ``top`` best people of each query; background is nobody.

    ``template`` scores every person's template exactly, whatever the backend; the templates are made at the first call
    (one pass over the rows) and kept. ``best`` takes a person's best row, from as many of the best rows as are needed
    (an approximate backend may miss some).

    Args:
        index: of an enrolled release.
        queries: as :meth:`.GalleryIndex.search` takes them, (q, d).
        top: people a query; fewer come back if there are no more.
        fuse: ``template`` or ``best``.
        exclude_camera: camid whose rows are left out: the query's own.

    Returns:
        A :class:`.Hits` a query: pids and scores; ``row_ids`` are the best rows, empty for templates.

    Raises:
        ValueError: an anonymous release, prototypes where a camera is to be left out; ``best``: too few people among
            as many rows as the backend can return; or as ``search``.
    """
    choice("fuse", fuse, FUSIONS)
    top = require_whole("top", top)
    if "pids" not in index.record.labels:
        raise ValueError(
            f"release {index.record.release['release']!r} is anonymous: its rows carry no pid, so there are no people "
            "to search for. Search for rows, or release with --protocol enrolled."
        )
    if exclude_camera is not None:
        exclude_camera = require_whole("exclude_camera", exclude_camera, least=-(2**63))
    if exclude_camera is not None and "camids" not in index.record.labels:
        raise ValueError(f"exclude_camera is {exclude_camera}, but these rows are prototypes of no single camera.")
    if fuse == "best":
        return _by_best_row(index, queries, top, exclude_camera)
    templates = index.derived(("templates", exclude_camera), lambda: Templates(index, exclude_camera))
    return templates.search(index.checked_queries(queries), top)


class Templates:
    """One row a person: the normalized mean of his rows.

    Args:
        index: of an enrolled release.
        exclude_camera: camid whose rows are left out; None: none.

    Attributes:
        pids: (p,), rising, of people with a row; without background.
        rows: (p, d), float32, unit length (zero where a person's rows cancel out).
    """

    def __init__(self, index: GalleryIndex, exclude_camera: int | None = None) -> None:
        place: dict[int, int] = {}
        sums = torch.zeros(0, index.record.columns, dtype=torch.float64)
        for batch in index.batches(0, _BATCH):
            kept = _counted(index, batch.pids, batch.camids, exclude_camera)
            pids, person = np.unique(batch.pids[kept] if batch.pids is not None else [], return_inverse=True)
            where = torch.tensor([place.setdefault(pid, len(place)) for pid in pids.tolist()], dtype=torch.int64)
            if len(place) > len(sums):
                sums = torch.cat([sums, sums.new_zeros(max(len(place), len(sums)), sums.shape[1])])
            rows = unit_rows(torch.from_numpy(batch.features[kept]))
            sums.index_add_(0, where[torch.from_numpy(person)], rows)
        self.pids = np.array(sorted(place), dtype=np.int64)
        order = torch.tensor([place[pid] for pid in self.pids.tolist()], dtype=torch.int64)
        self.rows = unit_rows(sums[order]).float()
        self._equal = EqualRows(self.rows)

    def search(self, queries: npt.NDArray[np.float64], top: int) -> list[Hits]:
        """Return the best people of each query (q, d) of unit length."""
        rows = torch.from_numpy(queries)
        parts = [
            torch.mm(rows, self.rows[first : first + _TEMPLATES_AT_ONCE].double().T)
            for first in range(0, len(self.rows), _TEMPLATES_AT_ONCE)
        ]
        scores = torch.cat(parts, dim=1).numpy() if parts else np.empty((len(queries), 0))
        ranked = [best(row, self.pids, top) for row in self._equal.tie(scores)]
        return [Hits(row_ids=(), pids=pids, scores=found, numbers=pids) for found, pids in ranked]


def _by_best_row(index: GalleryIndex, queries: Features, top: int, exclude_camera: int | None) -> list[Hits]:
    rows = index.checked_queries(queries)
    found: list[Hits | None] = [None] * len(rows)
    most = min(len(index), index.most_hits or len(index))
    asked = min(most, _GROWTH * top)
    while True:
        open_queries = [place for place, hits in enumerate(found) if hits is None]
        for place, hits in zip(open_queries, index.search(rows[open_queries], asked), strict=True):
            people = _first_of_each(index, hits, exclude_camera)
            # a row that ties with the last person could be of somebody else
            settled = len(people) >= top and people.scores[top - 1] > hits.scores[-1]
            if settled or len(hits) < asked or asked == len(index):
                found[place] = _head(people, top)
            elif asked == most:
                raise ValueError(
                    f"top is {top}, but the best {most} rows of query {place} settle fewer people, and backend "
                    f"{index.name!r} returns no more rows a query. Ask for fewer people, take fuse='template' "
                    "(--people template), or build the index with --backend exact."
                )
        if all(hits is not None for hits in found):
            return [hits for hits in found if hits is not None]
        asked = min(most, _GROWTH * asked)


def _first_of_each(index: GalleryIndex, hits: Hits, exclude_camera: int | None) -> Hits:
    """Return each person's best row among the hits, best person first, ties by pid."""
    if hits.pids is None:
        raise ValueError("hits without pids name no people.")
    kept = np.flatnonzero(_counted(index, hits.pids, hits.camids, exclude_camera))
    pids, first = np.unique(hits.pids[kept], return_index=True)
    places = kept[first]
    order = np.lexsort((pids, -hits.scores[places]))
    return Hits(
        row_ids=tuple(hits.row_ids[place] for place in places[order]),
        pids=pids[order],
        scores=hits.scores[places][order],
        numbers=pids[order],
    )


def _head(hits: Hits, top: int) -> Hits:
    pids = None if hits.pids is None else hits.pids[:top]
    return Hits(hits.row_ids[:top], pids, hits.scores[:top], hits.numbers[:top])


def _counted(
    index: GalleryIndex,
    pids: npt.NDArray[np.int64] | None,
    camids: npt.NDArray[np.int64] | None,
    exclude_camera: int | None,
) -> npt.NDArray[np.bool_]:
    counted = ~np.isin(pids if pids is not None else np.empty(0, np.int64), index.record.background_pids)
    return counted if exclude_camera is None or camids is None else counted & (camids != exclude_camera)
