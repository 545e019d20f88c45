"""The sections of a report, made from what was collected; what is missing is named with the command that gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from ..dp.spec import MechanismSpec
from .blocks import Block, Bullets, Missing, Picture, Provenance, Section, Table, Text
from .collect import Collected, Source, reading
from .curves import budget_curves_of, leakage_chart, leakage_over_budgets, roc_curves, safe_name, svg
from .pictures import WHY_OFF
from .tables import (
    audit_table,
    further_table,
    leakage_table,
    percent,
    protection_words,
    spread,
    sweep_table,
    utility_table,
)
from .training_curves import training_curves
from .words import budget_in_words, leakage_in_words, not_covered, protected_in_words

_NO_TRAIN = Missing(
    "No record of a training or test run was found.",
    "python tools/train.py --config-file CONFIG --root DATA data.save_dir RUN",
)
_NO_SWEEP = Missing(
    "No sweep over budgets was found, so there are no privacy-utility curves.",
    "python tools/sweep.py --train train.npz --query query.npz --gallery gallery.npz --out RUN/sweep.json",
)
_NO_LEAKAGE = Missing(
    "Leakage was not measured: without it nothing can be said about attackers.",
    "python tools/measure_leakage.py --release RELEASE --truth TRUTH --train train.npz --clean gallery.npz "
    "--out RUN/leakage.json",
)
_NO_ROC = Missing(
    "No ROC curves: the attacks that give them are linkage and membership.",
    "python tools/measure_leakage.py ... --attacks linkage membership --out RUN/leakage.json",
)
_NO_AUDIT = Missing("No audit of the budget was found.", "python tools/audit.py --release RELEASE --out RUN/audit.json")
_NO_RELEASE = Missing(
    "No release was found.",
    "python tools/release_gallery.py --train train.npz --gallery gallery.npz --name NAME --epsilon 8 --out RUN/release",
)
_NO_PICTURES = Missing(
    "No originals, targets and reconstructions were found.",
    "make demo, or tools/train.py with privacy.deid.enabled True",
)


def summary(found: Collected) -> Section:
    """Say in plain words what is protected, against whom, at which epsilon, what attackers reached, and what is not."""
    blocks: list[Block] = []
    for source in found.releases:
        with reading(source):
            blocks += [Text(protected_in_words(source.record)), Bullets(budget_in_words(source.record))]
    if not found.releases:
        blocks.append(
            Text(
                "No release is among these files. Protected figures below were made with research noise: they tell "
                "what a release would do, and nothing has been published under a budget.",
                strong=True,
            )
        )
        blocks.append(_NO_RELEASE)
    for damaged in found.damaged:
        blocks.append(Text(f"A release is not whole, and is left out. {damaged}", strong=True))
    for source in found.leakage:
        with reading(source):
            said = leakage_in_words(source.record)
            if said:
                blocks += [Text(f"Measured by attackers, on {protection_words(source.record)}:"), Bullets(said)]
    if not found.leakage:
        blocks.append(_NO_LEAKAGE)
    for source in found.train:
        blocks += [Text(line) for line in _utility_in_words(source)]
    blocks += [Text("Not protected:"), Bullets(not_covered([source.record for source in found.releases]))]
    return Section("Summary", "summary", blocks)


def utility(found: Collected, further: Sequence[Block]) -> Section:
    """Return utility of runs and sweeps with their curves; ``further`` is what features given to the report add."""
    table = utility_table(found.train)
    blocks: list[Block] = [table if table is not None else _NO_TRAIN, *further]
    sweeps = [(sweep_table(source), source) for source in found.sweeps]
    for made, source in sweeps:
        if made is not None:
            blocks += [made, *budget_curves_of(source)]
        blocks += _choices(source)
    if not any(made for made, _ in sweeps):
        blocks.append(_NO_SWEEP)
    return Section("Utility", "utility", blocks)


def training(found: Collected) -> list[Section]:
    """Return Re-ID and adversaries over the epochs of each training run; no section where no run has a log."""
    blocks: list[Block] = []
    for source in found.training:
        with reading(source):
            figure = training_curves(source.record["epochs"])
        text = (
            "Means of an epoch's batches, on training people: Re-ID and adversaries with the labels they learn from. "
            "An adversary that reads little here says nothing of one that is trained afresh: see Leakage."
        )
        title = f"Training: {source.origin.file}"
        blocks.append(Picture(title, f"{safe_name(source.origin.file)}.svg", svg(figure), text, (source.origin,)))
    return [Section("Training", "training", blocks)] if blocks else []


def leakage(found: Collected) -> Section:
    """Return leakage tables, charts and ROC curves."""
    blocks: list[Block] = []
    curves: list[Block] = []
    for source in found.leakage:
        chart = leakage_chart(source)
        blocks += [leakage_table(source), *([chart] if chart else [])]
        more = further_table(source)
        blocks += [more] if more else []
        curves += roc_curves(source)
    overview = leakage_over_budgets(found.leakage)
    blocks += [overview] if overview else []
    blocks += curves
    if not found.leakage:
        blocks.append(_NO_LEAKAGE)
    elif not curves:
        blocks.append(_NO_ROC)
    return Section("Leakage", "leakage", blocks)


def audits(found: Collected) -> Section:
    """Return the audits of the budget."""
    return Section("Audit", "audit", [audit_table(source) for source in found.audits] or [_NO_AUDIT])


def reconstructions(found: Collected, *, show_real_people: bool) -> Section:
    """Return pictures of runs: originals, targets, reconstructions; those of real people only if that is asked for."""
    shown = [picture for picture in found.pictures if picture.generated or show_real_people]
    withheld = [picture.shown for picture in found.pictures if picture not in shown]
    blocks: list[Block] = []
    if withheld:
        blocks.append(
            Text(f"Left out, not marked as generated people: {', '.join(withheld)}. {WHY_OFF} (--show-real-people)")
        )
    for picture in shown:
        who = "Generated people: nobody in it exists." if picture.generated else "REAL PEOPLE."
        blocks.append(
            Picture(
                picture.title, f"{safe_name(picture.path.stem)}.png", picture.path.read_bytes(), who, (picture.origin,)
            )
        )
    return Section("Originals, targets, reconstructions", "reconstructions", blocks or [_NO_PICTURES])


def where_from(found: Collected, further: Sequence[Provenance]) -> Section:
    """Return the provenance of every figure: files, commands, commits, seeds, machines, versions."""
    rows = [
        [one.file, one.kind, one.command or "not recorded", one.commit, one.seed, one.machine, one.versions]
        for one in [*found.sources, *(picture.origin for picture in found.pictures), *further]
    ]
    headers = ["file", "written by", "command", "commit", "seed", "machine", "versions"]
    blocks: list[Block] = [Table("Files", headers, rows)] if rows else []
    if found.unknown:
        places = Counter(str(PurePath(name).parent) for name in found.unknown)  # names may be those of people's images
        told = ", ".join(f"{count} in {place}" for place, count in places.items())
        blocks.append(Text(f"Not used, as they are no records or marked pictures of ours: {told}."))
    return Section("Provenance", "provenance", blocks)


def _choices(source: Source) -> list[Block]:
    """Return what was chosen on validation people, and what looking at the gallery would have given."""
    with reading(source):
        rows = [
            [
                choice["unit"],
                choice["protocol"],
                f"{choice['epsilon']:g}",
                str(MechanismSpec(choice["mechanism"], choice["params"])),
                percent(choice.get("validation", choice.get("value"))),
                *(percent(choice.get(name)) for name in ("chosen", "optimum", "gap")),
            ]
            for choice in source.record.get("choices") or ()
        ]
    if not rows:
        return []
    headers = ["unit", "protocol", "ε", "chosen on validation people", "there", "on the gallery"]
    headers += ["best on the gallery", "gap"]
    note = "mAP in the anonymous, rank-1 in the enrolled protocol. Looking at the gallery is not covered by any budget."
    return [Table("Choices", headers, rows, note, (source.origin,))]


def _utility_in_words(source: Source) -> list[str]:
    record: Any = source.record
    said = []
    with reading(source):
        targets = record["targets"] if "targets" in record else {"generated pedestrians": record["protocols"]}
        for target, figures in targets.items():
            for one in figures["protected"]:
                clean = one["clean_anonymous"] or figures["clean"]
                line = (
                    f"Matching on {target} ({source.origin.file}): rank-1 {spread([clean['rank1']])} %, mAP "
                    f"{spread([clean['mAP']])} % unprotected; {spread([one['anonymous']['rank1']])} % and "
                    f"{spread([one['anonymous']['mAP']])} % protected by {one['mechanism']}"
                )
                if one["epsilon"] is not None:
                    line += f" at ε {one['epsilon']:g} of one {one['unit']}"
                said.append(f"{line} ({one['noise']} noise).")
    return said
