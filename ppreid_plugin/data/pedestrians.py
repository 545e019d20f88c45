"""The generated pedestrians: a data set that anyone may have, made in seconds, laid out like Market-1501.

Nobody in it exists. It shows that the pipeline works and what pixelation hides; it says nothing about accuracy on
real people.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from ppreid_plugin.data.generator import writer
from ppreid_plugin.toolbox import data, image_datasets

NAME = "synthetic_pedestrians"
_MAX_IDS = 1_000_000
_FILE_NAME = re.compile(r"([-\d]+)_c(\d)")  # as torchreid reads Market-1501

_log = logging.getLogger(__name__)

Record = tuple[str, int, int]


class SyntheticPedestrians(data.ImageDataset):
    """The generated pedestrians as a data set of torchreid.

    Args:
        root: folder that holds ``synthetic_pedestrians``.
        kwargs: passed on to torchreid's ``ImageDataset``.

    Shape:
        train, query, gallery: lists of (path, pid, camid), as torchreid's own data sets make them. Training pids are
        0 to N - 1, camids start at 0; pid 0 of the gallery is background.

    Raises:
        FileNotFoundError: the folder is missing or incomplete.
        ValueError: a jpg whose name is not in Market-1501's form.

    Example:
        >>> SyntheticPedestrians.dataset_dir
        'synthetic_pedestrians'
    """

    dataset_dir = NAME
    _junk_pids = [0, -1]  # noqa: RUF012  (torchreid's own attribute)

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        folder = Path(self.root) / NAME
        self.dataset_dir = str(folder)
        train = _read_folder(_existing(folder / writer.TRAIN))
        labels = {pid: label for label, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__(
            [(path, labels[pid], camid) for path, pid, camid in train],
            _read_folder(_existing(folder / writer.QUERY)),
            _read_folder(_existing(folder / writer.GALLERY)),
            **kwargs,
        )


def register() -> None:
    """Enter the data set into torchreid as ``synthetic_pedestrians``; calling it again does nothing."""
    if image_datasets().get(NAME) is not SyntheticPedestrians:
        data.register_image_dataset(NAME, SyntheticPedestrians)


def make_pedestrians(
    root: str | os.PathLike[str],
    num_train_ids: int = 100,
    num_test_ids: int = 100,
    seed: int = 1,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``root/synthetic_pedestrians`` and return its path.

    The folder appears only when it is complete. One that was made with the same arguments is left as it is, which is
    logged. The bytes depend on the counts, the seed and the generator's version, not on ``workers``.

    Args:
        root: folder to write into; it is made if it is missing.
        num_train_ids: number of people for training, > 0.
        num_test_ids: number of other people for query and gallery, > 0.
        seed: of everything random, >= 0.
        workers: processes; by default one for each processor this process may use.
        overwrite: replace an existing folder.

    Raises:
        TypeError: a number that is not an integer.
        ValueError: a number out of range.
        FileExistsError: the folder exists, made with other arguments or not by this function.
        NotADirectoryError, PermissionError: ``root`` cannot be written.
    """
    for name, value, low, high in (
        ("num_train_ids", num_train_ids, 1, _MAX_IDS),
        ("num_test_ids", num_test_ids, 1, _MAX_IDS),
        ("seed", seed, 0, 2**63 - 1),
        ("workers", 1 if workers is None else workers, 1, 1024),
    ):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} is {value!r}, must be an integer.")
        if not low <= value <= high:
            raise ValueError(
                f"{name} is {value}, must be >= {low} and <= {high}. Use for instance {name}={max(low, 1)}."
            )
    num_train_ids, num_test_ids, seed = int(num_train_ids), int(num_test_ids), int(seed)
    base = Path(root).expanduser()
    target = base / NAME
    if target.exists() and not overwrite:
        wanted = writer.describe(num_train_ids, num_test_ids, seed)
        found = _read_meta(target)
        if wanted.items() <= found.items():
            _log.info("%s is there already, made with the same arguments: reused.", target)
            return target
        differs = ", ".join(f"{k} {found[k]} (asked: {v})" for k, v in wanted.items() if k in found and found[k] != v)
        raise FileExistsError(
            f"{target} exists already, with {differs or 'no meta.json of this generator'}. "
            "Choose another root, or say --overwrite (overwrite=True) to replace it."
        )
    _check_writable(base)
    return writer.write(base, NAME, num_train_ids, num_test_ids, seed, workers or _num_processors(), overwrite)


def load_attributes(root: str | os.PathLike[str]) -> dict[int, dict[str, str]]:
    """Read ``attributes.csv``: pid to attribute name to value, all as text, for training and test people.

    Raises:
        FileNotFoundError: the data set is not below ``root``.
    """
    with _existing(Path(root).expanduser() / NAME / "attributes.csv").open(encoding="utf-8", newline="") as file:
        return {int(row.pop("pid")): row for row in csv.DictReader(file)}


def load_boxes(root: str | os.PathLike[str]) -> dict[str, dict[str, tuple[int, int, int, int] | None]]:
    """Read ``boxes.csv``: where the fine cues of each picture are.

    Shape:
        Output: ``"query/0001_c1s1_000151_01.jpg"`` to ``{"face": box, "logo": box}``. A box is (left, top, right,
        bottom) in pixels of the 256 x 128 picture, right and bottom exclusive; None where the cue is not visible.

    Raises:
        FileNotFoundError: the data set is not below ``root``.
    """
    with _existing(Path(root).expanduser() / NAME / "boxes.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: {kind: _read_box(row, kind) for kind in ("face", "logo")} for row in csv.DictReader(file)}


def _read_box(row: dict[str, str], kind: str) -> tuple[int, int, int, int] | None:
    if not row[f"{kind}_left"]:
        return None
    left, top, right, bottom = (int(row[f"{kind}_{side}"]) for side in ("left", "top", "right", "bottom"))
    return left, top, right, bottom


def _read_folder(folder: Path) -> list[Record]:
    records = []
    for path in sorted(folder.glob("*.jpg")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise ValueError(
                f"{path} is not named like 0001_c1s1_000151_01.jpg. Remove it, or make the data set again."
            )
        pid, camera = int(match[1]), int(match[2])
        if pid != -1:
            records.append((str(path), pid, camera - 1))
    return records


def _existing(path: Path) -> Path:
    if not path.exists():
        root = path.parent.parent if path.parent.name == NAME else path.parent
        raise FileNotFoundError(f"{path} is missing. Make the data set: python tools/make_synthetic.py --root {root}")
    return path


def _read_meta(target: Path) -> dict[str, Any]:
    try:
        found = json.loads((target / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_writable(root: Path) -> None:
    """Name the part of the path that is in the way, before anything is made."""
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"root is {root}, but {existing} is not a folder. Choose another root.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"root is {root}, but {existing} cannot be written. Choose another root.")


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
