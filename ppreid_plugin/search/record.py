"""``index.json``: what an index holds, under which budget it was protected, and which files it consists of.

The file is replaced in one step at the end of every build, and names the folder (the *generation*) that holds the rows:
until then the earlier rows are searched, afterwards the new ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.journal import utc_now, write_file
from ppreid_plugin.dp.stored import MANIFEST, Release
from ppreid_plugin.search.record_shape import METRICS, record_misfit

FORMAT, VERSION = "ppreid_plugin search index", 1
RECORD = "index.json"
ERASING = "_erasing"  # option of a record while rows are deleted in place: how many, at most

# what an index carries of its release's manifest
_CARRIED = ("release", "epsilon", "delta", "pure", "unit", "adjacency", "protocol", "mechanism", "individual_budgets",
            "person_level", "rows_a_person", "background_pids", "transform", "model", "controller", "purpose",
            "expires")  # fmt: skip
_BLOCK = 2**20


class DamagedRecordError(ValueError):
    """``index.json`` is ours and cannot be read: cut off or edited. Building again replaces it."""


@dataclass(frozen=True)
class IndexRecord:
    """The content of ``index.json``.

    Attributes:
        generation: folder of the rows, inside the index.
        backend: registered name; ``options``: its own, complete.
        rows, columns: n and d.
        labels: which of ``pids``, ``camids`` the rows carry; ``id_bytes``: length of the longest row id.
        metric: of the scores.
        release: what the manifest says of budget, mechanism and ledger.
        opted_out: ``pids`` and ``rows`` that were deleted and are left out when a later release is built.
        files: bytes, and SHA-256 where the file never changes, by name inside the generation.
        created: when it was built.
    """

    generation: str
    backend: str
    options: dict[str, Any]
    rows: int
    columns: int
    labels: tuple[str, ...]
    id_bytes: int
    metric: str
    release: dict[str, Any]
    opted_out: dict[str, list[Any]] = field(default_factory=lambda: {"pids": [], "rows": []})
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: str = field(default_factory=utc_now)

    @property
    def background_pids(self) -> tuple[int, ...]:
        """Pids that are no person; none of them where the release says so (an empty list)."""
        told = self.release.get("background_pids")
        return (0,) if told is None else tuple(told)

    def write(self, folder: Path) -> None:
        """Replace ``index.json``, in one step."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        write_file(folder / RECORD, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def read_record(folder: Path) -> IndexRecord | None:
    """Return the record of the index in ``folder``; None if none was ever finished there.

    Raises:
        DamagedRecordError: the file was edited or cut off.
        ValueError: another kind of file, or another version; ``folder`` is no folder.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ValueError(f"'{folder}' is a file. Name the folder of an index.") from None
    except (ValueError, RecursionError):
        raise DamagedRecordError(f"'{path}' is not JSON: cut off or edited. Build the index again.") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"'{path}' is not the record of an index (format {FORMAT!r}). Name another folder.")
    if (version := content.pop("version", None)) != VERSION:
        raise ValueError(f"'{path}' has version {version!r}; this program reads {VERSION}. Update it, or build again.")
    if (field_name := record_misfit(content)) is not None:
        raise damaged(folder, field_name)
    return IndexRecord(**{**content, "labels": tuple(content["labels"])})


def damaged(folder: Path, what: str) -> DamagedRecordError:
    """Return the error of an ``index.json`` whose field ``what`` is missing or impossible."""
    return DamagedRecordError(
        f"'{folder / RECORD}' lacks fields or holds impossible ones ({what}): edited. Build the index again."
    )


def content_of(record: IndexRecord) -> dict[str, Any]:
    """Return what decides the content of a generation: two builds that agree in it make the same files."""
    return {
        "backend": record.backend,
        "options": asked_options(record.options),
        "manifest_sha256": record.release["manifest_sha256"],
        "rows": record.rows,
        "opted_out": record.opted_out,
    }


def asked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without what a backend drew for one build: keys with an underscore in front."""
    return {key: value for key, value in options.items() if not key.startswith("_")}


def carried_metadata(release: Release) -> dict[str, Any]:
    """Return what an index carries of the manifest, with the ledger's scope and the release's last record in it.

    Raises:
        ValueError: the release is to be matched by a metric that this program does not have.
    """
    manifest = release.manifest
    metric = manifest.get("metric", METRICS[0])
    if metric not in METRICS:
        raise ValueError(f"release {manifest['release']!r} asks for metric {metric!r}; there is: {', '.join(METRICS)}.")
    last = manifest["parts"][-1]
    ledger = {"scope": manifest["scope"]["name"], "budget": manifest["scope"].get("epsilon")}
    ledger |= {key: last.get(key) for key in ("reservation", "ledger_seq", "ledger_head")}
    return {
        **{key: manifest.get(key) for key in _CARRIED},
        "ledger": ledger,
        "metric": metric,
        "manifest_sha256": sha256_of(release.folder / MANIFEST),
    }


def sealed(folder: Path, names: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Return bytes, and SHA-256 if wanted, of files of a generation; of a folder the bytes of all files below it."""
    found = {}
    for name, with_hash in sorted(names.items()):
        path = folder / name
        found[name] = {"bytes": size_of(path), **({"sha256": sha256_of(path)} if with_hash else {})}
    return found


def require_hashes(folder: Path, record: IndexRecord, names: Iterable[str]) -> None:
    """Raise DamagedRecordError if a file of these names, which never change, has no SHA-256 in ``index.json``."""
    for name in names:
        if "sha256" not in record.files.get(name, {}):
            raise damaged(folder, f"files.{name}.sha256")


def check_sizes(folder: Path, record: IndexRecord) -> None:
    """Raise ValueError if a file is missing or has another length than it was built with, or another manifest."""
    for name, told in record.files.items():
        path = folder / record.generation / name
        if "sha256" not in told:
            continue  # a data base, which changes as it is read
        if not path.is_file():
            raise ValueError(f"'{path}' is missing: the index is damaged. Build it again.")
        if (size := path.stat().st_size) != told["bytes"]:
            raise ValueError(
                f"'{path}' holds {size} bytes, must be {told['bytes']}: cut off or exchanged. Build the index again."
            )
        if name == MANIFEST:  # small, and read to tell who opted out
            _check_hash(path, record.release["manifest_sha256"])


def check_hashes(folder: Path, record: IndexRecord) -> None:
    """Raise ValueError if a file is not the one that was built; reads all of them."""
    check_sizes(folder, record)
    for name, told in record.files.items():
        path = folder / record.generation / name
        if "sha256" in told:
            _check_hash(path, told["sha256"])


def _check_hash(path: Path, told: str) -> None:
    if sha256_of(path) != told:
        raise ValueError(f"'{path}' is not as it was built (SHA-256 differs). Build the index again.")


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 of one that a later build has deleted."""
    try:
        if path.is_dir():
            return sum(size_of(one) for one in path.iterdir())
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file of released data, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
