"""Flags of the commands that protect saved features with research noise before they look at them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..dp.gallery import DPGallery
from ..dp.spec import MechanismSpec
from ..dp.units import UNITS
from .sweep import make_gallery


def add_mechanism_flags(add: Callable[..., Any]) -> None:
    """Add ``--mechanism`` and what goes with it by the function ``add``."""
    add("--mechanism", metavar="NAME[:KEY=VALUE,...]", help="protect features first, with research noise")
    add("--epsilon", type=float, help="budget of one unit, with --mechanism")
    add("--delta", type=float, help="of approximate mechanisms (1e-5, if not given), with --mechanism")
    add("--unit", choices=UNITS, help="unit of privacy (image, if not given), with --mechanism")
    add(
        "--transform",
        metavar="NAME[:KEY=VALUE+...]",
        help="public transform, fitted on --train (center, if not given), with --mechanism (none: no noise)",
    )


def check_mechanism_flags(args: argparse.Namespace) -> None:
    """Raise ValueError where ``--epsilon`` is missing, or a flag stands that does nothing without ``--mechanism``."""
    if bool(args.mechanism) != (args.epsilon is not None):
        raise ValueError("--mechanism and --epsilon belong together, such as: --mechanism privunit_g --epsilon 8")
    for flag in ("delta", "unit", "transform"):
        if not args.mechanism and (given := getattr(args, flag)) is not None:
            raise ValueError(
                f"--{flag} is {given!r} without --mechanism: it would do nothing. Add --mechanism NAME --epsilon E "
                "(--mechanism none --epsilon 1: no noise), or leave it out."
            )


def gallery_of(args: argparse.Namespace, *, seed: int) -> DPGallery:
    """Return the component that the flags of `add_mechanism_flags` and ``--background-pids`` make.

    Raises:
        ValueError: as `make_gallery`.
    """
    return make_gallery(
        MechanismSpec.parse(args.mechanism),
        flags={name: f"--{name}" for name in ("mechanism", "epsilon", "delta", "unit", "transform")},
        epsilon=args.epsilon,
        unit=args.unit or "image",
        seed=seed,
        delta=args.delta,
        transform=args.transform or "center",
        background_pids=tuple(args.background_pids),
    )
