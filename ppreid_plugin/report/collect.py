"""What runs have written: JSON records, releases and pictures below some folders, told apart by what is in them.

Names do not matter. A file that is none of ours is left alone and named; one of ours that cannot be read is an error,
but for a damaged release, which a report has to tell about.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dp.manifest import FORMAT
from ..dp.stored import ARRAYS, MANIFEST, load_release
from ..training_log import TRAINING_LOG, TRAINING_PICTURE, read_training_log
from .blocks import UNKNOWN, Provenance, provenance
from .pictures import StoredPicture, read_mark

_TRAIN, _LEAKAGE, _SWEEP, _AUDIT = "train", "leakage", "sweep", "audit"
_TOOLS = {
    _TRAIN: "training or test run (tools/train.py, make demo)",
    _LEAKAGE: "attacks (tools/measure_leakage.py)",
    _SWEEP: "sweep over budgets (tools/sweep.py)",
    _AUDIT: "audit (tools/audit.py)",
}
REPORT = "report.html"
_LARGEST_JSON = 64 * 2**20  # bytes; records are far smaller


@dataclass(frozen=True)
class Source:
    """A record with where it stands."""

    record: Mapping[str, Any]
    origin: Provenance


@dataclass
class Collected:
    """What was found.

    Attributes:
        train, leakage, sweeps, audits: records of these tools.
        releases: manifests of whole releases.
        training: logs of training, each with its ``epochs``.
        pictures: pictures that our runs wrote, with whom they show.
        damaged: sentences about releases that are not whole.
        unknown: names of JSON and PNG files that are none of ours.
    """

    train: list[Source] = field(default_factory=list)
    leakage: list[Source] = field(default_factory=list)
    sweeps: list[Source] = field(default_factory=list)
    audits: list[Source] = field(default_factory=list)
    releases: list[Source] = field(default_factory=list)
    training: list[Source] = field(default_factory=list)
    pictures: list[StoredPicture] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def sources(self) -> list[Provenance]:
        """Provenance of everything that figures may come from."""
        found = [*self.releases, *self.train, *self.training, *self.leakage, *self.sweeps, *self.audits]
        return [source.origin for source in found]


def collect(folders: Sequence[str | Path]) -> Collected:
    """Return what lies below the folders; hidden folders and links are not followed, a file counts once.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: a JSON file that is cut off.
    """
    found, seen = Collected(), set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"--runs has '{folder}', which is no folder. Name folders that runs have written.")
        for path in _files(folder):
            if (real := path.resolve()) not in seen:
                seen.add(real)
                _take(found, path, str(Path(folder.resolve().name) / path.relative_to(folder)))
    return found


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn what a malformed record causes inside the block into an error that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"'{source.origin.file}' is not as {source.origin.kind} writes it ({type(error).__name__}: {error}). "
            "Write it again, or move it out of the folders of --runs."
        ) from None


def _files(folder: Path) -> Iterator[Path]:
    for current, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if REPORT in files:  # our own pages and their pictures
            names[:] = [name for name in names if not name.endswith("_files")]
            files = [name for name in files if not name.startswith(("report.", "dpia."))]
        if (Path(current) / MANIFEST).is_file() and (Path(current) / ARRAYS).exists():
            files = [MANIFEST]  # a release holds nothing else of interest
        for name in sorted(files):
            path = Path(current) / name
            ours = path.suffix in (".json", ".png") or name == TRAINING_LOG
            drawn_again = name == TRAINING_PICTURE and TRAINING_LOG in files
            if ours and not drawn_again and not path.is_symlink() and path.is_file():
                yield path


def _take(found: Collected, path: Path, shown: str) -> None:
    if path.suffix == ".png":
        mark = read_mark(path)
        found.unknown.append(shown) if mark is None else found.pictures.append(StoredPicture(path, shown, mark))
        return
    if path.stat().st_size > _LARGEST_JSON:
        found.unknown.append(shown)
        return
    if path.name == TRAINING_LOG:
        origin = Provenance(shown, "log of a training run (tools/train.py)")
        found.training.append(Source({"epochs": read_training_log(path)}, origin))
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}): cut off or edited. Write it again, or remove it.") from None
    if isinstance(record, dict) and record.get("format") == FORMAT:
        _take_release(found, path.parent, shown)
    elif (kind := _kind(record)) is not None:
        told = (record.get("meta") or {}) if kind == _LEAKAGE else record
        source = Source(record, provenance(shown, _TOOLS[kind], told, _seed(kind, record)))
        {_TRAIN: found.train, _LEAKAGE: found.leakage, _SWEEP: found.sweeps, _AUDIT: found.audits}[kind].append(source)
    else:
        found.unknown.append(shown)


def _take_release(found: Collected, folder: Path, shown: str) -> None:
    try:
        manifest = load_release(folder).manifest
    except (ValueError, OSError) as error:
        found.damaged.append(f"{Path(shown).parent}: {error}")
        return
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    seed = "none: operating-system entropy"
    kind = "release (tools/release_gallery.py)"
    found.releases.append(Source(manifest, Provenance(shown, kind, seed=seed, versions=versions or UNKNOWN)))


def _kind(record: Any) -> str | None:
    if not isinstance(record, dict):
        return None
    if "channels" in record and "task_max" in record:
        return _LEAKAGE
    if isinstance(record.get("targets"), dict) or ("utility" in record and "protocols" in record):
        return _TRAIN
    rows = record.get("rows")
    if not isinstance(rows, list):
        return None
    if rows and isinstance(rows[0], dict) and "epsilon_lower" in rows[0]:
        return _AUDIT
    if "choices" in record or (rows and isinstance(rows[0], dict) and "protocol" in rows[0]):
        return _SWEEP
    return None


def _seed(kind: str, record: Mapping[str, Any]) -> str:
    if kind == _LEAKAGE:
        seeds = (record.get("meta") or {}).get("seeds")
        return ", ".join(map(str, range(1, seeds + 1))) if isinstance(seeds, int) else UNKNOWN
    if kind == _SWEEP:
        rows = record["rows"] or record.get("validation") or []
        seeds = sorted({row["seed"] for row in rows if isinstance(row, dict) and isinstance(row.get("seed"), int)})
        return ", ".join(map(str, seeds)) or UNKNOWN
    if kind == _AUDIT:
        return "none: fresh draws"
    return str(record.get("seed", UNKNOWN))
