"""Command line of the report: ``tools/report.py``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from . import sections
from .blocks import Block, Missing, Page, Provenance, Section, Text, provenance
from .collect import Collected, collect
from .dpia import assessment
from .embedding import embedding_pictures
from .feature_inputs import FeatureInputs, add_feature_flags, load_inputs
from .matching import matching_table
from .page import write_page
from .pictures import WHY_OFF
from .projector import require_empty_folder, write_projector
from .record import environment, require_output_folder
from .retrieval_page import Images, retrieval_pictures

_log = logging.getLogger(__name__)

_NO_MAPS = Missing("No t-SNE maps: they need features.", "--gallery gallery.npz --release RELEASE, or --mechanism NAME")
_NO_RESULTS = Missing("No retrieval results: they need features of queries.", "--query query.npz --gallery gallery.npz")
_ONLY_CLEAN = Missing(
    "Only clean features were given.", "--release RELEASE, or --mechanism NAME --epsilon 8 --train FILE"
)


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/report.py``."""
    made = argparse.ArgumentParser(
        description="One self-contained HTML page of what runs have written, and the same as Markdown.",
        epilog="Below the folders of --runs, records of tools/train.py, measure_leakage.py, sweep.py, audit.py, "
        "make demo and releases are found by what is in them. Features are never searched for; name them by their "
        "flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--runs", nargs="+", required=True, metavar="DIR", help="folders that runs have written")
    add("--out", default="report", metavar="DIR", help="folder to write report.html, report.md and figures into")
    add("--title", default="Privacy report", help="heading of the page")
    add("--dpia", action="store_true", help="also write dpia.html and dpia.md, for an impact assessment")
    add("--show-real-people", action="store_true", help="show pictures of people who exist; prints why that is off")
    add("--projector", metavar="DIR", help="also write the rows of --release for TensorBoard's projector")
    add("--clean-embeddings", action="store_true", help="give the projector the clean rows of --gallery instead")
    add("--images", default="", metavar="DIR", help="folder that row_ids of the features are relative to (--root)")
    add("--queries", type=int, default=4, help="queries of the retrieval page")
    add("--color-by", default="", metavar="NAME", help="attribute that one t-SNE map is colored by (the first)")
    add("--seed", type=int, default=1, help="of t-SNE maps, of research noise, and of the choice of queries")
    add("--debug", action="store_true", help="show the traceback of an error")
    add_feature_flags(made)
    return made


def report_command(argv: Sequence[str]) -> list[Path]:
    """Write the report as the command line says; return the pages.

    Raises:
        FileNotFoundError: a folder or file that is not there.
        ValueError: flags that do not go together, a record that is malformed, nothing to report.
    """
    args = parser().parse_args(argv)
    if args.queries < 1:
        raise ValueError(f"--queries is {args.queries}, must be >= 1.")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}, must be >= 0.")
    if args.clean_embeddings and not (args.projector and args.gallery):
        raise ValueError("--clean-embeddings needs --projector DIR and --gallery FILE, whose rows it shows.")
    if args.projector and not (args.release or args.clean_embeddings):
        raise ValueError("--projector shows the rows of a release: give --release DIR.")
    if args.color_by and not args.gallery:
        raise ValueError("--color-by names an attribute of --gallery FILE, which is not given.")
    if args.images and not args.gallery:
        raise ValueError("--images is where the images of --gallery FILE lie, which is not given. Leave it out.")
    found = collect(args.runs)
    if not found.sources and not found.pictures and not args.gallery:
        raise ValueError(
            f"--runs {' '.join(args.runs)} holds nothing to report: no record of train, demo, measure_leakage, sweep "
            f"or audit, and no release{'; ' + found.damaged[0] if found.damaged else ''}. Name folders that they wrote."
        )
    if args.dpia and not found.releases:
        raise ValueError(
            "--dpia is made from the manifest of a release, and --runs holds none. Make one with "
            "tools/release_gallery.py, or name its folder."
        )
    require_output_folder("--out", args.out)
    if args.projector:
        require_empty_folder("--projector", args.projector)
    if args.show_real_people:
        _log.warning("--show-real-people: %s It was asked for, so they are shown.", WHY_OFF)
    page, used = _page(args, argv, found)
    out = Path(args.out)
    written = []
    if args.projector:
        rows = {"clean": args.gallery} if args.clean_embeddings else {"release": args.release}
        written.append(write_projector(args.projector, **rows))
    out.mkdir(parents=True, exist_ok=True)
    written += write_page(page, out, "report")
    if args.dpia:
        written += write_page(assessment(found, used), out, "dpia")
    elif (earlier := out / "dpia.html").exists():
        _log.warning("'%s' is of an earlier report: it stays as it is. --dpia writes it anew.", earlier)
    for path in written:
        print(f"Written to '{path}'")
    return written


def _page(args: argparse.Namespace, argv: Sequence[str], found: Collected) -> tuple[Page, Provenance]:
    inputs = load_inputs(args)
    told = {"command": ["tools/report.py", *argv], "environment": environment("cpu")}
    files = "this report" if inputs is None else ", ".join(inputs.files)
    made_here = provenance(files, "this report (tools/report.py)", told, str(args.seed))
    matching: list[Block] = []
    if inputs is not None and inputs.query is not None:
        matching = [matching_table(inputs, [made_here], seed=args.seed)]
    warning: list[Block] = []
    if args.show_real_people:
        warning = [Text(f"This page may show real people (--show-real-people). {WHY_OFF}", strong=True)]
    first = sections.summary(found)
    parts = [
        Section(first.title, first.anchor, [*warning, *first.blocks]),
        sections.utility(found, matching),
        *sections.training(found),
        sections.leakage(found),
        sections.audits(found),
        _maps(args, inputs, made_here),
        sections.reconstructions(found, show_real_people=args.show_real_people),
        _retrieval(args, inputs, made_here),
        sections.where_from(found, [made_here]),
    ]
    subtitle = f"Made from {', '.join(Path(one).resolve().name for one in args.runs)}; figures in percent unless said."
    return Page(args.title, subtitle, parts), made_here


def _maps(args: argparse.Namespace, inputs: FeatureInputs | None, made_here: Provenance) -> Section:
    blocks: list[Block] = [_NO_MAPS]
    if inputs is not None:
        blocks = [*embedding_pictures(inputs, [made_here], seed=args.seed, color_by=args.color_by)]
        if inputs.protected is None:
            blocks.append(_ONLY_CLEAN)
        if not inputs.gallery.attributes:
            blocks.append(Missing("No map is colored by an attribute: none is known.", "--attributes FILE"))
        blocks.append(Text("Maps are made from clean features too: pass this page on as you would the images."))
    return Section("Features before and after", "maps", blocks)


def _retrieval(args: argparse.Namespace, inputs: FeatureInputs | None, made_here: Provenance) -> Section:
    blocks: list[Block] = [_NO_RESULTS]
    if inputs is not None and inputs.query is not None:
        images = Images(args.images, show_real_people=args.show_real_people)
        pictures = retrieval_pictures(inputs, [made_here], images, queries=args.queries, seed=args.seed)
        blocks = [
            Text(
                "Queries are drawn at random (seed above), one a person. ✓ and a solid blue frame: the right person; "
                "✗ and a dashed orange frame: somebody else. Rows of the query's own person and camera are left out."
            ),
            *pictures,
        ]
        if images.withheld:
            blocks.append(Text(f"{len(images.withheld)} images are left out. {WHY_OFF} (--show-real-people)"))
        if images.absent:
            blocks.append(Missing(f"{len(images.absent)} images were not found below --images.", "--images DIR"))
        if not args.images:
            blocks.append(Missing("Tiles are blank: it was not said where the images are.", "--images DIR"))
        if inputs.protected is None:
            blocks.append(_ONLY_CLEAN)
    return Section("Retrieval, clean against protected", "retrieval", blocks)
