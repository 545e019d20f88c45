"""Releases straight from a model and a data set: extraction, then what ``tools/release_gallery.py`` does with files."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

import numpy as np
from yacs.config import CfgNode

from . import build
from .cli import parse_config, train_parser
from .config import ConfigError, disable_privacy
from .data.validation import some_places
from .dp.commands import list_text, release_command, release_parser, release_rows, require_flags
from .dp.feature_files import model_fingerprint, require_other_rows
from .dp.mechanisms import MECHANISMS
from .dp.spec import MechanismSpec
from .dp.stored import Release
from .dp.units import GalleryRows
from .extraction import extract_splits, extract_views
from .zoo import resolve, weights_of

# flags of the release that have a key in the configuration
_KEYS = {"epsilon": "epsilon", "delta": "delta", "unit": "unit", "transform": "transform"}


def release(argv: Sequence[str]) -> Release | None:
    """Release the gallery of a configuration's target, or saved features where no configuration is given.

    Flags go before the configuration's keys ``privacy.gallery.*``, which are the defaults.

    Raises:
        ValueError: a flag or key that is missing or out of range, or several targets.
    """
    if not any(word.partition("=")[0] == "--config-file" for word in argv):
        return release_command(argv)
    parser = _parser()
    cfg, args = parse_config(parser, argv)
    if args.list:
        print(list_text(args.list))
        return None
    gallery = cfg.privacy.gallery
    parser.set_defaults(**_flags_of(gallery))
    cfg, args = parse_config(parser, argv)
    _refuse_what_no_release_has(gallery, args)
    if args.unit == "person" and not args.cameras:
        args.cameras = list(gallery.enroll_cameras)
    require_flags(args, "name", *(() if args.dry_run else ("out",)))
    weights = weights_of(cfg)
    if not weights:
        raise ConfigError("model.load_weights is empty; a release needs a trained model. Append model.load_weights F.")
    if len(cfg.data.targets) > 1:
        raise ConfigError(f"data.targets is {cfg.data.targets}; a release is of one gallery. Give one: -t NAME")
    if cfg.data.combineall:
        raise ConfigError(
            "data.combineall is True: what is fitted on the training split would be fitted on the gallery, which voids "
            "the guarantee. Set data.combineall False."
        )
    model = model_fingerprint(resolve(weights))
    if args.model and model_fingerprint(args.model) != model:
        raise ConfigError(
            f"--model is '{args.model}', and model.load_weights is '{weights}' ({model}), which makes the features: "
            "the manifest would name other weights. Leave --model out."
        )
    args.model = model
    cfg.test.evaluate = True
    disable_privacy(cfg)
    engine = build.build_engine(cfg)
    arrays = extract_splits(engine, root=cfg.data.root, splits=["train", "gallery"])
    train, rows = arrays["train"], arrays["gallery"]
    require_other_rows(train["row_ids"].tolist(), rows["row_ids"].tolist(), "the training split", "the gallery")
    some = some_places(len(train["pids"]), gallery.fit_images, cfg.train.seed)
    features, pids = train["features"][some], train["pids"][some]
    if gallery.fit_views:
        views = extract_views(engine, gallery.fit_views, max_images=gallery.fit_images, seed=cfg.train.seed)
        features, pids = np.concatenate([features, views["features"]]), np.concatenate([pids, views["pids"]])
    released = GalleryRows(rows["features"], rows["row_ids"].tolist(), rows["pids"], rows["camids"])
    return release_rows(args, released, (features, pids))


def _flags_of(gallery: CfgNode) -> dict[str, object]:
    """Return the flags' defaults that ``privacy.gallery`` says."""
    options = dict(gallery.kwargs)
    takes = inspect.signature(MECHANISMS.get(gallery.mechanism, key="privacy.gallery.mechanism")).parameters
    if "codebook" not in takes and gallery.clip_norm != 1.0:  # rows reach a codebook at length 1
        options["clip_norm"] = gallery.clip_norm
    return {
        "mechanism": str(MechanismSpec(gallery.mechanism, options)),
        "background_pids": list(gallery.background_pids),
        "max_rows_per_person": gallery.max_rows_per_person,
        **{flag: gallery[key] for flag, key in _KEYS.items()},
        **({"epsilon": gallery.epsilons[0] if len(gallery.epsilons) == 1 else None} if gallery.epsilons else {}),
    }


def _refuse_what_no_release_has(gallery: CfgNode, args: argparse.Namespace) -> None:
    if args.epsilon is None:
        raise ConfigError(
            f"privacy.gallery.epsilons is {list(gallery.epsilons)}; a release has one budget. Give it: --epsilon E"
        )
    if args.unit == "person" and not gallery.prototype:
        raise ConfigError(
            "privacy.gallery.prototype is False: rows at a share of the budget each exist for evaluation only. A "
            "release of the person unit holds one prototype a person; set privacy.gallery.prototype True."
        )
    if gallery.release:
        raise ConfigError(
            f"privacy.gallery.release is '{gallery.release}', a stored release: there is nothing to draw. Leave it out."
        )


def _parser() -> argparse.ArgumentParser:
    """Flags of the release and of ``tools/train.py`` in one parser; of those in both, the release's."""
    own = release_parser()
    known = {flag for action in own._actions for flag in action.option_strings}
    for action in train_parser()._actions:
        if action.option_strings and not known & set(action.option_strings):
            own._add_action(action)
    return own
