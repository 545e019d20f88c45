"""Features of a row: extracted once with its weights, kept as files, and read as what attackers get."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from .. import build
from ..config import disable_privacy
from ..data.attributes import ByPerson, load_attributes
from ..dp.feature_files import save_features
from ..evaluation import Extracted
from ..extraction import extract_splits
from ..leakage import LeakageSet
from ..leakage.inputs import load_set
from ..leakage.market_attributes import with_attributes
from ..registry import closest
from ..report.sweep import load_split

SPLITS = ("train", "query", "gallery")


def features_there(folder: Path) -> bool:
    """Whether all splits are extracted."""
    return all((folder / f"{split}.npz").is_file() for split in SPLITS)


def extract(cfg: CfgNode, weights: Path, fingerprint: str, folder: Path) -> None:
    """Write the splits that are missing; each file is complete or not there.

    Args:
        cfg: configuration of the row: how images reach the model.
        weights: checkpoint.
        fingerprint: of the weights.
        folder: of these features alone.
    """
    missing = [split for split in SPLITS if not (folder / f"{split}.npz").is_file()]
    if not missing:
        return
    cfg = cfg.clone()
    cfg.model.load_weights, cfg.model.resume = str(weights), ""
    cfg.test.evaluate = True
    disable_privacy(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    cfg.data.save_dir = str(folder)
    engine = build.build_engine(cfg)
    for split in missing:
        (arrays,) = extract_splits(engine, root=cfg.data.root, splits=[split]).values()
        save_features(folder / f"{split}.npz", arrays, model=fingerprint)


def retrieval_sets(folder: Path) -> tuple[Extracted, Extracted]:
    """Return query and gallery."""
    return load_split(str(folder / "query.npz")), load_split(str(folder / "gallery.npz"))


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


def attacked_sets(folder: Path, cfg: CfgNode, people: ByPerson | None) -> tuple[LeakageSet, LeakageSet]:
    """Return training rows and gallery with their images (files below ``data.root``) and attributes.

    Args:
        folder: of the features.
        cfg: configuration of the row.
        people: from `probed_attributes`.

    Raises:
        ValueError: people without labels.
    """
    background = tuple(cfg.privacy.gallery.background_pids)
    train = load_set(folder / "train.npz", (), cfg.data.root)
    gallery = load_set(folder / "gallery.npz", background, cfg.data.root)
    if people is None:
        return train, gallery
    return (
        with_attributes(train, people, named=True, what="the training rows"),
        with_attributes(gallery, people, named=True, what="the gallery"),
    )
