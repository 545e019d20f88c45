"""Connections to Milvus: an embedded file (milvus-lite) or a server by URI and token, with time limits on all calls."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = "MILVUS_TOKEN"  # noqa: S105  (the name of the variable that holds it)
CALL_S = 60.0  # a call to a server that answered once
_POLL_S = 0.05
# By default a server's reads may lag by seconds: rows that were deleted are found, and counts are those of before.
STRONG = "Strong"

_FIX = f"Check uri= and the environment variable {TOKEN}, and that the server runs."


class MilvusConnection:
    """A client with time limits; errors name the place and what to do.

    Args:
        place: path of an embedded file (``.db``), or a server's URI. Its token is read from ``MILVUS_TOKEN``.
        timeout_s: how long to wait for a server's first answer.

    Raises:
        ImportError: pymilvus or milvus-lite is not installed.
        ConnectionError: no answer in time, or the embedded file is open in another process.
    """

    def __init__(self, place: str, timeout_s: float) -> None:
        self._place, self._embedded = place, "://" not in place
        milvus = import_pymilvus(embedded=self._embedded)
        # they log what is raised too, with tracebacks, and the embedded server what pymilvus asks it for in vain
        for name in ("pymilvus", "milvus_lite", *(("grpc._server",) if self._embedded else ())):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.types = milvus.DataType
        token = "" if self._embedded else os.environ.get(TOKEN, "")
        try:
            self.client: Any = milvus.MilvusClient(place, token=token, timeout=timeout_s)
        except milvus.MilvusException as error:
            if self._embedded:
                raise ConnectionError(
                    f"'{place}' cannot be opened ({_line(error)}). One process at a time may have it open: is another "
                    "one searching? Many searching at once need a server: --backend milvus:uri=http://HOST:19530"
                ) from None
            raise ConnectionError(f"Milvus at {place} does not answer within {timeout_s:g} s. {_FIX}") from None
        self._error: type[Exception] = milvus.MilvusException
        self._loaded = milvus.client.types.LoadState.Loaded

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Call a method of the client with the time limit.

        Raises:
            ConnectionError: it failed on a server, or took too long.
            ValueError: it failed in an embedded file.
        """
        with self._named():
            return getattr(self.client, name)(*arguments, timeout=CALL_S, **more)

    def load(self, collection: str, replicas: int) -> None:
        """Have the server hold a collection in memory ``replicas`` times, or as often as an operator had it do so.

        It may take as long as it likes while it goes on.

        Raises:
            ConnectionError: too few query nodes, too little memory, or no progress for a minute.
        """
        if self._load_state(collection)["state"] == self._loaded:
            return
        try:
            self.call("load_collection", collection, replica_number=replicas, _async=True)
        except ConnectionError as error:
            more = f" It was to hold {replicas} replicas; each needs query nodes of its own." if replicas > 1 else ""
            raise ConnectionError(f"{error}{more}") from None
        most, since = -1, time.monotonic()
        while (now := self._load_state(collection))["state"] != self._loaded:
            if (percent := now.get("progress", 0)) > most:
                most, since = percent, time.monotonic()
            elif time.monotonic() - since > CALL_S:
                raise ConnectionError(
                    f"Milvus at {self._place} has loaded {most} % of collection {collection!r} and no more for "
                    f"{CALL_S:g} s. Look whether its query nodes run and have memory for it."
                )
            time.sleep(_POLL_S)

    def _load_state(self, collection: str) -> dict[str, Any]:
        state: dict[str, Any] = self.call("get_load_state", collection)
        return state

    def query(self, collection: str, limits: str, fields: list[str]) -> list[dict[str, Any]]:
        """Return these fields of the rows within the limits; all that was written before is seen."""
        found: list[dict[str, Any]] = self.call(
            "query", collection, filter=limits, output_fields=fields, consistency_level=STRONG
        )
        return found

    def count(self, collection: str, below: int | None = None) -> int:
        """Return how many rows of a collection there are, or have a number below ``below``."""
        limits = "" if below is None else f"number < {below}"
        return int(self.query(collection, limits, ["count(*)"])[0]["count(*)"])

    def close(self) -> None:
        """Let go of the server, or of the embedded file, so that another process can open it."""
        self.client.close()
        if self._embedded:
            importlib.import_module("milvus_lite.server_manager").server_manager_instance.release_server(self._place)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            if self._embedded:
                raise ValueError(
                    f"'{self._place}' cannot be read or written ({_line(error)}): the index is damaged, or its disk is "
                    "full. Build the index again."
                ) from None
            raise ConnectionError(f"Milvus at {self._place} failed: {_line(error)}. {_FIX}") from None


def import_pymilvus(*, embedded: bool) -> Any:
    """Return the library, after checking that what an embedded file needs is there too.

    Raises:
        ImportError: one of them is not installed.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # milvus-lite's: which builds for this CPU it lacks
    try:
        if embedded:
            importlib.import_module("milvus_lite")
        return importlib.import_module("pymilvus")
    except ImportError as error:
        raise ImportError(
            f"the Milvus index needs pymilvus and milvus-lite ({error}). Install them with: "
            "pip install 'ppreid_plugin[milvus]'"
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
