"""From a configuration to a running engine: what torchreid's ``scripts/main.py`` does, plus privacy.

The only module that reads configuration keys; everything it builds takes explicit arguments.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from . import ranks, toolbox
from .arguments import image_data_arguments, optimizer_arguments, scheduler_arguments, video_data_arguments
from .aware import ReleaseAware
from .checkpoint import load_weights, modules_left_out, resume
from .components import Component
from .config import TRAINING_PARTS, ConfigError, check_config
from .data.checks import (
    DataError,
    check_dataset_folders,
    check_dataset_names,
    check_people_disjoint_from_gallery,
    check_queries,
)
from .data.images import check_files, use_strict_reading
from .data.rank_sampler import check_shares, share_batches
from .data.validation import hold_out_people
from .distributed import distribute, in_turn
from .dp.feature_files import model_fingerprint
from .dp.gallery import DPGallery
from .dp.stored_gallery import StoredGallery
from .engine import with_privacy
from .features import UNSUPPORTED_MODELS, unwrap
from .registry import check_arguments, closest
from .suppression import (
    ADVERSARIES,
    DEID_TARGETS,
    Adversary,
    ClassMeanErasure,
    DeIDDecoder,
    ImageErasure,
    SimilarityDistillation,
    parse_deid_targets,
    taken_by_deid_targets,
)
from .suppression.adversary_settings import AdversarySpec, settings_of
from .suppression.image_transforms import describe_guarantee, insert_image_transforms
from .zoo import PREFIX, cached_path, resolve, weights_of

_log = logging.getLogger(__name__)

_RANK_SEEDS = 1_000_003  # apart, so that no rank draws what another seed's does


def check(cfg: CfgNode) -> None:
    """Check everything that can be checked before data are read or anything is written.

    Raises:
        ValueError: a key, name, budget, folder or file that cannot be used.
    """
    check_config(cfg)
    names = list(toolbox.model_factory())
    if cfg.model.name not in names:
        raise ConfigError(
            f"model.name is '{cfg.model.name}'; torchreid has: {', '.join(names)}.{closest(cfg.model.name, names)}"
        )
    suppresses = [node for node in TRAINING_PARTS if cfg.privacy[node].enabled]
    if suppresses and cfg.model.name in UNSUPPORTED_MODELS:
        raise ConfigError(
            f"model.name is '{cfg.model.name}', whose feature cannot be read while it trains; suppression does not "
            f"support {', '.join(UNSUPPORTED_MODELS)}. Choose another model, or disable "
            f"{' and '.join(f'privacy.{node}' for node in suppresses)}."
        )
    for component in build_components(cfg):  # registered names, budgets, options, label files: before data are read
        component.check_images(cfg.data.height, cfg.data.width)
    if not cfg.test.evaluate:
        by_person = cfg.sampler.train_sampler == "RandomIdentitySampler"
        check_shares(cfg.train.batch_size, ranks.world_size(), cfg.sampler.num_instances if by_person else 1)
    check_dataset_names(cfg.data.sources, kind=cfg.data.type, option="data.sources")
    check_dataset_names(cfg.data.targets, kind=cfg.data.type, option="data.targets")
    if not cfg.data.download:
        datasets = list(dict.fromkeys([*cfg.data.sources, *cfg.data.targets]))
        check_dataset_folders(cfg.data.root, datasets, kind=cfg.data.type)
    if str(cfg.model.resume).startswith(PREFIX):
        raise ConfigError(
            f"model.resume is '{cfg.model.resume}'; the zoo has weights, and no state of a training to go on from. "
            f"Start from them: model.load_weights {cfg.model.resume}"
        )
    for option in ("load_weights", "resume"):
        path = str(cfg.model[option])
        if path and not path.startswith(PREFIX) and not os.path.isfile(path):
            raise FileNotFoundError(f"model.{option} is '{path}', which does not exist.")
    _warn_if_nothing_is_chosen(cfg)
    _check_writable(cfg.data.save_dir)


def _warn_if_nothing_is_chosen(cfg: CfgNode) -> None:
    """Say that people are held out for nothing where only the last epoch is evaluated."""
    if cfg.test.evaluate or not cfg.privacy.validation.ids_fraction or cfg.train.max_epoch < 2:
        return
    before_last = range(max(1, cfg.test.start_eval), cfg.train.max_epoch)
    if cfg.test.eval_freq <= 0 or not any(epoch % cfg.test.eval_freq == 0 for epoch in before_last):
        _log.warning(
            "privacy.validation.ids_fraction is %s, and test.eval_freq %s evaluates no epoch before the last: none "
            "is chosen on these people. To choose one, append: test.eval_freq 1",
            cfg.privacy.validation.ids_fraction,
            cfg.test.eval_freq,
        )


def build_datamanager(cfg: CfgNode) -> Any:
    """Build torchreid's data manager, with validation people held out where asked for.

    Raises:
        DataError, ImageError: no batch fits, no query has a match, files are missing or empty.
    """
    use_strict_reading()
    if cfg.data.type == "image":
        manager = toolbox.data.ImageDataManager(**image_data_arguments(cfg))
    else:
        manager = toolbox.data.VideoDataManager(**video_data_arguments(cfg))
    _insert_image_transforms(cfg, manager)
    fraction = cfg.privacy.validation.ids_fraction
    if fraction > 0:
        chosen = hold_out_people(
            manager,
            ids_fraction=fraction,
            seed=cfg.privacy.validation.seed,
            exclude_same_camera=cfg.test.exclude_same_camera,
            build_sampler=lambda items: _build_sampler(cfg, items),
        )
        print(f"Held out {len(chosen)} training people for validation; {manager.num_train_pids} remain for training.")
    _check_data(cfg, manager)
    return manager


def build_model(cfg: CfgNode, num_classes: int) -> nn.Module:
    """Build the torchreid model and load weights into it; on the GPU, in DataParallel only if there are several.

    Raises:
        OSError: ImageNet weights that cannot be downloaded.
        CheckpointError, ZooError: weights that do not fit or cannot be had.
        ConfigError: ``train.channels_last`` with a model that needs the other layout.
    """
    starts_from_file = bool(cfg.model.load_weights or cfg.model.resume)
    try:
        model = toolbox.models.build_model(
            name=cfg.model.name,
            num_classes=num_classes,
            loss=cfg.loss.name,
            pretrained=cfg.model.pretrained and not starts_from_file,  # they would be overwritten
            use_gpu=cfg.use_gpu,
        )
    except OSError as error:
        raise OSError(
            f"ImageNet weights of {cfg.model.name} could not be downloaded ({type(error).__name__}). Append: "
            "model.pretrained False, give model.load_weights, or try again with a network."
        ) from error
    size = (1, 3, cfg.data.height, cfg.data.width)
    parameters, flops = toolbox.utils.compute_model_complexity(model, size)
    print(f"Model complexity: {cfg.model.name}, params={parameters:,} flops={flops:,}")
    if cfg.model.load_weights:
        path = resolve(cfg.model.load_weights)
        missing = load_weights(model, path, model_name=cfg.model.name)
        print(f"Loaded weights from '{path}'" + (f"; newly initialized: {', '.join(missing)}" if missing else ""))
    elif cfg.test.evaluate and not starts_from_file:
        _log.warning(
            "model.load_weights is empty: features are those of %s weights, which have not learned to match people.",
            "ImageNet's" if cfg.model.pretrained else "random",
        )
    if cfg.train.channels_last:
        model = _channels_last(model, size, cfg.model.name)
    if cfg.use_gpu:
        model = model.cuda()
        if torch.cuda.device_count() > 1 and ranks.world_size() == 1:
            model = nn.DataParallel(model)
    return model


def _channels_last(model: nn.Module, size: tuple[int, ...], name: str) -> nn.Module:
    """Lay the weights out channels last; convolutions lay their images out as their weights are."""
    model = model.to(memory_format=torch.channels_last)
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(size))
    except RuntimeError as error:  # the forward of PCB and of MuDeep views a feature map as if its channels lay first
        raise ConfigError(
            f"train.channels_last is True, but the forward of {name} needs the other layout "
            f"({' '.join(str(error).split())[:80]}). Append: train.channels_last False"
        ) from error
    return model.train(training)


def build_components(cfg: CfgNode) -> list[Component]:
    """Build the privacy components that the configuration enables, in the order of its nodes.

    Raises:
        ValueError: an unknown name, a budget or weight out of range, an option that no part takes.
    """
    privacy = cfg.privacy
    components: list[Component] = []
    if privacy.deid.enabled:
        targets = [DEID_TARGETS.get(name) for name in parse_deid_targets(privacy.deid.target)]
        check_arguments(privacy.deid.kwargs, targets, key="privacy.deid.kwargs")
        takes = taken_by_deid_targets(privacy.deid.target)
        own: dict[str, Any] = {key: privacy.deid[key] for key in ("blocks", "sigma") if key in takes}
        components.append(
            DeIDDecoder(
                privacy.deid.target,
                weight=privacy.deid.weight,
                loss=privacy.deid.loss,
                scales=privacy.deid.scales,
                decoder=privacy.deid.decoder,
                input=privacy.deid.input,
                height=privacy.deid.height,
                width=privacy.deid.width,
                lr=privacy.deid.lr,
                options={**own, **privacy.deid.kwargs},
                make_scheduler=_scheduler_maker(cfg),
                seed=cfg.train.seed,
            )
        )
    if privacy.adversary.enabled:
        components.extend(_build_adversaries(cfg))
    if privacy.erasure.enabled:
        components.append(
            ClassMeanErasure(
                privacy.erasure.labels or privacy.adversary.labels,
                privacy.erasure.attributes,
                weight=privacy.erasure.weight,
                bank=privacy.erasure.bank,
            )
        )
    if privacy.image_erasure.enabled:
        components.append(ImageErasure(weight=privacy.image_erasure.weight, bank=privacy.image_erasure.bank))
    if privacy.distillation.enabled:
        components.append(SimilarityDistillation(weight=privacy.distillation.weight))
    if privacy.aware.enabled:
        components.append(
            ReleaseAware(
                privacy.aware.mechanism,
                epsilon_min=privacy.aware.epsilon_min,
                epsilon_max=privacy.aware.epsilon_max,
                delta=privacy.aware.delta,
                weight=privacy.aware.weight,
                temperature=privacy.aware.temperature,
                codewords=privacy.aware.codewords,
                levels=privacy.aware.levels,
                set_size=privacy.aware.set_size,
                assignment_temperature=privacy.aware.assignment_temperature,
                commitment=privacy.aware.commitment,
                usage=privacy.aware.usage,
                lr=privacy.aware.lr,
                make_scheduler=_scheduler_maker(cfg),
                seed=cfg.train.seed,
            )
        )
    if privacy.gallery.enabled and privacy.gallery.release:
        components.append(
            StoredGallery(
                privacy.gallery.release,
                truth=privacy.gallery.truth,
                model=_weights_fingerprint(cfg),
                enroll_cameras=privacy.gallery.enroll_cameras,
                background_pids=privacy.gallery.background_pids,
            )
        )
    elif privacy.gallery.enabled:
        components.extend(
            DPGallery(
                privacy.gallery.mechanism,
                epsilon=epsilon,
                delta=privacy.gallery.delta,
                clip_norm=privacy.gallery.clip_norm,
                unit=privacy.gallery.unit,
                prototype=privacy.gallery.prototype,
                enroll_cameras=privacy.gallery.enroll_cameras or None,
                max_rows_per_person=privacy.gallery.max_rows_per_person,
                query=privacy.gallery.query,
                transform=privacy.gallery.transform,
                fit_images=privacy.gallery.fit_images,
                fit_views=privacy.gallery.fit_views,
                background_pids=privacy.gallery.background_pids,
                seed=cfg.train.seed,
                options=privacy.gallery.kwargs,
                called={"epsilon": "privacy.gallery.epsilons"} if privacy.gallery.epsilons else None,
            )
            for epsilon in privacy.gallery.epsilons or [privacy.gallery.epsilon]
        )
    return components


def build_engine(cfg: CfgNode) -> Any:
    """Build data manager, model, optimizer, scheduler, components and engine; random draws in torchreid's order.

    Returns:
        An engine whose ``run(**engine_run_arguments(cfg))`` trains or tests. ``cfg.train.start_epoch`` is set when
        training continues.

    Raises:
        ValueError, OSError: what `check`, `build_datamanager` and `build_model` raise.
        ConfigError: ``train.new_layers`` or ``train.open_layers`` of which the model has none.
    """
    check(cfg)
    toolbox.utils.set_random_seed(cfg.train.seed)
    if cfg.use_gpu:
        torch.backends.cudnn.benchmark = True
    with in_turn():
        manager = build_datamanager(cfg)
        model = build_model(cfg, manager.num_train_pids)
    if not cfg.test.evaluate:
        _check_layers(cfg, model)
    share_batches(manager, cfg.train.seed)
    optimizer = toolbox.optim.build_optimizer(model, **optimizer_arguments(cfg))
    scheduler = toolbox.optim.build_lr_scheduler(optimizer, **scheduler_arguments(cfg))
    if not cfg.test.evaluate:
        only_triplet = cfg.loss.name == "triplet" and cfg.loss.triplet.weight_x == 0
        model = distribute(model, frozen_first=cfg.train.fixbase_epoch > 0, classifier_learns=not only_triplet)
    arguments: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "use_gpu": cfg.use_gpu,
        "label_smooth": cfg.loss.softmax.label_smooth,
    }
    if cfg.loss.name == "triplet":
        arguments.update(
            margin=cfg.loss.triplet.margin, weight_t=cfg.loss.triplet.weight_t, weight_x=cfg.loss.triplet.weight_x
        )
    if cfg.data.type == "video":
        arguments["pooling_method"] = cfg.video.pooling_method
    kind = ("Image" if cfg.data.type == "image" else "Video") + ("Triplet" if cfg.loss.name == "triplet" else "Softmax")
    engine = with_privacy(getattr(toolbox.engine, f"{kind}Engine"))(
        manager,
        model,
        components=build_components(cfg),
        amp=cfg.train.amp,
        exclude_same_camera=cfg.test.exclude_same_camera,
        fast_extraction=cfg.test.fast_extraction,
        feature_cache=cfg.test.feature_cache,
        **arguments,
    )
    if cfg.model.resume:
        save_dir = None if cfg.test.evaluate else cfg.data.save_dir
        cfg.train.start_epoch = resume(engine, cfg.model.resume, save_dir=save_dir)
        print(f"Continuing from '{cfg.model.resume}' after epoch {cfg.train.start_epoch}")
        if not cfg.test.evaluate and (left_out := modules_left_out(engine, cfg.model.resume)):
            _log.warning(
                "the run of model.resume '%s' also trained %s, which this configuration leaves out: the model goes on "
                "without. Give the run's own configuration to continue it.",
                cfg.model.resume,
                ", ".join(left_out),
            )
    if not ranks.is_first():  # its own augmentation and dropout
        toolbox.utils.set_random_seed(cfg.train.seed + _RANK_SEEDS * ranks.rank())
    return engine


def _build_adversaries(cfg: CfgNode) -> list[Adversary]:
    """Build the adversaries: settings of all, then ``kwargs``, then those written with a name."""
    node = cfg.privacy.adversary
    specs = AdversarySpec.parse_all(node.names)
    kinds = [ADVERSARIES.get(spec.kind, key="privacy.adversary.names") for spec in specs]
    takes = [settings_of(kind) for kind in kinds]
    for argument in node.kwargs:
        if argument not in (allowed := sorted(set().union(*takes))):
            raise ConfigError(
                f"privacy.adversary.kwargs has '{argument}'; allowed: {', '.join(allowed)}.{closest(argument, allowed)}"
            )
    made = []
    for index, (spec, kind, taken) in enumerate(zip(specs, kinds, takes, strict=True)):
        spec.check(kind)
        settings = {key: value for key, value in {**node, **node.kwargs}.items() if key in taken}
        name, seed = spec.name(kind), cfg.train.seed + 1 + index
        made.append(kind(make_scheduler=_scheduler_maker(cfg), seed=seed, name=name, **{**settings, **spec.options}))
    return made


def _insert_image_transforms(cfg: CfgNode, manager: Any) -> None:
    """Put De-ID targets that are named as image transforms into torchreid's, in place, and say so."""
    train = insert_image_transforms(manager.transform_tr, cfg.data.transforms, fresh=True)
    test = insert_image_transforms(manager.transform_te, cfg.data.transforms_test, fresh=False)
    for split, transforms in (("training", train), ("test", test)):
        if transforms:
            print(f"Images for {split} pass through: {', '.join(map(repr, transforms))}")
    if guarantee := describe_guarantee(train, cfg.train.max_epoch):
        print(guarantee)


def _weights_fingerprint(cfg: CfgNode) -> str:
    """Fingerprint of the weights that queries are extracted with; empty if they are not there yet."""
    weights = cached_path(weights_of(cfg))
    return model_fingerprint(weights) if os.path.isfile(weights) else ""


def _check_data(cfg: CfgNode, manager: Any) -> None:
    trainset = manager.train_loader.dataset
    check_files(trainset.train)
    if not cfg.test.evaluate and len(manager.train_loader) == 0:
        raise DataError(
            f"the training split has {len(trainset)} items, fewer than a batch of {cfg.train.batch_size}: nothing "
            f"would be trained. Append: train.batch_size {max(2, len(trainset) // 2)}"
        )
    for name, items in manager.test_dataset.items():
        check_files([*items["query"], *items["gallery"]])
        warning = check_queries(
            items["query"], items["gallery"], name, exclude_same_camera=cfg.test.exclude_same_camera
        )
        if warning:
            _log.warning(warning)
        if cfg.privacy.gallery.enabled and cfg.privacy.gallery.transform != "none":
            check_people_disjoint_from_gallery(trainset.train, [*items["query"], *items["gallery"]], name)


def _check_writable(folder: str) -> None:
    """Make the folder (it is where torchreid writes next) and check that a file can be written in it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"data.save_dir '{folder}' cannot be written ({error.strerror}). Append: data.save_dir FOLDER"
        ) from error


def _check_layers(cfg: CfgNode, model: nn.Module) -> None:
    """Check that layers named for a learning rate or epochs of their own are the model's: torchreid passes others over.

    Raises:
        ConfigError: the first that is not.
    """
    layers = [name for name, _ in unwrap(model).named_children()]
    new = [name for name in cfg.train.new_layers if name]  # '' is torchreid's own default: none
    if cfg.train.staged_lr and not new:
        _log.warning(
            "train.staged_lr is True without train.new_layers: all layers learn at train.base_lr_mult x train.lr."
        )
    named = {
        "train.new_layers": new if cfg.train.staged_lr else [],
        "train.open_layers": cfg.train.open_layers if cfg.train.fixbase_epoch > 0 else [],
    }
    for key, names in named.items():
        for name in names:
            if name not in layers:
                raise ConfigError(
                    f"{key} has '{name}'; layers of {cfg.model.name}: {', '.join(layers)}.{closest(str(name), layers)}"
                )


def _scheduler_maker(cfg: CfgNode) -> Callable[[torch.optim.Optimizer], Any]:
    return lambda optimizer: toolbox.optim.build_lr_scheduler(optimizer, **scheduler_arguments(cfg))


def _build_sampler(cfg: CfgNode, items: list[Any]) -> Any:
    return toolbox.submodule("data.sampler").build_train_sampler(
        items,
        cfg.sampler.train_sampler,
        batch_size=cfg.train.batch_size,
        num_instances=cfg.sampler.num_instances,
        num_cams=cfg.sampler.num_cams,
        num_datasets=cfg.sampler.num_datasets,
    )
