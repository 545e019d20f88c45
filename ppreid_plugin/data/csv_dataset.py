"""Own data: an image data set described by a CSV file.

Columns ``path, pid, camid, split``; paths are relative to the CSV's folder (or absolute), pid and camid are whole
numbers or any text, split is train, query or gallery.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..toolbox import data, image_datasets

COLUMNS = ("path", "pid", "camid", "split")
SPLITS = ("train", "query", "gallery")
_FOLDERS: dict[str, Path] = {}  # of the registered CSV file, by image

Item = tuple[str, int, int]


class CSVFormatError(ValueError):
    """A CSV file that does not describe a data set; the message names file, line and fix."""


class CSVDataset(data.ImageDataset):
    """torchreid image data set read from a CSV file (see the module's docstring).

    Train pids are relabeled from 0 in sorted order. Query and gallery share one numbering of pids, all splits one of
    camids. A pid written as a number keeps it in query and gallery (0 stays background, -1 is dropped); a word gets
    the number that `number_of` says, whoever else is in the file. Cameras that are words are numbered in sorted order.

    Args:
        csv_file: the file.
        root: ignored; paths are relative to the file's folder.
        kwargs: torchreid's: transform, k_tfm, mode, combineall, verbose.

    Raises:
        FileNotFoundError: the file does not exist.
        CSVFormatError: a missing column, an unknown split, an empty split, a bad number, an image that is query and
            gallery at once.
    """

    _junk_pids = [0, -1]  # noqa: RUF012  (torchreid's name and type)

    def __init__(self, csv_file: str, root: str = "", **kwargs: Any) -> None:
        rows = _read_rows(Path(csv_file))
        camids = _numbering([row["camid"] for row in rows])
        named = {row["pid"] for row in rows if row["split"] != "train"}
        test_pids = {pid: int(pid) if _is_number(pid) else number_of(pid) for pid in named}
        if len(set(test_pids.values())) < len(test_pids):
            raise CSVFormatError(
                f"{csv_file}: two pids have the same number, by chance. Write numbers in place of words."
            )
        train_pids = sorted(
            {row["pid"] for row in rows if row["split"] == "train" and row["pid"] != "-1"}, key=_natural
        )
        train_labels = {pid: label for label, pid in enumerate(train_pids)}
        splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
        for row in rows:
            labels = train_labels if row["split"] == "train" else test_pids
            if row["pid"] != "-1":
                splits[row["split"]].append((row["path"], labels[row["pid"]], camids[row["camid"]]))
        for split, items in splits.items():
            if not items:
                raise CSVFormatError(
                    f"{csv_file} has no row with split '{split}'; train, query and gallery are needed."
                )
        super().__init__(splits["train"], splits["query"], splits["gallery"], **kwargs)


def register_csv_dataset(spec: str) -> str:
    """Register ``NAME=FILE.csv`` as an image data set of torchreid and return the name.

    The same name with the same file may be given again.

    Raises:
        ValueError: not of the form NAME=FILE.csv, or NAME is a data set already.
        FileNotFoundError, CSVFormatError: as `CSVDataset`.
    """
    name, separator, file = spec.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not file:
        raise ValueError(f"--dataset is '{spec}', must be NAME=FILE.csv with a NAME of letters, digits, '_', '-', '.'.")
    path = str(Path(file).resolve())
    _FOLDERS.update({row["path"]: Path(path).parent for row in _read_rows(Path(path))})
    known = image_datasets()
    if name in known:
        if isinstance(known[name], functools.partial) and known[name].keywords.get("csv_file") == path:
            return name
        raise ValueError(f"--dataset name '{name}' is a data set already; choose another name.")
    data.register_image_dataset(name, functools.partial(CSVDataset, csv_file=path))
    return name


def number_of(word: str) -> int:
    """Return the pid of a person whom a CSV file names by a word, such as for ``--opt-out``.

    2^32 plus 48 bits of the SHA-256 of the word: the same whoever else is in the file, now or later. Numbers by order
    would pass to others when somebody is added, and with them opt-outs, budgets and deletions.

    Example:
        >>> number_of("anna")
        93839051552918
    """
    text = unicodedata.normalize("NFC", word).encode("utf-8")
    return 2**32 + int.from_bytes(hashlib.sha256(text).digest()[:6], "big")


def csv_folder_of(image: str) -> Path | None:
    """Return the folder of the registered CSV file that describes an image; None: none does."""
    return _FOLDERS.get(os.path.normpath(image))


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"data set file '{path}' does not exist. Give a CSV with columns {', '.join(COLUMNS)}.")
    rows = []
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise CSVFormatError(
                f"{path} lacks column {', '.join(missing)} (it has {', '.join(reader.fieldnames or []) or 'none'}). "
                f"The first line must name {', '.join(COLUMNS)}."
            )
        for row in reader:
            where = f"{path} line {reader.line_num}"
            values = {column: (row[column] or "").strip() for column in COLUMNS}
            empty = [column for column in COLUMNS if not values[column]]
            if empty:
                raise CSVFormatError(f"{where}: {', '.join(empty)} is empty.")
            if values["split"] not in SPLITS:
                raise CSVFormatError(f"{where}: split is '{values['split']}'; allowed: {', '.join(SPLITS)}.")
            values |= {name: str(int(values[name])) for name in ("pid", "camid") if _is_number(values[name])}  # 01 is 1
            values["path"] = os.path.normpath((path.parent / values["path"]).absolute())
            rows.append(values)
    if not rows:
        raise CSVFormatError(f"{path} has no rows below its header.")
    twice = {r["path"] for r in rows if r["split"] == "query"} & {r["path"] for r in rows if r["split"] == "gallery"}
    if twice:
        raise CSVFormatError(f"{path}: {len(twice)} images are query and gallery at once, such as '{min(twice)}'.")
    counts = Counter(row["path"] for row in rows if row["split"] == "gallery")
    if doubled := [image for image, count in counts.items() if count > 1]:
        raise CSVFormatError(f"{path}: {len(doubled)} images are in the gallery twice, such as '{min(doubled)}'.")
    return rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise CSVFormatError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    except csv.Error as error:
        raise CSVFormatError(f"{path} cannot be read as CSV ({error}). Look for a quote that is not closed.") from None


def _natural(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if _is_number(text) else (1, 0, text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def _numbering(texts: list[str]) -> dict[str, int]:
    """Give every distinct text a number: its own where it is one; words come after these, in sorted order."""
    distinct = sorted(set(texts), key=_natural)
    numbers = {text: int(text) for text in distinct if _is_number(text)}
    words = [text for text in distinct if text not in numbers]
    start = max([-1, *numbers.values()]) + 1
    return numbers | {text: start + index for index, text in enumerate(words)}
