"""Writing a Milvus collection: one of its own for every build, and the alias that moves to it at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppreid_plugin.search.hits import decode_names
from ppreid_plugin.search.index import IndexWriter
from ppreid_plugin.search.milvus_client import STRONG, MilvusConnection
from ppreid_plugin.search.source import RowBatch, RowSource

MOST_HITS = 16_384  # Milvus's own limit of one search or query
DATABASE = "milvus.db"
# index parameters of Milvus by our names: (kinds that take it, default, name there, while searching)
NUMBERS: dict[str, tuple[tuple[str, ...], int, str, bool]] = {
    "links": (("hnsw",), 32, "M", False),
    "ef_construction": (("hnsw",), 200, "efConstruction", False),
    "ef_search": (("hnsw",), 128, "ef", True),
    "lists": (("ivf_flat",), 1024, "nlist", False),
    "probes": (("ivf_flat",), 32, "nprobe", True),
}
SERVED = {"shards": 1, "replicas": 1}  # what a server may have more of; as it comes

_BYTES_A_CALL = 2**24


class MilvusWriter(IndexWriter):
    """Writes a collection.

    Args:
        folder: of the generation.
        options: of the backend.
        source: what is to be written.
        metadata: what becomes the collection's properties.
        replaces: options of the generation that this one takes the place of.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        source: RowSource,
        metadata: Mapping[str, Any],
        replaces: Mapping[str, Any] | None,
    ) -> None:
        self._folder, self._options, self._source, self._metadata = folder, options, source, metadata
        self._name: str = options["_collection"]
        self._replaces = (replaces or {}).get("_collection")
        self._open: MilvusConnection | None = None

    def look(self) -> None:
        """Ask a server whose the alias is."""
        self._check_alias()

    def begin(self) -> None:
        """Make the collection, empty."""
        self._check_alias()
        if self._connection.call("has_collection", self._name):
            self._connection.call("drop_collection", self._name)
        types, client = self._connection.types, self._connection.client
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row_id", types.VARCHAR, is_primary=True, max_length=max(1, self._source.id_bytes))
        schema.add_field("number", types.INT64)
        for name, there in (("pid", self._source.has_pids), ("camid", self._source.has_camids)):
            if there:
                schema.add_field(name, types.INT64)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=self._source.columns)
        kind = self._options["kind"]
        numbers = {one[2]: self._options[name] for name, one in NUMBERS.items() if kind in one[0] and not one[3]}
        index = client.prepare_index_params()
        index.add_index("vector", index_type=kind.upper(), metric_type="COSINE", params={"params": numbers})
        self._connection.call(
            "create_collection",
            self._name,
            schema=schema,
            consistency_level=STRONG,  # for other clients: a person who was deleted is found no more
            properties={f"ppreid.{name}": json.dumps(value) for name, value in self._metadata.items()},
            num_shards=self._options["shards"],
        )
        self._connection.call("create_index", self._name, index)
        self._connection.load(self._name, self._options["replicas"])

    def resume(self, done: int) -> bool:
        """Return whether the rows that were written are all there."""
        return bool(
            self._connection.call("has_collection", self._name) and self._connection.count(self._name, done) == done
        )

    def write(self, start: int, batch: RowBatch) -> None:
        """Write rows under their ids: twice is the same as once."""
        names, step = decode_names(batch.row_ids), rows_a_call(self._source.columns)
        for first in range(0, len(batch), step):
            rows = [
                {
                    "row_id": names[place],
                    "number": start + place,
                    **({} if batch.pids is None else {"pid": int(batch.pids[place])}),
                    **({} if batch.camids is None else {"camid": int(batch.camids[place])}),
                    "vector": batch.features[place],
                }
                for place in range(first, min(first + step, len(batch)))
            ]
            self._connection.call("upsert", self._name, rows)

    def finish(self) -> Mapping[str, bool]:
        """Bring everything to the disk and count it."""
        self._connection.call("flush", self._name)
        if (count := self._connection.count(self._name)) != self._source.rows:
            raise ConnectionError(
                f"collection {self._name!r} holds {count} rows after {self._source.rows} were written. Delete the "
                f"folder '{self._folder.name}' of the index and build again."
            )
        if self._options["uri"]:
            return {}
        self.close()
        return {DATABASE: False}

    def publish(self) -> None:
        """On a server, move the alias to this collection."""
        if self._options["uri"]:
            there = self._check_alias()
            self._connection.call("alter_alias" if there else "create_alias", self._name, self._options["collection"])
            self.close()

    @property
    def _connection(self) -> MilvusConnection:
        if self._open is None:
            self._open = MilvusConnection(place_of(self._folder, self._options), self._options["timeout_s"])
        return self._open

    def close(self) -> None:
        """Close the connection, and the embedded file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _check_alias(self) -> bool:
        """Return whether the alias is there; ValueError if it, or a collection of that name, is not of this index."""
        alias = self._options["collection"]
        if not self._options["uri"]:
            return False
        ours = (self._name, self._replaces)
        named = [
            one for one in self._connection.call("list_collections")
            if alias in self._connection.call("list_aliases", one)["aliases"]
        ]  # fmt: skip
        taken = named[0] if named else alias if self._connection.call("has_collection", alias) else None
        if taken is not None and taken not in ours:
            raise ValueError(
                f"the name {alias!r} belongs to collection {taken!r} on this server, which is not of this index. "
                "Choose another name: --backend milvus:collection=NAME"
            )
        return bool(named)


def rows_a_call(columns: int) -> int:
    """Return how many rows of ``columns`` numbers one call carries: 16 MiB, and no more than Milvus returns."""
    return max(1, min(MOST_HITS // 2, _BYTES_A_CALL // (4 * columns)))


def place_of(generation: Path, options: Mapping[str, Any]) -> str:
    """Return where the rows of a generation are: a server's URI, or the embedded file."""
    return options["uri"] or str(generation / DATABASE)
