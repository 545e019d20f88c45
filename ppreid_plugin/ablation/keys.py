"""Names of finished work: digests of what determines it, so that the same work is found and other work is not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..config import get_option
from ..dp.feature_files import model_fingerprint
from ..options import OPTIONS
from ..suppression.adversary import any_takes_labels
from ..suppression.adversary_settings import AdversarySpec
from .plan import Measures

# keys that change nothing of what training makes, but for rounding
_NOT_TRAINING = (
    "data.save_dir",
    "data.download",
    "data.transforms_test",
    "market1501.use_500k_distractors",
    "model.resume",
    "privacy.gallery.",
    "test.",
    "train.channels_last",
    "train.print_freq",
    "train.rank_timeout_s",
    "train.start_epoch",
    "use_gpu",
)
# keys that features depend on beside the weights
_FEATURES = (
    "data.height",
    "data.norm_mean",
    "data.norm_std",
    "data.targets",
    "data.transforms_test",
    "data.width",
    "cuhk03.",
    "market1501.",
    "video.",
)
# keys that say which checkpoint is the best one
_CHOICE = ("test.dist_metric", "test.eval_freq", "test.normalize_feature", "test.rerank", "test.start_eval")
# files whose content counts, not their name
_FILES = ("model.load_weights", "privacy.adversary.labels", "privacy.erasure.labels")


def training_key(cfg: CfgNode) -> str:
    """Return the name of a training: of all keys but those of evaluation, of disabled privacy parts, and of output.

    Files of weights and labels count by content, the folder of the data by its path. How the checkpoint is chosen
    counts where one is: with people held out and evaluations between epochs.
    """
    disabled = [part for part, node in cfg.privacy.items() if not node.get("enabled", True)]
    left_out = [*_NOT_TRAINING, *(f"privacy.{part}." for part in disabled)]
    specs = AdversarySpec.parse_all(cfg.privacy.adversary.names) if cfg.privacy.adversary.enabled else []
    learned = cfg.privacy.adversary.enabled and any_takes_labels(cfg.privacy.adversary.names)
    erased = cfg.privacy.erasure.enabled and not cfg.privacy.erasure.labels
    if not learned:
        left_out.append("privacy.adversary.labels")
    from .. import __version__

    keys = [key for key in OPTIONS if not key.startswith(tuple(left_out))]
    if erased and not learned:
        keys.append("privacy.adversary.labels")  # whose attributes are erased
    values = {"version": __version__, **_values(cfg, keys)}
    if cfg.privacy.validation.ids_fraction and cfg.test.eval_freq > 0:
        values["choice"] = _values(cfg, list(_CHOICE))
    given = [cfg.privacy.adversary.kwargs, *(spec.options for spec in specs)] if specs else []
    if own := [_content(str(options["labels"])) for options in given if "labels" in options]:
        values["labels"] = own
    return digest(values)


def features_key(cfg: CfgNode) -> str:
    """Return the name of the features that a row's weights make of its images."""
    return digest(
        {"training": training_key(cfg), **_values(cfg, [key for key in OPTIONS if key.startswith(_FEATURES)])}
    )


def measured_key(cfg: CfgNode, reference: CfgNode, defense: str, measures: Measures, *, has_step: bool = True) -> str:
    """Return the name of the figures of a row with one seed, beside a reference row.

    Args:
        cfg: configuration of the row.
        reference: that of the reference.
        defense: of the row, as it is written; files that it names count by content.
        measures: what is measured.
        has_step: whether the cost of a step is among the figures: of rows that are trained, not of those of another's
            weights.
    """
    gallery = [key for key in OPTIONS if key.startswith("privacy.gallery.")] if cfg.privacy.gallery.enabled else []
    named = [get_option(cfg, key) for key in gallery]
    files = _named_files([defense, *named])
    return digest(
        {
            **({"files": files} if files else {}),
            "has_step": has_step,
            "features": features_key(cfg),
            "reference": features_key(reference),
            "gallery": _values(cfg, gallery),
            "defense": defense,
            "exclude_same_camera": cfg.test.exclude_same_camera,
            "background_pids": [list(one.privacy.gallery.background_pids) for one in (cfg, reference)],
            "measures": {
                name: model_fingerprint(value) if name in ("labels", "judge_weights") else value
                for name, value in dataclasses.asdict(measures).items()
                if name != "metric"
            },
        }
    )


def digest(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with the values."""
    text = json.dumps(values, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _values(cfg: CfgNode, keys: list[str]) -> dict[str, Any]:
    values = {key: get_option(cfg, key) for key in keys}
    for key in _FILES:
        if values.get(key):
            values[key] = _content(str(values[key]))
    if "data.root" in values:
        values["data.root"] = str(Path(values["data.root"]).resolve())
    return values


def _named_files(values: Iterable[Any]) -> dict[str, str]:
    """Return the content of the files in written forms, by how they are written: ``leace:FILE``, ``transform=FILE``."""
    words = [word for value in values for word in (_flat(value))]
    rests = {word[match.end() :] for word in words for match in re.finditer("^|[:=]", word)}
    return {rest: model_fingerprint(rest) for rest in sorted(rests) if rest and Path(rest).is_file()}


def _flat(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return _flat(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [word for one in value for word in _flat(one)]
    return str(value).split(",") if isinstance(value, str) else []


def _content(text: str) -> str:
    """Return the digest of a file, of ``SOURCE=FILE`` with its source; what names no file stays."""
    source, separator, file = text.partition("=")
    if separator and not Path(text).is_file():
        return f"{source}={model_fingerprint(file)}"
    return model_fingerprint(text)
