"""Command line of concept erasure: ``tools/erase_concepts.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..report.record import require_folder
from .erasure import Leace
from .image_components import named_components
from .image_flags import add_image_flags, checked_components
from .inputs import Labeler, add_label_flags, load_set, require_two_classes


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/erase_concepts.py``."""
    made = argparse.ArgumentParser(
        description="Fit LEACE on the training split: a public transform after which no linear attacker finds the "
        "named attributes, or the largest components of the images, there. Use it as --transform leace:FILE, or "
        "privacy.gallery.transform leace:FILE.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--train", required=True, help="features of the training split, with attr_<name> or labels given below")
    add_label_flags(made, to="erase")
    add_image_flags(made, to="erase")
    add("--no-center", action="store_true", help="keep the training mean; without this it is taken off, as center does")
    add("--out", default="leace.safetensors", help="file to write")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def erase_command(argv: Sequence[str]) -> Leace:
    """Fit as the command line says, write the transform, say what was erased.

    Raises:
        ValueError: no attributes, an unknown one, or one of a single class; image components without images, or more
            than there are; nothing is written then.
    """
    args = parser().parse_args(argv)
    out = Path(args.out)
    require_folder("--out", out)
    rows = Labeler(args.attributes, args.market_attributes, args.only)(
        load_set(args.train, (), args.images_root), "--train"
    )
    shown = checked_components(args, rows)
    names = sorted(rows.attributes) if args.only or not shown else []
    if not names and not shown:
        raise ValueError(
            f"'{args.train}' has no attributes to erase. Add arrays attr_<name>, or name labels of people with "
            "--attributes or --market-attributes; or erase --image-components."
        )
    require_two_classes(rows, names, "--train", "erase", jointly=True)
    leace = Leace(center=not args.no_center).fit_concepts(
        rows.features,
        rows.concepts(names) if names else None,
        numbers=named_components(rows, args.image_components, args.head_components),
    )
    leace.save(out)
    stated = leace.describe()
    erased = [*names, *([shown] if shown else [])]
    print(
        f"Erased {stated['erased_directions']} of {stated['columns']} directions ({', '.join(erased)}), fitted on "
        f"{stated['fitted_rows']} training rows. Written: '{out}'"
    )
    return leace
