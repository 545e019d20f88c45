"""Pictures of people: who is in them is marked in the file, and only generated people are shown.

A picture that our runs write carries text chunks of PNG: ``ppreid_people`` (``generated`` or ``real``),
``ppreid_kind``, ``ppreid_command``, ``ppreid_seed``. What is not marked ``generated`` counts as real.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .blocks import UNKNOWN, Provenance

PEOPLE, GENERATED, REAL = "ppreid_people", "generated", "real"
WHY_OFF = (
    "Pictures of real people are off by default: a report is passed on and printed, the people in it cannot take it "
    "back, most data sets' terms forbid it, and a reconstruction shown beside its original is the very attack that the "
    "report measures."
)


@dataclass(frozen=True)
class StoredPicture:
    """A picture that a run wrote.

    Attributes:
        path: the file.
        shown: its name in reports.
        mark: text chunks of the file, ours only.
    """

    path: Path
    shown: str
    mark: Mapping[str, str]

    @property
    def generated(self) -> bool:
        """Whether nobody in it exists."""
        return self.mark.get(PEOPLE) == GENERATED

    @property
    def title(self) -> str:
        """What it shows."""
        return self.mark.get("ppreid_kind") or self.path.stem

    @property
    def origin(self) -> Provenance:
        """Where it comes from."""
        get = {name.removeprefix("ppreid_"): text for name, text in self.mark.items()}.get
        return Provenance(
            self.shown,
            "picture of a run",
            get("command", ""),
            get("commit", UNKNOWN),
            get("seed", UNKNOWN),
            get("device", UNKNOWN),
        )


def picture_mark(people: str, **told: str) -> dict[str, str]:
    """Return the text chunks of a picture.

    Args:
        people: ``generated`` or ``real``.
        told: ``kind``, ``command``, ``seed``, ``commit``, ``device``.

    Raises:
        ValueError: another word.
    """
    if people not in (GENERATED, REAL):
        raise ValueError(f"people is {people!r}; allowed: {GENERATED}, {REAL}. Say real where it is not known.")
    return {PEOPLE: people, **{f"ppreid_{name}": text for name, text in told.items()}}


def read_mark(path: Path) -> dict[str, str] | None:
    """Return our text chunks of a PNG file; None: it is not one of ours, or no picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {})
    except (OSError, SyntaxError, ValueError):
        return None
    mark = {name: str(value) for name, value in text.items() if name.startswith("ppreid_")}
    return mark if PEOPLE in mark else None


def is_generated(path: str | Path) -> bool:
    """Whether an image lies in a folder that the generator of pedestrians wrote (its ``meta.json`` says so)."""
    for folder in list(Path(path).resolve().parents)[:3]:
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return isinstance(meta, dict) and {"generator_version", "num_train_ids", "num_test_ids", "seed"} <= set(meta)
    return False
