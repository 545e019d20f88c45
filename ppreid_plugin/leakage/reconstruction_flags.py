"""Flags of ``tools/measure_leakage.py`` for reconstructions, and what becomes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..suppression.deid import standalone_deid_target
from .judge import Judge
from .perceptual import lpips_missing
from .reconstruction import TEST_ROWS


def add_reconstruction_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--images-root", metavar="DIR", help="folder that paths or row_ids are relative to, where files hold no images")
    add("--deid-target", default="pixelate", help="De-ID target whose images stand beside reconstructions")
    add("--judge-model", metavar="NAME", help="independent torchreid model that looks for who is reconstructed")
    add("--judge-weights", metavar="FILE", help="its checkpoint, or zoo:NAME, with --judge-model")
    add("--test-rows", type=int, default=TEST_ROWS, help="rows to reconstruct, drawn from all; 0: all")


def check_reconstruction_flags(args: argparse.Namespace) -> None:
    """Raise ValueError where they do not fit together, before anything is loaded."""
    standalone_deid_target(args.deid_target, key="--deid-target")
    if (args.judge_model is None) != (args.judge_weights is None):
        raise ValueError(
            "--judge-model and --judge-weights belong together, such as: --judge-model osnet_x0_25 --judge-weights "
            "zoo:osnet_x0_25_msmt17"
        )
    if args.test_rows < 0:
        raise ValueError(f"--test-rows is {args.test_rows}, must be >= 0 (0: all).")


def reconstruction_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the attack; say so where LPIPS is not available.

    Raises:
        ValueError: a judge that cannot be loaded, or that is the model which made the features.
    """
    if reason := lpips_missing():
        print(f"LPIPS is not available: {reason}.")
    options: dict[str, Any] = {"deid_target": args.deid_target, "test_rows": args.test_rows}
    if args.judge_model is None:
        print("No judge was named, so no rank-1 of reconstructions (--judge-model, --judge-weights).")
        return options
    judge = Judge(args.judge_model, args.judge_weights)
    for path in (args.train, args.test, args.clean, args.clean_train):
        if path and judge.fingerprint == _encoder(path):
            raise ValueError(
                f"--judge-weights '{args.judge_weights}' are those that made the features of '{path}': a model is no "
                "independent judge of itself. Name weights that were trained apart, on another data set at best."
            )
    return {**options, "judge": judge}


def described(options: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of the attack's arguments, JSON-ready; nothing where it was not run."""
    if not options:
        return {}
    judge = options.get("judge")
    return {"reconstruction": {**options, "judge": judge and repr(judge), "lpips_missing": lpips_missing()}}


def _encoder(path: str) -> str:
    """Return the fingerprint of the weights that made a file's features; empty: it names none."""
    if Path(path).suffix != ".npz":
        return ""
    with np.load(path, allow_pickle=False) as stored:
        return str(stored["model"]) if "model" in stored.files else ""
