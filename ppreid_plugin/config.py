"""Configuration: torchreid's keys, unchanged, and the ``privacy`` node.

Every key stands once in `OPTIONS` with its default and one sentence; the yacs node, the help text of the command line
and ``docs/configuration.md`` are made from it. Stock torchreid YAML files merge unchanged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .registry import closest

# key: (default, what it does). Groups follow torchreid's own order.
TORCHREID_OPTIONS: dict[str, tuple[Any, str]] = {
    "use_gpu": (True, "use CUDA where there is a device"),
    "model.name": ("resnet50", "a model of torchreid's model zoo"),
    "model.pretrained": (True, "start from ImageNet weights where torchreid has them (downloads them once)"),
    "model.load_weights": ("", "weights to start from: a file, or zoo:NAME for torchreid's trained models"),
    "model.resume": ("", "checkpoint to continue from (model, optimizer, scheduler, privacy modules, epoch)"),
    "data.type": ("image", "image or video"),
    "data.root": ("reid-data", "folder that holds the data sets"),
    "data.sources": (["market1501"], "data sets to train on"),
    "data.targets": (["market1501"], "data sets to test on"),
    "data.workers": (4, "data loading processes"),
    "data.split_id": (0, "split number of data sets that have several"),
    "data.height": (256, "image height in pixels"),
    "data.width": (128, "image width in pixels"),
    "data.combineall": (False, "train on train + query + gallery"),
    "data.transforms": (
        ["random_flip"],
        "augmentation: random_flip, random_crop, random_patch, color_jitter, random_erase",
    ),
    "data.k_tfm": (1, "augmented copies of an image; torchreid's engines need 1"),
    "data.norm_mean": ([0.485, 0.456, 0.406], "mean subtracted from RGB in [0, 1]"),
    "data.norm_std": ([0.229, 0.224, 0.225], "standard deviation that RGB is divided by"),
    "data.save_dir": ("log", "folder for checkpoints, TensorBoard and logs"),
    "data.load_train_targets": (False, "also load the targets' training split"),
    "data.download": (False, "let torchreid create missing folders and try its own download addresses (ours)"),
    "market1501.use_500k_distractors": (False, "add the 500k distractors to Market-1501's gallery"),
    "cuhk03.labeled_images": (False, "CUHK03: labeled boxes instead of detected ones"),
    "cuhk03.classic_split": (False, "CUHK03: the classic split"),
    "cuhk03.use_metric_cuhk03": (False, "CUHK03: single-gallery-shot metric"),
    "sampler.train_sampler": ("RandomSampler", "sampler of the source train loader"),
    "sampler.train_sampler_t": ("RandomSampler", "sampler of the target train loader"),
    "sampler.num_instances": (4, "images an identity in a batch (RandomIdentitySampler)"),
    "sampler.num_cams": (1, "cameras in a batch (RandomDomainSampler)"),
    "sampler.num_datasets": (1, "data sets in a batch (RandomDatasetSampler)"),
    "video.seq_len": (15, "images sampled from a tracklet"),
    "video.sample_method": ("evenly", "evenly, random or all"),
    "video.pooling_method": ("avg", "pooling of frame features over a tracklet: avg or max"),
    "train.optim": ("adam", "adam, amsgrad, sgd, rmsprop or radam"),
    "train.lr": (0.0003, "learning rate"),
    "train.weight_decay": (5e-4, "weight decay"),
    "train.max_epoch": (60, "number of epochs"),
    "train.start_epoch": (0, "first epoch (0-based)"),
    "train.batch_size": (32, "images (tracklets) in a training batch"),
    "train.fixbase_epoch": (0, "epochs in which only train.open_layers learn"),
    "train.open_layers": (["classifier"], "layers that learn during the first fixbase_epoch epochs"),
    "train.staged_lr": (False, "smaller learning rate for the base layers"),
    "train.new_layers": (["classifier"], "layers with the full learning rate under staged_lr"),
    "train.base_lr_mult": (0.1, "factor on the base layers' learning rate under staged_lr"),
    "train.lr_scheduler": ("single_step", "single_step, multi_step or cosine"),
    "train.stepsize": ([20], "epochs between (single_step) or at (multi_step) decays"),
    "train.gamma": (0.1, "factor of a decay"),
    "train.print_freq": (20, "batches between two printed lines"),
    "train.seed": (1, "seed of everything that may be seeded (never of a release)"),
    "train.amp": (False, "bfloat16 autocast of the model's forward pass; same as --amp (ours)"),
    "sgd.momentum": (0.9, "momentum of sgd and rmsprop"),
    "sgd.dampening": (0.0, "dampening of sgd"),
    "sgd.nesterov": (False, "Nesterov momentum"),
    "rmsprop.alpha": (0.99, "smoothing constant of rmsprop"),
    "adam.beta1": (0.9, "decay of the first moment"),
    "adam.beta2": (0.999, "decay of the second moment"),
    "loss.name": ("softmax", "softmax or triplet"),
    "loss.softmax.label_smooth": (True, "label smoothing"),
    "loss.triplet.margin": (0.3, "distance margin"),
    "loss.triplet.weight_t": (1.0, "weight of the hard triplet loss"),
    "loss.triplet.weight_x": (0.0, "weight of the cross entropy beside it"),
    "test.batch_size": (100, "images (tracklets) in a test batch"),
    "test.dist_metric": ("euclidean", "euclidean or cosine (a protected gallery is always matched by cosine)"),
    "test.normalize_feature": (False, "L2-normalize features before the distance"),
    "test.ranks": ([1, 5, 10, 20], "CMC ranks that are printed"),
    "test.evaluate": (False, "test only"),
    "test.eval_freq": (-1, "epochs between evaluations (-1: only after training)"),
    "test.start_eval": (0, "first epoch that may be evaluated"),
    "test.rerank": (False, "k-reciprocal re-ranking (with test.evaluate)"),
    "test.visrank": (False, "pictures of ranked results (with test.evaluate)"),
    "test.visrank_topk": (10, "ranks in these pictures"),
    "test.exclude_same_camera": (True, "drop gallery rows of the query's pid and camera; False for one camera (ours)"),
}

PRIVACY_OPTIONS: dict[str, tuple[Any, str]] = {
    "privacy.deid.enabled": (False, "stage 1: train a De-ID decoder with the encoder"),
    "privacy.deid.target": ("pixelate", "what it must reproduce: a name, or several as pixelate:1.0,blur:0.5"),
    "privacy.deid.blocks": (8, "pixelate: blocks across the image's width"),
    "privacy.deid.sigma": (0.02, "blur: standard deviation as a fraction of the image's height"),
    "privacy.deid.weight": (10.0, "weight of the De-ID loss in the encoder's objective, >= 0"),
    "privacy.deid.loss": ("mse", "distance between decoded image and target: mse or l1"),
    "privacy.deid.decoder": ("light", "decoder network, by registered name"),
    "privacy.deid.input": ("feature", "what it decodes: feature or feature_map"),
    "privacy.deid.height": (64, "height of the decoded image in pixels"),
    "privacy.deid.width": (32, "width of the decoded image in pixels"),
    "privacy.deid.lr": (0.001, "learning rate of the decoder (Adam)"),
    "privacy.deid.kwargs": ({}, "further arguments of targets and decoders that others registered"),
    "privacy.adversary.enabled": (False, "stage 1: train the encoder against Adv-ID adversaries"),
    "privacy.adversary.names": (["identity"], "adversaries, by registered name"),
    "privacy.adversary.input": ("reconstruction", "what they read: reconstruction (needs the decoder) or feature"),
    "privacy.adversary.schedule": ("reversal", "reversal: bounded gradient reversal"),
    "privacy.adversary.weight": (0.1, "weight of each adversarial term in the encoder's objective, >= 0"),
    "privacy.adversary.ramp": (True, "let the weight grow from 0 over the training (Ganin and Lempitsky 2015)"),
    "privacy.adversary.lr": (0.001, "learning rate of the adversaries (Adam)"),
    "privacy.adversary.kwargs": ({}, "further arguments of adversaries that others registered"),
    "privacy.gallery.enabled": (False, "stage 2: evaluate a differentially private gallery too"),
    "privacy.gallery.mechanism": ("gaussian", "DP mechanism, by registered name"),
    "privacy.gallery.unit": ("image", "unit of privacy: image (one gallery row)"),
    "privacy.gallery.epsilon": (16.0, "budget of one unit under replace adjacency, > 0"),
    "privacy.gallery.delta": (None, "failure probability; None: 1e-5 for approximate mechanisms, 0 for pure ones"),
    "privacy.gallery.clip_norm": (1.0, "bound C on a row's L2 norm; the sensitivity is 2C"),
    "privacy.gallery.transform": ("center", "public transform, fitted on the training split: center or none"),
    "privacy.gallery.fit_images": (0, "training images that the transform is fitted on (0: all)"),
    "privacy.gallery.background_pids": ([0], "pids that are no person: no template, no enrolled query"),
    "privacy.gallery.kwargs": ({}, "further arguments of mechanisms that others registered"),
    "privacy.validation.ids_fraction": (0.0, "share of the training people held out to choose the best checkpoint"),
    "privacy.validation.seed": (1, "seed of the choice of these people"),
}

OPTIONS = {**TORCHREID_OPTIONS, **PRIVACY_OPTIONS}

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
    "privacy.deid.loss": ("mse", "l1"),
    "privacy.deid.input": ("feature", "feature_map"),
    "privacy.adversary.input": ("reconstruction", "feature"),
    "privacy.adversary.schedule": ("reversal",),
    "privacy.gallery.unit": ("image",),
}
_TRANSFORMS = ("color_jitter", "random_crop", "random_erase", "random_flip", "random_patch")
_POSITIVE = (
    "data.height",
    "data.width",
    "data.k_tfm",
    "train.lr",
    "train.batch_size",
    "test.batch_size",
    "train.print_freq",
    "privacy.deid.blocks",
    "privacy.deid.sigma",
    "privacy.deid.height",
    "privacy.deid.width",
    "privacy.deid.lr",
    "privacy.adversary.lr",
    "privacy.gallery.epsilon",
    "privacy.gallery.clip_norm",
)
_NOT_NEGATIVE = (
    "data.workers",
    "train.max_epoch",
    "train.start_epoch",
    "train.fixbase_epoch",
    "train.weight_decay",
    "loss.triplet.weight_t",
    "loss.triplet.weight_x",
    "privacy.deid.weight",
    "privacy.adversary.weight",
    "privacy.gallery.fit_images",
    "privacy.validation.seed",
)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value, what is allowed and the fix."""


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


def describe_options(options: dict[str, tuple[Any, str]] = OPTIONS) -> str:
    """One line a key: name, default, what it does. Made from `OPTIONS`; used by ``--help`` and the documentation."""
    width = max(map(len, options))
    return "\n".join(f"  {key:<{width}}  {text} [{default!r}]" for key, (default, text) in options.items())


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML file, torchreid's own or one with a ``privacy`` block, into ``cfg``.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: not a YAML mapping, an unknown key (the nearest is named) or a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config-file is '{path}', which is no file. Give the path of a YAML file.")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, must be a mapping of keys as in torchreid's YAML.")
    _merge_mapping(cfg, loaded, prefix="", source=str(path))


def merge_options(cfg: CfgNode, options: list[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` from a command line into ``cfg``.

    Raises:
        ConfigError: an odd number of words, an unknown key or a value of the wrong type.
    """
    if len(options) % 2:
        raise ConfigError(
            f"options are KEY VALUE pairs, got {len(options)} words ending in '{options[-1]}'. Give that key a value."
        )
    for key, text in zip(options[::2], options[1::2], strict=True):
        set_option(cfg, key, CfgNode._decode_cfg_value(text), source="the command line")


def set_option(cfg: CfgNode, key: str, value: Any, *, source: str = "set_option") -> None:
    """Set one dotted key after checking that it exists and that the type fits (an int is accepted for a float)."""
    *path, leaf = key.split(".")
    node = cfg
    for name in path:
        if not isinstance(node.get(name), CfgNode):
            raise _unknown_key(key, source)
        node = node[name]
    if leaf not in node and not node.is_new_allowed():
        raise _unknown_key(key, source)
    if isinstance(node.get(leaf), CfgNode):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} in {source} is {value!r}, must be a mapping of keys.")
        _merge_mapping(node[leaf], value, prefix=f"{key}.", source=source)
        return
    default = OPTIONS[key][0] if key in OPTIONS else node.get(leaf)
    node[leaf] = _coerce(key, value, default, source)


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
    for name in cfg.data.transforms:
        _check_choice("data.transforms", str(name).lower(), _TRANSFORMS)
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
    if any(not isinstance(rank, int) or rank < 1 for rank in cfg.test.ranks):
        raise ConfigError(f"test.ranks is {cfg.test.ranks}, must hold whole numbers >= 1.")
    if cfg.test.visrank and not cfg.test.evaluate:
        raise ConfigError("test.visrank is True while training; torchreid draws ranks only with test.evaluate True.")
    fraction = cfg.privacy.validation.ids_fraction
    if not 0 <= fraction < 1:
        raise ConfigError(f"privacy.validation.ids_fraction is {fraction}, must lie in [0, 1). 0.1 holds out a tenth.")
    adversary, deid = cfg.privacy.adversary, cfg.privacy.deid
    if adversary.enabled and adversary.input == "reconstruction" and not deid.enabled:
        raise ConfigError(
            "privacy.adversary.input is 'reconstruction' but there is no decoder to reconstruct with. "
            "Set privacy.deid.enabled True, or privacy.adversary.input feature."
        )
    if cfg.privacy.gallery.enabled and cfg.data.combineall:
        raise ConfigError(
            "data.combineall is True with privacy.gallery.enabled True: the transform would be fitted on the gallery "
            "that is protected, which voids the guarantee. Set data.combineall False."
        )


def get_option(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key."""
    node = cfg
    for name in key.split("."):
        node = node[name]
    return node


def _merge_mapping(cfg: CfgNode, mapping: dict[str, Any], *, prefix: str, source: str) -> None:
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if name not in cfg and not cfg.is_new_allowed():
            raise _unknown_key(key, source)
        if isinstance(cfg.get(name), CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{key} in {source} is {value!r}, must be a mapping of keys.")
            _merge_mapping(cfg[name], value, prefix=f"{key}.", source=source)
        else:
            default = OPTIONS[key][0] if key in OPTIONS else cfg.get(name)
            cfg[name] = _coerce(key, value, default, source)


def _unknown_key(key: str, source: str) -> ConfigError:
    return ConfigError(f"{source} has the unknown key '{key}'.{closest(key, list(OPTIONS))} --help lists all keys.")


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Return ``value`` with the type of ``default``; int to float, number text to float and word to list only."""
    wanted = type(default)
    if key == "privacy.gallery.delta" and value is not None:
        wanted = float
    if key not in OPTIONS or wanted is type(None) or (value is None and default is None):
        return value
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif wanted is list and isinstance(value, (list, tuple)):
        return list(value)
    elif wanted is list and isinstance(value, (str, int)) and not isinstance(value, bool):
        return [value]
    elif wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    elif type(value) is wanted:
        return value
    raise ConfigError(f"{key} in {source} is {value!r}, must be a {wanted.__name__} (default {default!r}).")


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(allowed)
        raise ConfigError(f"{key} is {value!r}; allowed: {names}.{closest(str(value), list(allowed))}")
