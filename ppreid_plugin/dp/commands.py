"""Command lines of the release: ``tools/release_gallery.py`` and ``tools/ledger.py``."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ppreid_plugin.dp.feature_files import (
    load_arrays,
    load_budgets,
    load_gallery,
    load_training,
    model_fingerprint,
    require_arrays,
    require_disjoint,
)
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import MECHANISMS, Mechanism, build_mechanism
from ppreid_plugin.dp.plan import PROTOCOLS, ReleasePlan, ReleaseTerms, transformed
from ppreid_plugin.dp.prior import fit_prior
from ppreid_plugin.dp.recovery import finish_release, purge_release, verify_releases, void_release
from ppreid_plugin.dp.release import draw_release
from ppreid_plugin.dp.spec import MechanismSpec, naming_flags, parameter_names
from ppreid_plugin.dp.stored import Release
from ppreid_plugin.dp.transforms import TRANSFORMS, PublicTransform, build_transform
from ppreid_plugin.dp.units import UNITS, GalleryRows
from ppreid_plugin.registry import Registry, check_arguments

Training: TypeAlias = tuple[np.ndarray, np.ndarray | None]

# how errors call what flags give
_CALLED = {
    **{name: f"--{name.replace('_', '-')}" for name in ("epsilon", "delta", "codewords", "set_size")},
    **{name: f"--{name.replace('_', '-')}" for name in ("controller", "purpose", "expires", "truth_out")},
    **{"out": "--out", "max_rows_per_person": "--max-rows-per-person", "public transform": "--transform"},
    **{"budget epsilon": "--budget", "budget delta": "--budget-delta"},
}
_WEIGHT_SUFFIXES = (".pth", ".tar", ".pt", ".ckpt", ".safetensors", ".onnx")
_LISTS: dict[str, Registry[Any]] = {"mechanisms": MECHANISMS, "transforms": TRANSFORMS}


def release_parser() -> argparse.ArgumentParser:
    """Return the parser of ``tools/release_gallery.py``."""
    parser = argparse.ArgumentParser(
        description="Draw a differentially private release of a gallery's features, once, and account for it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--list", choices=sorted(_LISTS), help="print what is registered and stop")
    add("--train", help="features of the training split (.npz, .safetensors) that the transform is fitted on")
    add("--gallery", help="features, pids, camids, row_ids of the gallery (.npz, .safetensors)")
    add("--model", default="", help="checkpoint that made the features (its SHA-256 is kept), or a fingerprint")
    add("--mechanism", default="gaussian", metavar="NAME[:KEY=VALUE,...]", help="registered mechanism, as in a sweep")
    add("--epsilon", type=float, help="budget of one unit")
    add("--delta", type=float, help="failure probability; left out: 1e-5, or 0 for a pure mechanism")
    add("--codewords", type=int, help="finite mechanisms: size of the codebook that is fitted on --train")
    add("--set-size", type=int, help="prior_subset: codewords in a row's set (1)")
    add("--codebook", help="finite mechanisms: a file with codebook (and decoder) instead of fitting one")
    add("--prior-source", default="", help="where the people behind the codebook are from, for the manifest")
    add("--prior-is-public", action="store_true", help="they are consenting, public or generated: small cells are fine")
    add("--unit", choices=UNITS, default="image", help="unit of privacy: one image, or one prototype a person")
    add("--protocol", choices=PROTOCOLS, default="anonymous", help="enrolled releases carry pids")
    add("--transform", default="center", help="public transform before the mechanism: NAME[:KEY=VALUE+...]")
    add("--background-pids", type=int, nargs="*", default=[0], help="pids that are no person")
    add("--max-rows-per-person", type=int, default=0, help="rows of one pid that are released; 0: all")
    add("--cameras", type=int, nargs="*", default=[], metavar="CAMID", help="cameras whose rows go in; none: all")
    add(
        "--budgets", nargs="*", default=[], metavar="PID=EPSILON", help="people with a budget of their own, or FILE.csv"
    )
    add("--opt-out", type=int, nargs="*", default=[], metavar="PID", help="people who are left out")
    add("--ledger", default="ledger", help="folder of the ledger")
    add("--scope", default="default", help="what the budget is declared for")
    add("--scope-unit", choices=UNITS, help="unit of the accounts, when the scope is opened; left out: --unit")
    add("--budget", type=float, help="total epsilon of each account, when the scope is opened")
    add("--budget-delta", type=float, help="total delta, when the scope is opened")
    add("--name", help="name of the release")
    add("--out", help="folder of the release")
    add("--truth-out", help="file for the map from released rows to labels; keep it apart")
    add("--dry-run", action="store_true", help="print sigma, mu and person-level epsilon; spend nothing")
    add("--append", action="store_true", help="add new units to the stored release of this name")
    add("--new-release", action="store_true", help="draw again although the name is known; spends again")
    add("--controller", default="", help="who answers for the release")
    add("--purpose", default="", help="what it is for")
    add("--expires", default="", help="date after which it is to be deleted, such as 2027-12-31")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def release_command(argv: Sequence[str]) -> Release | None:
    """Release saved features as the command line says; None where nothing was released."""
    args = release_parser().parse_args(argv)
    if args.list:
        print(list_text(args.list))
        return None
    require_flags(args, "gallery", "epsilon", "name", *(() if args.dry_run else ("out", "model")))
    gallery = load_gallery(args.gallery)
    if args.train:
        require_disjoint(args.train, gallery.row_ids, "--train", "--gallery")
    _require_model(args)
    return release_rows(args, gallery, load_training(args.train) if args.train else None)


def _require_model(args: argparse.Namespace) -> None:
    """Raise ValueError if --model is no file but looks like one, or the files say that other weights made them."""
    if not args.model:
        return
    model = model_fingerprint(args.model)
    if model == args.model and ("/" in model or Path(model).suffix in _WEIGHT_SUFFIXES):
        raise ValueError(
            f"--model is '{args.model}', which is not there. Name the checkpoint, or give its fingerprint."
        )
    for flag in ("gallery", "train"):
        told = str(load_arrays(path, ["model"]).get("model", "")) if (path := getattr(args, flag)) else ""
        if told and told != model:
            raise ValueError(
                f"--model is '{args.model}' ({model}), and --{flag} '{path}' was made with {told}: the manifest would "
                "name weights that queries do not fit. Name the checkpoint that made the features."
            )


def list_text(kind: str) -> str:
    """Return the registered names of a kind, one a line."""
    return "\n".join(_LISTS[kind].names())


def require_flags(args: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if a flag that is needed was not given."""
    if missing := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) in (None, "")]:
        raise ValueError(f"{', '.join(missing)} must be given. --help lists all flags.")


def release_rows(args: argparse.Namespace, gallery: GalleryRows, train: Training | None) -> Release | None:
    """Release these rows as the flags say; None for a dry run.

    Args:
        args: of `release_parser`.
        gallery: rows with their labels.
        train: features (n, d) and pids (n,) of the training split, if there is one.

    Raises:
        ValueError: a flag that is missing or out of range; it is named.
    """
    spec = MechanismSpec.parse(args.mechanism)
    written = {name: f"{name} of --mechanism" for name in spec.options}
    if "transform" in written:
        written["public transform"] = written["transform"]
    with naming_flags({**_CALLED, **written}):
        return _release_rows(args, spec, gallery, train)


def _release_rows(
    args: argparse.Namespace, spec: MechanismSpec, gallery: GalleryRows, train: Training | None
) -> Release | None:
    budgets = _budgets(args.budgets)
    # a mistyped number would publish the very person who asked to be left out, and cannot be undone
    pids, camids = _known_before(args)
    _require_known("--opt-out", args.opt_out, {*gallery.pids.tolist(), *pids}, "pid")
    _require_known("--budgets", budgets, {*gallery.pids.tolist(), *pids}, "pid")
    _require_known("--cameras", args.cameras, {*gallery.camids.tolist(), *camids}, "camid")
    options = dict(spec.options)
    if not options.pop("prototype", True):
        raise ValueError(
            f"--mechanism is '{args.mechanism}': rows at a share of the budget each exist for evaluation only. A "
            "release of the person unit holds one prototype a person; leave prototype=False out."
        )
    for flag in ("max_rows_per_person", "codewords", "set_size"):
        if flag in options and getattr(args, flag):
            raise ValueError(
                f"{_CALLED[flag]} is {getattr(args, flag)}, and --mechanism has {flag} {options[flag]}, too. Leave one "
                "of them out."
            )
    max_rows_per_person = options.pop("max_rows_per_person", args.max_rows_per_person)
    named = "transform of --mechanism" if "transform" in options else "--transform"
    chosen = options.pop("transform", args.transform)
    with naming_flags(parameter_names(chosen, named)):
        transform = fitted_transform(chosen, train)
    mechanism, prior = _mechanism(args, MechanismSpec(spec.name, options), transform, train)
    terms = ReleaseTerms(
        name=args.name,
        model=model_fingerprint(args.model) or "none given",
        unit=args.unit,
        protocol=args.protocol,
        background_pids=args.background_pids,
        max_rows_per_person=max_rows_per_person,
        cameras=args.cameras,
        budgets=budgets,
        opt_out=args.opt_out,
        prior=prior,
        controller=args.controller,
        purpose=args.purpose,
        expires=args.expires,
    )
    plan = ReleasePlan(gallery, mechanism, transform, terms)  # before a scope is opened, which is for good
    if args.dry_run:
        if not args.append:
            terms.require_current()
        print("Dry run: nothing is drawn, nothing is spent.\n" + summary_text(plan.summary()))
        return None
    ledger = Ledger(
        args.ledger,
        args.scope,
        unit=args.scope_unit,
        epsilon=args.budget,
        delta=args.budget_delta,
        background_pids=args.background_pids,
        default_unit=args.unit,
    )
    before = len(ledger.records())
    release = draw_release(
        plan,
        args.out,
        ledger=ledger,
        truth_out=args.truth_out,
        append=args.append,
        new_release=args.new_release,
    )
    name = release.manifest["release"]
    if len(ledger.records()) == before:
        aside = "" if release.folder == Path(args.out).absolute() else f", and --out '{args.out}' was not written"
        print(f"Release {name} is stored in '{release.folder}': nothing was drawn or spent{aside}.")
    else:
        print(f"Release {name} in '{release.folder}'")
    print(summary_text(release.manifest))
    return release


def ledger_command(argv: Sequence[str]) -> None:
    """Show, verify, finish, void or purge as the command line of ``tools/ledger.py`` says."""
    parser = argparse.ArgumentParser(description="Look after the ledger of releases; nothing here refunds a budget.")
    parser.add_argument("action", choices=["show", "verify", "finish", "void", "purge"])
    parser.add_argument("name", nargs="?", help="reservation to finish or void, release to purge, such as gallery-0001")
    parser.add_argument("--ledger", default="ledger", help="folder of the ledger")
    parser.add_argument("--scope", default="default", help="scope in it")
    parser.add_argument("--release", nargs="*", default=[], help="verify: folders of releases; purge: its folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    scopes = sorted(path.stem for path in Path(args.ledger).glob("*.jsonl"))
    if scopes and args.scope not in scopes:
        raise ValueError(f"scope {args.scope!r} is not in the ledger '{args.ledger}'; it has: {', '.join(scopes)}.")
    if args.name and args.action in ("show", "verify"):
        raise ValueError(f"{args.action} takes no name, and '{args.name}' is given: leave it out.")
    if args.release and args.action not in ("verify", "purge"):
        raise ValueError(f"--release is for verify and purge; with {args.action} it does nothing. Leave it out.")
    if args.action == "purge" and len(args.release) > 1:
        raise ValueError(f"--release has {len(args.release)} folders; purge deletes one. Run it for each.")
    if not scopes:
        raise ValueError(f"--ledger is '{args.ledger}', where no ledger is. Name its folder.")
    ledger = Ledger(args.ledger, args.scope)
    if args.action == "show":
        print(ledger_text(ledger))
    elif args.action == "verify":
        for finding in verify_releases(ledger, args.release):
            print(finding)
        print(f"Scope {ledger.scope!r}: {len(ledger.records())} records, the chain is whole.")
    elif not args.name:
        raise ValueError(f"{args.action} needs a name. tools/ledger.py show lists them.")
    elif args.action == "finish":
        print(f"Finished: '{finish_release(ledger, args.name).folder}'")
    elif args.action == "void":
        void_release(ledger, args.name)
        print(
            f"Voided {args.name}; what it reserved stays spent. If it was to write a map (--truth-out), delete that: "
            "the ledger does not know where it lies."
        )
    elif (deleted := purge_release(ledger, args.name, args.release[0] if args.release else None)) is not None:
        where = " and ".join(f"'{folder}'" for folder in deleted)
        done = f"Deleted {args.name} in {where}"
        if not deleted:
            done = f"Recorded {args.name} as purged; nothing lay where it was written: delete copies by hand"
        print(
            f"{done}; what it spent stays spent. Its people are still in maps (--truth-out) and search "
            "indexes (tools/serve_index.py) that were made with it: delete those too."
        )
    else:
        print(f"{args.name} was purged or voided before: nothing is left to delete.")


def fitted_transform(name: str, train: Training | None) -> PublicTransform:
    """Return the public transform, fitted on the training split if it learns anything."""
    transform = build_transform(name)
    if not transform.needs_fit:
        return transform
    if train is None:
        raise ValueError(f"--train must be given: transform {name!r} is fitted on it. Or say --transform none.")
    return transform.fit(*train)


def summary_text(summary: dict[str, Any]) -> str:
    """Return budget, noise and person-level figures as lines."""
    lines = [
        f"mechanism {summary['mechanism']['mechanism']}, unit {summary['unit']}, protocol {summary['protocol']}, "
        f"{summary['rows']} rows",
        f"epsilon {summary['epsilon']:g}, delta {summary['delta']:g} (replace)",
    ]
    if summary["sigma"] is not None:
        lines.append(f"sigma {summary['sigma']:.6g}, mu {summary['mu']:.6g}, sensitivity {summary['sensitivity']:.6g}")
    if background := summary.get("background_rows"):
        lines.append(
            f"background: {background} rows, which are taken for nobody's: each is a unit of its own, and no "
            "person-level figure counts them"
        )
    if (level := summary["person_level"]) is not None:
        rows = summary["rows_a_person"]
        lines.append(
            f"person level (delta {level['delta']:g}): epsilon {level['epsilon_at_median']:.4g} at the median of "
            f"{rows['median']} rows, {level['epsilon_at_largest']:.4g} at the largest number, {rows['largest']}"
        )
    if summary["bounds"]:
        lines.append("bounds for one row: " + ", ".join(f"{k} {v:.3g}" for k, v in summary["bounds"].items()))
    return "\n".join(lines)


def ledger_text(ledger: Ledger) -> str:
    """Return the scope's budget, its releases, and what is spent, as lines."""
    spent = {account: ledger.total_of(charges) for account, charges in ledger.spent().items()}
    lines = [f"scope {ledger.scope!r}: epsilon {ledger.epsilon:g} at delta {ledger.delta:g} for each {ledger.unit}"]
    for part in ledger.parts().values():
        lines.append(f"{part.reservation}: {part.state}, {len(part.units)} rows, {part.time}, '{part.folder}'")
    if spent:
        values = sorted(spent.values())
        lines.append(
            f"{len(values)} accounts have spent {values[0]:.4g} to {values[-1]:.4g}; "
            f"{sum(value > ledger.epsilon / 2 for value in values)} more than half of the budget"
        )
    return "\n".join(lines)


def _mechanism(
    args: argparse.Namespace, spec: MechanismSpec, transform: PublicTransform, train: Training | None
) -> tuple[Mechanism, dict[str, Any]]:
    """Return the mechanism, and the provenance of its codebook if it has one."""
    options: dict[str, Any] = dict(spec.options)
    prior: dict[str, Any] = {}
    kind = MECHANISMS.get(spec.name, key="--mechanism")
    allowed = inspect.signature(kind).parameters
    if "codebook" in allowed:
        if args.codebook:
            _require_no_fit(args, spec, allowed)
        flags = {"codewords": args.codewords, "set_size": args.set_size}
        options |= {name: value for name, value in flags.items() if value is not None}
        if args.prior_is_public:
            options["prior_is_public"] = True
        prior["source"] = args.prior_source or "not stated"
        if args.codebook:
            arrays = load_arrays(args.codebook)
            require_arrays(args.codebook, arrays, ("codebook",))
            options = {name: arrays[name] for name in ("codebook", "decoder") if name in arrays} | {
                name: value for name, value in options.items() if name == "set_size"
            }
        elif "codewords" in options and train is not None:
            features, pids = train
            check_arguments(options, [fit_prior], key="--mechanism", given=("train_features", "train_pids"))
            fitted = fit_prior(transformed(transform, features), () if pids is None else pids, **options)
            options, prior = fitted.options(), {**prior, **fitted.describe()}
        else:
            raise ValueError(
                f"mechanism {spec.name!r} needs a codebook: --codewords M to fit one on --train, or --codebook FILE."
            )
        options = {name: value for name, value in options.items() if name in allowed}
    else:
        takers: list[Callable[..., Any]] = [kind, lambda transform, max_rows_per_person: None]  # two that are taken out
        check_arguments(options, takers, key="--mechanism", given=("epsilon", "delta"))
        for flag in ("codewords", "set_size", "codebook", "prior_source", "prior_is_public"):
            if _was_given(args, flag):
                raise ValueError(
                    f"--{flag.replace('_', '-')} is for mechanisms with a codebook; {spec.name!r} has none. Leave it "
                    "out, or take --mechanism prior_subset."
                )
    return build_mechanism(spec.name, epsilon=args.epsilon, delta=args.delta, **options), prior


def _require_no_fit(args: argparse.Namespace, spec: MechanismSpec, allowed: Collection[str]) -> None:
    """Raise ValueError if anything is given for the fit of a codebook, beside one from a file."""
    free = ("set_size",) if "set_size" in allowed else ()
    takers: list[Callable[..., Any]] = [lambda transform, max_rows_per_person, set_size: None]
    check_arguments(spec.options, takers, key="--mechanism beside --codebook", given={"set_size"}.difference(free))
    for flag in ("codewords", "set_size", "prior_is_public"):
        if flag not in free and _was_given(args, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')} stands beside --codebook, with which it does nothing: the codebook of "
                f"{spec.name!r} is in the file. Leave it out."
            )


def _was_given(args: argparse.Namespace, flag: str) -> bool:
    value = getattr(args, flag)
    return not (value is None or value is False or value == "")  # 0 was given


def _known_before(args: argparse.Namespace) -> tuple[set[int], set[int]]:
    """Return pids and camids that releases of this name know: an append's file holds new rows only."""
    if not (args.append or args.new_release) or not (Path(args.ledger) / f"{args.scope}.jsonl").exists():
        return set(), set()
    parts = [part for part in Ledger(args.ledger, args.scope).parts().values() if part.name == args.name]
    pids = {pid for part in parts for pid in (*part.rows.values(), *part.opt_out, *part.public["budgets"])}
    return {int(pid) for pid in pids}, {camid for part in parts for camid in part.public.get("cameras", ())}


def _require_known(flag: str, given: Iterable[int], known: Collection[int], what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{flag} has {what} {unknown[0]}, of which the gallery has no row. Check the number, or leave it out."
        )


def _budgets(pairs: Sequence[str]) -> dict[int, float]:
    if len(pairs) == 1 and pairs[0].endswith(".csv"):
        return load_budgets(pairs[0])
    try:
        budgets = [(int(pid), float(epsilon)) for pid, epsilon in (pair.split("=") for pair in pairs)]
    except ValueError:
        raise ValueError(
            f"--budgets is {' '.join(pairs)!r}, must be PID=EPSILON pairs such as 12=2.0 13=4., or one CSV file."
        ) from None
    counts = Counter(pid for pid, _ in budgets)
    if twice := [pid for pid, count in counts.items() if count > 1]:
        raise ValueError(f"--budgets has pid {twice[0]} {counts[twice[0]]} times. Give each person one budget.")
    return dict(budgets)
