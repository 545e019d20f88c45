"""Command line of the ablation: ``tools/ablation.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..cli import split_options
from ..config import ConfigError
from ..dp.journal import write_file
from ..leakage.compute import compute_device
from ..leakage.known_people import LEARN_FROM
from ..registry import closest
from ..report.record import environment, write_json
from .defense import DEFENSES
from .front import front_picture, fronts
from .plan import METRICS, SCORED_ON, Plan, load_plan
from .runner import Runner
from .table import render, summarize

_STYLES = {"md": "pipe", "tex": "latex_booktabs"}


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/ablation.py``."""
    made = argparse.ArgumentParser(
        description="Train, protect and judge the rows of an ablation, and set them beside a reference row. What is "
        "finished is used again; what was stopped goes on.",
        epilog="Options are KEY VALUE pairs after the flags, for all rows: train.max_epoch 3. "
        f"Defenses: {', '.join(DEFENSES.names())}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--plan", default="configs/ablation.yaml", metavar="FILE", help="YAML file of rows, seeds and measures")
    add("--root", metavar="DIR", help="folder that holds the data sets")
    add("-s", "--sources", nargs="+", metavar="NAME", help="source data sets (train)")
    add("-t", "--targets", nargs="+", metavar="NAME", help="target data set (test): one")
    add("--rows", nargs="+", default=[], metavar="NAME", help="rows to run; the reference is always among them")
    add("--seeds", nargs="+", type=int, default=[], metavar="N", help="seeds instead of the plan's")
    add("--labels", metavar="FILE", help="attributes of people, instead of measures.labels")
    add("--judge-model", metavar="NAME", help="independent torchreid model, instead of measures.judge")
    add("--judge-weights", metavar="FILE", help="its checkpoint, or zoo:NAME")
    add("--learn-from", nargs="+", choices=LEARN_FROM, help="whom attackers learn from; both: the stronger counts")
    add("--metric", choices=METRICS, help="distance of the table's figures, instead of measures.metric")
    add("--scored-on", choices=SCORED_ON, help="people of all figures, instead of measures.scored_on")
    add("--out", default="log/ablation", metavar="DIR", help="folder of everything that is written")
    add("--list", action="store_true", help="print the rows and how far they are; write nothing")
    add("--dry-run", action="store_true", help="check everything, print what would be done; train nothing")
    add("--no-train", action="store_true", help="measure trained rows again; an untrained one is an error")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def ablation_command(argv: Sequence[str]) -> dict[str, Any]:
    """Run an ablation as the command line says; write JSON, Markdown and LaTeX, print the tables.

    Returns:
        The record that is also in ``ablation.json``; empty for ``--list`` and ``--dry-run``.
    """
    flags, options = split_options(argv, parser())
    args, rest = parser().parse_known_args(flags)
    if rest:
        raise ConfigError(
            f"'{rest[0]}' is neither a flag nor a configuration key.{closest(rest[0], _flags())} --help lists all."
        )
    plan = _plan(args, options)
    out = Path(args.out)
    runner = Runner(plan, out, plan.selected(args.rows))
    if args.list or args.dry_run:
        if args.dry_run:
            runner.check()
        headers = ["row", "what it is", *(f"seed {seed}" for seed in plan.seeds)]
        print(tabulate(runner.states(), headers=headers, disable_numparse=True))
        return {}
    out.mkdir(parents=True, exist_ok=True)
    found = runner.run(may_train=not args.no_train, again=args.no_train)
    summary = summarize(found, plan.measures.metric)
    record = {
        "command": ["tools/ablation.py", *argv],
        "reference": plan.reference.name,
        "seeds": list(plan.seeds),
        "metric": plan.measures.metric,
        "scored_on": plan.measures.scored_on,
        "chosen_on": "; ".join(runner.chosen_on()),
        **summary,
        "fronts": fronts(summary, plan.measures.metric),
        "records": found,
        "environment": environment(compute_device().type),
    }
    write_json(record, out / "ablation.json")
    for suffix, style in _STYLES.items():
        write_file(out / f"ablation.{suffix}", _page(summary, style, plan).encode(), mode=0o644)
    picture = front_picture(summary, plan.measures.metric)
    if picture is not None:
        write_file(out / "ablation.svg", picture, mode=0o644)
    print(_page(summary, "simple", plan))
    shown = "the tables as .md and .tex" + ("" if picture is None else ", and mAP over leakage as .svg,")
    print(f"Written: '{out / 'ablation.json'}', {shown} beside it")
    return record


def _plan(args: argparse.Namespace, options: list[str]) -> Plan:
    given = {
        "labels": args.labels,
        "judge": args.judge_model,
        "judge_weights": args.judge_weights,
        "metric": args.metric,
        "scored_on": args.scored_on,
        "learn_from": args.learn_from,
    }
    for key, value in (("data.root", args.root), ("data.sources", args.sources), ("data.targets", args.targets)):
        if value is not None:
            options = [key, str(value), *options]
    measures = {name: value for name, value in given.items() if value is not None}
    return load_plan(args.plan, options=options, seeds=args.seeds, measures=measures)


def _page(summary: dict[str, Any], style: str, plan: Plan) -> str:
    count = len(plan.seeds)
    over = f"mean ± half of the 95 % interval over {count} seeds" if count > 1 else "one seed: no interval"
    comment = "% " if style.startswith("latex") else ""
    if plan.measures.scored_on == "validation":
        over += "; people held out of training, not the gallery"
    parts = [f"{comment}{over}. Leakage: 0 as without looking at the features, 100 % as '{plan.reference.name}'."]
    parts.append(render(summary, style))
    if len(summary["rows"]) > 1:
        parts += [f"{comment}Minus '{plan.reference.name}' of the same seed:", render(summary, style, differences=True)]
    return "\n\n".join(parts) + "\n"


def _flags() -> list[str]:
    return [option for action in parser()._actions for option in action.option_strings]
