"""Features that a report draws itself from: a clean gallery, queries, and the same gallery protected.

They are named by flags and never searched for: clean features are the unprotected gallery.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..dp.feature_files import load_arrays, require_disjoint
from ..dp.protected import unit_rows
from ..dp.spec import naming_flags
from ..dp.stored import load_release
from ..dp.truth import labels_of_rows, load_maps_of
from ..leakage.data import LeakageSet
from ..leakage.inputs import LABEL_FILES, load_set, read_labels
from ..leakage.market_attributes import with_attributes
from .mechanism_flags import add_mechanism_flags, check_mechanism_flags, gallery_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Space:
    """A gallery as it is matched, with the queries that are matched against it.

    Attributes:
        title: ``clean``, or the mechanism with its budget.
        query: (q, d), unit length; empty without queries.
        counted: (q,), which queries are counted: in the person unit those of cameras that nobody was enrolled from.
        gallery: (n, d), unit length.
        pids, camids: (n,) of the gallery; camid -1 of a prototype.
        places: (n,), position in the clean gallery of the row, or of a prototype's first one; -1 where it is not known.
        prototypes: whether rows are prototypes of people (the person unit), and no images.
        cameras: camids that people were enrolled from (person unit); empty: not known, or the image unit.
    """

    title: str
    query: np.ndarray
    counted: np.ndarray
    gallery: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    places: np.ndarray
    prototypes: bool = False
    cameras: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class FeatureInputs:
    """What figures are drawn from; ``protected`` is None where nothing protects, ``query`` where none was given.

    ``texts`` are the values of attributes in words, where they are known; ``files`` what was read.
    """

    gallery: LeakageSet
    query: LeakageSet | None
    clean: Space
    protected: Space | None
    texts: Mapping[str, Sequence[str]]
    files: tuple[str, ...]


def add_feature_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of features to a parser."""
    add = parser.add_argument_group("features, for t-SNE maps and retrieval results").add_argument
    add("--gallery", metavar="FILE", help="clean features of the gallery: .npz or .safetensors, as extract_features.py")
    add("--query", metavar="FILE", help="clean features of the queries")
    add("--release", metavar="DIR", help="the gallery protected: this stored release")
    add("--truth", nargs="+", default=[], metavar="FILE", help="labels of its rows, as --truth-out wrote them")
    add_mechanism_flags(add)
    add("--train", metavar="FILE", help="features of people outside the gallery, with --mechanism")
    add("--background-pids", nargs="*", type=int, default=[0], help="pids of the gallery that are no person")
    add("--attributes", metavar="FILE", help=f"labels of people: {LABEL_FILES}")


def load_inputs(args: argparse.Namespace) -> FeatureInputs | None:
    """Return the features that the flags name, or None without ``--gallery``.

    Raises:
        FileNotFoundError, ValueError: flags that do not go together, a file that cannot be read, a release of other
            rows.
    """
    _check(args)
    if not args.gallery:
        return None
    background = tuple(args.background_pids)
    gallery = load_set(args.gallery, background)
    texts: Mapping[str, Sequence[str]] = {}
    if args.attributes:
        people, texts = read_labels(args.attributes)
        gallery = with_attributes(gallery, people, named=True, what="--gallery")
    query = load_set(args.query, background) if args.query else None
    if query is not None and query.features.shape[1] != gallery.features.shape[1]:
        raise ValueError(
            f"--query has {query.features.shape[1]} columns, --gallery {gallery.features.shape[1]}: they are not of "
            "one model. Extract both with the same weights."
        )
    bare = np.zeros((0, gallery.features.shape[1]), dtype=np.float32) if query is None else _unit(query.features)
    everyone = np.ones(len(bare), dtype=bool)
    rows = (_unit(gallery.features), gallery.pids, gallery.camids, np.arange(len(gallery)))
    clean = Space("clean", bare, everyone, *rows)
    protected = None
    if not args.release:
        _warn_of_other_models(args, {})
    if args.release:
        protected = _of_release(args, gallery, query, bare)
    elif args.mechanism:
        protected = _of_mechanism(args, gallery, query)
    named = (args.gallery, args.query, args.release and f"{args.release}/manifest.json", args.train, *args.truth)
    return FeatureInputs(gallery, query, clean, protected, texts, tuple(str(Path(one)) for one in named if one))


def _of_release(args: argparse.Namespace, gallery: LeakageSet, asked: LeakageSet | None, query: np.ndarray) -> Space:
    release = load_release(args.release)
    by_name = {name: place for place, name in enumerate(gallery.row_ids)}
    if len(by_name) < len(gallery.row_ids):
        twice = next(name for name in by_name if gallery.row_ids.count(name) > 1)
        raise ValueError(
            f"--gallery '{args.gallery}' names row '{twice}' twice: which one was released is not known. Name "
            "each once."
        )
    manifest, names = release.manifest, release.row_ids
    transform = release.transform()
    with naming_flags({"features": "--gallery"}):
        transform.transform(torch.from_numpy(np.ascontiguousarray(gallery.features[:1])))  # of one model
    maps = load_maps_of(manifest["parts"], args.truth)
    if release.pids is None:
        if not maps:
            raise ValueError(
                f"--release '{args.release}' is anonymous: its rows carry no pids. Name the files that --truth-out "
                "wrote: --truth FILE"
            )
        labels = labels_of_rows(maps, manifest["parts"], names, f"--release '{args.release}'")
    else:
        carried = np.full(len(names), -1) if release.camids is None else release.camids
        labels = dict(zip(names, zip(release.pids.tolist(), carried.tolist(), strict=True), strict=True))
    sources = {row: source for one in maps for row, source in one.sources.items()}
    places = np.array([by_name.get(sources.get(name, name), -1) for name in names])
    pids, camids = np.array([labels[name] for name in names], dtype=np.int64).T
    if not np.isin(pids[~np.isin(pids, args.background_pids)], gallery.pids).all():
        raise ValueError(
            f"--release '{args.release}' holds people whom --gallery '{args.gallery}' does not: they are not of one "
            "gallery. Name the features that the release was made from."
        )
    title = f"release {manifest['release']}, ε {manifest['epsilon']:g} of one {manifest['unit']}"
    matched = query if not len(query) else _unit(transform.transform(torch.from_numpy(query)).numpy())
    prototypes = manifest["unit"] == "person"
    cameras = tuple(manifest.get("cameras") or ()) if prototypes else ()
    if prototypes:
        places = np.where(places < 0, _first_places(gallery, pids, cameras), places)
        if not cameras:
            _log.warning(
                "--release '%s' does not say which cameras its prototypes are from: queries of the same cameras are "
                "counted, and figures flatter.",
                args.release,
            )
    counted = np.ones(len(query), dtype=bool) if asked is None else ~np.isin(asked.camids, cameras)
    _warn_of_other_models(args, {f"--release '{args.release}'": str(manifest["model"])})
    return Space(title, matched, counted, _unit(release.features), pids, camids, places, prototypes, cameras)


def _of_mechanism(args: argparse.Namespace, gallery: LeakageSet, query: LeakageSet | None) -> Space:
    component = gallery_of(args, seed=args.seed)
    require_disjoint(args.train, gallery.row_ids, "--train", "--gallery")
    train = load_set(args.train, ())
    component.fit(torch.from_numpy(train.features), train.pids)
    component.require_other_people(torch.from_numpy(gallery.features))
    rows = component.protect_rows(torch.from_numpy(gallery.features), gallery.pids, gallery.camids)
    matched, counted = np.zeros((0, rows.features.shape[1]), dtype=np.float32), np.zeros(0, dtype=bool)
    if query is not None:
        matched = _unit(component.transform_query(torch.from_numpy(query.features)).float().numpy())
        counted = component.queried(query.camids)
    title = f"{args.mechanism}, ε {args.epsilon:g} of one {component.unit}, research noise"
    if math.isinf(component.mechanism.epsilon):
        title = "no noise: not protected"
    made = _unit(rows.features.float().numpy())
    prototypes = component.unit == "person" and component.prototype
    cameras = tuple(component.enroll_cameras or ()) if component.unit == "person" else ()
    return Space(title, matched, counted, made, rows.pids, rows.camids, rows.places, prototypes, cameras)


def _first_places(gallery: LeakageSet, pids: np.ndarray, cameras: tuple[int, ...]) -> np.ndarray:
    """Return the place of each person's first row among those that were enrolled, -1 where there is none."""
    enrolled = np.flatnonzero(np.isin(gallery.camids, cameras)) if cameras else np.arange(len(gallery))
    first: dict[int, int] = {}
    for place in enrolled.tolist():
        first.setdefault(int(gallery.pids[place]), place)
    return np.array([first.get(int(pid), -1) for pid in pids], dtype=np.int64)


def _warn_of_other_models(args: argparse.Namespace, more: Mapping[str, str]) -> None:
    """Warn where files of features, or a release, say that other weights made them."""
    files = {f"--{name} '{path}'": path for name in ("gallery", "query", "train") if (path := getattr(args, name))}
    said = {what: str(load_arrays(path, ["model"]).get("model", "")) for what, path in files.items()}
    known = {what: model for what, model in {**said, **more}.items() if model and model != "none given"}
    if len(set(known.values())) > 1:
        _log.warning(
            "%s: these are of different models, and distances between them mean nothing. Extract all of them with one.",
            ", ".join(f"{what} is of {model}" for what, model in known.items()),
        )


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(unit_rows(torch.from_numpy(np.ascontiguousarray(rows))).float().numpy())


def _check(args: argparse.Namespace) -> None:
    for name in ("query", "release", "mechanism", "attributes"):
        if name == "release" and getattr(args, "projector", None) and not args.truth:
            continue  # whose rows the projector shows; nothing is drawn of them here
        if getattr(args, name) and not args.gallery:
            raise ValueError(f"--{name} is given without --gallery FILE, the clean features it belongs to.")
    if args.release and args.mechanism:
        raise ValueError("--release and --mechanism are both given: say which of them protects the gallery.")
    check_mechanism_flags(args)
    if args.mechanism and not args.train:
        raise ValueError("--mechanism needs --train FILE: features of people outside the gallery, to fit on.")
    if args.train and not args.mechanism:
        raise ValueError("--train is what --mechanism is fitted on; without that it would do nothing. Leave it out.")
    if args.truth and not args.release:
        raise ValueError("--truth names the rows of a release; give --release DIR, or leave it out.")
