"""Configuration: torchreid's keys, unchanged, and the ``privacy`` node.

The keys, their defaults and comments stand in `ppreid_plugin.options`. Stock torchreid YAML files merge unchanged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .config_files import ConfigError, read_config
from .options import OPTIONS
from .registry import closest
from .suppression.adversary_members import PEOPLE
from .suppression.adversary_settings import INPUTS, SCHEDULES, AdversarySpec, check_settings
from .suppression.deid_loss import parse_deid_loss
from .suppression.image_transforms import TORCHREID_TRANSFORMS, check_image_transforms

# nodes of parts that act while training
TRAINING_PARTS = ("deid", "adversary", "erasure", "image_erasure", "distillation", "aware")

_SECTIONS = {key.partition(".")[0] for key in OPTIONS if "." in key}

_ALLOWED: dict[str, tuple[str, ...]] = {
    "data.type": ("image", "video"),
    "loss.name": ("softmax", "triplet"),
    "test.dist_metric": ("euclidean", "cosine"),
    "train.optim": ("adam", "amsgrad", "sgd", "rmsprop", "radam"),
    "train.lr_scheduler": ("single_step", "multi_step", "cosine"),
    "sampler.train_sampler": (
        "RandomSampler",
        "RandomIdentitySampler",
        "RandomDomainSampler",
        "RandomDatasetSampler",
        "SequentialSampler",
    ),
    "video.sample_method": ("evenly", "random", "all"),
    "video.pooling_method": ("avg", "max"),
    "privacy.deid.input": ("feature", "feature_map"),
    "privacy.adversary.input": INPUTS,
    "privacy.adversary.schedule": SCHEDULES,
    "privacy.adversary.people": PEOPLE,
    "privacy.gallery.unit": ("image", "person"),
    "privacy.gallery.query": ("clean", "noised"),
}
_POSITIVE = (
    "data.height",
    "data.width",
    "data.k_tfm",
    "train.lr",
    "train.gamma",
    "train.base_lr_mult",
    "train.batch_size",
    "test.batch_size",
    "train.print_freq",
    "train.rank_timeout_s",
    "privacy.deid.blocks",
    "privacy.deid.sigma",
    "privacy.deid.scales",
    "privacy.deid.lr",
    "privacy.adversary.lr",
    "privacy.erasure.bank",
    "privacy.image_erasure.bank",
    "privacy.aware.epsilon_min",
    "privacy.aware.epsilon_max",
    "privacy.aware.temperature",
    "privacy.aware.assignment_temperature",
    "privacy.aware.lr",
    "privacy.gallery.epsilon",
    "privacy.gallery.clip_norm",
)
_NOT_NEGATIVE = (
    "data.workers",
    "train.max_epoch",
    "train.start_epoch",
    "train.fixbase_epoch",
    "train.weight_decay",
    "sgd.momentum",
    "sgd.dampening",
    "rmsprop.alpha",
    "loss.triplet.weight_t",
    "loss.triplet.weight_x",
    "privacy.deid.weight",
    "privacy.deid.height",
    "privacy.deid.width",
    "privacy.adversary.weight",
    "privacy.distillation.weight",
    "privacy.erasure.weight",
    "privacy.image_erasure.weight",
    "privacy.aware.weight",
    "privacy.aware.commitment",
    "privacy.aware.usage",
    "privacy.gallery.fit_images",
    "privacy.gallery.fit_views",
    "privacy.gallery.max_rows_per_person",
    "privacy.validation.seed",
)


def get_default_config() -> CfgNode:
    """Return torchreid's configuration with the ``privacy`` node, all at their defaults (nothing private enabled)."""
    cfg = CfgNode()
    for key, (default, _) in OPTIONS.items():
        *path, leaf = key.split(".")
        node = cfg
        for name in path:
            node = node.setdefault(name, CfgNode())
        if isinstance(default, dict):
            node[leaf] = CfgNode(new_allowed=True)
        else:
            node[leaf] = list(default) if isinstance(default, list) else default
    return cfg


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML file, torchreid's own or one with ``_base_`` or a ``privacy`` block, into ``cfg``.

    Raises:
        FileNotFoundError: no such file, or no such base.
        ConfigError: not a YAML mapping, an unknown key (the nearest is named), a value of the wrong type, or a circle
            of bases.
    """
    for source, mapping in read_config(path):
        _merge_mapping(cfg, mapping, prefix="", source=str(source))


def disable_privacy(cfg: CfgNode) -> None:
    """Switch every privacy part off: what is left extracts features with the plain model."""
    for node in (*TRAINING_PARTS, "gallery"):
        cfg.privacy[node].enabled = False


def merge_options(cfg: CfgNode, options: list[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` from a command line into ``cfg``; words of a list need no quotes: ``[a,b]``.

    Raises:
        ConfigError: an odd number of words, an unknown key or a value of the wrong type.
    """
    if len(options) % 2:
        raise ConfigError(
            f"options are KEY VALUE pairs, got {len(options)} words ending in '{options[-1]}'. Give that key a value."
        )
    for key, text in zip(options[::2], options[1::2], strict=True):
        set_option(cfg, key, _decoded(key, text), source="the command line")


def _decoded(key: str, text: str) -> Any:
    """Return the value that a word of the command line stands for."""
    value = CfgNode._decode_cfg_value(text)
    is_list = key in OPTIONS and isinstance(OPTIONS[key][0], list)
    if not (is_list and isinstance(value, str) and value.startswith("[")):
        return value
    try:
        words = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # ValueError: of what looks like a date
        words = None
    if not isinstance(words, list) or any(type(word) not in (str, int, float) for word in words):
        raise ConfigError(
            f"{key} in the command line is '{text}', which is no list of words. Write it as one word, such as [a,b] or "
            "\"['a','b']\"."
        )
    return words


def set_option(cfg: CfgNode, key: str, value: Any, *, source: str = "set_option") -> None:
    """Set one dotted key after checking that it exists and that the type fits (an int is accepted for a float)."""
    *path, leaf = key.split(".")
    node = cfg
    for name in path:
        if not isinstance(node.get(name), CfgNode):
            raise _unknown_key(key, source)
        node = node[name]
    _assign(node, leaf, value, key=key, source=source)


def is_config_key(word: str) -> bool:
    """Whether ``word`` is a key of the configuration, or a dotted word of one of its sections (maybe misspelled)."""
    section, dot, _ = word.partition(".")
    return word in OPTIONS or (bool(dot) and section in _SECTIONS)


def check_config(cfg: CfgNode) -> None:
    """Check values and combinations before anything is built or written.

    Raises:
        ConfigError: the first problem found.
    """
    for key, allowed in _ALLOWED.items():
        _check_choice(key, get_option(cfg, key), allowed)
    for key in _POSITIVE:
        value = get_option(cfg, key)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{key} is {value}, must be > 0. Set it in the YAML or append: {key} {OPTIONS[key][0]}")
    for key in _NOT_NEGATIVE:
        value = get_option(cfg, key)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{key} is {value}, must be >= 0. Set it in the YAML or append: {key} {OPTIONS[key][0]}")
    try:
        size = {"height": cfg.data.height, "width": cfg.data.width}
        check_image_transforms(cfg.data.transforms, key="data.transforms", known=TORCHREID_TRANSFORMS, **size)
        check_image_transforms(cfg.data.transforms_test, key="data.transforms_test", **size)
        parse_deid_loss(cfg.privacy.deid.loss)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if cfg.data.k_tfm != 1:
        raise ConfigError(f"data.k_tfm is {cfg.data.k_tfm}; torchreid's engines cannot train on several copies: use 1.")
    if cfg.loss.name == "triplet":
        if cfg.loss.triplet.weight_t + cfg.loss.triplet.weight_x <= 0:
            raise ConfigError("loss.triplet.weight_t and weight_x are both 0; at least one must be > 0.")
        if cfg.loss.triplet.weight_x == 0 and cfg.train.fixbase_epoch > 0:
            raise ConfigError(
                f"train.fixbase_epoch is {cfg.train.fixbase_epoch} with loss.triplet.weight_x 0: the classifier that "
                "would learn alone is not part of the loss. Set train.fixbase_epoch 0 or loss.triplet.weight_x > 0."
            )
    _check_torchreid_values(cfg)
    _check_domain_samplers(cfg)
    if not cfg.test.evaluate:
        _check_training_values(cfg)
        _check_optimizer(cfg)
    if any(not isinstance(rank, int) or rank < 1 for rank in cfg.test.ranks):
        raise ConfigError(f"test.ranks is {cfg.test.ranks}, must hold whole numbers >= 1.")
    if cfg.test.feature_cache and cfg.data.type == "video" and cfg.video.sample_method == "random":
        raise ConfigError(
            "test.feature_cache is set with video.sample_method 'random': other frames are drawn each time, so nothing "
            "can be kept. Set video.sample_method evenly, or test.feature_cache ''."
        )
    if cfg.test.visrank and not cfg.test.evaluate:
        raise ConfigError("test.visrank is True while training; torchreid draws ranks only with test.evaluate True.")
    fraction = cfg.privacy.validation.ids_fraction
    if not 0 <= fraction < 1:
        raise ConfigError(f"privacy.validation.ids_fraction is {fraction}, must lie in [0, 1). 0.1 holds out a tenth.")
    adversary, deid = cfg.privacy.adversary, cfg.privacy.deid
    if adversary.enabled:
        _check_adversaries(adversary, has_decoder=deid.enabled)
    if cfg.privacy.aware.enabled and not cfg.test.evaluate:
        _check_aware(cfg)
    if cfg.privacy.gallery.enabled and cfg.data.combineall:
        raise ConfigError(
            "data.combineall is True with privacy.gallery.enabled True: the transform would be fitted on the gallery "
            "that is protected, which voids the guarantee. Set data.combineall False."
        )

    gallery = cfg.privacy.gallery
    if gallery.enabled and gallery.release and not cfg.test.evaluate:
        raise ConfigError(
            f"privacy.gallery.release is '{gallery.release}' while training; a stored release fits the weights that "
            "made it. Append test.evaluate True."
        )
    if gallery.enabled and gallery.release and cfg.test.visrank:
        raise ConfigError(
            "test.visrank is True with privacy.gallery.release; a release says of no row which image it is of. Set "
            "test.visrank False."
        )
    if gallery.enabled and gallery.release and len(cfg.data.targets) > 1:
        raise ConfigError(
            f"privacy.gallery.release is '{gallery.release}' with {len(cfg.data.targets)} targets; it is the gallery "
            "of one. Give one target: -t NAME"
        )


def _check_aware(cfg: CfgNode) -> None:
    """Check that batches hold several images a person, which the contrastive term pairs."""
    sampler, instances = cfg.sampler.train_sampler, cfg.sampler.num_instances
    if sampler != "RandomIdentitySampler" or instances < 2:
        raise ConfigError(
            f"privacy.aware.enabled is True with sampler.train_sampler {sampler}, sampler.num_instances {instances}; "
            "batches must hold several images a person. Append: sampler.train_sampler RandomIdentitySampler "
            "sampler.num_instances 4"
        )


def _check_adversaries(adversary: CfgNode, *, has_decoder: bool) -> None:
    try:
        check_settings(adversary, prefix="privacy.adversary.")
        specs = AdversarySpec.parse_all(adversary.names)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not specs:
        raise ConfigError("privacy.adversary.names is []; name at least one, or set privacy.adversary.enabled False.")
    for spec in specs:
        if spec.options.get("input", adversary.input) == "reconstruction" and not has_decoder:
            raise ConfigError(
                f"privacy.adversary.input of '{spec.kind}' is 'reconstruction' but there is no decoder to reconstruct "
                "with. Set privacy.deid.enabled True, or privacy.adversary.input feature."
            )


def get_option(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key."""
    node = cfg
    for name in key.split("."):
        node = node[name]
    return node


def _merge_mapping(cfg: CfgNode, mapping: dict[str, Any], *, prefix: str, source: str) -> None:
    for name, value in mapping.items():
        _assign(cfg, name, value, key=f"{prefix}{name}", source=source)


def _assign(node: CfgNode, leaf: str, value: Any, *, key: str, source: str) -> None:
    """Set one key of ``node`` (all of them, for a mapping), after checking that it exists and that the type fits."""
    if leaf not in node and not node.is_new_allowed():
        raise _unknown_key(key, source)
    if isinstance(node.get(leaf), CfgNode):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} in {source} is {value!r}, must be a mapping of keys.")
        _merge_mapping(node[leaf], value, prefix=f"{key}.", source=source)
    else:
        node[leaf] = _coerce(key, value, OPTIONS[key][0] if key in OPTIONS else node.get(leaf), source)


def _unknown_key(key: str, source: str) -> ConfigError:
    return ConfigError(f"{source} has the unknown key '{key}'.{closest(key, list(OPTIONS))} --help lists all keys.")


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Return ``value`` with the type of ``default``; int to float, number text to float and word to list only."""
    wanted = type(default)
    if key in ("privacy.aware.delta", "privacy.gallery.delta") and value is not None:
        wanted = float
    if key not in OPTIONS or wanted is type(None) or (value is None and default is None):
        return value
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif wanted is list and isinstance(value, (list, tuple)):
        return _checked_elements(key, list(value), default, source)
    elif wanted is list and isinstance(value, (str, int)) and not isinstance(value, bool):
        return [value]
    elif wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    elif type(value) is wanted:
        return value
    raise ConfigError(f"{key} in {source} is {value!r}, must be a {wanted.__name__} (default {default!r}).")


def _checked_elements(key: str, value: list[Any], default: list[Any], source: str) -> list[Any]:
    """Return a list whose elements are of the kind that the default's are; whole numbers are numbers, too."""
    kinds = {type(one) for one in default}
    if len(kinds) != 1:
        return value
    kind = kinds.pop()
    allowed = {float: (int, float), int: (int,), str: (str,)}.get(kind)
    if allowed is None:
        return value
    if wrong := [one for one in value if not isinstance(one, allowed) or isinstance(one, bool)]:
        raise ConfigError(
            f"{key} in {source} is {value!r}, and {wrong[0]!r} in it must be a {kind.__name__} (default {default!r})."
        )
    return value


def _check_torchreid_values(cfg: CfgNode) -> None:
    """Check what torchreid would divide by, or take the first of."""
    if cfg.sampler.num_instances < 1:
        raise ConfigError(f"sampler.num_instances is {cfg.sampler.num_instances}, must be >= 1. 4 is usual.")
    steps = cfg.train.stepsize
    if not steps or any(isinstance(step, bool) or not isinstance(step, int) or step < 1 for step in steps):
        raise ConfigError(
            f"train.stepsize is {steps}, must hold whole numbers >= 1: epochs. Append: train.stepsize [20]"
        )
    for key, least in (("norm_mean", -math.inf), ("norm_std", 0.0)):
        values = cfg.data[key]
        if len(values) != 3 or not all(math.isfinite(value) and value > least for value in values):
            what = "three numbers, one a color" + (", > 0" if least == 0 else "")
            raise ConfigError(f"data.{key} is {values}, must be {what}. ImageNet's: {OPTIONS[f'data.{key}'][0]}")
    if not math.isfinite(cfg.loss.triplet.margin):
        raise ConfigError(f"loss.triplet.margin is {cfg.loss.triplet.margin}, must be a finite number. 0.3 is usual.")
    if cfg.cuhk03.use_metric_cuhk03 and not cfg.test.exclude_same_camera:
        raise ConfigError(
            "cuhk03.use_metric_cuhk03 True leaves the query's camera out by definition, and "
            "test.exclude_same_camera is False. Leave one of them out."
        )
    if not 0 <= cfg.train.seed < 2**32:  # what NumPy takes
        raise ConfigError(
            f"train.seed is {cfg.train.seed}, must be a whole number from 0 to {2**32 - 1}. Append: train.seed 1"
        )


def _check_domain_samplers(cfg: CfgNode) -> None:
    """Check that a batch divides among the cameras or data sets that a sampler draws it from, which torchreid asserts.

    A count of 0 or less is torchreid's way to say: all that the data have.
    """
    samplers = {cfg.sampler.train_sampler}
    if cfg.data.type == "image" and cfg.data.load_train_targets:
        samplers.add(cfg.sampler.train_sampler_t)
    size = cfg.train.batch_size
    for sampler, name in (("RandomDomainSampler", "num_cams"), ("RandomDatasetSampler", "num_datasets")):
        count = cfg.sampler[name]
        if sampler in samplers and count >= 1 and size % count:
            raise ConfigError(
                f"train.batch_size is {size} with sampler.{name} {count}; {sampler} takes equally many images of each. "
                f"Append: train.batch_size {max(1, round(size / count)) * count}"
            )


def _check_training_values(cfg: CfgNode) -> None:
    """Check what torchreid's training loop would stumble over, or pass over."""
    if not cfg.data.save_dir:
        raise ConfigError("data.save_dir is ''; checkpoints and logs need a folder. Append: data.save_dir log")
    if cfg.data.type == "image" and cfg.train.batch_size < 2:  # a tracklet is several images
        raise ConfigError(
            f"train.batch_size is {cfg.train.batch_size}, must be >= 2: batch norm needs more than one image. Append: "
            "train.batch_size 32"
        )
    if cfg.train.fixbase_epoch > 0 and not any(cfg.train.open_layers):
        raise ConfigError(
            f"train.open_layers is {cfg.train.open_layers} with train.fixbase_epoch {cfg.train.fixbase_epoch}: nothing "
            "would learn in these epochs. Name a layer, such as train.open_layers [classifier], or append: "
            "train.fixbase_epoch 0"
        )
    if 0 < cfg.train.max_epoch <= cfg.train.start_epoch:
        raise ConfigError(
            f"train.start_epoch is {cfg.train.start_epoch}, and train.max_epoch {cfg.train.max_epoch}: nothing would "
            "be trained. Set train.max_epoch higher."
        )


def _check_optimizer(cfg: CfgNode) -> None:
    """Check the values that the chosen optimizer reads."""
    optim = cfg.train.optim
    decays = {"adam": ("adam.beta1", "adam.beta2"), "rmsprop": ("rmsprop.alpha",), "sgd": ()}
    for key in decays.get(optim, decays["adam"]):  # amsgrad and radam read adam's
        value = get_option(cfg, key)
        if not 0 <= value < 1:
            raise ConfigError(f"{key} is {value}, must lie in [0, 1). Append: {key} {OPTIONS[key][0]}")
    if optim == "sgd" and cfg.sgd.nesterov and not (cfg.sgd.momentum > 0 and cfg.sgd.dampening == 0):
        raise ConfigError(
            f"sgd.nesterov is True with sgd.momentum {cfg.sgd.momentum} and sgd.dampening {cfg.sgd.dampening}; it "
            "needs momentum > 0 and dampening 0. Append: sgd.momentum 0.9 sgd.dampening 0"
        )


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(allowed)
        raise ConfigError(f"{key} is {value!r}; allowed: {names}.{closest(str(value), list(allowed))}")
