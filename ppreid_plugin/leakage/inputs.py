"""What attackers are run on, read from files: features with labels, labels of people, labels of released rows."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.attributes import ByPerson, attributes_by_pid, load_attribute_words, load_market_attributes
from ..dp.feature_files import load_arrays, require_arrays, row_names
from ..dp.units import JUNK_PID
from ..registry import closest
from .data import LeakageSet
from .images import ImageFiles, row_images
from .market_attributes import with_attributes

# what a flag of labels takes, for its help
LABEL_FILES = (
    "the generated pedestrians' attributes.csv or another .csv of pid and words, market_attribute.mat, or arrays pids "
    "and attr_<name>"
)

_ATTRIBUTE = "attr_"


def load_set(path: str | Path, background_pids: Sequence[int], images_root: str | None = None) -> LeakageSet:
    """Return the set in a file with ``features``, ``pids``, ``camids``, and maybe ``row_ids`` and ``attr_<name>``.

    Junk rows (pid -1) are left out.

    Args:
        path: the file; its images are the array ``images``, or files.
        background_pids: pids that are no person.
        images_root: folder that ``paths``, or else ``row_ids``, are relative to; None: there are no files of images.

    Raises:
        ImageError: a file of an image that is not there or empty.
        FileNotFoundError, ValueError: no such file, an array is missing, or values as :class:`LeakageSet` says.
    """
    arrays = load_arrays(path)
    missing = [name for name in ("features", "pids", "camids") if name not in arrays]
    if missing:
        raise ValueError(
            f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}. Add the arrays: "
            "features (n, d), pids (n,), camids (n,)."
        )
    row_ids = row_names(arrays)
    attributes = {name.removeprefix(_ATTRIBUTE): arrays[name] for name in arrays if name.startswith(_ATTRIBUTE)}
    try:
        rows = LeakageSet(
            arrays["features"],
            arrays["pids"],
            arrays["camids"],
            attributes,
            tuple(row_ids),
            tuple(background_pids),
            images=row_images(arrays, row_ids, images_root),
        )
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    rows = rows.take(rows.pids != JUNK_PID)
    if isinstance(rows.images, ImageFiles):
        rows.images.check()
    return rows


def require_two_classes(rows: LeakageSet, names: Sequence[str], flag: str, to: str, *, jointly: bool = False) -> None:
    """Raise ValueError if an attribute that is to be taken out has one value among the rows, or none is known.

    Args:
        rows: what is learned from.
        names: attributes.
        flag: that named the rows.
        to: what is done with the attributes, for the error.
        jointly: whether only rows count of which all these attributes are known.
    """
    counted = (rows.concepts(names) >= 0).all(axis=1) if jointly and names else np.ones(len(rows), dtype=bool)
    where = f"{flag} with all of these labels" if jointly and len(names) > 1 else flag
    for name in names:
        known = rows.attributes[name][counted & (rows.attributes[name] >= 0)]
        if len(classes := np.unique(known)) < 2:
            has = f"the one value {classes[0]}" if len(classes) else "no known value"
            raise ValueError(
                f"attribute {name!r} has {has} among the rows of {where}: nothing to {to}. Leave it out: name the "
                "others with --only."
            )


def add_label_flags(parser: argparse.ArgumentParser, *, to: str = "keep") -> None:
    """Add the flags of a `Labeler`; ``to`` says what is done with the attributes of ``--only``."""
    add = parser.add_argument
    add("--attributes", metavar="FILE", help=f"labels of people: {LABEL_FILES}")
    add("--market-attributes", metavar="FILE", help="market_attribute.mat: labels of Market-1501's people")
    add("--only", nargs="+", metavar="NAME", help=f"attributes to {to} (all there are, if none is named)")


def read_labels(path: str) -> tuple[ByPerson, dict[str, list[str]]]:
    """Return labels by attribute, by pid, from a file of labels; of a CSV file the words that they stand for too.

    Raises:
        FileNotFoundError, ValueError: no such file, or another one.
    """
    if Path(path).suffix == ".safetensors":
        return attributes_by_pid(load_arrays(path), path), {}
    return load_attribute_words(path)


class Labeler:
    """Adds attributes by pid, and keeps those that were asked for; its flags are those of `add_label_flags`.

    torchreid numbers training people anew, so whose row it is is read off its name where all row ids hold a pid, as
    training and the ablation read it; else the pids of the rows count.

    Args:
        attributes: file of labels (`read_labels`).
        market: ``market_attribute.mat``.
        only: names to keep; None: all.
    """

    def __init__(self, attributes: str | None, market: str | None, only: Sequence[str] | None) -> None:
        self._only = only
        self._market = load_market_attributes(market) if market else None
        self._given = read_labels(attributes)[0] if attributes else None

    def __call__(self, rows: LeakageSet, what: str) -> LeakageSet:
        """Return the rows with their labels; ``what`` is the flag that named them."""
        if self._given is not None:
            rows = with_attributes(rows, self._given, named=True, what=what)
        if self._market is not None:
            if what in ("--train", "--clean-train") and not rows.row_ids:
                raise ValueError(
                    f"{what} has no row_ids, and torchreid numbers training people anew: the people of "
                    "--market-attributes cannot be told. Add row_ids, the file names."
                )
            rows = with_attributes(rows, self._market, named=True, what=what)
        if self._only is None:
            return rows
        names = sorted(rows.attributes)
        for name in self._only:
            if name not in names:
                raise ValueError(
                    f"--only has {name!r}; {what} has: {', '.join(names) or 'none'}.{closest(name, names)}"
                )
        return dataclasses.replace(rows, attributes={name: rows.attributes[name] for name in self._only})


@dataclass(frozen=True)
class TruthTable:
    """What a table says of the rows of a release, by their names in it.

    Attributes:
        rows: pid and camid.
        attributes: labels by attribute.
        sources: file of the image, where the table has ``paths``; else the row's own name.
    """

    rows: dict[str, tuple[int, int]]
    attributes: dict[str, dict[str, int]]
    sources: dict[str, str]


def read_truth_table(path: str) -> TruthTable:
    """Return the table in a file of ``row_ids, pids, camids``, and maybe ``paths`` and ``attr_<name>``.

    Raises:
        FileNotFoundError, ValueError: no such file, another kind of file, an array is missing, or lengths differ.
    """
    arrays = load_arrays(path)
    require_arrays(path, arrays, ("row_ids", "pids", "camids"))
    blank = np.zeros((len(arrays["row_ids"]), 1), dtype=np.float32)
    attributes = {name.removeprefix(_ATTRIBUTE): arrays[name] for name in arrays if name.startswith(_ATTRIBUTE)}
    rows = LeakageSet(blank, arrays["pids"], arrays["camids"], attributes, tuple(row_names(arrays)))
    paths = list(map(str, arrays["paths"].tolist())) if "paths" in arrays else list(rows.row_ids)
    if len(paths) != len(rows.row_ids):
        raise ValueError(f"'{path}' holds {len(rows.row_ids)} row_ids and {len(paths)} paths: one a row.")
    return TruthTable(
        rows=dict(zip(rows.row_ids, zip(rows.pids.tolist(), rows.camids.tolist(), strict=True), strict=True)),
        attributes={
            row: {name: int(values[place]) for name, values in rows.attributes.items()}
            for place, row in enumerate(rows.row_ids)
        },
        sources=dict(zip(rows.row_ids, paths, strict=True)),
    )
