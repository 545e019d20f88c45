"""Command line of ``tools/serve_index.py``: build, search, info and delete."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ppreid_plugin.cli import parse_config, train_parser
from ppreid_plugin.dp.journal import write_file
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.recovery import verify_releases
from ppreid_plugin.registry import closest, parse_options
from ppreid_plugin.report.record import require_folder
from ppreid_plugin.search.building import BATCH_ROWS, build_index
from ppreid_plugin.search.deleting import delete_everywhere
from ppreid_plugin.search.generations import leftovers
from ppreid_plugin.search.hits import Hits, merged
from ppreid_plugin.search.index import INDEXES, open_index
from ppreid_plugin.search.people import FUSIONS, search_people
from ppreid_plugin.search.queries import Queries, image_queries, load_queries
from ppreid_plugin.search.record import IndexRecord, read_record, size_of
from ppreid_plugin.search.shards import require_shards

_USAGE = "serve_index.py build | search | info | delete; each with --help"
_SHOWN_QUERIES = 20  # in the table; --out holds all


def serve_command(argv: Sequence[str]) -> Any:
    """Do what the first word says with the flags after it."""
    actions: dict[str, Callable[[Sequence[str]], Any]] = {
        "build": build,
        "search": search,
        "info": info,
        "delete": delete,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}\n\nSearch protected galleries: docs/search.md.")
        return None
    if argv[0] not in actions:
        raise ValueError(f"'{argv[0]}' is no action; there are: {', '.join(actions)}.{closest(argv[0], list(actions))}")
    return actions[argv[0]](argv[1:])


def build(argv: Sequence[str]) -> IndexRecord:
    """Build an index from a release folder, or bring it up to date."""
    parser = _parser("build", "Build the index of a release, go on with a build that was stopped, or update an index.")
    add = parser.add_argument
    add("--release", required=True, help="folder of a release (tools/release_gallery.py); never clean features")
    add("--index", required=True, help="folder of the index; made if it is not there")
    add("--backend", default="exact", metavar="NAME[:KEY=VALUE,...]", help=f"one of {', '.join(INDEXES.names())}")
    add("--batch-rows", type=int, default=BATCH_ROWS, help="rows a batch; a build that is stopped goes on after it")
    add("--readmit", type=int, nargs="+", default=[], metavar="PID", help="people deleted once who may come back")
    add("--readmit-rows", action="store_true", help="rows deleted by name may come back")
    add(
        "--truth",
        nargs="+",
        default=[],
        metavar="FILE",
        help="anonymous, after people were deleted: the release's maps",
    )
    add("--ledger", default="", help="check first that the release is what this ledger committed")
    add("--scope", default="default", help="scope in the ledger")
    args = parser.parse_args(argv)
    name, _, rest = args.backend.partition(":")
    options = parse_options(rest.split(","), what=f"--backend '{args.backend}'", example="storage=float16")
    if args.ledger:
        for finding in verify_releases(Ledger(args.ledger, args.scope), [args.release]):
            print(finding)
    record = build_index(
        args.release,
        args.index,
        backend=name,
        options=options,
        batch_rows=args.batch_rows,
        readmit=args.readmit,
        readmit_rows=args.readmit_rows,
        truth=args.truth,
    )
    print(f"Index in '{args.index}'\n{record_text(Path(args.index), record)}")
    return record


def search(argv: Sequence[str]) -> list[tuple[str, Hits]]:
    """Search one index, or several as shards of one gallery; print a table, and write all hits as JSON if asked."""
    parser = _search_parser()
    if any(word.partition("=")[0] == "--images" for word in argv):
        known = {flag for action in parser._actions for flag in action.option_strings}
        for action in train_parser()._actions:
            if action.option_strings and not known & set(action.option_strings):
                parser._add_action(action)
        cfg, args = parse_config(parser, argv)
        if args.query:
            raise ValueError("--query is given beside --images: search for one of them.")
        queries = image_queries(cfg, args.images)
    else:
        args = parser.parse_args(argv)
        if not args.query:
            raise ValueError("--query must be given (features), or --images with --config-file and a model.")
        queries = load_queries(args.query)
    if args.exclude_camera is not None and not args.people:
        raise ValueError("--exclude-camera goes with --people. Add --people template.")
    if args.people == "template" and len(args.index) > 1:
        raise ValueError("--people template takes one index: a person's rows may lie in several. Say --people best.")
    require_folder("--out", args.out)
    require_shards(args.index)
    records, shards = zip(*(_searched(folder, queries, args) for folder in args.index), strict=True)
    found = [
        (name, merged(parts, args.top, by_person=bool(args.people)))
        for name, *parts in zip(queries.names, *shards, strict=True)
    ]
    print("\n".join(map(_budget_line, records)) + "\n" + hits_text(found))
    if args.out:
        content = {
            "command": ["tools/serve_index.py", "search", *argv],
            "releases": [record.release for record in records],
            "queries": [{"query": name, "hits": _hits_json(hits)} for name, hits in found],
        }
        write_file(Path(args.out), (json.dumps(content, indent=1) + "\n").encode("utf-8"), mode=0o600)
        print(f"Hits written to '{args.out}'")
    return found


def info(argv: Sequence[str]) -> IndexRecord:
    """Print budget, mechanism, ledger and sizes of an index."""
    parser = _parser("info", "Print what an index holds, its budget, and what it takes on the disk.")
    parser.add_argument("--index", required=True, help="folder of the index")
    parser.add_argument("--verify", action="store_true", help="read everything and compare the SHA-256 of files")
    parser.add_argument("--json", action="store_true", help="print index.json")
    args = parser.parse_args(argv)
    folder = Path(args.index)
    with open_index(folder) as index:
        record = index.record
        verified = f"\n{index.verify()}" if args.verify else ""
        if args.json:
            print((folder / "index.json").read_text(encoding="utf-8"), end="")
        else:
            print(record_text(folder, record) + verified)
    return record


def delete(argv: Sequence[str]) -> int:
    """Delete people or rows from one index, or from all of several."""
    parser = _parser("delete", "Delete people or rows from indexes, for good; later builds leave them out.")
    parser.add_argument(
        "--index", required=True, nargs="+", help="folder of the index; several: from each that has them"
    )
    parser.add_argument("--pid", type=int, nargs="+", default=[], help="people")
    parser.add_argument("--row", nargs="+", default=[], help="rows, by their ids")
    parser.add_argument("--truth", nargs="+", default=[], metavar="FILE", help="anonymous: the maps of --truth-out")
    args = parser.parse_args(argv)
    counts = delete_everywhere(args.index, pids=args.pid, row_ids=args.row, truth=args.truth)
    names = []
    for folder, count in counts.items():
        record = read_record(Path(folder))
        names += [record.release["release"]] if record and count else []
        noted = count or (record and "pids" in record.labels)
        print(f"Deleted {count} rows from '{folder}'{'; later builds leave them out' if noted else ''}.")
        if record and args.pid and "pids" not in record.labels:
            print(
                f"'{folder}' keeps the names of these rows and nobody's pid. Rows that a later --append of the release "
                "holds of the same people are not known to be theirs: delete them again then, with its map (--truth)."
            )
    for name in dict.fromkeys(names):
        print(
            f"The folder of release {name} still holds them. A release is never edited: draw one without these people "
            "(tools/release_gallery.py --opt-out PID --new-release), then delete this one (tools/ledger.py purge "
            f"{name})."
        )
    return sum(counts.values())


def record_text(folder: Path, record: IndexRecord) -> str:
    """Return what an index is, as lines."""
    release, generation = record.release, folder / record.generation
    ledger = release["ledger"]
    sizes = {name: size_of(generation / name) for name in record.files}
    total = sum(sizes.values())
    level = release["person_level"]
    lines = [
        _budget_line(record),
        f"mechanism: {json.dumps(release['mechanism'])}",
        f"ledger: scope {ledger['scope']!r}, {ledger['reservation']}, record {ledger['ledger_seq']}, "
        f"head {ledger['ledger_head']}",
        f"backend {record.backend}, {json.dumps(record.options)}, metric {record.metric}",
        f"{record.rows} rows of {record.columns} columns, labels: {', '.join(record.labels) or 'none'}",
        f"{total} bytes, {total / record.rows:.1f} a row: "
        + ", ".join(f"{name} {size}" for name, size in sorted(sizes.items(), key=lambda one: -one[1])),
        f"deleted for good: {len(record.opted_out['pids'])} people, {len(record.opted_out['rows'])} rows by name",
    ]
    if level is not None:
        lines.insert(
            1,
            f"person level (delta {level['delta']:g}): epsilon {level['epsilon_at_median']:.4g} at the median of "
            f"{release['rows_a_person']['median']} rows, {level['epsilon_at_largest']:.4g} at the largest number, "
            f"{release['rows_a_person']['largest']}",
        )
    if found := leftovers(folder):
        lines.append(f"not in use: {', '.join(found)}, of a build that was stopped or is going on; build finishes it")
    return "\n".join(lines)


def hits_text(found: Sequence[tuple[str, Hits]]) -> str:
    """Return hits as a table: the first queries only."""
    rows = []
    for name, hits in found[:_SHOWN_QUERIES]:
        for place, score in enumerate(hits.scores):
            row_id = hits.row_ids[place] if hits.row_ids else "-"
            pid = "-" if hits.pids is None else int(hits.pids[place])
            rows.append([name, place + 1, row_id, pid, f"{score:.6f}"])
    text = tabulate(rows, headers=["query", "rank", "row", "pid", "score"], disable_numparse=True)
    left = len(found) - _SHOWN_QUERIES
    return text + (f"\n{left} more queries: --out FILE writes them all" if left > 0 else "")


def _search_parser() -> argparse.ArgumentParser:
    parser = _parser("search", "Search protected galleries for query features, or for images through a model.")
    add = parser.add_argument
    add("--index", required=True, nargs="+", help="folder of the index; several are searched as shards of one gallery")
    add("--query", metavar="FILE", help="clean features of the queries: .npz or .safetensors")
    add("--images", nargs="+", metavar="PATH", help="query images or folders of them; needs --config-file and a model")
    add("--top", type=int, default=10, help="hits a query")
    add("--people", choices=FUSIONS, help="return people, not rows: by template, or by their best row")
    add("--exclude-camera", type=int, metavar="CAMID", help="with --people: leave out rows of the query's camera")
    add("--out", default="", help="JSON file of all hits (mode 0600)")
    return parser


def _searched(folder: str, queries: Queries, args: argparse.Namespace) -> tuple[IndexRecord, list[Hits]]:
    """Return what was searched, which another process may have replaced by now, and the hits."""
    with open_index(folder) as index:
        queries.warn_of_other_weights(index)
        rows = index.transform_queries(queries.features)
        if args.people:
            by_person = {"fuse": args.people, "exclude_camera": args.exclude_camera}
            return index.record, search_people(index, rows, args.top, **by_person)
        return index.record, index.search(rows, args.top)


def _budget_line(record: IndexRecord) -> str:
    release = record.release
    return (
        f"release {release['release']}: {release['mechanism']['mechanism']}, epsilon {release['epsilon']:g}, delta "
        f"{release['delta']:g} for one {release['unit']} ({release['adjacency']}), {release['protocol']}"
    )


def _hits_json(hits: Hits) -> list[dict[str, Any]]:
    return [
        {
            **({"row_id": hits.row_ids[place]} if hits.row_ids else {}),
            **({} if hits.pids is None else {"pid": int(hits.pids[place])}),
            "score": float(score),
        }
        for place, score in enumerate(hits.scores)
    ]


def _parser(action: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"serve_index.py {action}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
