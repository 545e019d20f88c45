"""The training half of a private engine: the components' terms in torchreid's loss, and their own steps."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .autocast import model_autocast
from .components import Batch, Component
from .data.rank_sampler import RankSampler
from .distributed import average_buffers
from .features import FeatureTap, unwrap
from .progress import track
from .training_log import EpochLog


class TrainingMixin:
    """Overrides torchreid's ``train``, ``parse_data_for_train``, ``forward_backward`` and ``compute_loss``."""

    components: tuple[Component, ...]
    amp: bool
    model: Any
    epoch: int
    datamanager: Any
    train_loader: Any
    writer: Any
    _tap: FeatureTap | None
    _batch: Batch | None
    _log: EpochLog | None = None

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train one epoch, with a progress bar on a terminal."""
        loader = self.train_loader
        if isinstance(sampler := getattr(loader, "sampler", None), RankSampler):
            sampler.set_epoch(self.epoch)
        if sys.stdout.isatty():
            size = getattr(loader, "batch_size", 1) or 1
            self.train_loader = track(loader, f"epoch {self.epoch + 1}", per_item=size, unit="images")
        learning = self.components if self._tap is not None else ()
        for component in learning:
            component.begin_epoch(self.epoch)
        self._log = EpochLog(self.writer.log_dir if learning and self.writer is not None else None, self.epoch + 1)
        try:
            super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.train_loader = loader
        average_buffers(unwrap(self.model))
        for component in learning:
            component.finish_epoch(self.epoch)
        self._log.write()
        self._log = None

    def two_stepped_transfer_learning(
        self, epoch: int, fixbase_epoch: int, open_layers: Any, model: Any = None
    ) -> None:
        """Freeze and open layers as torchreid does, also inside DistributedDataParallel, which it does not know."""
        if model is None and isinstance(self.model, nn.parallel.DistributedDataParallel):
            model = self.model.module
        super().two_stepped_transfer_learning(epoch, fixbase_epoch, open_layers, model)  # type: ignore[misc]

    def parse_data_for_train(self, data: Any) -> Any:
        """Parse as torchreid does and keep what the components need."""
        parsed = super().parse_data_for_train(data)  # type: ignore[misc]
        self._parsed = parsed
        return parsed

    def forward_backward(self, data: Any) -> dict[str, float]:
        """One training step of torchreid, with the components' terms in its loss and their own steps after it."""
        with model_autocast(self):
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
        if self._log is not None:
            self._log.add(summary)
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
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in normalization(self.datamanager.transform_te))
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


def normalization(transform: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a torchvision transform's ``Normalize`` (0 and 1 where it has none)."""
    for step in getattr(transform, "transforms", [transform]):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return tuple(step.mean), tuple(step.std)
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
