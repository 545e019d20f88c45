"""Command line of ``tools/train_private_head.py``: features in, a head and its record out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppreid_plugin.dp.feature_files import load_arrays, require_arrays, require_disjoint_files
from ppreid_plugin.dp.private_head import check_head_settings, head_budget, train_private_head, unit_members
from ppreid_plugin.dp.private_head_accounting import ACCOUNTANTS
from ppreid_plugin.dp.private_head_transform import PrivateHead, covered, require_suffix
from ppreid_plugin.dp.units import UNITS
from ppreid_plugin.evaluation import Extracted
from ppreid_plugin.report.record import environment, require_folder, write_json
from ppreid_plugin.report.sweep import load_split
from ppreid_plugin.retrieval import evaluate

_TRAINING = (
    "epsilon", "delta", "unit", "dim", "epochs", "batch", "clip_norm", "lr", "momentum", "scale", "rows_per_person",
    "num_classes", "accountant", "seed", "research", "trained_on", "chosen_on",
)  # fmt: skip
_CHECKED = ("dim", "clip_norm", "lr", "momentum", "scale", "rows_per_person", "num_classes", "seed")


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/train_private_head.py``."""
    made = argparse.ArgumentParser(
        description="Train a projection head on frozen features with DP-SGD, and write it with what it guarantees. "
        "Choosing flags by figures of --train costs privacy that nothing here accounts for: choose on other people.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--train", required=True, help="features and pids of the head's training set (.npz, .safetensors)")
    add("--epsilon", type=float, required=True, help="budget of one unit, add/remove adjacency; inf: no noise")
    add("--delta", type=float, default=1e-5, help="failure probability of one unit")
    add("--unit", choices=UNITS, default="image", help="unit of privacy: one image, or a person with all rows")
    add("--dim", type=int, default=128, help="columns of the projection")
    add("--epochs", type=float, default=20, help="times a unit is expected to be seen")
    add("--batch", type=int, help="expected units a step; left out: all people, or a tenth of the images")
    add("--clip-norm", type=float, default=1.0, help="bound on a unit's gradient")
    add("--lr", type=float, default=1.0, help="learning rate")
    add("--momentum", type=float, default=0.9, help="momentum")
    add("--scale", type=float, default=8.0, help="factor of the logits")
    add("--rows-per-person", type=int, default=16, help="unit person: rows of a person in one step")
    add(
        "--num-classes", type=int, help="size of the label space, pids 0 to this - 1; left out: the pids that are there"
    )
    add("--accountant", choices=ACCOUNTANTS, default="prv", help="prv is tight, rdp looser and proved throughout")
    add("--backbone-trained-on", metavar="NAME[,NAME]", help="all data sets that the backbone saw, or unknown")
    add("--trained-on", metavar="NAME", help="name of the training set of --train")
    add("--chosen-on", default="not stated", help="on which people dim, lr and the rest were chosen, for the record")
    add("--validation", help="features of other people: figures are printed, nothing is chosen")
    add("--query", help="features of queries, with --gallery: figures are printed, nothing is chosen")
    add("--gallery", help="features of a gallery")
    add("--out", default="head.safetensors", help="file to write; its record is written beside it as .json")
    add("--seed", type=int, default=1, help="of the initial projection; sampling and noise take none")
    add("--research", action="store_true", help="draw everything from --seed: repeatable, and not private")
    add("--dry-run", action="store_true", help="print noise, steps and guarantee; train nothing")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def train_private_head_command(argv: Sequence[str]) -> PrivateHead | None:
    """Train as the command line says, write head and record, print figures; None for a dry run."""
    args = parser().parse_args(argv)
    backbone = [name.strip() for name in (args.backbone_trained_on or "").split(",") if name.strip()]
    if not backbone:
        raise ValueError(
            "--backbone-trained-on must be given: all data sets that the backbone's weights saw, such as msmt17 or "
            "imagenet,msmt17, or unknown. The guarantee covers the whole model only if --trained-on was none of them."
        )
    if not (args.trained_on or "").strip():
        raise ValueError(
            "--trained-on must be given: the name of the training set of --train, such as market1501. Whether the "
            "guarantee covers the whole model depends on it."
        )
    if bool(args.query) != bool(args.gallery):
        raise ValueError("--query and --gallery must be given together, or neither.")
    out = require_suffix(args.out)
    require_folder("--out", out)
    features, pids, model = _training_set(args.train)
    for name in ("validation", "gallery"):
        if path := getattr(args, name):
            require_disjoint_files(args.train, "--train", path, f"--{name}")
    others = {
        name: (load_split(paths[0]), load_split(paths[-1]))
        for name, paths in {"validation": [args.validation], "gallery": [args.query, args.gallery]}.items()
        if all(paths)
    }
    for name, splits in others.items():
        if any(split.features.shape[1] != features.shape[1] for split in splits):
            raise ValueError(
                f"--train has {features.shape[1]} columns, --{name} has {splits[-1].features.shape[1]}. "
                "Extract both with the same model."
            )
    if args.dry_run:
        units = len(unit_members(pids, args.unit))
        flags = {name: getattr(args, name) for name in ("epsilon", "delta", "unit", "epochs", "batch", "accountant")}
        budget = head_budget(units, **flags)
        check_head_settings(pids, len(features), **{name: getattr(args, name) for name in _CHECKED})
        covers = covered(args.trained_on, backbone, noise=budget.noise_multiplier > 0 and not args.research)
        print("Dry run: nothing is trained.")
        print(summary({**budget.describe(), "unit": args.unit, "units": units, "covers": covers}))
        return None
    head = train_private_head(
        features,
        pids,
        backbone_trained_on=backbone,
        backbone=model,
        **{name: getattr(args, name) for name in _TRAINING},
    )
    figures = {name: utility(head, *splits) for name, splits in others.items()}
    head.save(out)
    record = {
        "head": head.describe(),
        "figures": figures,
        "command": ["tools/train_private_head.py", *argv],
        "environment": environment("cpu"),
    }
    write_json(record, out.with_suffix(".json"))
    print(summary(head.record))
    for name, ranked in figures.items():
        shown = [f"{who} {100 * one['rank1']:.1f} / {100 * one['mAP']:.1f}" for who, one in ranked.items()]
        print(f"{name}, rank-1 / mAP: {', '.join(shown)}")
    print(f"Written: '{out}' and '{out.with_suffix('.json')}'")
    return head


def utility(head: PrivateHead, query: Extracted, gallery: Extracted) -> dict[str, dict[str, float]]:
    """Return rank-1 and mAP (fractions, cosine) of the features as they are and of the head's."""
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    rankings = {
        "no head": evaluate(query.features, gallery.features, *labels),
        "head": evaluate(head.transform(query.features), head.transform(gallery.features), *labels),
    }
    return {name: {"rank1": ranking.rank1, "mAP": ranking.mAP} for name, ranking in rankings.items()}


def summary(record: dict[str, Any]) -> str:
    """Return budget, noise and what is covered, as lines.

    Example:
        >>> print(summary({"epsilon": None, "unit": "image", "units": 9, "noise_multiplier": 0.0, "steps": 3,
        ...                "sample_rate": 0.5, "covers": "nothing"}))
        no noise: nothing is guaranteed
        3 steps, each of 9 units (image) with probability 0.5, noise multiplier 0
        covers: nothing
    """
    if record["epsilon"] is None:
        lines = ["no noise: nothing is guaranteed"]
    else:
        replace = record["replace"]
        at_delta = replace["epsilon_at_delta"]
        lines = [
            f"epsilon {record['epsilon']:.4g}, delta {record['delta']:g} for one {record['unit']} "
            f"({record['adjacency']}, accountant {record['accountant']})",
            f"under replace: epsilon {replace['epsilon']:.4g} at delta {replace['delta']:.3g} by group privacy; "
            + ("none at" if at_delta is None else f"epsilon {at_delta:.4g} at")
            + f" delta {record['delta']:g}",
        ]
    lines.append(
        f"{record['steps']} steps, each of {record['units']} units ({record['unit']}) with probability "
        f"{record['sample_rate']:.4g}, noise multiplier {record['noise_multiplier']:.6g}"
    )
    return "\n".join([*lines, f"covers: {record['covers']}"])


def _training_set(path: str | Path) -> tuple[np.ndarray, np.ndarray, str]:
    arrays = load_arrays(path)
    require_arrays(path, arrays, ("features", "pids"))
    return arrays["features"], arrays["pids"], str(arrays.get("model", ""))
