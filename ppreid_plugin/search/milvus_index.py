"""The Milvus backend: an embedded file inside the index (milvus-lite), or a collection on a server.

Rows go into a collection of their own for every build, under their row id; on a server the name that others search by
is an *alias*, which moves to the new collection at the end. Budget, mechanism and ledger are properties of the
collection (``ppreid.*``). Hits come back with their vectors and are scored again in float64, as in the other backends.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.registry import closest
from ppreid_plugin.retrieval.checks import choice
from ppreid_plugin.search.hits import Hits, best, decode_names, encode_names
from ppreid_plugin.search.index import GalleryIndex, IndexWriter, register_index
from ppreid_plugin.search.milvus_client import MilvusConnection, import_pymilvus
from ppreid_plugin.search.milvus_writer import DATABASE, MOST_HITS, NUMBERS, SERVED, MilvusWriter, place_of, rows_a_call
from ppreid_plugin.search.record import ERASING, RECORD, IndexRecord
from ppreid_plugin.search.record_shape import Shape, misfit, number, text, whole
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.storage import dot_products

KINDS = ("flat", "hnsw", "ivf_flat")
CONSISTENCY = ("auto", "strong", "bounded")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_LEAST = {"links": 2}  # Milvus takes 2 to 2,048
_MARGIN = 16  # hits beyond the asked ones: float32 may swap near ones
_QUERIES_A_CALL = 64
_STORED: Shape = {
    "uri": lambda value: isinstance(value, str) and (not value or value.startswith(("http://", "https://"))),
    "collection": text,
    "timeout_s": number,
    "consistency": lambda value: value in CONSISTENCY,
    "shards": whole(1),
    "replicas": whole(1),
    "_collection": text,
    "_rows": whole(1),
    ERASING: whole(0),
}
_BEFORE = {ERASING: 0, "consistency": "auto", **SERVED}  # of records that do not say
_SETTLED_S = 60.0  # after which no server lags behind a deletion, nor a clock behind another
_READ = 16_384  # rows a step


@register_index("milvus")
class MilvusIndex(GalleryIndex):
    """Searches with Milvus.

    Options:
        uri: ``http://HOST:PORT`` of a server; left out: an embedded file inside the index. A token is never stored:
            it is read from the environment variable ``MILVUS_TOKEN``.
        collection: name that the server's other clients search by (an alias).
        kind: ``flat`` (default, exact), ``hnsw`` or ``ivf_flat``.
        links, ef_construction, ef_search: hnsw: neighbors a row, breadth of the search while building and searching.
        lists, probes: ivf_flat: number of lists, and of those read a query.
        timeout_s: seconds to wait for a server's first answer.
        consistency: of searches on a server. ``strong``: they see every deletion that ended before, and wait for that,
            some 0.4 s a call. ``bounded``: at once, and what was deleted may be found for as long as the server lags
            (5 s unless it is told otherwise). ``auto`` (default): strong for a minute after ``index.json`` was last
            written, as every deletion and build does, and bounded from then on.
        shards: streams through which a cluster's data nodes take in the rows, by the hash of their ids.
        replicas: copies of all rows in memory, each on query nodes of its own. An operator who loads the collection
            otherwise is not contradicted.
    """

    name = "milvus"
    most_hits = MOST_HITS - _MARGIN
    changing_files = (DATABASE,)

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        super().__init__(folder, record)
        options = record.options
        self._collection: str = options["_collection"]
        self._connection = MilvusConnection(place_of(self.generation, options), options["timeout_s"])
        try:
            if not self._connection.call("has_collection", self._collection):
                raise ValueError(
                    f"collection {self._collection!r} is not at '{options['uri'] or DATABASE}': deleted, or another "
                    "server. Build the index again."
                )
            self._connection.load(self._collection, {**_BEFORE, **options}["replicas"])
            self._check_count()
        except Exception:
            self.close()
            raise

    @classmethod
    def checked_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return all options, and the name of a new collection; the server is asked whether it is there."""
        kind = choice("kind", options.get("kind", "flat"), KINDS)
        numbers = {name: one[1] for name, one in NUMBERS.items() if kind in one[0]}
        allowed = ["uri", "collection", "kind", "timeout_s", "consistency", *SERVED, *numbers]
        if unknown := [name for name in options if name not in allowed]:
            raise ValueError(
                f"--backend milvus:kind={kind} has '{unknown[0]}'; allowed: {', '.join(allowed)}."
                f"{closest(unknown[0], allowed)}"
            )
        numbers = {
            name: require_whole(name, options.get(name, default), least=_LEAST.get(name, 1))
            for name, default in numbers.items()
        }
        uri, collection = str(options.get("uri", "")), options.get("collection", "gallery")
        if uri and not uri.startswith(("http://", "https://")):
            raise ValueError(f"uri is {uri!r}, must be http://HOST:PORT or https://HOST:PORT; left out: a file.")
        if not (isinstance(collection, str) and _NAME.fullmatch(collection)):
            raise ValueError(f"collection is {collection!r}, must be letters, digits and '_', a letter first.")
        timeout = options.get("timeout_s", 3.0)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e6:
            raise ValueError(f"timeout_s is {timeout!r}, must be a number of seconds > 0.")
        consistency = choice("consistency", options.get("consistency", "auto"), CONSISTENCY)
        if consistency != "auto" and not uri:
            raise ValueError(f"consistency is {consistency!r} without uri: an embedded file never lags. Leave it out.")
        served = {name: require_whole(name, options.get(name, least)) for name, least in SERVED.items()}
        if not uri and (more := [name for name in served if served[name] > 1]):
            raise ValueError(f"{more[0]} is {served[more[0]]} without uri: an embedded file has one. Leave it out.")
        import_pymilvus(embedded=not uri)
        if uri:
            MilvusConnection(uri, float(timeout)).close()
        drawn = {"_collection": f"{collection}_{secrets.token_hex(4)}", "_rows": source.rows}
        place = {"uri": uri, "collection": collection, "timeout_s": float(timeout), "consistency": consistency}
        return {**place, **served, "kind": kind, **numbers, **drawn}

    @classmethod
    def sound_options(cls, options: Mapping[str, Any]) -> bool:
        """Return whether place, collection, kind and all numbers of the kind are named."""
        kind = options.get("kind")
        numbers = {name: whole(1) for name, one in NUMBERS.items() if kind in one[0]}
        return kind in KINDS and misfit({**_BEFORE, **options}, {**_STORED, **numbers}) is None

    @classmethod
    def writer(
        cls,
        folder: Path,
        options: Mapping[str, Any],
        source: RowSource,
        metadata: Mapping[str, Any],
        replaces: Mapping[str, Any] | None = None,
    ) -> IndexWriter:
        """Return the writer of a new collection."""
        return MilvusWriter(folder, options, source, metadata, replaces)

    @classmethod
    def discard(cls, folder: Path, options: Mapping[str, Any]) -> None:
        """Drop the collection from the server."""
        if options["uri"]:
            connection = MilvusConnection(options["uri"], options["timeout_s"])
            try:
                if connection.call("has_collection", options["_collection"]):
                    for alias in connection.call("list_aliases", options["_collection"])["aliases"]:
                        connection.call("drop_alias", alias)
                    connection.call("drop_collection", options["_collection"])
            finally:
                connection.close()

    def count(self) -> int:
        """Return how many rows the collection holds."""
        return self._connection.count(self._collection)

    def verify(self) -> str:
        """Read every row of the collection, and compare the other files' SHA-256."""
        self.check_files()
        names: set[bytes] = set()
        for batch in self.batches(0, _READ):
            names.update(batch.row_ids.tolist())
        if len(names) != self.count():
            raise ValueError(
                f"collection {self._collection!r} returns {len(names)} of its {self.count()} rows: the index is "
                "damaged. Build the index again."
            )
        return (
            f"files beside the data base are as they were built; all {len(names)} rows can be read from the data base, "
            "whose numbers are compared with nothing"
        )

    def _check_count(self) -> None:
        """Raise ValueError if rows are missing; a deletion in place that was cut off may have taken some."""
        told, count = self.record.rows, self.count()
        if not told - self.record.options.get(ERASING, 0) <= count <= told:
            raise ValueError(
                f"collection {self._collection!r} at '{place_of(self.generation, self.record.options)}' holds {count} "
                f"rows, index.json says {told}: the index is damaged. Build the index again."
            )

    @property
    def erases_in_place(self) -> bool:
        """On a server, which compacts; milvus-lite only marks rows as deleted, so there they get a new generation."""
        return bool(self.record.options["uri"])

    def erase(self, row_ids: Collection[str]) -> None:
        """Delete rows, and ask the server to rewrite the segments that hold them."""
        ids = sorted(row_ids)
        for first in range(0, len(ids), 1000):
            # by a filter of our own: the client puts names between quotes as they are, quotes in them too
            some = json.dumps(ids[first : first + 1000], ensure_ascii=False)
            self._connection.call("delete", self._collection, filter=f"row_id in {some}")
        self._connection.call("flush", self._collection)
        self._connection.call("compact", self._collection)

    def properties(self) -> dict[str, Any]:
        """Return what the collection itself says of budget, mechanism and ledger, for other clients."""
        stored = self._connection.call("describe_collection", self._collection)["properties"]
        return {
            name.removeprefix("ppreid."): json.loads(value)
            for name, value in dict(stored).items()
            if name.startswith("ppreid.")
        }

    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield the rows by their numbers, in windows that fit a call; rows that were erased leave gaps."""
        window = min(size, rows_a_call(self.record.columns))
        for first in range(start, self.record.options["_rows"], window):
            limits = f"number >= {first} and number < {first + window}"
            found = self._connection.query(self._collection, limits, ["row_id", "vector", *_fields(self.record)])
            if found:
                yield _batch(sorted(found, key=lambda row: row["number"]), self.record)

    def close(self) -> None:
        """Close the connection, and the embedded file."""
        self._connection.close()

    def _search(self, queries: npt.NDArray[np.float64], top: int) -> list[Hits]:
        options = self.record.options
        asked = {one[2]: options[name] for name, one in NUMBERS.items() if name in options and one[3]}
        limit = min(top + _MARGIN, MOST_HITS, len(self))
        if "ef" in asked:
            asked["ef"] = max(asked["ef"], limit)
        hits: list[Hits] = []
        for first in range(0, len(queries), _QUERIES_A_CALL):
            some = queries[first : first + _QUERIES_A_CALL]
            found = self._connection.call(
                "search",
                self._collection,
                data=list(some.astype(np.float32)),
                limit=limit,
                search_params={"metric_type": "COSINE", "params": asked},
                output_fields=["row_id", "vector", *_fields(self.record)],
                consistency_level=self._consistency(),
            )
            hits += [
                self._rescored(query, [hit["entity"] for hit in one], top)
                for query, one in zip(some, found, strict=True)
            ]
        return hits

    def _consistency(self) -> str:
        asked = str({**_BEFORE, **self.record.options}["consistency"])
        if asked == "auto":
            changed = (self.folder / RECORD).stat().st_mtime
            asked = "bounded" if time.time() - changed > _SETTLED_S else "strong"
        return asked.capitalize()

    def _rescored(self, query: npt.NDArray[np.float64], rows: list[dict[str, Any]], top: int) -> Hits:
        batch = _batch(rows, self.record)
        numbers = np.array([row["number"] for row in rows], dtype=np.int64)
        scores = dot_products(torch.from_numpy(batch.features).double(), torch.from_numpy(query))
        order = {number: place for place, number in enumerate(numbers.tolist())}
        scores, numbers = best(scores, numbers, top)
        kept = batch.take(np.array([order[number] for number in numbers.tolist()], dtype=np.int64))
        return Hits(decode_names(kept.row_ids), kept.pids, scores, numbers, kept.camids)


def _fields(record: IndexRecord) -> list[str]:
    return ["number", *(name.removesuffix("s") for name in record.labels)]


def _batch(rows: list[dict[str, Any]], record: IndexRecord) -> RowBatch:
    labels = {name: np.array([row[name.removesuffix("s")] for row in rows], dtype=np.int64) for name in record.labels}
    features = np.array([row["vector"] for row in rows], dtype=np.float32).reshape(len(rows), record.columns)
    return RowBatch(encode_names([row["row_id"] for row in rows]), features, **labels)
