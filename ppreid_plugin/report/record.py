"""Run records: the figures of a run as JSON, with everything needed to run it again."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import toolbox
from ..evaluation import TargetResult


def result_to_dict(result: TargetResult) -> dict[str, Any]:
    """Figures of one target as fractions, JSON-ready: ``clean``, and a list ``protected`` with both protocols each."""
    return {
        "clean": _ranking(result.clean),
        "protected": [
            {
                "anonymous": _ranking(protected.anonymous),
                "enrolled": _enrolled(protected.enrolled),
                "open_set": _open_set(protected.open_set),
                "clean_anonymous": None if protected.clean_anonymous is None else _ranking(protected.clean_anonymous),
                "clean_enrolled": _enrolled(protected.clean_enrolled),
                "clean_open_set": _open_set(protected.clean_open_set),
                "person_epsilon": dict(zip(("median_rows", "largest_rows"), protected.person_epsilon, strict=True)),
                **protected.description,
            }
            for protected in result.protected
        ],
    }


def environment(device: str) -> dict[str, str]:
    """Versions and machine kind; no host name, user or path."""
    return {
        "torch": str(torch.__version__),
        "torchreid": toolbox.version(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores",
        "commit": _commit(),
    }


def write_json(record: dict[str, Any], path: str | Path) -> None:
    """Write a record atomically: a temporary file beside it, then a rename. NaN and infinity are written as null."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(_plain(record), indent=2, allow_nan=False) + "\n"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_folder(flag: str, path: str | Path | None) -> None:
    """Check, before anything is computed, that the file that a flag asks for can be written.

    Args:
        flag: as the user wrote it.
        path: of the file; None or empty: none was asked for.

    Raises:
        FileNotFoundError: its folder does not exist, or is none.
        IsADirectoryError: it is a folder itself.
        PermissionError: nothing can be written into its folder.

    Example:
        >>> require_folder("--out", "no/such/figures.json")
        Traceback (most recent call last):
        FileNotFoundError: --out is 'no/such/figures.json', but 'no/such' is no folder. Make it first.
    """
    if not path:
        return
    if not (folder := Path(path).parent).is_dir():
        raise FileNotFoundError(f"{flag} is '{path}', but '{folder}' is no folder. Make it first.")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{flag} is '{path}', which is a folder. Name a file.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{flag} is '{path}', but nothing can be written into '{folder}'. Name another folder.")


def require_output_folder(flag: str, path: str | Path) -> Path:
    """Check, before anything is computed, that a folder can be made or written; return its path.

    Raises:
        NotADirectoryError: it, or a folder above it, is a file.
        PermissionError: nothing can be written there.
    """
    path = Path(path)
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{flag} is '{path}', but '{there}' is a file. Name another folder.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{flag} is '{path}', but nothing can be written into '{there}'. Name another folder.")
    return path


def _ranking(result: Any) -> dict[str, Any]:
    return {
        "rank1": result.rank1,
        "mAP": result.mAP,
        "mINP": result.mINP,
        "cmc": [float(value) for value in result.cmc[:20]],
        "num_valid_queries": result.num_valid_queries,
    }


def _enrolled(result: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cmc"} | {
        "rank1": result.rank1
    }


def _open_set(result: Any) -> dict[str, Any] | None:
    return None if result is None else dataclasses.asdict(result)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic,)):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@functools.cache
def _commit() -> str:
    """Commit of the checkout that the package runs from, ``-changed`` behind it if files differ, or ``unknown``."""
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name, folder=here.parent)  # else a repository around an installed copy
        commit = _git("rev-parse", "--short", "HEAD", folder=here.parent)
        changed = _git("status", "--porcelain", "--untracked-files=no", folder=here.parent)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-changed" if changed else commit


def _git(*words: str, folder: Path) -> str:
    """Return what git prints in a folder.

    Raises:
        OSError, subprocess.SubprocessError: it is not there, or it fails.
    """
    command = ["git", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
