"""The page of retrieval results: for some queries the first rows of the clean and of the protected gallery.

Images come from ``--images``; those of people who exist are left out unless ``--show-real-people`` is given, and then
a tile says only whether the row is the right person, and the camera.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..leakage.data import LeakageSet
from .blocks import Picture, Provenance
from .feature_inputs import FeatureInputs, Space
from .figures import STYLES, pyplot
from .matching import first_rows, query_figures
from .pictures import is_generated

ROWS = 7  # beside the query: two lines of four tiles, which a phone can show
_COLUMNS = 4
_RIGHT, _WRONG = (STYLES[0][0], "✓", "solid"), (STYLES[1][0], "✗", "dashed")
_TILE = (64, 128)  # pixels


class Images:
    """Reads the image of a row, where it may be shown.

    Args:
        root: folder that row ids are relative to; empty: no images.
        show_real_people: whether images of people who exist may be shown.

    Attributes:
        withheld: rows whose image was left out because the people in it exist.
        absent: rows whose image is not there.
    """

    def __init__(self, root: str, *, show_real_people: bool) -> None:
        if root and not Path(root).is_dir():
            raise FileNotFoundError(f"--images is '{root}', which is no folder. Name the folder of --root.")
        self._root = Path(root).resolve() if root else None
        self._show_real_people = show_real_people
        self._folders: dict[Path, bool] = {}
        self.withheld: set[str] = set()
        self.absent: set[str] = set()

    def __call__(self, row_id: str) -> Any:
        """Return the image as an array (H, W, 3), or None."""
        from ..data.images import ImageError, read_image

        if self._root is None or not row_id:
            return None
        path = (self._root / row_id).resolve()
        if not path.is_relative_to(self._root) or not path.is_file():
            self.absent.add(row_id)
            return None
        if path.parent not in self._folders:
            self._folders[path.parent] = is_generated(path)
        if not self._folders[path.parent] and not self._show_real_people:
            self.withheld.add(row_id)
            return None
        try:
            return np.asarray(read_image(str(path)).resize(_TILE))
        except ImageError:
            self.absent.add(row_id)
            return None


def retrieval_pictures(
    inputs: FeatureInputs, sources: Sequence[Provenance], images: Images, *, queries: int = 4, seed: int = 1
) -> list[Picture]:
    """Return two pictures a query: its first rows in the clean and in the protected gallery.

    Queries are drawn at random among those that count in both, one a person: none is chosen for how it looks.

    Args:
        inputs: features, with queries.
        sources: where they are from.
        images: reads images.
        queries: how many, at most.
        seed: of the draw.
    """
    if inputs.query is None:
        return []
    spaces = [space for space in (inputs.clean, inputs.protected) if space is not None]
    common = set.intersection(*(set(query_figures(inputs, space).queries.tolist()) for space in spaces))
    drawn: dict[int, int] = {}  # person to query, in the order of the draw
    for query in np.random.default_rng(seed).permutation(sorted(common)).tolist():
        drawn.setdefault(int(inputs.query.pids[query]), query)
    pictures = []
    for number, (pid, query) in enumerate(list(drawn.items())[:queries], start=1):
        for space in spaces:
            rows = first_rows(inputs, space, query, ROWS)
            right = int((space.pids[rows] == pid).sum())
            name = f"retrieval-{number}-{'clean' if space is inputs.clean else 'protected'}.png"
            text = f"{right} of the first {len(rows)} rows are of the person of the query."
            data = _draw(inputs, inputs.query, space, query, rows, images)
            pictures.append(Picture(f"Query {number}: {space.title}", name, data, text, tuple(sources)))
    return pictures


def _draw(
    inputs: FeatureInputs, asked: LeakageSet, space: Space, query: int, rows: np.ndarray, images: Images
) -> bytes:
    lines = -(-(len(rows) + 1) // _COLUMNS)
    figure, axes = pyplot().subplots(lines, _COLUMNS, figsize=(1.35 * _COLUMNS, 3.1 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    row_id = asked.row_ids[query] if asked.row_ids else ""
    _tile(axes.flat[0], images(row_id), "black", "solid", "query", f"camera {asked.camids[query]}")
    for rank, (axis, row) in enumerate(zip(axes.flat[1:], rows.tolist(), strict=False), start=1):
        place = int(space.places[row])
        row_id = inputs.gallery.row_ids[place] if place >= 0 and inputs.gallery.row_ids else ""
        color, sign, style = _RIGHT if space.pids[row] == asked.pids[query] else _WRONG
        camera = "prototype" if space.camids[row] < 0 else f"camera {space.camids[row]}"
        _tile(axis, images(row_id), color, style, f"{rank} {sign}", camera)
    figure.tight_layout(pad=0.3, h_pad=0.8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    pyplot().close(figure)
    return stream.getvalue()


def _tile(axis: Any, image: Any, color: str, style: str, title: str, below: str) -> None:
    blank = np.full((_TILE[1], _TILE[0], 3), 235, dtype=np.uint8)
    axis.imshow(blank if image is None else image)
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(color)
        spine.set_linestyle(style)
        spine.set_linewidth(3)
    axis.set_title(title, fontsize=13, color=color)
    axis.set_xlabel(textwrap.shorten(below, 14), fontsize=10)
