"""Features of a row: extracted once with its weights, kept as files, and read as what attackers get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from .. import build
from ..config import disable_privacy
from ..data.attributes import ByPerson, load_attributes
from ..data.validation import split_query_gallery
from ..dp.feature_files import load_arrays, save_features
from ..evaluation import Extracted
from ..extraction import extract_splits
from ..leakage import LeakageSet
from ..leakage.inputs import load_set
from ..leakage.market_attributes import with_attributes
from ..registry import closest
from ..report.sweep import load_split

# the splits that are extracted, by the people whom a row is scored on: attackers learn from the first
SPLITS = {"gallery": ("train", "query", "gallery"), "validation": ("train", "validation")}


def extract(cfg: CfgNode, weights: Path, fingerprint: str, folder: Path, scored_on: str = "gallery") -> None:
    """Write the splits that are missing, or of other weights; each file is complete or not there.

    Args:
        cfg: configuration of the row: how images reach the model.
        weights: checkpoint.
        fingerprint: of the weights.
        folder: of these features alone.
        scored_on: gallery or validation.
    """
    missing = [split for split in SPLITS[scored_on] if _weights_of(folder / f"{split}.npz") != fingerprint]
    if not missing:
        return
    cfg = cfg.clone()
    cfg.model.load_weights, cfg.model.resume = str(weights), ""
    cfg.test.evaluate = True
    disable_privacy(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    cfg.data.save_dir = str(folder)
    engine = build.build_engine(cfg)
    fast = cfg.test.fast_extraction
    for split in missing:
        (arrays,) = extract_splits(engine, root=cfg.data.root, splits=[split], fast=fast).values()
        save_features(folder / f"{split}.npz", arrays, model=fingerprint)


def _weights_of(path: Path) -> str:
    """Return the fingerprint of the weights that a file of features says it was made with; empty: there is none."""
    return "".join(map(str, load_arrays(path, ["model"]).values())) if path.is_file() else ""


def retrieval_sets(
    folder: Path, scored_on: str = "gallery", *, exclude_same_camera: bool = True
) -> tuple[Extracted, Extracted]:
    """Return query and gallery; of validation people those that training evaluates (`split_query_gallery`)."""
    if scored_on == "gallery":
        return load_split(str(folder / "query.npz")), load_split(str(folder / "gallery.npz"))
    rows = load_split(str(folder / "validation.npz"))
    items = list(zip(range(len(rows.pids)), rows.pids.tolist(), rows.camids.tolist(), strict=True))
    split = split_query_gallery(items, exclude_same_camera=exclude_same_camera)
    places = [np.isin(np.arange(len(items)), [item[0] for item in half]) for half in split]
    return rows.take(places[0]), rows.take(places[1])


def probed_attributes(labels: str, names: tuple[str, ...]) -> ByPerson | None:
    """Return the attributes that are probed, by pid; None without labels.

    Args:
        labels: file of people's attributes; empty: none.
        names: of those to keep; empty: all.

    Raises:
        FileNotFoundError, ValueError: no such file, or an attribute that it does not have.
    """
    if not labels:
        return None
    people = load_attributes(labels)
    known = sorted({name for one in people.values() for name in one})
    for name in names:
        if name not in known:
            raise ValueError(
                f"measures.attributes has '{name}'; '{labels}' has: {', '.join(known)}.{closest(name, known)}"
            )
    kept = set(names or known)
    return {pid: {name: one[name] for name in one if name in kept} for pid, one in people.items()}


def attacked_sets(
    folder: Path, cfg: CfgNode, people: ByPerson | None, scored_on: str = "gallery"
) -> tuple[LeakageSet, LeakageSet]:
    """Return training rows, and those that are scored, with their images (files below ``data.root``) and attributes.

    Args:
        folder: of the features.
        cfg: configuration of the row.
        people: from `probed_attributes`.
        scored_on: gallery or validation.

    Raises:
        ValueError: people without labels.
    """
    # training people, whom validation people were, have no background: torchreid numbers them from 0
    background = tuple(cfg.privacy.gallery.background_pids) if scored_on == "gallery" else ()
    train = load_set(folder / "train.npz", (), cfg.data.root)
    scored = load_set(folder / f"{scored_on}.npz", background, cfg.data.root)
    if people is None:
        return train, scored
    return (
        with_attributes(train, people, named=True, what="the training rows"),
        with_attributes(scored, people, named=True, what=f"the {scored_on} rows"),
    )
