"""The one interface of search: an opened index, what writes one, and the registry of backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ppreid_plugin.dp.protected import unit_rows
from ppreid_plugin.dp.stored import MANIFEST
from ppreid_plugin.dp.transforms import PublicTransform, transform_from_state
from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.registry import Registry
from ppreid_plugin.retrieval.checks import Features, as_matrix, require_finite
from ppreid_plugin.search.hits import Hits
from ppreid_plugin.search.record import IndexRecord, check_hashes, check_sizes, damaged, read_record, require_hashes
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.symbols import SymbolTable

Derived = TypeVar("Derived")

PUBLIC = "public.safetensors"  # transform and codebook: fitted on training people, published with the release

_TRIES = 5  # to open an index whose rows are replaced meanwhile


class IndexWriter(ABC):
    """Writes the rows of one generation; a process that is killed goes on after the last finished batch."""

    def look(self) -> None:  # noqa: B027  (most have their place in the generation's folder)
        """Raise ValueError if the place belongs to something else; nothing is written yet, nor by this."""

    @abstractmethod
    def begin(self) -> None:
        """Make room, over whatever an earlier try left."""

    def resume(self, done: int) -> bool:
        """Return whether the first ``done`` rows are safely there; False: all is written again."""
        return True

    @abstractmethod
    def write(self, start: int, batch: RowBatch) -> None:
        """Write rows from number ``start`` on; they are on the disk when it returns. Twice is the same as once."""

    @abstractmethod
    def finish(self) -> Mapping[str, bool]:
        """Complete the generation; return its files, and whether they never change (and get a SHA-256)."""

    def close(self) -> None:  # noqa: B027
        """Let go of connections, whatever happened."""

    def publish(self) -> None:  # noqa: B027  (most have nothing to do)
        """Do what makes the generation the one that others see, right before ``index.json`` names it."""


class GalleryIndex(ABC):
    """A protected gallery that is searched: the contract of a backend.

    An entry sets ``name``, says which options it takes (:meth:`checked_options`, before anything is written), makes a
    writer, and searches. All backends return the same: cosines of the query with the released rows, highest first,
    ties by row order; approximate ones may miss rows, and tie order holds among those that they find.

    Args:
        folder: of the index.
        record: its ``index.json``.

    Attributes:
        public: transform and codebook of the release, by array name.

    Raises:
        ValueError: files that are missing, cut off, of another shape or without a SHA-256; options that the backend
            never writes.
    """

    name: ClassVar[str]
    most_hits: ClassVar[int | None] = None  # rows that one search can return; None: any number
    changing_files: ClassVar[tuple[str, ...]] = ()  # of a generation, without a SHA-256: they change as they are read

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        self.folder, self.record = folder, record
        self._derived: dict[Any, Any] = {}
        if not self.sound_options(record.options):
            raise damaged(folder, f"options of backend {record.backend!r}")
        require_hashes(folder, record, sorted({*record.files, PUBLIC, MANIFEST}.difference(self.changing_files)))
        check_sizes(folder, record)
        self.public = _load_public(self.generation / PUBLIC)  # now: a later build deletes the file

    @classmethod
    @abstractmethod
    def checked_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return the options for these rows, defaults filled in, JSON-ready; ValueError if one is bad."""

    @classmethod
    def sound_options(cls, options: Mapping[str, Any]) -> bool:
        """Return whether stored options are such as :meth:`checked_options` returns; asked before one is used."""
        return True

    @classmethod
    def thinned_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return the options for what a deletion leaves: those of the index, or others where too few rows stay.

        A deletion is never refused for its options.
        """
        return cls.checked_options(options, source)

    @classmethod
    @abstractmethod
    def writer(
        cls,
        folder: Path,
        options: Mapping[str, Any],
        source: RowSource,
        metadata: Mapping[str, Any],
        replaces: Mapping[str, Any] | None = None,
    ) -> IndexWriter:
        """Return what writes the rows of ``source`` into a generation.

        Args:
            folder: the generation's.
            options: as :meth:`checked_options` returned them.
            source: the rows.
            metadata: budget, mechanism and ledger, for backends that others read too.
            replaces: options of the generation that this one takes the place of, if it is of the same backend.
        """

    @abstractmethod
    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield the rows from number ``start`` on with their labels, ``size`` at a time."""

    @abstractmethod
    def _search(self, queries: npt.NDArray[np.float64], top: int) -> list[Hits]:
        """Return the hits of checked queries (q, d) of unit length; ``top`` is at most the number of rows."""

    def count(self) -> int:
        """Return how many rows are there."""
        return self.record.rows

    def verify(self) -> str:
        """Read everything that is stored, and return in words what was compared with what.

        Raises:
            ValueError: something is not as it was built.
            BlockingIOError: another process replaced the rows meanwhile.
        """
        self.check_files()
        return "all files are as they were built"

    def check_files(self) -> None:
        """Compare the SHA-256 of all files that never change; errors as :meth:`verify`."""
        try:
            check_hashes(self.folder, self.record)
        except (ValueError, OSError):
            if read_record(self.folder) == self.record:
                raise
            raise BlockingIOError(
                f"the rows of '{self.folder}' were replaced while they were read: another process built or deleted. "
                "Run this again."
            ) from None

    @property
    def erases_in_place(self) -> bool:
        """Whether rows leave the disk by :meth:`erase`; otherwise by a new generation without them."""
        return False

    def erase(self, row_ids: Collection[str]) -> None:
        """Delete rows for good."""
        raise NotImplementedError(f"backend {self.name!r} deletes rows by a new generation.")

    @classmethod  # noqa: B027
    def discard(cls, folder: Path, options: Mapping[str, Any]) -> None:
        """Delete what a generation keeps outside its folder."""

    def close(self) -> None:  # noqa: B027
        """Let go of files and connections."""

    def __len__(self) -> int:
        return self.record.rows

    def __enter__(self) -> GalleryIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def generation(self) -> Path:
        """Folder of the rows."""
        return self.folder / self.record.generation

    @cached_property
    def table(self) -> SymbolTable | None:
        """What symbols stand for, or None."""
        arrays = SymbolTable.arrays_of(self.public)
        return SymbolTable(arrays) if arrays else None

    @cached_property
    def transform(self) -> PublicTransform:
        """The release's public transform."""
        state = {name.removeprefix("transform."): a for name, a in self.public.items() if name.startswith("transform.")}
        return transform_from_state(self.record.release["transform"]["transform"], state)

    def transform_queries(self, features: Features) -> npt.NDArray[np.float64]:
        """Return clean query features (q, any) as they are matched: normalized, transformed, normalized; (q, d).

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named); features of another model.
        """
        rows = as_matrix("query features", features).cpu()
        require_finite("query features", rows)
        try:
            return np.asarray(unit_rows(self.transform.transform(unit_rows(rows))).numpy())
        except ValueError as error:
            release = self.record.release
            raise ValueError(
                f"queries do not fit release {release['release']!r} (model {release['model']}): {error}"
            ) from None

    def search(self, queries: Features, top: int = 10) -> list[Hits]:
        """Return the ``top`` best rows of each query.

        Args:
            queries: rows that went through :meth:`transform_queries`; of any length, normalized here.
            top: rows a query; no more than there are.
        Shape:
            queries: (q, d).

        Raises:
            ValueError: another number of columns than the index; NaN or infinity (rows are named); ``top`` below 1, or
                above what the backend can return (:attr:`most_hits`).
        """
        top = min(require_whole("top", top), len(self))
        if self.most_hits is not None and top > self.most_hits:
            raise ValueError(
                f"top is {top}, must be at most {self.most_hits}: backend {self.name!r} returns no more rows a query. "
                "Ask for fewer, or build the index with --backend exact."
            )
        return self._search(self.checked_queries(queries), top)

    def checked_queries(self, queries: Features) -> npt.NDArray[np.float64]:
        """Return queries (q, d) at unit length, float64; errors as :meth:`search`."""
        rows = as_matrix("queries", queries).cpu()
        if rows.shape[1] != self.record.columns:
            raise ValueError(
                f"queries have {rows.shape[1]} columns, the index of release {self.record.release['release']!r} has "
                f"{self.record.columns}. Put features of the same model through its transform (transform_queries)."
            )
        require_finite("queries", rows)
        return np.asarray(unit_rows(rows).numpy())

    def derived(self, key: Hashable, make: Callable[[], Derived]) -> Derived:
        """Return what was made of these rows before, or make it and keep it while the index is open."""
        if key not in self._derived:
            self._derived[key] = make()
        return cast(Derived, self._derived[key])


INDEXES: Registry[type[GalleryIndex]] = Registry("search backend", contract=GalleryIndex)
register_index = INDEXES.register


def open_index(folder: str | Path) -> GalleryIndex:
    """Return the index in a folder, opened by the backend that built it.

    Raises:
        FileNotFoundError: none was finished there.
        ValueError: a file that was edited, cut off or is missing.
        ImportError: the backend's library is not installed.
        ConnectionError: its server does not answer.
        BlockingIOError: other processes replaced the rows again and again meanwhile.
    """
    folder = Path(folder)
    for _ in range(_TRIES):
        record = read_record(folder)
        if record is None:
            raise FileNotFoundError(
                f"'{folder}' holds no index.json: it is no index, or its first build was not finished. "
                "Run tools/serve_index.py build (again: it goes on where it stopped)."
            )
        try:
            return INDEXES.get(record.backend)(folder, record)
        except (ValueError, OSError):  # a file that was deleted, or a server's collection
            if read_record(folder) == record:
                raise  # else another process has just replaced the rows
    raise BlockingIOError(
        f"the rows of '{folder}' were replaced {_TRIES} times while it was opened: another process is building. Wait "
        "for it, then run this again."
    )


def _load_public(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"'{path}' cannot be read ({' '.join(str(error).split())}): the index is damaged. Build it again."
        ) from None
