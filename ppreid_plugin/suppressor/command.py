"""Command line of the suppressor: ``tools/fit_suppressor.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ..dp.spec import naming_flags
from ..leakage.image_components import named_components
from ..leakage.image_flags import add_image_flags, checked_components
from ..leakage.inputs import Labeler, add_label_flags, load_set, require_two_classes
from ..number_checks import require_whole
from ..registry import closest
from ..report.record import require_folder, write_json
from .fitting import SuppressorFit
from .front import Front, hold_out, suppressor_front
from .transform import Suppressor

_FIT = SuppressorFit()  # its defaults are those of the flags
_SETTINGS = (
    "hidden",
    "identity",
    "contrast",
    "distillation",
    "temperature",
    "epochs",
    "batch",
    "lr",
    "weight_decay",
    "seed",
)
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in (*_SETTINGS, "erasure", "image_erasure", "attack_seeds")}


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/fit_suppressor.py``."""
    made = argparse.ArgumentParser(
        description="Fit a small network behind a model, on features of the training split, that suppresses "
        "attributes, or what an inversion shows, and keeps matching. Use it as --transform suppressor:FILE, or "
        "privacy.gallery.transform suppressor:FILE. With --hold-out, show what each weight costs on people held out, "
        "and fit nothing for use.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--train", required=True, help="features of the training split, with attr_<name> or labels given below")
    add_label_flags(made, to="suppress")
    add("--erasure", type=float, nargs="+", metavar="W", help=f"weight ({_FIT.erasure:g}); several: --hold-out")
    add_image_flags(made, to="suppress")
    add(
        "--image-erasure",
        type=float,
        nargs="+",
        metavar="W",
        help=f"weight of the image components ({_FIT.image_erasure:g}); several: --hold-out",
    )
    add("--hold-out", type=int, metavar="N", help="training people to judge on, at random; nothing is fitted for use")
    add("--attack-seeds", type=int, help="attackers for each figure on people held out (1)")
    for name in _SETTINGS:
        value = getattr(_FIT, name)
        add(f"--{name.replace('_', '-')}", type=type(value), default=value, help="of the fit: docs/suppression.md")
    add("--out", default="suppressor.safetensors", help="file to write; with --hold-out, .json")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def suppressor_command(argv: Sequence[str]) -> Suppressor | Front:
    """Fit as the command line says and write the transform, or judge weights on people held out.

    Raises:
        FileNotFoundError: a file or folder that is not there.
        ValueError: no attributes, an unknown one, image components without images, numbers out of range; nothing is
            written then.
    """
    args = parser().parse_args(argv)
    out = Path(args.out)
    _check_out(out, ".safetensors" if args.hold_out is None else ".json")
    for flag, weights in (("--erasure", args.erasure), ("--image-erasure", args.image_erasure)):
        if args.hold_out is None and len(weights or ()) > 1:
            raise ValueError(f"{flag} has {len(weights)} weights. Give one, or --hold-out N to choose among them.")
    _refuse_idle(args)
    erasure, image_erasure = args.erasure or [_FIT.erasure], args.image_erasure or [_FIT.image_erasure]
    settings = {name: getattr(args, name) for name in _SETTINGS}
    with naming_flags(_FLAGS):
        for weight, image_weight in product(erasure, image_erasure):
            SuppressorFit(erasure=weight, image_erasure=image_weight, **settings)
        attack_seeds = require_whole("attack_seeds", 1 if args.attack_seeds is None else args.attack_seeds)
    rows = Labeler(args.attributes, args.market_attributes, None)(load_set(args.train, (), args.images_root), "--train")
    shown = checked_components(args, rows)
    names = _suppressed(args.only, sorted(rows.attributes), args.train) if args.only or not shown else []
    require_two_classes(rows, names, "--train", "suppress")
    said = ", ".join([*names, *([shown] if shown else [])])
    if args.hold_out is not None:
        train, held_out = hold_out(rows, args.hold_out, args.seed)
        front = suppressor_front(
            train,
            held_out,
            names,
            erasure,
            image_components=args.image_components,
            head_components=args.head_components,
            image_weights=image_erasure,
            attack_seeds=attack_seeds,
            **settings,
        )
        write_json({**front.to_json(), "command": ["tools/fit_suppressor.py", *argv]}, out)
        print(f"On {front.held_out_people} people held out, suppressed: {said}")
        print(front.table())
        print(f"Written: '{out}'")
        return front
    fitted = Suppressor(erasure=erasure[0], image_erasure=image_erasure[0], **settings)
    with naming_flags(_FLAGS):
        fitted.fit_people(
            rows.features,
            rows.pids,
            rows.concepts(names) if names else None,
            numbers=named_components(rows, args.image_components, args.head_components),
        )
    fitted.save(out)
    last = ", ".join(f"{name} {value:.4g}" for name, value in fitted.losses[-1].items())
    print(f"Suppressed {said}, fitted on {fitted.fitted_rows} training rows. Losses: {last}")
    print(f"Written: '{out}'")
    return fitted


def _refuse_idle(args: argparse.Namespace) -> None:
    """Raise ValueError where a flag is given that would do nothing."""
    shown = args.image_components or args.head_components
    if args.image_erasure is not None and not shown:
        raise ValueError(
            f"--image-erasure is {_listed(args.image_erasure)}, and no components of images are suppressed: it would "
            "do nothing. Add --image-components K, or leave it out."
        )
    if args.erasure is not None and shown and not args.only:
        raise ValueError(
            f"--erasure is {_listed(args.erasure)}, and with components of images only the attributes that --only "
            "names are suppressed: it would do nothing. Add --only NAME, or leave it out."
        )
    if args.attack_seeds is not None and args.hold_out is None:
        raise ValueError(
            f"--attack-seeds is {args.attack_seeds}, and nobody is held out to attack: it would do nothing. Add "
            "--hold-out N, or leave it out."
        )


def _listed(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)


def _check_out(out: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise ValueError(f"--out is '{out}', must end in {suffix}.")
    require_folder("--out", out)


def _suppressed(only: Sequence[str] | None, known: list[str], path: str) -> list[str]:
    if not known:
        raise ValueError(
            f"'{path}' has no attributes to suppress. Add arrays attr_<name>, or name labels of people with "
            "--attributes or --market-attributes."
        )
    for name in only or ():
        if name not in known:
            raise ValueError(f"--only has {name!r}; --train has: {', '.join(known)}.{closest(name, known)}")
    return list(dict.fromkeys(only or known))
