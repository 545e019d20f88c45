"""torchreid engines that carry privacy components.

``with_privacy(E)`` puts `PrivacyMixin` in front of any torchreid engine class. Public methods only are overridden:

* ``parse_data_for_train`` keeps the batch; hooks keep the feature of torchreid's own forward pass;
* ``compute_loss`` adds the components' terms, once a batch, unscaled by torchreid's loss weights;
* ``forward_backward`` lets the components take their steps and logs their figures;
* ``test`` extracts query and gallery once, evaluates them, and evaluates the protected gallery beside them;
* ``save_model`` writes checkpoints that load again, and keeps the best one by validation people.

Without components the engine computes what torchreid's own computes.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .components import Batch, Component, Context
from .data.validation import VALIDATION, training_set_for_features
from .dp.gallery import DPGallery
from .evaluation import Extracted, TargetResult, exact_ranking, extract, light_loader, protected_result
from .features import FeatureTap, probe_shapes, unwrap
from .progress import track

STATE_FILE = "best.json"


class _Stateless:
    """Stands in for a scheduler (or optimizer) that is None, so that torchreid can save and step it."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.0}]

    def step(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class _AutocastModel:
    """Calls a model under bfloat16 autocast and returns float32: losses and distances stay in full precision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            outputs = self.model(images)
        return _float(outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _float(outputs: Any) -> Any:
    return type(outputs)(_float(o) for o in outputs) if isinstance(outputs, (tuple, list)) else outputs.float()


class PrivacyMixin:
    """What `with_privacy` puts in front of a torchreid engine class.

    Args:
        components: `Component` objects, in order; an adversary that reads the reconstruction comes after its decoder.
        amp: bfloat16 autocast of the model's forward pass.
        exclude_same_camera: evaluation drops gallery rows of the query's pid and camera (the Market-1501 protocol).

    Attributes:
        components: as given.
        results: figures of the latest ``test``, by target name (`TargetResult`).
        best: ``{"epoch", "mAP"}`` of the best checkpoint on validation people so far, or None.

    Raises:
        ValueError: the model's outputs do not fit the engine, or its feature cannot be read.
    """

    model: Any
    epoch: int
    max_epoch: int
    writer: Any
    use_gpu: bool
    datamanager: Any
    test_loader: dict[str, Any]
    train_loader: Any

    def __init__(
        self,
        *args: Any,
        components: Sequence[Component] = (),
        amp: bool = False,
        exclude_same_camera: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.components = tuple(components)
        self.amp = amp
        self.exclude_same_camera = exclude_same_camera
        self.results: dict[str, TargetResult] = {}
        self.best: dict[str, float] | None = None
        self._replaying = False
        self._batch: Batch | None = None
        self._tap: FeatureTap | None = None
        _check_model_fits(self)
        if any(type(c).loss_terms is not Component.loss_terms for c in self.components):
            self._tap = FeatureTap(self.model)
            context = self._context()
            for component in self.components:
                component.build(context)
                for name, trainable in component.trainables().items():
                    self.register_model(name, *trainable)

    @property
    def gallery(self) -> DPGallery | None:
        """The DP gallery among the components, if there is one."""
        return next((c for c in self.components if isinstance(c, DPGallery)), None)

    def _context(self) -> Context:
        height, width = self.datamanager.height, self.datamanager.width
        feature_dim, map_shape = probe_shapes(self.model, height, width)
        mean, std = _normalization(self.datamanager.transform_te)
        return Context(
            feature_dim=feature_dim,
            feature_map_shape=map_shape,
            num_classes=self.datamanager.num_train_pids,
            height=height,
            width=width,
            norm_mean=mean,
            norm_std=std,
            device=next(unwrap(self.model).parameters()).device,
            components=self.components,
        )

    # ---- training -------------------------------------------------------------------------------------------------

    def register_model(self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None) -> None:
        """Register as torchreid does; a missing optimizer or scheduler, which torchreid fails to save, is fine."""
        super().register_model(name, model, optim or _Stateless(), sched or _Stateless())  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train one epoch, with a progress bar on a terminal."""
        loader = self.train_loader
        if os.isatty(1):
            size = getattr(loader, "batch_size", 1) or 1
            self.train_loader = track(loader, f"epoch {self.epoch + 1}", per_item=size, unit="images")
        try:
            super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.train_loader = loader

    def parse_data_for_train(self, data: Any) -> Any:
        """Parse as torchreid does and keep what the components need."""
        parsed = super().parse_data_for_train(data)  # type: ignore[misc]
        self._parsed = parsed
        return parsed

    def forward_backward(self, data: Any) -> dict[str, float]:
        """One training step of torchreid, with the components' terms in its loss and their own steps after it."""
        with self._autocast():
            if self._tap is None:
                return super().forward_backward(data)  # type: ignore[misc]
            self._batch, self._added, self._data = None, False, data
            with self._tap.armed():
                summary = super().forward_backward(data)  # type: ignore[misc]
        if self._batch is None:
            raise RuntimeError(
                f"{type(self).__name__}.forward_backward never called compute_loss, so the privacy terms were not part "
                "of the loss. An engine with components must compute its loss through self.compute_loss."
            )
        summary[self._task_key] = self._task_loss
        for component in self.components:
            summary.update(component.finish_step(self._batch))
        self._batch = None
        return summary

    def compute_loss(self, criterion: Any, outputs: Any, targets: Any) -> Tensor:
        """torchreid's loss, plus, on the first call of a batch, the components' terms (design: scaled by nobody)."""
        loss = super().compute_loss(criterion, outputs, targets)  # type: ignore[misc]
        if self._tap is None or self._added:
            return loss
        self._added = True
        self._batch = self._make_batch()
        terms = {name: term for c in self.components for name, term in c.loss_terms(self._batch).items()}
        # torchreid multiplies what a triplet engine's call returns by the weight of that loss
        self._task_key, scale = "loss", 1.0
        for key in ("t", "x"):
            if criterion is getattr(self, f"criterion_{key}", None):
                self._task_key, scale = f"loss_{key}", float(getattr(self, f"weight_{key}"))
        self._task_loss = float(loss.detach())
        return loss + torch.stack(list(terms.values())).sum() / scale if terms else loss

    def _make_batch(self) -> Batch:
        features = self._tap.feature()  # type: ignore[union-attr]
        feature_map = self._tap.feature_map() if self._tap.has_feature_map else None  # type: ignore[union-attr]
        images, pids = (part.to(features.device, non_blocking=True) for part in self._parsed[:2])
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in _normalization(self.datamanager.transform_te))
        done = self.epoch * len(self.train_loader) + getattr(self, "batch_idx", 0)
        total = max(1, getattr(self, "max_epoch", 1) * len(self.train_loader))
        return Batch(
            images=(images * std + mean).clamp_(0, 1),
            pids=pids,
            features=features,
            feature_map=feature_map,
            progress=min(1.0, done / total),
            data=self._data,
        )

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        if not self.amp:
            yield
            return
        model = self.model
        self.model = _AutocastModel(model)
        try:
            yield
        finally:
            self.model = model

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def parse_data_for_eval(self, data: Any) -> Any:
        """Parse as torchreid does; features that are evaluated again pass as they are."""
        if self._replaying:
            return data["img"], data["pid"], data["camid"]
        return super().parse_data_for_eval(data)  # type: ignore[misc]

    def extract_features(self, input: Tensor) -> Tensor:
        """Extract as torchreid does; features that are evaluated again pass as they are."""
        if self._replaying:
            return input
        return super().extract_features(input)  # type: ignore[misc]

    def test(self, *args: Any, **kwargs: Any) -> float:
        """Evaluate all targets as torchreid does, and the protected gallery beside it where there is a `DPGallery`.

        Each image is extracted once. `results` holds all figures; the research noise of the protected gallery is the
        same draw at each call.

        Returns:
            rank-1 of the last target, unprotected, as a fraction (what torchreid's own ``test`` returns).
        """
        bound = inspect.signature(super().test).bind(*args, **kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        options = dict(bound.arguments)
        self.set_model_mode("eval")  # type: ignore[attr-defined]
        sets = {}
        with self._autocast():
            for name, loaders in self.test_loader.items():
                items = self.datamanager.test_dataset[name]
                sets[name] = {r: extract(self, loaders[r], f"{name} {r}", items[r]) for r in ("query", "gallery")}
            train = self._training_features()
        rank1, rankings = self._replay(sets, options)
        self.results = {name: TargetResult(clean=ranking) for name, ranking in zip(sets, rankings, strict=True)}
        if self.gallery is not None:
            self._test_protected(self.gallery, sets, train, options)
        for name, result in self.results.items():
            print(f"{name}: mINP {result.clean.mINP:.1%}, {result.clean.num_valid_queries} queries with a match")
        return rank1

    def _training_features(self) -> Tensor | None:
        gallery = self.gallery
        if gallery is None or not gallery.needs_training_features:
            return None
        loader = training_set_for_features(self.datamanager, gallery.fit_images, gallery.seed)
        return extract(self, loader, "training split (for the public transform)", loader.dataset.data).features  # type: ignore[attr-defined]

    def _replay(self, sets: dict[str, dict[str, Extracted]], options: dict[str, Any]) -> tuple[float, list[Any]]:
        """Run torchreid's own ``test`` on features that are there already, with exact ranking in place of its own."""
        loaders = self.test_loader
        self.test_loader = {name: {r: [light_loader(s)] for r, s in roles.items()} for name, roles in sets.items()}
        self._replaying = True
        try:
            max_rank = max(50, *options["ranks"])
            with exact_ranking(exclude_same_camera=self.exclude_same_camera, max_rank=max_rank) as rankings:
                rank1 = super().test(**options)  # type: ignore[misc]
        finally:
            self._replaying = False
            self.test_loader = loaders
        return float(rank1), rankings

    def _test_protected(
        self, gallery: DPGallery, sets: dict[str, dict[str, Extracted]], train: Tensor | None, options: dict[str, Any]
    ) -> None:
        gallery.fit(train)
        protected = {
            name: {
                "query": roles["query"].with_features(gallery.transform(roles["query"].features)),
                "gallery": roles["gallery"].with_features(gallery.protect(roles["gallery"].features)),
            }
            for name, roles in sets.items()
        }
        print(gallery.banner())
        writer, self.writer = self.writer, None
        save_dir = os.path.join(options["save_dir"], "protected")
        try:
            options = {**options, "dist_metric": "cosine", "normalize_feature": False, "save_dir": save_dir}
            _, rankings = self._replay(protected, options)
        finally:
            self.writer = writer
        for (name, roles), ranking in zip(protected.items(), rankings, strict=True):
            result = protected_result(gallery, sets[name], roles, ranking, exclude_same_camera=self.exclude_same_camera)
            self.results[name].protected = result
            print(result.table(name, self.results[name].clean))
            if self.writer is not None:
                self.writer.add_scalar(f"Test/{name}/protected_rank1", ranking.rank1, self.epoch)
                self.writer.add_scalar(f"Test/{name}/protected_mAP", ranking.mAP, self.epoch)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Save as torchreid does, loadable again; keep ``model-last`` and, by validation people, ``model-best``."""
        validation = self.results.get(VALIDATION)
        if validation is not None and (self.best is None or validation.clean.mAP > self.best["mAP"]):
            self.best = {"epoch": epoch + 1, "mAP": validation.clean.mAP}
            is_best = True
        # a numpy float makes a checkpoint that torch.load refuses (weights_only)
        super().save_model(epoch, float(rank1), save_dir, is_best=is_best)  # type: ignore[misc]
        for name in self.get_model_names():  # type: ignore[attr-defined]
            folder = Path(save_dir, name)
            shutil.copyfile(folder / f"model.pth.tar-{epoch + 1}", folder / "model-last.pth.tar")
        if self.best is not None:
            Path(save_dir, STATE_FILE).write_text(json.dumps(self.best) + "\n", encoding="utf-8")
            print(f"Best on validation people: epoch {self.best['epoch']:.0f}, mAP {self.best['mAP']:.1%}")


@functools.cache
def with_privacy(engine_class: type) -> Any:
    """Return a subclass of a torchreid engine class that takes ``components=[...]``.

    Args:
        engine_class: any engine of torchreid (image or video, softmax or triplet) or a subclass of one that computes
            its loss through ``self.compute_loss``.

    Returns:
        The class; its constructor takes the engine's own arguments and those of `PrivacyMixin`, by keyword.

    Example:
        >>> from ppreid_plugin.toolbox import engine
        >>> Engine = with_privacy(engine.ImageSoftmaxEngine)
        >>> Engine.__name__
        'PrivateImageSoftmaxEngine'
        >>> with_privacy(Engine) is Engine
        True
    """
    if issubclass(engine_class, PrivacyMixin):
        return engine_class
    return type(f"Private{engine_class.__name__}", (PrivacyMixin, engine_class), {"__doc__": engine_class.__doc__})


def _check_model_fits(engine: Any) -> None:
    """Refuse a softmax engine with a model built for triplet loss, which trains on nonsense, and vice versa."""
    built_for = getattr(unwrap(engine.model), "loss", None) if isinstance(engine.model, nn.Module) else None
    wanted = "triplet" if hasattr(engine, "criterion_t") else "softmax" if hasattr(engine, "criterion") else None
    if built_for in ("softmax", "triplet") and wanted is not None and built_for != wanted:
        raise ValueError(
            f"{type(engine).__name__} needs a model built with loss='{wanted}', got one built with loss='{built_for}'. "
            f"Build it with build_model(..., loss='{wanted}')."
        )


def _normalization(transform: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a torchvision transform's ``Normalize`` (0 and 1 where it has none)."""
    for step in getattr(transform, "transforms", [transform]):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return tuple(step.mean), tuple(step.std)
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
