"""Command line of the budget audit: ``tools/audit.py``."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ppreid_plugin.dp.audit import CONFIDENCE, NOISES, Audit
from ppreid_plugin.dp.audit_release import ReleaseAudit, release_mechanisms
from ppreid_plugin.dp.feature_files import load_training
from ppreid_plugin.dp.gallery import DPGallery
from ppreid_plugin.dp.mechanisms import MECHANISMS, Mechanism, build_mechanism
from ppreid_plugin.dp.prior import fit_prior
from ppreid_plugin.dp.spec import MechanismSpec, naming_flags
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.progress import track
from ppreid_plugin.registry import check_arguments
from ppreid_plugin.report.record import environment, require_folder, write_json

CODEWORDS = 256  # of a codebook that is drawn at random, where no features are given
_FLAGS = {
    **{"mechanism": "--mechanisms", "epsilon": "--epsilons", "delta": "--delta"},
    **{"trials": "--trials", "dimension": "--dimension"},
}
_GIVEN = ("epsilon", "delta", "codebook", "decoder", "train_features", "train_pids")  # by flags, files, or drawn
_DEFAULT_MECHANISMS = ("gaussian", "privunit_g")
_DEFAULT_EPSILONS = (1.0, 4.0, 8.0, 16.0)


class AuditFailed(RuntimeError):  # noqa: N818  (it says what happened)
    """A mechanism shows more than it claims, or a row's output depends on other rows."""


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/audit.py``."""
    made = argparse.ArgumentParser(
        description="Attack DP mechanisms and bound from below the epsilon that they really have. Exit code 0 only if "
        "nothing contradicts what they claim; that is no proof.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--mechanisms", nargs="+", metavar="NAME[:KEY=VALUE,...]", help="gaussian privunit_g, if none is named")
    add("--epsilons", nargs="+", type=float, help="claimed budgets of one row (1 4 8 16, if none is given)")
    add("--delta", type=float, help="of approximate mechanisms (1e-5, if not given)")
    add("--train", help="features and pids (.npz, .safetensors) that codebooks are fitted on; left out: random ones")
    add("--noise", choices=NOISES, help="research (if not given), or the exact sampler of releases, which is slow")
    add("--release", metavar="DIR", help="audit the mechanism of this stored release instead, with release noise")
    add("--dimension", type=int, default=4, help="columns of the rows, where no codebook tells")
    add("--trials", type=int, default=100_000, help="releases of each of two rows")
    add("--out", help="file to write: JSON")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def audit_command(argv: Sequence[str]) -> dict[str, Any]:
    """Audit as the command line says, write JSON, print the table.

    Raises:
        AuditFailed: after that, if a mechanism failed.
        ValueError, OSError: a flag out of range or a file that cannot be read, before anything is drawn.
    """
    args = parser().parse_args(argv)
    require_folder("--out", args.out)
    planned = _planned_release(args) if args.release else _planned_mechanisms(args)
    rows = []
    for parameters, audit in track(planned, "Audit", unit="mechanisms"):
        rows.append({"parameters": parameters, **audit.run().to_json()})
    record = {"rows": rows, "command": ["tools/audit.py", *argv], "environment": environment("cpu")}
    if args.out:
        write_json(record, args.out)
    print(table(rows))
    for name, method in {row["mechanism"]: row["method"] for row in rows}.items():
        print(f"{name}: {method}.")
    if args.out:
        print(f"Written to '{args.out}'")
    failed = [row for row in rows if not row["passed"]]
    if failed:
        raise AuditFailed(f"{len(failed)} of {len(rows)} audits failed: {'; '.join(_fault(row) for row in failed)}.")
    return record


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of results, one line a mechanism and budget."""
    lines = [
        [
            row["mechanism"],
            ", ".join(f"{key} {value}" for key, value in row["parameters"].items()),
            row["noise"],
            f"{row['trials']:,}",
            f"{row['epsilon']:g}",
            f"{row['delta']:g}",
            f"{row['epsilon_lower']:.3f}",
            f"{row['epsilon_lower_95']:.3f}",
            "-" if row["epsilon_exact"] is None else f"{row['epsilon_exact']:.6f}",
            f"{100 * row['tight']:.1f} %",
            "-" if row["rows_changed"] is None else row["rows_changed"],
            "yes" if row["passed"] else "NO",
        ]
        for row in rows
    ]
    headers = ["mechanism", "parameters", "noise", "trials", "claimed epsilon", "delta"]
    headers += [f"at least ({100 * CONFIDENCE:.4f} %)", "at least (95 %)", "exact", "tight", "rows changed", "passed"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def _planned_mechanisms(args: argparse.Namespace) -> list[tuple[dict[str, Any], Audit]]:
    training = load_training(args.train) if args.train else None
    epsilons = args.epsilons or _DEFAULT_EPSILONS
    planned: list[tuple[dict[str, Any], Audit]] = []
    specs = [spec for text in args.mechanisms or _DEFAULT_MECHANISMS for spec in MechanismSpec.expand(text)]
    if args.delta is not None and all(MECHANISMS.get(spec.name, key="--mechanisms").pure for spec in specs):
        raise ValueError(
            f"--delta is {args.delta}, and the mechanisms are pure, which have none: {', '.join(map(str, specs))}. "
            "Leave it out, or name gaussian."
        )
    for spec in specs:
        kind = MECHANISMS.get(spec.name, key="--mechanisms")
        called = {**_FLAGS, **{name: f"{name} of --mechanisms" for name in spec.options}}
        with naming_flags(called):
            options = _with_codebook(spec, kind, epsilons[0], training, args.dimension, called)
            for epsilon in epsilons:
                delta = None if kind.pure else args.delta
                mechanism = build_mechanism(spec.name, epsilon=epsilon, delta=delta, **options)
                audit = Audit(mechanism, trials=args.trials, dimension=args.dimension, noise=args.noise or "research")
                planned.append((spec.options, audit))
    return planned


def _planned_release(args: argparse.Namespace) -> list[tuple[dict[str, Any], Audit]]:
    for flag in ("mechanisms", "epsilons", "delta", "train"):
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag} is given beside --release, whose manifest tells it. Leave one of them out.")
    if args.noise == "research":
        raise ValueError("--noise is 'research', but a release is drawn with release noise. Leave --noise out.")
    release = load_release(args.release)
    parameters = {"release": release.manifest["release"]}
    return [
        (parameters, ReleaseAudit(mechanism, release, trials=args.trials, dimension=args.dimension))
        for mechanism in release_mechanisms(release)
    ]


def _with_codebook(
    spec: MechanismSpec,
    kind: type[Mechanism],
    epsilon: float,
    training: tuple[np.ndarray, np.ndarray | None] | None,
    dimension: int,
    called: dict[str, str],
) -> dict[str, Any]:
    """Return the arguments of the mechanism; one that takes a codebook gets a fitted or a random one."""
    arguments = inspect.signature(kind).parameters
    takers: list[Callable[..., Any]] = [kind]
    if "codebook" in arguments:
        takers.append(fit_prior if training else lambda codewords: None)
    check_arguments(spec.options, takers, key="--mechanisms", given=_GIVEN)
    options = dict(spec.options)
    if "codebook" not in arguments:
        return options
    if training is None:
        codewords = options.pop("codewords", CODEWORDS)
        require_whole("codewords of --mechanisms", codewords, least=2)
        return {**options, "codebook": np.random.default_rng(0).standard_normal((codewords, dimension))}
    clip_norm = options.pop("clip_norm", 1.0)
    options = {"codewords": CODEWORDS, **options}
    gallery = DPGallery(spec.name, epsilon=epsilon, clip_norm=clip_norm, options=options, called=called)
    prior = gallery.fit(*training).prior  # type: ignore[arg-type]
    if prior is None:
        raise ValueError(f"mechanism {spec.name!r} fits no codebook on --train. Leave --train out.")
    return {key: value for key, value in prior.options().items() if key in arguments}


def _fault(row: dict[str, Any]) -> str:
    faults = []
    if row["epsilon_lower"] > row["epsilon"]:
        faults.append(f"shows epsilon {row['epsilon_lower']:.4g} or more")
    elif not row["rows_changed"]:
        faults.append(f"has epsilon {row['epsilon_exact']:.4g}, computed exactly")
    if row["rows_changed"]:
        faults.append(f"changes {row['rows_changed']} rows when another one is swapped")
    return f"{row['mechanism']} at epsilon {row['epsilon']:g} {' and '.join(faults)}"
