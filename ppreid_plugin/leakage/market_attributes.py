"""Attribute labels of people on rows: the files are read in `ppreid_plugin.data.attributes`."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..data.attributes import ByPerson, pid_in_name
from .data import LeakageSet


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
        found = [pid_in_name(row_id) for row_id in rows.row_ids]
        if found and None not in found:
            pids = np.array(found)
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
