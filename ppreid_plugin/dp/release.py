"""A release: one draw of the protected gallery, reserved in the ledger, written once and then only read.

Order of the writes: reserve (spent from here on, fsync) -> temporary folder, fsync -> rename -> commit. After a crash
the reservation stays spent; :mod:`.recovery` finishes or voids it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from ppreid_plugin.dp.entropy import Entropy
from ppreid_plugin.dp.journal import LedgerError, fsync_folder, utc_now, write_file
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.manifest import build_manifest, manifest_bytes, sha256
from ppreid_plugin.dp.mechanisms import Mechanism
from ppreid_plugin.dp.plan import ReleasePlan, ReleaseTerms, transform_state
from ppreid_plugin.dp.refits import with_stored_fits
from ppreid_plugin.dp.reservations import (
    Part,
    find_appendable,
    find_stored,
    pids_of,
    require_opt_outs,
)
from ppreid_plugin.dp.stored import ARRAYS, MANIFEST, Release, load_release, load_stored
from ppreid_plugin.dp.transforms import PublicTransform
from ppreid_plugin.dp.truth import load_maps_of
from ppreid_plugin.dp.units import GalleryRows, Unit

_log = logging.getLogger(__name__)


def release_gallery(
    gallery: GalleryRows,
    out: str | Path,
    *,
    ledger: Ledger,
    mechanism: Mechanism,
    transform: PublicTransform,
    terms: ReleaseTerms,
    truth_out: str | Path | None = None,
    append: bool = False,
    new_release: bool = False,
) -> Release:
    """Draw a release of ``gallery`` as `draw_release` does.

    Args:
        gallery: rows with their public labels.
        out: folder of the release.
        ledger: accounts of the scope.
        mechanism: what protects the rows; its own noise source is not used.
        transform: public transform, fitted on other people.
        terms: name, unit, protocol and the rest.
        truth_out: as there.
        append: as there.
        new_release: as there.

    Raises:
        ValueError: as `ReleasePlan`; and what `draw_release` raises.
    """
    plan = ReleasePlan(gallery, mechanism, transform, terms)
    return draw_release(plan, out, ledger=ledger, truth_out=truth_out, append=append, new_release=new_release)


def draw_release(
    plan: ReleasePlan,
    out: str | Path,
    *,
    ledger: Ledger,
    truth_out: str | Path | None = None,
    append: bool = False,
    new_release: bool = False,
) -> Release:
    """Draw a planned release into the folder ``out``, or return the stored one if it is the same again (free).

    Args:
        plan: what is released.
        out: folder of the release; made, must not exist unless the release is stored there.
        ledger: accounts of the scope.
        truth_out: file for the map from released rows to row ids, pids and camids; outside ``out``, never published.
            Of a release that is stored already it is there, or cannot be had.
        append: add the units that the stored release of this name does not hold; spends for them only.
        new_release: draw again although the name is known; spends again.

    Raises:
        BudgetExceeded: a unit would go over its budget; nothing is drawn.
        ValueError: arguments out of range, a name that belongs to another release, or terms or ``truth_out`` that a
            stored release cannot get any more.
        FileExistsError: ``out`` or ``truth_out`` exists.
        LedgerError: ledger or stored release were changed.
    """
    if append and new_release:
        raise ValueError("append adds to the stored release and new_release draws another one: choose one.")
    out, truth = _own_places(out, truth_out, ledger)
    with ledger.locked():
        parts = list(ledger.parts().values())
        _tidy(parts)
        if not new_release:
            plan = with_stored_fits(plan, parts, out)
        request = plan.request(ledger.unit, out)
        base: list[Part] = []
        units = list(request.units)
        if new_release:
            require_opt_outs(parts, request)
        elif append:
            base, units = find_appendable(parts, request)
            units = plan.addable(units, pids_of(base))
        elif stored := find_stored(parts, request):
            found = load_stored(stored, out)
            _require_as_stored(found, plan.terms, truth)
            return found
        if truth is not None:
            for one in base:  # the release may lie where an earlier part was written
                _require_apart(truth, Path(one.folder))
        earlier = load_stored(base, out) if base else None
        if earlier is not None and not units:
            _require_as_stored(earlier, plan.terms, truth)
            ledger.opt_out(base, request.opt_out)
            return earlier
        _check_free(truth, *(() if earlier and earlier.folder == out else (out,)))
        if earlier is not None:
            plan = plan.with_terms_of(earlier.manifest)
        plan.terms.require_current()
        for name, path in (("out", out), ("truth_out", truth)):
            if path is not None:
                _require_writable(name, path, longest=_longest_beside(path, request.name))
        _require_room(out, plan, earlier)
        part = None
        # still under the lock: whoever finds a reservation without a commit knows that its process is gone
        try:
            part = ledger.reserve(request, units, append_to=base)
            reached("reserved")
            _write(plan, ledger, part, base, out, truth, earlier)
        except BaseException:
            if (spent := part or _reserved_since(ledger, parts)) is not None:
                _log.error(
                    "release %s was stopped while it was written; what it reserved stays spent. See tools/ledger.py "
                    "show; then: tools/ledger.py finish %s, or void where it is not whole.",
                    spent.release,
                    spent.reservation,
                )
            raise
        return load_release(out)


def temporary_folder(out: Path, part: Part) -> Path:
    """Return the folder beside ``out`` in which a reservation is written; no other ledger's or scope's has its name."""
    return _beside(out, part, "tmp")


def old_folder(out: Path, part: Part) -> Path:
    """Return where the release that was appended to stands until the longer one in its place is committed."""
    return _beside(out, part, "old")


def rest_folder(out: Path, part: Part) -> Path:
    """Return where a release stands while it is deleted: what an end of the process leaves there is no release."""
    return _beside(out, part, "del")


def _beside(out: Path, part: Part, what: str) -> Path:
    return out.with_name(f".{out.name}.{part.reservation}.{part.mac[:8]}.{what}")


def _longest_beside(out: Path, release: str) -> str:
    """Return a name as long as the longest that `_beside` makes of a release of this name."""
    return f".{out.name}.{release}-0000+0000.{'0' * 8}.tmp"


def set_in_place(temporary: Path, out: Path, part: Part) -> None:
    """Rename the complete temporary folder to ``out``; the release there that it appends to makes room.

    Raises:
        FileExistsError: something else lies at ``out``; nothing is overwritten.
    """
    if os.path.lexists(out):
        if not _is_appended_to(out, temporary):
            raise FileExistsError(
                f"'{out}' holds something else than what {part.reservation} appends to, and a release overwrites "
                f"nothing. Move that away; then: tools/ledger.py finish {part.reservation}"
            )
        out.rename(old_folder(out, part))
        reached("old moved")
    temporary.rename(out)
    fsync_folder(out.parent)


def commit_in_place(ledger: Ledger, part: Part, out: Path) -> None:
    """Commit what lies at ``out``, and delete what it was appended to: not before, so that a void can put it back."""
    ledger.commit(part.reservation, sha256((out / MANIFEST).read_bytes()))
    reached("committed")
    shutil.rmtree(old_folder(out, part), ignore_errors=True)


def _tidy(parts: Sequence[Part]) -> None:
    """Delete what an append has taken the place of and an end of the process left."""
    for part in parts:
        if part.state == "committed" and (old := old_folder(Path(part.folder), part)).is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _reserved_since(ledger: Ledger, known: Sequence[Part]) -> Part | None:
    """Return the reservation that is on record and was not before, if any."""
    before = {part.mac for part in known}
    try:
        return next((part for part in ledger.parts().values() if part.mac not in before), None)
    except (OSError, LedgerError):
        return None


def reached(step: str) -> None:
    """Do nothing: tests end the process here."""


def _write(
    plan: ReleasePlan,
    ledger: Ledger,
    part: Part,
    base: Sequence[Part],
    out: Path,
    truth: Path | None,
    earlier: Release | None,
) -> None:
    chosen = set(part.units)
    rows = [unit for unit in plan.units if unit.name in chosen]
    arrays = plan.rows_of(chosen)
    reached("drawn")
    order = Entropy().permutation(len(rows)) if plan.terms.protocol == "anonymous" else np.arange(len(rows))
    rows = [rows[index] for index in order]
    arrays = {name: array[order] for name, array in arrays.items()}
    first = 0 if earlier is None else len(earlier.row_ids)
    names = _released_names(rows, plan.terms.protocol, first)
    arrays |= _labels(rows, plan)
    if earlier is not None:
        arrays = {name: np.concatenate([earlier.arrays[name], array]) for name, array in arrays.items()}
        names = [*earlier.row_ids, *names]
    arrays["row_id"] = _encoded(names)
    arrays |= plan.sampler.arrays
    arrays |= {f"transform.{name}": array for name, array in transform_state(plan.transform).items()}
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}  # safetensors wants no strides
    data = save_safetensors(arrays, metadata={"privacy": "released", "release": part.release})
    parts = [] if earlier is None else earlier.manifest["parts"]
    manifest = manifest_bytes(build_manifest(plan, ledger, part, arrays, data, base=base, earlier=parts))
    temporary = temporary_folder(out, part)
    temporary.mkdir()
    if truth is not None:
        if truth.exists():  # another release has written its own since it was free
            taken, truth = truth, truth.with_name(f"{truth.name}.{part.reservation}.{part.mac[:8]}")
            _log.warning("'%s' is another release's map by now: this one's is '%s'.", taken, truth)
        write_file(truth, _truth(part, names[first:], rows), mode=0o600)
    reached("truth written")
    write_file(temporary / ARRAYS, data)
    reached("arrays written")
    write_file(temporary / MANIFEST, manifest)
    reached("manifest written")
    set_in_place(temporary, out, part)
    reached("renamed")
    commit_in_place(ledger, part, out)


def _is_appended_to(out: Path, temporary: Path) -> bool:
    """Return whether ``out`` holds the release in ``temporary`` as it was before its last part."""
    try:
        old, new = (json.loads((folder / MANIFEST).read_text(encoding="utf-8")) for folder in (out, temporary))
        return bool(old["release"] == new["release"] and old["parts"] and old["parts"] == new["parts"][:-1])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _own_places(out: str | Path, truth_out: str | Path | None, ledger: Ledger) -> tuple[Path, Path | None]:
    """Return where release and map go; ValueError if that is in the ledger, another release or one in the other."""
    out = Path(out).absolute()
    truth = None if truth_out is None else Path(truth_out).absolute()
    if truth is not None:
        _require_apart(truth, out)
    if out.is_symlink() and out.exists():
        out = out.resolve()  # a link cannot make room for what is appended
    _require_own_place("out", out, ledger, why="that is to be kept private, and a release is published")
    if truth is not None:
        _require_own_place("truth_out", truth, ledger, why="it could take the place of the ledger's files")
    return out, truth


def _require_own_place(name: str, path: Path, ledger: Ledger, *, why: str) -> None:
    """Raise ValueError if ``path`` lies in the ledger's folder or in a release."""
    above = list(path.resolve().parents)
    if ledger.folder.resolve() in (path.resolve(), *above):
        raise ValueError(f"{name} is '{path}', in the ledger's folder: {why}. Name another place.")
    if release := next((one for one in above if all((one / file).is_file() for file in (MANIFEST, ARRAYS))), None):
        raise ValueError(f"{name} is '{path}', inside the release '{release}', which is published. Name another place.")


def _require_apart(truth: Path, out: Path) -> None:
    """Raise ValueError if the map would lie in the release, or the release in it, however the paths are written."""
    real, folder = truth.resolve(), out.resolve()
    if folder in (real, *real.parents):
        raise ValueError(f"truth_out lies inside the release {out.name!r}; it would be published with it. Move it out.")
    if real in folder.parents:
        raise ValueError(f"truth_out is '{truth}', a folder that the release {out.name!r} is to lie in. Name a file.")


def _require_as_stored(release: Release, terms: ReleaseTerms, truth: Path | None) -> None:
    """Raise ValueError if a stored release is to get what it was not written with: it is only read."""
    name, manifest = release.manifest["release"], release.manifest
    for field in ("controller", "purpose", "expires"):
        told, asked = manifest.get(field) or "", getattr(terms, field)
        if asked and asked != told:
            raise ValueError(
                f"{field} is {asked!r}; release {name!r} is stored with {told!r}, and a release is written once. Leave "
                "it out, or say new_release (--new-release), which spends again."
            )
    if truth is not None and not truth.exists():
        raise ValueError(
            f"truth_out is '{truth}', which is not there; release {name!r} is stored, and its map was written when it "
            "was drawn, or never. Leave it out."
        )
    if truth is not None:
        load_maps_of(manifest["parts"], [truth], flag="truth_out")


def _require_writable(name: str, path: Path, *, longest: str) -> None:
    """Raise ValueError if nothing can be written beside ``path`` under the name ``longest``: it must cost no budget."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        allowed = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if len(os.fsencode(longest)) > allowed:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise ValueError(
            f"{name} is '{path}', where nothing can be written ({error.strerror or error}). Nothing was spent. Name "
            "another place."
        ) from None


def _require_room(out: Path, plan: ReleasePlan, earlier: Release | None) -> None:
    """Raise ValueError if the disk is too full for the release; symbols are small and not looked at."""
    if plan.sampler.arrays:
        return
    held = sum(array.nbytes for array in earlier.arrays.values()) if earlier is not None else 0
    needed, free = plan.nbytes + held, shutil.disk_usage(out.parent).free
    if free < needed:
        raise ValueError(
            f"out is '{out}', where {free / 2**20:.1f} MiB are free, and the release takes {needed / 2**20:.1f}. "
            "Nothing was spent. Make room, or name another place."
        )


def _check_free(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and os.path.lexists(path):  # a link to nothing, too
            raise FileExistsError(f"'{path}' exists already, and a release overwrites nothing. Name another place.")


def _released_names(rows: list[Unit], protocol: str, first: int) -> list[str]:
    if protocol == "anonymous":  # a row id may name the person, as in Market-1501's file names
        return [f"{number:06d}" for number in range(first, first + len(rows))]
    return [unit.row_id for unit in rows]


def _labels(rows: list[Unit], plan: ReleasePlan) -> dict[str, np.ndarray]:
    if plan.terms.protocol == "anonymous":
        return {}
    labels = {"pids": np.array([unit.pid for unit in rows], dtype=np.int64)}
    if plan.terms.unit == "image":
        labels["camids"] = np.array([unit.camid for unit in rows], dtype=np.int64)
    if plan.terms.budgets:
        common = plan.mechanism.epsilon
        labels["epsilon"] = np.array([plan.terms.budgets.get(unit.pid, common) for unit in rows], dtype=np.float64)
    return labels


def _encoded(names: list[str]) -> np.ndarray:
    texts = [name.encode("utf-8") for name in names]
    width = max(len(text) for text in texts)
    return np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), dtype=np.uint8).reshape(-1, width)


def _truth(part: Part, names: list[str], rows: list[Unit]) -> bytes:
    linked = [
        {"row": name, "row_id": unit.row_id, "pid": unit.pid, "camid": unit.camid}
        for name, unit in zip(names, rows, strict=True)
    ]
    content = {
        "privacy": "clean: links released rows to people; keep it apart from the release",
        "reservation": part.reservation,
        "ledger_head": part.mac,
        "created": utc_now(),
        "rows": linked,
    }
    return (json.dumps(content, indent=1) + "\n").encode("utf-8")
