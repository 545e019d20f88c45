"""Feature access: the feature and the feature map of torchreid's own forward pass, without a second one.

A forward pre-hook on ``model.classifier`` sees exactly the feature that the triplet loss and the evaluation use (46 of
torchreid's 49 models); one on ``model.global_avgpool`` (or ``avgpool``) sees the last feature map.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# models whose classification reads several features: hacnn has two classifiers, PCB one a stripe
UNSUPPORTED_MODELS = ("hacnn", "pcb_p4", "pcb_p6")

_MAP_LAYERS = ("global_avgpool", "avgpool")


class FeatureAccessError(ValueError):
    """A model whose feature cannot be read during training."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain torchreid model inside DataParallel or DistributedDataParallel."""
    return model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else model


def _pooling_layer(plain: nn.Module) -> nn.Module | None:
    """The layer whose input is the last feature map; None where a model has no such module."""
    found = next((getattr(plain, name) for name in _MAP_LAYERS if hasattr(plain, name)), None)
    return found if isinstance(found, nn.Module) else None


class FeatureTap:
    """Keeps what flows into the classifier and the pooling layer of a torchreid model while armed.

    Under DataParallel each replica stores its share under its own device; reading joins them in the order of the
    batch, on the first device, with the graph kept.

    Args:
        model: a torchreid model, plain or wrapped.

    Raises:
        FeatureAccessError: the model has no single ``classifier`` layer (hacnn, pcb_p4, pcb_p6).
    """

    def __init__(self, model: nn.Module) -> None:
        plain = unwrap(model)
        classifier = getattr(plain, "classifier", None)
        if not isinstance(classifier, nn.Module) or isinstance(classifier, (nn.ModuleList, nn.ModuleDict)):
            raise FeatureAccessError(
                f"{type(plain).__name__} has no single classifier layer, so its feature cannot be read in training; "
                f"suppression does not support {', '.join(UNSUPPORTED_MODELS)}. Choose another model.name, or leave "
                "privacy.deid and privacy.adversary disabled."
            )
        self._devices: list[torch.device] | None = None
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            self._devices = [torch.device("cuda", index) for index in model.device_ids]
        self._lock = threading.Lock()
        self._armed = False
        self._stored: dict[str, dict[torch.device, Tensor]] = {"feature": {}, "feature_map": {}}
        pooling = _pooling_layer(plain)
        self.has_feature_map = pooling is not None
        self._watched = {"feature": classifier} | ({"feature_map": pooling} if pooling is not None else {})
        self._handles: list[Any] = []
        self._hook_up()

    def _hook_up(self) -> None:
        self._handles = [layer.register_forward_pre_hook(self._hook(kind)) for kind, layer in self._watched.items()]

    def _hook(self, kind: str) -> Any:
        def store(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._armed:
                with self._lock:
                    self._stored[kind][inputs[0].device] = inputs[0]

        return store

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Store what passes during the block, and drop it afterwards."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            for stored in self._stored.values():
                stored.clear()

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Take the hooks off the model during the block: a copy of it that is made there has none."""
        self.close()
        try:
            yield
        finally:
            self._hook_up()

    def feature(self) -> Tensor:
        """Feature of the batch that just passed, shape (B, d), float32, with its graph."""
        return self._join("feature")

    def feature_map(self) -> Tensor:
        """Feature map of the batch that just passed, shape (B, C, h, w), float32, with its graph."""
        return self._join("feature_map")

    def _join(self, kind: str) -> Tensor:
        stored = self._stored[kind]
        if not stored:
            raise FeatureAccessError(f"no {kind} passed through the model while it was watched.")
        devices = [d for d in self._devices if d in stored] if self._devices else list(stored)
        joined = (
            torch.cat([stored[device].to(devices[0]) for device in devices]) if len(devices) > 1 else stored[devices[0]]
        )
        return joined.flatten(1).float() if kind == "feature" else joined.float()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def probe_shapes(model: nn.Module, height: int, width: int) -> tuple[int, tuple[int, ...] | None]:
    """Return the feature dimension d and the feature map's shape (C, h, w), None where there is none.

    One blank image passes in evaluation mode: no statistic, no random state and no training flag changes.

    Args:
        model: a torchreid model, plain or wrapped.
        height: input height in pixels.
        width: input width in pixels.
    """
    plain = unwrap(model)
    modes = {module: module.training for module in plain.modules()}
    shapes: list[tuple[int, ...]] = []
    pooling = _pooling_layer(plain)
    handle = (
        pooling.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
        if pooling is not None
        else None
    )
    try:
        plain.eval()
        device = next(plain.parameters()).device
        feature = plain(torch.zeros(1, 3, height, width, device=device))
    finally:
        for module, training in modes.items():
            module.training = training
        if handle is not None:
            handle.remove()
    return int(feature.flatten(1).shape[1]), shapes[-1] if shapes else None
