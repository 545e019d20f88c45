"""Command line of the attackers: ``tools/measure_leakage.py``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dp.feature_files import load_arrays, row_names
from ..dp.stored import load_release
from ..dp.truth import load_maps_of
from ..report.mechanism_flags import add_mechanism_flags, check_mechanism_flags, gallery_of
from ..report.record import environment, require_folder, write_json
from .attack import ATTACKS
from .battery import Leakage, Rows, measure_leakage
from .compute import compute_device
from .data import LeakageSet
from .images import image_files
from .inputs import Labeler, add_label_flags, load_set, read_truth_table
from .known_people import LEARN_FROM, known_half, split_known
from .protection import protect, released
from .reconstruction_flags import (
    add_reconstruction_flags,
    check_reconstruction_flags,
    described,
    reconstruction_options,
)

USUAL = (
    "attributes",
    "camera",
    "identification",
    "linkage",
    "membership",
    "reconstruction",
    "patches",
)  # those that are there, if none is named
_ACROSS_CAMERAS = ("camera", "identification", "linkage")  # attacks that need two cameras
_TRAIN_DRAWS = 10_000  # seeds of the noise on training rows start here: never a draw of the gallery's


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/measure_leakage.py``."""
    made = argparse.ArgumentParser(
        description="Attack features and say what they give away: fractions of what clean features do.",
        epilog="Files hold the arrays features, pids, camids, and may hold row_ids and attr_<name> (whole numbers from "
        "0, -1: not known), as .npz or .safetensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--train", required=True, help="features of people outside the gallery; clean with --release and --mechanism")
    add("--test", help="features to attack: the gallery")
    add("--release", metavar="DIR", help="attack this stored release; --train is protected as its manifest says")
    add("--truth", nargs="+", default=[], metavar="FILE", help="labels of the release's rows: --truth-out's, or .npz")
    add_mechanism_flags(add)
    add("--clean", help="the gallery unprotected (with --mechanism it is --test)")
    add("--clean-train", help="people outside the gallery, unprotected, where --train is protected already")
    add_label_flags(made)
    add_reconstruction_flags(made)
    add("--attacks", nargs="+", metavar="NAME", help=f"{', '.join(USUAL)}: those there are, if none is named")
    add("--seeds", type=int, default=3, help="runs of every attack")
    add(
        "--learn-from",
        nargs="+",
        default=["train"],
        choices=LEARN_FROM,
        help="whom attackers learn from: --train, or half of the gallery's people (the others are attacked); both: the "
        "stronger counts",
    )
    add("--background-pids", nargs="*", type=int, default=[0], help="pids of the gallery that are no person")
    add("--out", default="leakage.json", help="file to write; finished attacks are kept beside it until it is")
    add("--fresh", action="store_true", help="run attacks again that an interrupted run has finished")
    add("--finished", metavar="FILE", help="keep finished attacks here for further runs, which share those on --clean")
    add("--debug", action="store_true", help="show the traceback of an error")
    return made


def leakage_command(argv: Sequence[str]) -> Leakage:
    """Attack as the command line says, write JSON, print the table."""
    args = parser().parse_args(argv)
    _check(args)
    out = Path(args.out)
    background = tuple(args.background_pids)
    labeler = Labeler(args.attributes, args.market_attributes, args.only)
    train = labeler(load_set(args.train, (), args.images_root), "--train")
    clean_train = (
        labeler(load_set(args.clean_train, (), args.images_root), "--clean-train") if args.clean_train else None
    )
    learned: Rows = train
    attacked: Rows
    about: dict[str, Any] = {"protection": None}
    clean: LeakageSet | None = None
    shown: Collection[str] = ()  # names of the rows that a release is of
    if args.release:
        attacked, learned, about, shown = _of_release(args, train, labeler)
        background = attacked.background_pids
        clean_train = train if args.clean else None
    elif args.mechanism:
        test = labeler(load_set(args.test, background, args.images_root), "--test")
        gallery = gallery_of(args, seed=1).fit(torch.from_numpy(train.features), train.pids)
        gallery.require_other_people(torch.from_numpy(test.features))
        attacked = _Drawn(test, gallery, 0)
        learned = _Drawn(train, gallery, _TRAIN_DRAWS)
        clean, clean_train = test, train
        about = {"protection": {**gallery.describe(), "written": str(args.mechanism)}}
    else:
        attacked = labeler(load_set(args.test, background, args.images_root), "--test")
        if clean_train is not None and len(clean_train) == len(train):
            learned = _known_clean(train, clean_train)
    if args.clean:
        clean = labeler(load_set(args.clean, background, args.images_root), "--clean")
        clean = _of_the_attacked(clean, _first(attacked), shown)
    _check_other_people(args, shown)
    sides: list[tuple[Rows, Rows]] = [(learned, attacked)]
    if clean is not None and clean_train is not None:
        sides.append((clean_train, clean))
    attacks = args.attacks or _usual(sides, args)
    options = reconstruction_options(args) if "reconstruction" in attacks else {}
    resume = Path(args.finished) if args.finished else out.with_name(out.name + ".finished.json")
    if args.fresh:
        resume.unlink(missing_ok=True)
    found = measure_leakage(
        learned,
        attacked,
        clean,
        clean_train,
        attacks=attacks,
        seeds=args.seeds,
        learn_from=args.learn_from,
        options={"reconstruction": options},
        resume=resume,
        meta={
            **about,
            **described(options),
            "command": ["tools/measure_leakage.py", *argv],
            "environment": environment(compute_device().type),
        },
    )
    write_json(found.to_json(), out)
    if not args.finished:
        for path in (resume, Path(f"{resume}.lock")):
            path.unlink(missing_ok=True)
    print(found.table())
    for name, figure in found.figures():
        if figure["clean"] is not None and figure["leakage"] is None:
            print(f"n/a, {name}: {figure['reason']}.")
    for name, largest in (("task", found.task_max), ("non-task", found.non_task_max)):
        if largest is not None:
            span = f"{largest['low']:.1%} to {largest['high']:.1%}"
            print(f"Largest {name} leakage: {largest['leakage']:.1%} ({span}), {largest['channel']}.")
    print(f"Written to '{out}'")
    return found


class _Drawn:
    """Rows protected with another draw for each seed; the last one is kept."""

    def __init__(self, rows: LeakageSet, protection: Any, offset: int) -> None:
        self._draw = lru_cache(maxsize=1)(lambda seed: protect(rows, protection, offset + seed))

    def __call__(self, seed: int) -> LeakageSet:
        return self._draw(seed)


def _of_release(
    args: argparse.Namespace, train: LeakageSet, labeler: Labeler
) -> tuple[LeakageSet, Rows, dict[str, Any], Collection[str]]:
    release = load_release(args.release)
    manifest = release.manifest
    background = tuple({*args.background_pids, *manifest.get("background_pids", ())})
    tables = [path for path in args.truth if Path(path).suffix in (".npz", ".safetensors")]
    maps = load_maps_of(manifest["parts"], [path for path in args.truth if path not in tables])
    named = {row: label for one in maps for row, label in one.rows.items()}
    sources = {row: source for one in maps for row, source in one.sources.items()}
    known: dict[str, dict[str, int]] = {}
    for table in map(read_truth_table, tables):
        named |= table.rows
        sources |= table.sources
        known |= table.attributes
    attacked = released(release, named, background_pids=background)
    names = sorted({name for labels in known.values() for name in labels})
    columns = {
        name: np.array([known.get(row, {}).get(name, -1) for row in attacked.row_ids], dtype=np.int64) for name in names
    }
    attacked = dataclasses.replace(attacked, attributes=columns)
    if args.images_root and manifest["unit"] == "image":
        places = [sources.get(row, row) for row in attacked.row_ids]  # a row that nothing names, by its own name
        attacked = dataclasses.replace(attacked, images=image_files(args.images_root, places).check())
    attacked = labeler(attacked, "--release")
    told = {key: manifest.get(key) for key in ("release", "epsilon", "delta", "unit", "protocol", "mechanism")}
    about = {"protection": {**told, "sha256": manifest["file"]["sha256"]}}
    shown = {*sources.values(), *(release.row_ids if manifest["protocol"] == "enrolled" else ())}
    return attacked, _Drawn(train, release, _TRAIN_DRAWS), about, shown


def _check_other_people(args: argparse.Namespace, released_names: Collection[str]) -> None:
    """Raise ValueError if the attackers would learn from rows that they attack: told by names, or whole features."""
    files = {flag: getattr(args, flag) for flag in ("train", "clean_train", "test", "clean")}
    held = {flag: load_arrays(path, ["row_ids", "features"]) for flag, path in files.items() if path}
    names = {flag: _names(arrays) for flag, arrays in held.items()} | {"release": set(released_names)}
    for learned, attacked in product(("train", "clean_train"), ("test", "clean", "release")):
        shared = names.get(learned, set()) & names.get(attacked, set())
        same = learned in held and attacked in held and _same_rows(held[learned], held[attacked])
        if shared or same:
            what = (
                f"{len(shared)} rows of --{attacked}, such as {min(shared)}" if shared else f"the rows of --{attacked}"
            )
            raise ValueError(
                f"--{learned.replace('_', '-')} '{files[learned]}' holds {what}: attackers learn from other people "
                "than they attack. Name features of other people."
            )


def _same_rows(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return np.array_equal(some.get("features", ()), others.get("features", ()))


def _of_the_attacked(clean: LeakageSet, rows: LeakageSet, shown: Collection[str]) -> LeakageSet:
    """Return the clean rows of those who are attacked: of the same rows where names tell, else of the same people.

    A release may lack whoever opted out, and rows beyond a limit; figures must not be of others.

    Args:
        clean: the gallery unprotected.
        rows: what is attacked.
        shown: names of the rows that a release is of.

    Raises:
        ValueError: people are attacked who are not among the clean rows.
    """
    pids = np.unique(rows.people_of("rows to attack").pids)
    if len(missing := np.setdiff1d(pids, clean.people_of("rows of --clean").pids)):
        raise ValueError(
            f"--clean lacks {len(missing)} of the {len(pids)} people who are attacked, such as "
            f"pid {missing[0]}: it must hold the same gallery unprotected."
        )
    names = set(shown or rows.row_ids)
    if named := bool(names) and names <= set(clean.row_ids) and not all(name.isdecimal() for name in names):
        same = np.array([name in names for name in clean.row_ids])
    else:
        same = np.isin(clean.pids, rows.pids)
    if not same.all():
        what = "rows" if named else "people"
        print(f"{np.count_nonzero(~same)} rows of --clean are left out: their {what} are not attacked.")
    return clean.take(same)


def _names(arrays: Mapping[str, np.ndarray]) -> set[str]:
    """Return the rows' names; none where they are numbers, which every file may begin at 0."""
    row_ids = arrays.get("row_ids")
    return (
        set(row_names(arrays)) if row_ids is not None and (row_ids.dtype.kind in "US" or row_ids.ndim == 2) else set()
    )


def _known_clean(train: LeakageSet, clean_train: LeakageSet) -> LeakageSet:
    """Return the protected training rows with their clean features, if the two files hold the same rows."""
    same = np.array_equal(train.pids, clean_train.pids) and np.array_equal(train.camids, clean_train.camids)
    if not same or train.row_ids != clean_train.row_ids:
        return train
    return dataclasses.replace(train, clean=clean_train.features)


def _usual(sides: Sequence[tuple[Rows, Rows]], args: argparse.Namespace) -> list[str]:
    """Return those of the usual attacks that can be run, and print which cannot, and why.

    Args:
        sides: training rows and rows to attack, protected and, where they are given, clean.
        args: of the command line.

    Raises:
        ValueError: the rows to attack are all background, or no attack can be run.
    """
    names = [name for name in USUAL if name in ATTACKS]
    sets = [(_first(learned), _first(attacked)) for learned, attacked in sides]
    taught, rows = sets[0]
    people = rows.people_of("rows to attack")
    if "train" not in args.learn_from:
        names = [name for name in names if ATTACKS.get(name).from_gallery]
        print("Membership is told by training people, so it is left out (--learn-from gallery).")
    elif args.clean_train:
        names.remove("membership")
        print("How pictures reach protected rows of a file is not known, so membership is left out.")
    shown = (taught, rows) if "train" in args.learn_from else (rows,)
    if "patches" in names and any(one.images is None or one.images.cues() is None for one in shown):
        names.remove("patches")  # few images have boxes
    if len(np.unique(people.camids)) < 2:
        across = [name for name in _ACROSS_CAMERAS if name in names]
        print(f"The rows to attack are of one camera, or of none as prototypes are: {', '.join(across)} are left out.")
        names = [name for name in names if name not in across]
    able = [name for name in names if _can_run(name, sets, args)]
    if not able:
        raise ValueError(
            "no attack can be run on these rows; what each lacks is said above. Give it, or name one with --attacks."
        )
    return able


def _can_run(name: str, sets: Sequence[tuple[LeakageSet, LeakageSet]], args: argparse.Namespace) -> bool:
    """Return whether the attack finds what it needs in all sets that the battery gives it; else print what it lacks."""
    kind, halved = ATTACKS.get(name), sets[-1][1]  # as the battery halves: the clean gallery, where there is one
    for learned, attacked in sets:
        for seed in range(1, args.seeds + 1):
            pairs = {"train": (learned, attacked)} if "train" in args.learn_from else {}
            if "gallery" in args.learn_from and kind.from_gallery:
                pairs["gallery"] = split_known(attacked, known_half(halved, seed))
            for source, pair in pairs.items():
                try:
                    kind(seed=seed).check(*pair)
                except ValueError as error:
                    where = "" if source == "train" else " with --learn-from gallery"
                    print(f"{name.capitalize()} is left out{where}: {error}")
                    return False
    return True


def _first(rows: Rows) -> LeakageSet:
    return rows if isinstance(rows, LeakageSet) else rows(1)


def _check(args: argparse.Namespace) -> None:
    if args.release and (args.test or args.mechanism):
        raise ValueError(
            "--release is given beside --test or --mechanism: its rows are what is attacked. Leave one out."
        )
    if not args.release and not args.test:
        raise ValueError("--test FILE or --release DIR is missing: say what is to be attacked.")
    if args.truth and not args.release:
        raise ValueError("--truth names the rows of a release; give --release DIR, or leave it out.")
    check_mechanism_flags(args)
    for name in args.attacks or ():
        ATTACKS.get(name, key="--attacks")
    check_reconstruction_flags(args)
    if args.judge_model and args.attacks and "reconstruction" not in args.attacks:
        raise ValueError("--judge-model looks at reconstructions: add reconstruction to --attacks, or leave it out.")
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}, must be >= 1; 3 or more give an interval over seeds.")
    if args.clean and not (args.clean_train or args.release or args.mechanism):
        raise ValueError(
            "--clean needs --clean-train FILE: the attackers on clean features learn from clean training rows. (With "
            "--release and --mechanism these are --train.)"
        )
    if args.clean_train and not args.clean:
        raise ValueError("--clean-train needs --clean FILE: the gallery's rows unprotected.")
    if args.clean_train and (args.release or args.mechanism):
        raise ValueError(
            f"--clean-train is given beside {'--release' if args.release else '--mechanism'}, which protects --train "
            "itself: that is what is clean. Leave it out."
        )
    if args.finished and args.fresh:
        raise ValueError(
            f"--fresh would drop what other runs keep in '{args.finished}'. Leave it out, or name another --finished."
        )
    require_folder("--out", args.out)
    require_folder("--finished", args.finished)
