"""Fine cues of images: where a face and a logo are seen, and what codes they show.

The generated pedestrians come with both: boxes of every picture, and codes of every person's logo and freckles. These
are drawn at random, so nobody's can be guessed from anybody else's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.attributes import pid_in_name
from ..data.pedestrians import NAME, load_attributes, load_boxes

CODES = {"face": "freckles", "logo": "logo"}  # attribute of the generated pedestrians that is seen in a box
HIDDEN = -1  # in place of a box's sides, or of a code's bits: not visible, not known
_BOX, _CODE = "box_", "code_"  # arrays of files of features
_BOXES = "boxes.csv"  # of the generated pedestrians

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FineCues:
    """Fine cues of the images of n rows.

    Args:
        boxes: by cue, (n, 4): left, top, right, bottom in pixels of the row's own image, right and bottom exclusive; -1
            four times where the cue is not visible.
        codes: by cue, (n, bits), 0 or 1: what is to be read in its box; -1: not known. Not every cue has one.

    Raises:
        ValueError: shapes that differ, an empty or half-hidden box, a bit that is no bit, a code without a box.

    Example:
        >>> FineCues({"face": np.array([[4, 2, 12, 10], [-1, -1, -1, -1]])}).visible("face").tolist()
        [True, False]
    """

    boxes: Mapping[str, npt.NDArray[np.int64]]
    codes: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boxes = {cue: _whole(values, f"{_BOX}{cue}") for cue, values in self.boxes.items()}
        codes = {cue: _whole(values, f"{_CODE}{cue}") for cue, values in self.codes.items()}
        lengths = {len(values) for values in (*boxes.values(), *codes.values())}
        if len(lengths) != 1:
            raise ValueError(f"boxes and codes are of {sorted(lengths)} rows, must be of the same number, one or more.")
        for cue, values in boxes.items():
            if values.shape[1] != 4:
                raise ValueError(f"{_BOX}{cue} has shape {values.shape}, must be (n, 4): left, top, right, bottom.")
            shown = (values >= 0).all(axis=1) & (values[:, :2] < values[:, 2:]).all(axis=1)
            wrong = np.flatnonzero(~shown & (values != HIDDEN).any(axis=1))
            if len(wrong):
                raise ValueError(
                    f"{_BOX}{cue} has {values[wrong[0]].tolist()} in row {wrong[0]} ({len(wrong)} such rows); must be "
                    "left < right and top < bottom, in pixels from 0, or -1 four times where the cue is not visible."
                )
        for cue, values in codes.items():
            if cue not in boxes or not np.isin(values, (HIDDEN, 0, 1)).all():
                raise ValueError(f"{_CODE}{cue} must hold 0, 1 or -1 (not known), beside boxes {_BOX}{cue}.")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "codes", codes)

    def __len__(self) -> int:
        return len(next(iter(self.boxes.values())))

    def take(self, places: Places) -> FineCues:
        """Return those of these rows."""
        return FineCues(
            {cue: values[places] for cue, values in self.boxes.items()},
            {cue: values[places] for cue, values in self.codes.items()},
        )

    def visible(self, cue: str) -> npt.NDArray[np.bool_]:
        """Return by row whether the cue is visible, (n,)."""
        return self.boxes[cue][:, 0] != HIDDEN

    def fingerprint(self) -> str:
        """Return a digest of boxes and codes."""
        digest = hashlib.sha256()
        for kind, arrays in ((_BOX, self.boxes), (_CODE, self.codes)):
            for cue, values in sorted(arrays.items()):
                digest.update(f"{kind}{cue} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def cues_in(arrays: Mapping[str, Any]) -> FineCues | None:
    """Return the cues of a file of features: its arrays ``box_<cue>`` and ``code_<cue>``; None: it has none."""
    boxes = {name.removeprefix(_BOX): values for name, values in arrays.items() if name.startswith(_BOX)}
    codes = {name.removeprefix(_CODE): values for name, values in arrays.items() if name.startswith(_CODE)}
    return FineCues(boxes, codes) if boxes or codes else None


def cues_beside(root: Path, names: Sequence[str]) -> FineCues | None:
    """Return the cues of files of the generated pedestrians; None where a file is not theirs.

    Args:
        root: folder that the names are relative to.
        names: (n,), such as ``synthetic_pedestrians/query/0001_c1s1_000151_01.jpg``.
    """
    paths = [root / name for name in names]
    folders = {path.parent.parent for path in paths}
    folder = folders.pop() if len(folders) == 1 else root
    if folder.name != NAME or not (folder / _BOXES).is_file():
        return None
    boxes, people = _read_folder(folder, (folder / _BOXES).stat().st_mtime_ns)
    keys = [f"{path.parent.name}/{path.name}" for path in paths]
    if any(key not in boxes for key in keys):
        return None
    length = {cue: len(code) for cue, code in next(iter(people.values())).items()}
    return FineCues(
        {cue: np.array([boxes[key][cue] or (HIDDEN,) * 4 for key in keys]) for cue in CODES},
        {cue: np.array([_bits(people.get(pid_in_name(key) or 0), cue, length[cue]) for key in keys]) for cue in CODES},
    )


@lru_cache(maxsize=2)
def _read_folder(folder: Path, written: int) -> tuple[Mapping[str, Any], Mapping[int, Mapping[str, str]]]:
    """Return boxes by picture and codes by pid and cue; ``written``, in ns, tells a folder that was made anew."""
    people = load_attributes(folder.parent)
    codes = {pid: {cue: one[attribute] for cue, attribute in CODES.items()} for pid, one in people.items()}
    return load_boxes(folder.parent), codes


def _bits(codes: Mapping[str, str] | None, cue: str, length: int) -> list[int]:
    return [HIDDEN] * length if codes is None else [int(bit) for bit in codes[cue]]


def _whole(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}, must be (n, any), whole numbers.")
    return array.astype(np.int64)
