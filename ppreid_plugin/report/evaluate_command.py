"""Command line of figures from saved features, of any extractor: ``tools/evaluate_features.py``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ..retrieval import (
    EnrolledResult,
    KReciprocal,
    NoMatchError,
    OpenSetResult,
    RankingResult,
    evaluate,
    evaluate_enrolled,
    evaluate_open_set,
)
from ..retrieval.checks import choice, curve_length, positive_mebibytes
from ..retrieval.distances import METRICS
from ..retrieval.ranking import PROTOCOLS
from .evaluate_inputs import Rows, read_rows, unused_pid, with_distractors
from .record import environment, require_folder, write_json

_log = logging.getLogger(__name__)

_RERANKING = {
    "k1": "neighbors that reciprocal sets are made of",
    "k2": "nearest images whose codes are averaged",
    "lambda_value": "share of the distance itself",
}
_FPIRS = (0.01, 0.1)
_LEAST_PEOPLE = 8  # for open-set figures: a quarter of them calibrates the threshold


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/evaluate_features.py``."""
    made = argparse.ArgumentParser(
        description="Ranking figures of saved features: every row an image (CMC, mAP, mINP), one template a person "
        "(enrolled), and people who are not listed (open set). Files: .npz or .safetensors with the arrays features "
        "(n, d), pids and camids (n,), or .npy of features with a CSV file of pid, camid, one line a row.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    for split, text in (("query", "queries"), ("gallery", "gallery")):
        add(f"--{split}", required=True, metavar="FILE", help=f"features of the {text}")
        add(f"--{split}-labels", metavar="FILE.csv", help=f"columns pid, camid of the {text}, if they are .npy")
    add(
        "--distractors", nargs="*", default=[], metavar="FILE", help="features of nobody, added to the gallery's images"
    )
    add("--metric", default="cosine", help=f"{', '.join(METRICS)}; templates are matched by cosine")
    add("--protocol", default="market1501", help=f"{', '.join(PROTOCOLS)} (all: rows of the query's camera stay)")
    add("--max-rank", type=int, default=50, help="length of the CMC curve")
    add("--ranks", nargs="+", type=int, default=[1, 5, 10, 20], help="ranks that are printed")
    add("--memory-mb", type=float, help="MiB for scores (72 if not given; cuhk03: up to 256 for a large gallery)")
    add("--rerank", action="store_true", help="k-reciprocal re-ranking of the images' figures")
    for name, text in _RERANKING.items():
        default = getattr(KReciprocal, name)
        text = f"of --rerank: {text} ({default}, if not given)"
        add(f"--{name.replace('_', '-')}", type=type(default), help=text)
    add("--per-camera", action="store_true", help="figures of each camera's queries too")
    add("--background-pids", nargs="*", type=int, default=[0], help="pids that are no person: never on the list")
    add("--out", metavar="FILE.json", help="file to write")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def evaluate_command(argv: Sequence[str]) -> dict[str, Any]:
    """Evaluate saved features as the command line says: print a table, write JSON, return the record."""
    args = parser().parse_args(argv)
    rerank = _checked(args)
    start = time.perf_counter()
    query = read_rows(args.query, args.query_labels, "--query")
    gallery = read_rows(args.gallery, args.gallery_labels, "--gallery")
    listed = gallery
    if args.distractors:
        gallery = with_distractors(gallery, args.distractors, pid=unused_pid(query.pids, gallery.pids))
    models = list(dict.fromkeys([*query.models, *gallery.models]))
    if len(models) > 1:
        _log.warning(
            "the files say that they are of different models (%s): distances between these mean nothing. Extract all "
            "of them with one model.",
            ", ".join(models),
        )
    ranking = _rank(args, query, gallery, rerank)
    enrolled, open_set = _people(args, query, listed)
    cameras = _by_camera(args, query, gallery, rerank) if args.per_camera else {}
    seconds = time.perf_counter() - start
    record: dict[str, Any] = {
        "command": ["tools/evaluate_features.py", *argv],
        "num_query": len(query.pids),
        "num_gallery": len(gallery.pids),
        "num_distractors": len(gallery.pids) - len(listed.pids),
        "columns": gallery.features.shape[1],
        "models": models,
        "metric": args.metric,
        "protocol": args.protocol,
        "rerank": None if rerank is None else dataclasses.asdict(rerank),
        "anonymous": _plain(ranking),
        "enrolled": _plain(enrolled),
        "open_set": _plain(open_set),
        "cameras": {str(camid): _plain(result) for camid, result in cameras.items()},
        "seconds": round(seconds, 3),
        "environment": environment("cpu"),
    }
    print(f"{len(query.pids)} queries, {len(gallery.pids)} gallery rows of {gallery.features.shape[1]} columns")
    print(table(ranking, enrolled, open_set, cameras, args.ranks))
    if args.out:
        write_json(record, args.out)
        print(f"Figures written to '{args.out}'")
    return record


def table(
    ranking: RankingResult,
    enrolled: EnrolledResult | None,
    open_set: OpenSetResult | None,
    cameras: dict[int, RankingResult | None],
    ranks: Sequence[int],
) -> str:
    """Return the figures in percent: a line of images, one of people, and one a camera."""

    def images(name: str, result: RankingResult | None) -> list[Any]:
        if result is None:
            return [name, *[None] * (len(ranks) + 4), 0]
        return [name, *_curve(result, ranks), result.mAP, result.mINP, None, None, result.num_valid_queries]

    lines = [images("images", ranking)]
    if enrolled is not None:
        rates = [None, None] if open_set is None else [point.tpir for point in open_set.points]
        figures = [*_curve(enrolled, ranks), enrolled.mrr, None, *rates]
        lines.append(["people (enrolled)", *figures, enrolled.num_valid_queries])
    lines += [images(f"images, camera {camid}", result) for camid, result in cameras.items()]
    shown = [[name, *(None if f is None else f"{f:.1%}" for f in figures), n] for name, *figures, n in lines]
    headers = ["gallery of", *(f"rank-{k}" for k in ranks), "mAP", "mINP", *(f"TPIR@{rate:.0%}" for rate in _FPIRS)]
    return tabulate(shown, headers=[*headers, "queries"], missingval="-", disable_numparse=True)


def _checked(args: argparse.Namespace) -> KReciprocal | None:
    """Return the re-ranking that is asked for, after a look at all options."""
    choice("--metric", args.metric, METRICS)
    choice("--protocol", args.protocol, PROTOCOLS)
    if args.protocol == "cuhk03" and args.distractors:
        raise ValueError(
            "--distractors with --protocol cuhk03: that protocol shows one image a person, and whom distractors show "
            "is not known. Leave one of them out."
        )
    curve_length("--max-rank", args.max_rank)
    for rank in args.ranks:
        if not 1 <= rank <= args.max_rank:
            hint = f" Give --max-rank {rank}." if rank > 0 else ""
            raise ValueError(f"--ranks has {rank}, must be 1 to --max-rank, {args.max_rank}.{hint}")
    if args.memory_mb is not None:
        positive_mebibytes("--memory-mb", args.memory_mb)
    require_folder("--out", args.out)
    given = {name: value for name in _RERANKING if (value := getattr(args, name)) is not None}
    if given and not args.rerank:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with --rerank, which is not given.")
    return KReciprocal(**given) if args.rerank else None


def _rank(args: argparse.Namespace, query: Rows, gallery: Rows, rerank: KReciprocal | None) -> RankingResult:
    return evaluate(
        query.features,
        gallery.features,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        metric=args.metric,
        protocol=args.protocol,
        max_rank=args.max_rank,
        memory_mb=args.memory_mb,
        rerank=rerank,
    )


def _people(args: argparse.Namespace, query: Rows, gallery: Rows) -> tuple[EnrolledResult | None, OpenSetResult | None]:
    """Return the enrolled and the open-set figures; None where no query has a template, or too few people are."""
    rows = query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids
    common: dict[str, Any] = {
        "background_pids": args.background_pids,
        "exclude_same_camera": args.protocol != "all",
    }
    try:
        enrolled = evaluate_enrolled(*rows, **common, max_rank=args.max_rank)
    except NoMatchError:
        return None, None
    if enrolled.num_people < _LEAST_PEOPLE:
        return enrolled, None
    background = np.isin(gallery.pids, args.background_pids)
    return enrolled, evaluate_open_set(
        *rows,
        background_features=gallery.features[background],
        background_camids=gallery.camids[background],
        **common,
        fpirs=_FPIRS,
    )


def _by_camera(
    args: argparse.Namespace, query: Rows, gallery: Rows, rerank: KReciprocal | None
) -> dict[int, RankingResult | None]:
    """Return the figures of each camera's queries; None for one whose queries match nothing."""
    results: dict[int, RankingResult | None] = {}
    for camid in np.unique(query.camids).tolist():
        mine = query.camids == camid
        if rerank is None:
            queries = query.take(mine)
        else:  # other cameras' queries count as neighbors, but are nobody
            queries = Rows(query.features, np.where(mine, query.pids, unused_pid(gallery.pids)), query.camids)
        try:
            results[camid] = _rank(args, queries, gallery, rerank)
        except NoMatchError:
            results[camid] = None
    return results


def _curve(result: RankingResult | EnrolledResult, ranks: Sequence[int]) -> list[float]:
    return [float(result.cmc[rank - 1]) for rank in ranks]


def _plain(result: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    fields = dataclasses.asdict(result)
    if "cmc" in fields:
        fields["cmc"] = fields["cmc"].tolist()
    return fields
