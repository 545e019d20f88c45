"""A file of chained records: what the ledger is written on. Append only, one JSON record a line, fsync before return.

Each record carries an HMAC-SHA256, under the ledger's key, of itself and of the record before it; a sealed head file
names the last one. So an edit, a removed, inserted or reordered record, and a cut-off end show, to whoever holds the
key. Rolling back the file and its head together to an earlier copy does not show here: only a manifest that was given
away, whose head is then missing from the chain, tells. Whoever holds the key can forge all of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Record = dict[str, Any]
KEY_FILE = "ledger.key"
_KEY_BYTES = 32
_START = "0" * 64
_LOCK_TIMEOUT_S = 3600.0  # a release holds the lock while it draws: minutes for 16,000 rows of 2048
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class LedgerError(RuntimeError):
    """The ledger's files were changed, cut off, or cannot be read."""


class Journal:
    """The chained records of one scope, in ``folder/<scope>.jsonl``.

    Args:
        folder: of the ledger; made, with a new key (mode 0600), if it is not there.
        scope: letters, digits, dot, dash, underscore.

    Raises:
        ValueError: a scope that cannot be a file name.
        LedgerError: records without a key.
    """

    def __init__(self, folder: str | Path, scope: str) -> None:
        require_name("scope", scope)
        self.folder, self.scope = Path(folder), scope
        self.path = self.folder / f"{scope}.jsonl"
        self._head_path = self.folder / f"{scope}.head"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(str(self.folder / f"{scope}.lock"), timeout=_LOCK_TIMEOUT_S)
        with FileLock(str(self.folder / "ledger.lock"), timeout=_LOCK_TIMEOUT_S):
            self._key = self._load_key()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the scope's lock: no other process reads to write in between. May be nested."""
        try:
            self._lock.acquire()
        except Timeout:
            raise LedgerError(
                f"another process has held the lock of scope {self.scope!r} for {_LOCK_TIMEOUT_S:.0f} s. Wait for it."
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def read(self) -> list[Record]:
        """Return all records, oldest first, checked.

        Raises:
            LedgerError: a record that was edited, removed or reordered, or an end that was cut off.
        """
        with self.locked():  # else the head may be read after a record that another process adds meanwhile
            records: list[Record] = []
            previous = _START
            for number, line in enumerate(self._whole_lines(), start=1):
                record = self._parsed(line)
                if record is None or record["seq"] != len(records) or record["previous"] != previous:
                    raise LedgerError(
                        f"scope {self.scope!r}, line {number} of {self.path.name} was edited, moved or is not of this "
                        "ledger. Restore the file from a copy; until then nothing is released in this scope."
                    )
                records.append(record)
                previous = record["mac"]
            self._check_head(records)
            return records

    def append(self, kind: str, content: dict[str, Any]) -> Record:
        """Add a record and return it once it is on the disk. Call it under :meth:`locked`."""
        records = self.read()
        self._drop_torn_line()
        if not records:
            self._write_head(-1, _START)  # from here on records without a head have lost it
        elif self._read_head()["seq"] < records[-1]["seq"]:
            self._write_head(
                records[-1]["seq"], records[-1]["mac"]
            )  # a crash came between the last record and its head
        record: Record = {
            "seq": len(records),
            "kind": kind,
            "time": utc_now(),
            "previous": records[-1]["mac"] if records else _START,
            "content": content,
        }
        record["mac"] = self._mac(canonical(record))
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            write_all(descriptor, canonical(record) + b"\n")
            os.fsync(descriptor)
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a write that fails names nothing
            raise
        finally:
            os.close(descriptor)
        fsync_folder(self.folder)
        self._write_head(record["seq"], record["mac"])
        return record

    def _whole_lines(self) -> list[bytes]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return data.split(b"\n")[:-1]  # what stands after the last line end was never acknowledged

    def _drop_torn_line(self) -> None:
        if self.path.exists():
            whole = sum(len(line) + 1 for line in self._whole_lines())
            if whole < self.path.stat().st_size:
                with self.path.open("r+b") as stream:
                    stream.truncate(whole)
                    os.fsync(stream.fileno())

    def _parsed(self, line: bytes) -> Record | None:
        try:
            record = json.loads(line)
            mac = record.pop("mac")
            if not hmac.compare_digest(mac, self._mac(canonical(record))) or line != canonical({**record, "mac": mac}):
                return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return {**record, "mac": mac}

    def _check_head(self, records: list[Record]) -> None:
        # the head is written right after its record: a crash in between leaves it one behind, never ahead
        head = self._read_head()
        behind = len(records) - 1 - head["seq"]
        known = head["seq"] < 0 or (behind >= 0 and records[head["seq"]]["mac"] == head["mac"])
        if not (known and behind in (0, 1)):
            raise LedgerError(
                f"scope {self.scope!r}: {len(records)} records are there, the head says {head['seq'] + 1}. "
                f"{self.path.name} was cut off or exchanged. Restore it from a copy."
            )

    def _read_head(self) -> dict[str, Any]:
        try:
            head = json.loads(self._head_path.read_bytes())
            if hmac.compare_digest(head.pop("seal"), self._mac(b"head:" + canonical(head))):
                return dict(head)
        except FileNotFoundError:
            if not self._whole_lines():
                return {"seq": -1, "mac": _START}
            raise LedgerError(
                f"scope {self.scope!r}: {self._head_path.name} is missing beside its records. Restore it from a copy."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise LedgerError(f"scope {self.scope!r}: {self._head_path.name} was edited. Restore it from a copy.")

    def _write_head(self, seq: int, mac: str) -> None:
        head = {"scope": self.scope, "seq": seq, "mac": mac}
        write_file(self._head_path, canonical({**head, "seal": self._mac(b"head:" + canonical(head))}), mode=0o600)

    def _mac(self, message: bytes) -> str:
        return hmac.new(self._key, self.scope.encode() + b"\0" + message, hashlib.sha256).hexdigest()

    def _load_key(self) -> bytes:
        path = self.folder / KEY_FILE
        if not path.exists():
            if any(self.folder.glob("*.jsonl")):
                raise LedgerError(f"{KEY_FILE} is missing beside the ledger's records. Restore it from a copy.")
            write_file(path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise LedgerError(f"{KEY_FILE} holds {len(key)} bytes, must be {_KEY_BYTES}. Restore it from a copy.")
        return key


def canonical(value: Any) -> bytes:
    """Return the one JSON text of ``value`` that is signed: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def require_name(what: str, name: object) -> str:
    """Return ``name`` if it can be a file name everywhere; ValueError otherwise."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(
            f"{what} is {name!r}, must be letters, digits, '.', '-' or '_' (at most 100, a letter or digit first)."
        )
    return name


def utc_now() -> str:
    """Return the time, to the second, in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that after a crash it is whole or not there: temporary name, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt, too: what it would leave may be clean features
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a write that fails names nothing
        raise
    fsync_folder(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
