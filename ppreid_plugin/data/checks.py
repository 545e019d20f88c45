"""Checks of data sets before torchreid meets them: torchreid would create folders, try dead addresses, or loop."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..registry import closest
from ..toolbox import image_datasets, video_datasets

# what torchreid's Market-1501 and DukeMTMC-reID loaders search in the *full* path of each image
_PID_PATTERN = re.compile(r"([-\d]+)_c(\d)")
_PATTERN_DATASETS = ("market1501", "dukemtmcreid")
_WITHDRAWN = {"dukemtmcreid", "dukemtmcvidreid"}

Item = tuple[Any, ...]


class DataError(ValueError):
    """Data that cannot be trained or evaluated on; the message says why and what to do."""


def check_dataset_names(names: list[str], *, kind: str, option: str) -> None:
    """Check that torchreid knows all data sets ``names`` of ``kind`` (image or video).

    Raises:
        DataError: an unknown name; all names and the nearest one are listed.
    """
    known = image_datasets() if kind == "image" else video_datasets()
    if not names:
        raise DataError(f"{option} is empty; give at least one data set of: {', '.join(sorted(known))}.")
    for name in names:
        if name not in known:
            raise DataError(
                f"{option} is '{name}'; {kind} data sets: {', '.join(sorted(known))}.{closest(name, list(known))} "
                "Own images: --dataset NAME=FILE.csv."
            )


def check_dataset_folders(root: str, names: list[str], *, kind: str) -> None:
    """Check that the folders exist and that none breaks torchreid's file name pattern.

    Raises:
        DataError: a missing folder, or one whose name looks like ``PID_cCAM``.
    """
    known = image_datasets() if kind == "image" else video_datasets()
    folder = Path(root).expanduser().absolute()
    for name in names:
        dataset = known[name]
        if isinstance(dataset, functools.partial):  # a CSV data set: it brings its own paths
            continue
        subfolder = folder / str(getattr(dataset, "dataset_dir", name))
        if not folder.is_dir():
            raise DataError(f"data.root is '{root}', which is no folder. Give it with --root FOLDER ({name} in it).")
        if not subfolder.is_dir():
            note = " DukeMTMC was withdrawn by its authors." if name in _WITHDRAWN else ""
            hint = (
                f"Make it: python tools/make_synthetic.py --root {root}"
                if name == "synthetic_pedestrians"
                else f"Put {name} there; torchreid's documentation describes the layout of each data set."
            )
            raise DataError(f"data set '{name}' needs the folder '{subfolder}', which does not exist.{note} {hint}")
        match = _PID_PATTERN.search(str(subfolder)) if name in _PATTERN_DATASETS else None
        if match:
            raise DataError(
                f"the path '{subfolder}' contains '{match.group()}', which torchreid's {name} loader would read as the "
                "person and camera of every image. Rename that folder or link the data from elsewhere."
            )


def check_queries(query: list[Item], gallery: list[Item], name: str, *, exclude_same_camera: bool) -> str | None:
    """Check that queries have a match in the gallery.

    Args:
        query: tuples (path(s), pid, camid, ...).
        gallery: likewise.
        name: data set, for the message.
        exclude_same_camera: whether gallery rows of the query's pid and camera are dropped.

    Returns:
        A warning when some queries have no match (they are not counted), None when all have.

    Raises:
        DataError: no query has a match; the message says whether people or cameras are the reason.
    """
    rows = Counter((item[1], item[2]) for item in gallery)
    people = Counter(item[1] for item in gallery)
    unmatched = [
        item for item in query if people[item[1]] - (rows[item[1], item[2]] if exclude_same_camera else 0) == 0
    ]
    if not unmatched:
        return None
    in_gallery = sum(people[item[1]] > 0 for item in unmatched)
    first = unmatched[0][0] if isinstance(unmatched[0][0], str) else unmatched[0][0][0]
    if len(unmatched) < len(query):
        return (
            f"{name}: {len(unmatched)} of {len(query)} queries have no match in the gallery and are not counted "
            f"({len(unmatched) - in_gallery} because their person is not in it), such as '{first}'."
        )
    if in_gallery == 0:
        raise DataError(
            f"{name}: no query has a match: the {len({i[1] for i in query})} people of the query set and the "
            f"{len(people)} of the gallery do not overlap. Check the pids (such as '{first}')."
        )
    raise DataError(
        f"{name}: no query has a match in another camera: every gallery image of a query's person comes from the "
        f"query's own camera ({len({i[2] for i in gallery})} in the gallery), which the Market-1501 protocol drops. "
        "With one camera, or if that is meant, append: test.exclude_same_camera False"
    )


def check_people_disjoint_from_gallery(train: list[Item], test: list[Item], name: str) -> None:
    """Check that no training image is a query or gallery image: a transform fitted on it would void the DP guarantee.

    Raises:
        DataError: naming how many images are in both and one of them.
    """
    both = {_key(item) for item in train} & {_key(item) for item in test}
    if both:
        raise DataError(
            f"{name}: {len(both)} images are in the training split and in query or gallery, such as "
            f"'{min(both)}'. A protected gallery needs a training split without them; or privacy.gallery.transform none"
        )


def _key(item: Item) -> str:
    return item[0] if isinstance(item[0], str) else item[0][0]
