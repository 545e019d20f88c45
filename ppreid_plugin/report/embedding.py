"""t-SNE maps before and after protection: the same rows, the same seed, colored by person, camera and an attribute.

A map shows neighborhoods and nothing else: distances between groups, sizes and empty space mean nothing, and what one
map does not show may still be there for an attacker. People are numbered anew.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from ..registry import closest
from .blocks import Picture, Provenance
from .curves import svg
from .feature_inputs import FeatureInputs, Space
from .figures import STYLES, pyplot, tsne_places

ROWS = 800  # at most: a map of more takes minutes and shows no more
_COLORED = len(STYLES)
_CAUTION = (
    "Cosine distance. Neighborhoods mean something, distances between groups do not; mixing in a map is no proof that "
    "nothing can be read."
)


def embedding_pictures(
    inputs: FeatureInputs, sources: Sequence[Provenance], *, seed: int = 1, color_by: str = ""
) -> list[Picture]:
    """Return maps of the clean and, if there is one, the protected gallery: one picture a coloring.

    Args:
        inputs: features.
        sources: where they are from.
        seed: of the choice of rows and of both maps.
        color_by: attribute; empty: the first one with two values.

    Raises:
        ValueError: an unknown attribute, or fewer than four rows of people.
    """
    attribute = _attribute(inputs, color_by)
    rng = np.random.default_rng(seed)
    spaces = [space for space in (inputs.protected, inputs.clean) if space is not None]
    chosen: list[tuple[Space, np.ndarray]] = []
    same = len(spaces) == 1
    for space in spaces:
        people = np.flatnonzero(~np.isin(space.pids, inputs.gallery.background_pids))
        if chosen and (chosen[0][0].places[chosen[0][1]] >= 0).all():
            rows, same = chosen[0][0].places[chosen[0][1]], True
        else:
            rows = np.sort(rng.permutation(people)[:ROWS])
        chosen.append((space, rows))
    maps = [(space, rows, tsne_places(space.gallery[rows], seed=seed)) for space, rows in reversed(chosen)]
    pictures = []
    for what in ("person", "camera", *([attribute] if attribute else [])):
        figure, axes = pyplot().subplots(1, len(maps), figsize=(3.1 * len(maps), 3.9), squeeze=False)
        names = _names(inputs, what, maps[0][0], maps[0][1], attribute)
        for axis, (space, rows, places) in zip(axes[0], maps, strict=True):
            values = _values(inputs, what, space, rows, attribute)
            other = ~np.isin(values, list(names))
            axis.scatter(*places[other].T, s=6, color="#BBBBBB", label="others" if other.any() else None)
            for (value, name), (color, marker) in zip(names.items(), STYLES, strict=False):
                here = values == value
                axis.scatter(*places[here].T, s=16, color=color, marker=marker, label=name)
            axis.set_title("\n".join(textwrap.wrap(space.title.replace("$", r"\$"), 34)[:3]), fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=9, loc="lower center", ncols=4)
        figure.tight_layout(rect=(0, 0.13, 1, 1))
        title = f"t-SNE by {what}"
        counts = " and ".join(str(len(rows)) for _, rows, _ in (maps[:1] if same else maps))
        text = f"{counts} rows{'' if same else ', not the same ones'}, seed {seed}. {_CAUTION}"
        if inputs.protected is not None and inputs.protected.prototypes:
            text += " Protected rows are prototypes" + ("; the clean map has an image of each person." if same else ".")
        name = f"tsne-{'attribute' if what == attribute else what}.svg"
        pictures.append(Picture(title, name, svg(figure), text, tuple(sources)))
    return pictures


def _attribute(inputs: FeatureInputs, wanted: str) -> str:
    known = inputs.gallery.attributes
    if wanted:
        if wanted not in known:
            raise ValueError(
                f"--color-by is {wanted!r}; attributes of --gallery: {', '.join(known) or 'none (--attributes FILE)'}."
                f"{closest(wanted, list(known))}"
            )
        return wanted
    return next((name for name, values in known.items() if len(np.unique(values[values >= 0])) > 1), "")


def _values(inputs: FeatureInputs, what: str, space: Space, rows: np.ndarray, attribute: str) -> np.ndarray:
    if what == "person":
        return space.pids[rows]
    if what == "camera":
        return space.camids[rows]
    labels = inputs.gallery.attributes[attribute]
    by_pid = dict(zip(inputs.gallery.pids.tolist(), labels.tolist(), strict=True))
    return np.array([by_pid.get(pid, -1) for pid in space.pids[rows].tolist()])


def _names(inputs: FeatureInputs, what: str, space: Space, rows: np.ndarray, attribute: str) -> dict[int, str]:
    """Return the values with most rows, as many as there are colors, with what the legend calls them."""
    values, counts = np.unique(_values(inputs, what, space, rows, attribute), return_counts=True)
    kept = values >= 0
    values, counts = values[kept], counts[kept]
    largest = values[np.argsort(-counts, kind="stable")][:_COLORED].tolist()
    if what == "person":
        return {value: f"person {number}" for number, value in enumerate(largest, start=1)}
    if what == "camera":
        return {value: f"camera {value}" for value in sorted(largest)}
    texts = inputs.texts.get(attribute, ())
    shown = {value: texts[value] if value < len(texts) else f"value {value}" for value in sorted(largest)}
    return {value: textwrap.shorten(text, 20).replace("$", r"\$") for value, text in shown.items()}
