"""torchreid engines that carry privacy components.

``with_privacy(E)`` puts `PrivacyMixin` in front of any torchreid engine class. Public methods only are overridden:

* ``parse_data_for_train`` keeps the batch; hooks keep the feature of torchreid's own forward pass;
* ``compute_loss`` adds the components' terms, once a batch, unscaled by torchreid's loss weights;
* ``forward_backward`` lets the components take their steps and logs their figures;
* ``test`` extracts query and gallery once, evaluates them, and evaluates the protected gallery beside them;
* ``train`` keeps the state after each epoch as ``model-last``, so that a run that is stopped can go on;
* ``save_model`` writes checkpoints that load again, and keeps the best one by validation people.

Without components the engine computes what torchreid's own computes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ranks
from .checkpoint import EPOCH_FILE, keep_best, keep_last, load_best, name_of, set_aside
from .components import Batch, Component, Context
from .data.validation import VALIDATION, training_set_for_features
from .distributed import NoWriter, average_gradients, share_module
from .evaluation import TargetResult
from .features import FeatureTap, probe_shapes, unwrap
from .testing import EvaluationMixin
from .training import TrainingMixin, normalization

VALIDATION_PEOPLE = "validation people"


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


class PrivacyMixin(TrainingMixin, EvaluationMixin):
    """What `with_privacy` puts in front of a torchreid engine class.

    Args:
        components: `Component` objects, in order; an adversary that reads the reconstruction comes after its decoder.
            Those that train have names of their own.
        amp: bfloat16 autocast of the model's forward pass.
        exclude_same_camera: evaluation drops gallery rows of the query's pid and camera (the Market-1501 protocol).
        fast_extraction: evaluation extracts with a copy of the model made for inference (`inference_copy`).
        feature_cache: folder of `cached_shards`; empty: none. Of a protected gallery nothing is kept there.

    Attributes:
        components: as given.
        results: figures of the latest ``test``, by target name (`TargetResult`).
        best: ``{"epoch", "mAP"}`` of the best checkpoint on validation people so far, or None.
        evaluated: epochs that ``best`` was chosen among.

    Raises:
        ValueError: the model's outputs do not fit the engine, or its feature cannot be read; two components of one
            name.
    """

    def __init__(
        self,
        *args: Any,
        components: Sequence[Component] = (),
        amp: bool = False,
        exclude_same_camera: bool = True,
        fast_extraction: bool = False,
        feature_cache: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.components = tuple(components)
        self.amp = amp
        self.exclude_same_camera = exclude_same_camera
        self.fast_extraction = fast_extraction
        self.feature_cache = feature_cache
        self.results: dict[str, TargetResult] = {}
        self.best: dict[str, float] | None = None
        self.evaluated: set[int] = set()
        self._save_dir: Path | None = None
        self._replaying = False
        self._batch: Batch | None = None
        self._tap: FeatureTap | None = None
        _check_model_fits(self)
        _check_names([component for component in self.components if component.in_training])
        if any(component.in_training for component in self.components):
            tap, context = FeatureTap(self.model), self._context()
            with tap.unhooked():  # a copy of the encoder must not report to it
                for component in self.components:
                    component.build(context)
            for component in self.components:
                for name, trainable in component.trainables().items():
                    if name in self.get_model_names():  # type: ignore[attr-defined]
                        raise _twice(name)
                    self.register_model(name, *trainable)
                    share_module(trainable.module)
                    average_gradients(trainable.optimizer)
            self._tap = tap
        if not ranks.is_first():
            self.writer = NoWriter()

    def _context(self) -> Context:
        height, width = self.datamanager.height, self.datamanager.width
        feature_dim, map_shape = probe_shapes(self.model, height, width)
        mean, std = normalization(self.datamanager.transform_te)
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
            train_images=self._train_images,
            train_items=self.datamanager.train_loader.dataset.train,
            sources=tuple(self.datamanager.sources),
            encoder=unwrap(self.model),
        )

    def _train_images(self, max_images: int = 0, seed: int = 0) -> Iterator[Tensor]:
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in normalization(self.datamanager.transform_te))
        for data in training_set_for_features(self.datamanager, max_images, seed):
            yield (data["img"].flatten(0, -4) * std + mean).clamp_(0, 1)

    def register_model(self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None) -> None:
        """Register as torchreid does; a missing optimizer or scheduler, which torchreid fails to save, is fine.

        What DistributedDataParallel wraps is registered itself: checkpoints are those of one process.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        super().register_model(name, model, optim or _Stateless(), sched or _Stateless())  # type: ignore[misc]

    def run(self, save_dir: str = "log", *args: Any, **kwargs: Any) -> None:
        """Train and test as torchreid does; a run that is stopped continues from its ``model-last``."""
        self._save_dir = Path(save_dir)
        given = inspect.signature(super().run).bind(save_dir, *args, **kwargs).arguments  # type: ignore[misc]
        if not given.get("test_only") and not given.get("start_epoch") and given.get("max_epoch") and ranks.is_first():
            set_aside(self._save_dir)
        super().run(save_dir, *args, **kwargs)  # type: ignore[misc]

    def test_best(self, save_dir: str | Path, **kwargs: Any) -> None:
        """Test the weights that validation people chose in a `run`, where those are not the last.

        The registered modules have these weights afterwards.

        Args:
            save_dir: of the run.
            kwargs: of ``test``.
        """
        chosen = ranks.from_first(0.0 if self.best is None else self.best["epoch"])  # the first saves, and so knows it
        if not chosen or chosen == self.epoch + 1:
            return
        print(f"=> Test of epoch {chosen:.0f}, the best on validation people")
        load_best(self, Path(save_dir), int(chosen))
        self.test(save_dir=str(save_dir), **kwargs)

    @property
    def chosen_on(self) -> str:
        """On whom the epoch was chosen whose weights a `run` results in."""
        if self.best is None:
            return "nothing: the last epoch"
        if len({*self.evaluated, int(self.best["epoch"])}) == 1:
            return "nothing: the last epoch, the only one that was evaluated"
        return VALIDATION_PEOPLE

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train one epoch and, in a `run`, keep what it made: torchreid's own saves nothing before an evaluation."""
        super().train(*args, **kwargs)
        if self._save_dir is not None and ranks.is_first():
            keep_last(self, self._save_dir, self.epoch + 1)

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Save as torchreid does, loadable again; keep ``model-last`` and, by validation people, ``model-best``.

        Of several ranks the first saves.
        """
        if not ranks.is_first():
            return
        validation = self.results.get(VALIDATION)
        if validation is not None and (self.best is None or validation.clean.mAP > self.best["mAP"]):
            self.best = {"epoch": epoch + 1, "mAP": validation.clean.mAP}
        # a numpy float makes a checkpoint that torch.load refuses (weights_only)
        super().save_model(epoch, float(rank1), save_dir, is_best=is_best)  # type: ignore[misc]
        folder = Path(save_dir)
        keep_last(self, folder, epoch + 1)
        if validation is not None:
            self.evaluated.add(epoch + 1)
        if self.best is not None:
            if self.best["epoch"] == epoch + 1:
                names = self.get_model_names()  # type: ignore[attr-defined]
                keep_best(folder, self.best, {name: folder / name / f"{EPOCH_FILE}{epoch + 1}" for name in names})
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


def _check_names(components: Sequence[Component]) -> None:
    """Refuse components of one name: the one would take the other's place among losses, modules and checkpoints."""
    names = [name_of(component) for component in components]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _twice(twice[0])


def _twice(name: str) -> ValueError:
    return ValueError(
        f"two components are called {name!r}; one would take the other's place among losses and checkpoints. Give one "
        "of them another name (an adversary: name='...'), or leave it out."
    )


def _check_model_fits(engine: Any) -> None:
    """Refuse a softmax engine with a model built for triplet loss, which trains on nonsense, and vice versa."""
    built_for = getattr(unwrap(engine.model), "loss", None) if isinstance(engine.model, nn.Module) else None
    wanted = "triplet" if hasattr(engine, "criterion_t") else "softmax" if hasattr(engine, "criterion") else None
    if built_for in ("softmax", "triplet") and wanted is not None and built_for != wanted:
        raise ValueError(
            f"{type(engine).__name__} needs a model built with loss='{wanted}', got one built with loss='{built_for}'. "
            f"Build it with build_model(..., loss='{wanted}')."
        )
