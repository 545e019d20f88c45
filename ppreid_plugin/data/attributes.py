"""Attribute labels of people, read from files, and who the training people of torchreid are.

Three files are read: ``market_attribute.mat`` of Market-1501_Attribute (Lin, Zheng, Zheng, Wu, Hu, Yan, Yang, Improving
Person Re-identification by Attribute and Identity Learning, Pattern Recognition 2019, arXiv 1703.07220), the generated
pedestrians' ``attributes.csv``, and ``.npz`` with ``pids`` and ``attr_<name>``. The colors of upper and lower clothing,
17 yes-or-no columns in the first, are two attributes here: ``up_color`` and ``down_color``, not known where none or
several are marked.

torchreid numbers training people from 0 in an order of its own, so their pids are read off the files' names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..dp.feature_files import load_arrays
from ..number_checks import whole_from
from .checks import DataError

ByPerson: TypeAlias = Mapping[int, Mapping[str, int]]

UNKNOWN = -1  # label of an attribute that is not known
_UNKNOWN_WORDS = {"", "nan", str(UNKNOWN)}  # how tables of people write it

_COLORS = {"up_color": re.compile("^up(.+)$"), "down_color": re.compile("^down(.+)$")}
_YES = 2
_PERSON_IN_NAME = re.compile(r"^(-?\d+)_c\d")  # 0002_c1s1_000451_03.jpg


def load_attributes(path: str | Path) -> dict[int, dict[str, int]]:
    """Return labels from 0 by attribute, by pid, from any of the three files; -1: not known.

    Words of a CSV file are numbered in sorted order; an empty cell, ``nan`` or -1 is not known.

    Raises:
        FileNotFoundError, ValueError: no such file, or another one.
    """
    return load_attribute_words(path)[0]


def load_attribute_words(path: str | Path) -> tuple[dict[int, dict[str, int]], dict[str, list[str]]]:
    """Return what `load_attributes` does, and by attribute the words that the labels stand for, of a CSV file.

    Raises:
        FileNotFoundError, ValueError: as there.
    """
    path = Path(path)
    if path.suffix == ".mat":
        return load_market_attributes(path), {}
    if not path.is_file():
        raise FileNotFoundError(
            f"attribute labels '{path}' are not there. Give market_attribute.mat, the generated pedestrians' "
            "attributes.csv, or .npz with pids and attr_<name>."
        )
    if path.suffix == ".csv":
        return _load_csv(path)
    if path.suffix == ".npz":
        return attributes_by_pid(load_arrays(path), str(path)), {}
    raise ValueError(f"attribute labels '{path}' end in '{path.suffix}'; allowed: .mat, .csv, .npz.")


def load_market_attributes(path: str | Path) -> dict[int, dict[str, int]]:
    """Return labels from 0 by attribute, by pid, of training and test people (their pids differ).

    Raises:
        FileNotFoundError, ValueError: no such file, or another one.
    """
    from scipy.io import loadmat

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name market_attribute.mat of Market-1501_Attribute.")
    try:
        splits = loadmat(path, squeeze_me=True, struct_as_record=False)["market_attribute"]
        tables = [vars(getattr(splits, split)) for split in ("train", "test")]
        columns = [
            {name: np.atleast_1d(values) for name, values in table.items() if not name.startswith("_")}
            for table in tables
        ]
        pids = [[int(one) for one in table.pop("image_index")] for table in columns]
    except Exception as error:
        raise ValueError(
            f"'{path}' is no market_attribute.mat ({' '.join(str(error).split())}): it has no table market_attribute "
            "with train, test and their image_index."
        ) from None
    people: dict[int, dict[str, int]] = {}
    colors = {
        name: sorted({column for table in columns for column in table if pattern.match(column)})
        for name, pattern in _COLORS.items()
    }
    for table, names in zip(columns, pids, strict=True):
        for place, pid in enumerate(names):
            people[pid] = _labels({name: int(values[place]) for name, values in table.items()}, colors)
    return people


def attributes_by_pid(arrays: Mapping[str, np.ndarray], path: str) -> dict[int, dict[str, int]]:
    """Return labels by attribute, by pid, from the arrays ``pids`` and ``attr_<name>`` of a file.

    Raises:
        ValueError: one of them is missing, they differ in length, or are no whole numbers; a label below -1; a pid
            that stands twice.
    """
    columns = {name.removeprefix("attr_"): values for name, values in arrays.items() if name.startswith("attr_")}
    if "pids" not in arrays or not columns:
        raise ValueError(f"'{path}' holds {', '.join(sorted(arrays)) or 'nothing'}; needs pids and attr_<name>.")
    pids = arrays["pids"]
    for name, values in {"pids": pids, **columns}.items():
        if values.shape != (len(pids),) or values.dtype.kind not in "iu":
            raise ValueError(
                f"'{path}': {name} has shape {values.shape} and type {values.dtype}, must be ({len(pids)},), whole."
            )
    for name, values in columns.items():
        if len(values) and values.min() < UNKNOWN:
            raise ValueError(
                f"'{path}': attr_{name} holds {values.min()}, must hold classes from 0, and {UNKNOWN} where it is not "
                "known."
            )
    if len(np.unique(pids)) < len(pids):
        raise ValueError(f"'{path}': a pid stands twice. Give one line a person.")
    return {int(pid): {name: int(values[place]) for name, values in columns.items()} for place, pid in enumerate(pids)}


def pid_in_name(path: str) -> int | None:
    """Return the pid that a file of Market-1501's form is named after, or None.

    Example:
        >>> pid_in_name("bounding_box_train/0002_c1s1_000451_03.jpg"), pid_in_name("run-1_c2/portrait.jpg")
        (2, None)
    """
    found = _PERSON_IN_NAME.match(path.replace("\\", "/").rsplit("/", 1)[-1])
    return int(found[1]) if found else None


def pids_by_label(items: Iterable[Sequence[Any]], *, dsetid: int | None = None) -> dict[int, int]:
    """Return the pid of each of torchreid's training labels, read off the names of the files.

    Args:
        items: (path or paths, label, camid, dsetid) of the training split.
        dsetid: number of the source whose people are wanted; None: all of them.

    Raises:
        DataError: a name that holds no pid, or a label whose files are named after two people.
    """
    found: dict[int, int] = {}
    for item in items:
        if dsetid is not None and item[3] != dsetid:
            continue
        path = item[0] if isinstance(item[0], str) else item[0][0]
        pid = pid_in_name(path)
        if pid is None:
            raise DataError(
                f"whose picture '{Path(path).name}' is cannot be read from its name, and torchreid numbers training "
                "people anew: attribute labels, which go by pid, cannot be told. Name files as Market-1501 does, like "
                "0002_c1s1_000451_03.jpg, or leave the adversary 'attributes' out."
            )
        if found.setdefault(int(item[1]), pid) != pid:
            raise DataError(
                f"training label {item[1]} has files named after the people {found[int(item[1])]} and {pid}, such as "
                f"'{Path(path).name}'. Give one person's files one pid."
            )
    return found


def label_table(people: Mapping[int, Mapping[str, Hashable]], names: Sequence[str], num_people: int) -> np.ndarray:
    """Return labels (num_people, len(names)), classes numbered from 0 in sorted order; -1: not known.

    Classes that none of the people has are left out of the numbering.

    Args:
        people: labels by attribute, by torchreid's training label.
        names: attributes, the columns.
        num_people: number of training people, the rows.

    Example:
        >>> label_table({0: {"age": 3}, 2: {"age": 1}}, ["age"], 4).ravel().tolist()
        [1, -1, 0, -1]
    """
    table = np.full((num_people, len(names)), UNKNOWN, dtype=np.int64)
    for column, name in enumerate(names):
        values = {person: labels[name] for person, labels in people.items() if labels.get(name, UNKNOWN) != UNKNOWN}
        classes = {value: place for place, value in enumerate(sorted(set(values.values())))}  # type: ignore[type-var]
        for person, value in values.items():
            table[person, column] = classes[value]
    return table


def _load_csv(path: Path) -> tuple[dict[int, dict[str, int]], dict[str, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        names = [name for name in reader.fieldnames or [] if name != "pid"]
        if "pid" not in (reader.fieldnames or []) or not names:
            raise ValueError(
                f"'{path}' has the columns {', '.join(reader.fieldnames or []) or 'none'}; needs pid and attributes."
            )
        rows = list(reader)
    try:
        pids = [whole_from(row["pid"]) for row in rows]
    except (TypeError, ValueError):
        raise ValueError(f"'{path}' has a pid that is no whole number. Give one line a person, with a pid.") from None
    if len(set(pids)) < len(pids):
        raise ValueError(f"'{path}': a pid stands twice. Give one line a person.")
    if not pids:
        raise ValueError(f"'{path}' has nobody below its header. Give one line a person.")
    people: dict[int, dict[str, int]] = {pid: {} for pid in pids}
    classes: dict[str, list[str]] = {}
    for name in names:
        words = [(row[name] or "").strip() for row in rows]
        classes[name] = sorted(word for word in set(words) if word.lower() not in _UNKNOWN_WORDS)
        codes = {word: place for place, word in enumerate(classes[name])}
        for pid, word in zip(pids, words, strict=True):
            people[pid][name] = codes.get(word, UNKNOWN)
    return people, classes


def _labels(line: dict[str, int], colors: Mapping[str, list[str]]) -> dict[str, int]:
    found = {}
    for name, columns in colors.items():
        marked = [place for place, column in enumerate(columns) if line.get(column) == _YES]
        found[name] = marked[0] if len(marked) == 1 else -1
    colored = {column for columns in colors.values() for column in columns}
    return found | {name: value - 1 for name, value in line.items() if name not in colored}
