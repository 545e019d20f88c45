"""The attribute labels of Market-1501: ``market_attribute.mat`` of Lin et al., one line a person.

Source: Lin, Zheng, Zheng, Wu, Hu, Yan, Yang, Improving Person Re-identification by Attribute and Identity Learning,
Pattern Recognition 2019, arXiv 1703.07220. The colors of upper and lower clothing, 17 yes-or-no columns there, are two
attributes here: ``up_color`` and ``down_color``, not known where none or several are marked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from .data import LeakageSet

ByPerson: TypeAlias = Mapping[int, Mapping[str, int]]

_COLORS = {"up_color": re.compile("^up(.+)$"), "down_color": re.compile("^down(.+)$")}
_YES = 2
_PERSON_IN_NAME = re.compile(r"^(-?\d+)_c\d")  # 0002_c1s1_000451_03.jpg


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


def with_attributes(rows: LeakageSet, people: ByPerson, *, named: bool = False, what: str = "rows") -> LeakageSet:
    """Return the rows with the labels of their people; -1 for people that ``people`` does not hold.

    Args:
        rows: the set.
        people: labels by attribute, by pid.
        named: read the pid off the row's file name (``.../0002_c1s1_000451_03.jpg``) where all row ids have one:
            torchreid numbers training people anew.
        what: name of the rows in errors.

    Raises:
        ValueError: nobody of the rows is in ``people``.
    """
    pids = rows.pids
    if named:
        found = [_PERSON_IN_NAME.match(row_id.replace("\\", "/").rsplit("/", 1)[-1]) for row_id in rows.row_ids]
        if found and all(found):
            pids = np.array([int(match[1]) for match in found if match])
    known = {pid for pid in np.unique(pids).tolist() if pid in people}
    if not known:
        raise ValueError(
            f"none of the people of {what} has attributes: pids {np.unique(pids)[:5].tolist()}, ..., attributes of "
            f"{sorted(people)[:5]}, .... torchreid numbers training people from 0: give row_ids that name the files."
        )
    names = sorted({name for pid in known for name in people[pid]})
    added = {
        name: np.array([people.get(pid, {}).get(name, -1) for pid in pids.tolist()], dtype=np.int64) for name in names
    }
    return dataclasses.replace(rows, attributes={**rows.attributes, **added})


def attributes_by_pid(arrays: Mapping[str, np.ndarray], path: str) -> dict[int, dict[str, int]]:
    """Return labels by attribute, by pid, from the arrays ``pids`` and ``attr_<name>`` of a file.

    Raises:
        ValueError: one of them is missing, they differ in length, or are no whole numbers; a pid stands twice.
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
    if len(np.unique(pids)) < len(pids):
        raise ValueError(f"'{path}': a pid stands twice. Give one line a person.")
    return {int(pid): {name: int(values[place]) for name, values in columns.items()} for place, pid in enumerate(pids)}


def _labels(line: dict[str, int], colors: Mapping[str, list[str]]) -> dict[str, int]:
    found = {}
    for name, columns in colors.items():
        marked = [place for place, column in enumerate(columns) if line.get(column) == _YES]
        found[name] = marked[0] if len(marked) == 1 else -1
    colored = {column for columns in colors.values() for column in columns}
    return found | {name: value - 1 for name, value in line.items() if name not in colored}
