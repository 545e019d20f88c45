"""Command line of sweeps: ``tools/sweep.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from ..dp.feature_files import require_disjoint_files
from ..dp.spec import MechanismSpec
from ..dp.units import UNITS
from .choice import choice_table, choose, evaluate_choices, split_validation
from .figures import budget_curves
from .record import environment, require_folder, write_json
from .sweep import PROTOCOLS, Fitter, load_split, sweep, table

_OnGallery: TypeAlias = Callable[..., list[dict[str, Any]]] | None


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/sweep.py``."""
    made = argparse.ArgumentParser(
        description="Utility of DP mechanisms over budgets, from saved features (arrays features, pids, camids).",
        epilog="Alternatives for --choose are written with |: prior_subset:codewords=1024|4096,set_size=1|4",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    for split, text in (("train", "people outside the gallery"), ("query", "queries"), ("gallery", "gallery")):
        add(f"--{split}", required=split == "train", help=f"features of the {text}: .npz or .safetensors")
    add("--validation", help="features of people whom the encoder was not fitted to; choices are made on them")
    add("--validation-train", help="training split of the validation features' encoder, if it is another (--train)")
    add("--choose", action="store_true", help="choose mechanism and parameters for each budget on --validation")
    add("--validation-seeds", type=int, help="noise draws that a choice is made on (as --seeds)")
    add(
        "--gap",
        nargs="*",
        type=float,
        metavar="EPSILON",
        help="with --choose: evaluate all candidates on the gallery too (slow), at these budgets or at all",
    )
    add("--mechanisms", nargs="+", default=["gaussian", "privunit_g"], metavar="NAME[:KEY=VALUE|VALUE,...]")
    add("--epsilons", nargs="+", type=float, default=[4.0, 8.0, 16.0], help="budgets of one unit")
    add("--protocols", nargs="+", default=list(PROTOCOLS), help="anonymous, enrolled")
    add("--units", nargs="+", default=["image"], help=f"units of privacy: {', '.join(UNITS)}")
    add("--enroll-cameras", nargs="*", type=int, help="person unit: camids to enroll from (the first half)")
    add("--seeds", type=int, default=3, help="noise draws")
    add("--delta", type=float, help="of approximate mechanisms (1e-5, if not given)")
    add("--transform", default="center", help="public transform, fitted on --train: NAME[:KEY=VALUE+...]")
    add("--background-pids", nargs="*", type=int, default=[0], help="pids that are no person")
    add("--out", default="sweep.json", help="file to write")
    add("--curves", help="picture to write: rank-1 and mAP over epsilon, with the bound where one holds (.png)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def sweep_command(argv: Sequence[str]) -> dict[str, Any]:
    """Run a sweep as the command line says, write JSON and curves, print the tables."""
    args = parser().parse_args(argv)
    if args.choose and not args.validation:
        raise ValueError("--choose needs --validation FILE: features of people whom the encoder was not fitted to.")
    if bool(args.query) != bool(args.gallery) or not (args.gallery or args.choose):
        raise ValueError("--query and --gallery must both be given (with --choose both may be left out).")
    for name in ("validation", "validation_train", "validation_seeds", "gap"):
        if getattr(args, name) is not None and not args.choose:
            raise ValueError(f"--{name.replace('_', '-')} goes with --choose, which is not given: it would do nothing.")
    if args.enroll_cameras is not None and "person" not in args.units:
        raise ValueError("--enroll-cameras is for the person unit: add --units person, or leave it out.")
    for name in ("out", "curves"):
        require_folder(f"--{name}", getattr(args, name))
    specs = [spec for text in args.mechanisms for spec in MechanismSpec.expand(text)]
    common: dict[str, Any] = {
        "delta": args.delta,
        "transform": args.transform,
        "background_pids": args.background_pids,
    }
    every = {"mechanisms": specs, "epsilons": args.epsilons, "protocols": args.protocols, "units": args.units}
    record: dict[str, Any] = {"rows": []}
    on_gallery: _OnGallery = None
    if args.gallery:
        require_disjoint_files(args.train, "--train", args.gallery, "--gallery")
        train = load_split(args.train)
        on_gallery = partial(
            sweep,
            train,
            load_split(args.query),
            load_split(args.gallery),
            enroll_cameras=args.enroll_cameras,
            fitter=Fitter(train),
            **common,
        )
    if args.choose:
        record |= _choose(args, every, common, on_gallery)
    elif on_gallery is not None:
        record["rows"] = on_gallery(**every, seeds=args.seeds)
    record |= {"command": ["tools/sweep.py", *argv], "environment": environment("cpu")}
    write_json(record, args.out)
    if record["rows"]:
        print(table(record["rows"]))
        if args.curves:
            budget_curves(record["rows"], args.curves)
            print(f"Curves written to '{args.curves}'")
    print(f"Research noise: for figures only. Written to '{args.out}'")
    return record


def _choose(
    args: argparse.Namespace,
    every: dict[str, Any],
    common: dict[str, Any],
    on_gallery: Callable[..., list[dict[str, Any]]] | None,
) -> dict[str, Any]:
    fitted_on = args.validation_train or args.train
    require_disjoint_files(fitted_on, "--train", args.validation, "--validation")
    for name in ("gallery", "query"):
        if path := getattr(args, name):
            require_disjoint_files(args.validation, "--validation", path, f"--{name}")
    people = load_split(args.validation)
    train = load_split(fitted_on)
    query, gallery = split_validation(people)
    # labels of the training split start at 0, and nobody among validation people is background
    here = {**common, "background_pids": []}
    validation = sweep(
        train, query, gallery, **every, **here, seeds=args.validation_seeds or args.seeds, description="Validation"
    )
    choices = choose(validation)
    if on_gallery is None:
        print(
            "\n".join(
                f"{c['unit']}, {c['protocol']}, epsilon {c['epsilon']:g}: "
                f"{MechanismSpec(c['mechanism'], c['params'])} ({c['value']:.1%})"
                for c in choices
            )
        )
        return {"choices": choices, "validation": validation}
    candidates: list[dict[str, Any]] = []
    if args.gap is not None:
        looked = {**every, "epsilons": args.gap or args.epsilons}
        candidates = on_gallery(**looked, seeds=[1], description="All candidates")

    def run(spec: MechanismSpec, unit: str, protocol: str, epsilon: float) -> list[dict[str, Any]]:
        chosen = {"mechanisms": [spec], "units": [unit], "protocols": [protocol], "epsilons": [epsilon]}
        return on_gallery(**chosen, seeds=args.seeds, description=f"{spec.name}, epsilon {epsilon:g}")

    rows, gaps = evaluate_choices(choices, run, candidates)
    print(choice_table(gaps) + "\n")
    return {"rows": rows, "choices": gaps, "validation": validation, "candidates": candidates}
