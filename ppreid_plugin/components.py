"""Components: the privacy parts that an engine carries.

A component owns its modules, optimizers and schedulers, contributes weighted terms to the encoder's loss, and may take
a step of its own after the encoder's. The engine (`ppreid_plugin.with_privacy`) calls it; nothing here knows torchreid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What a component may know when the engine builds it.

    Attributes:
        feature_dim: dimension d of the encoder's feature.
        feature_map_shape: (C, h, w) of the last feature map, or None.
        num_classes: number of training people.
        height, width: input size in pixels.
        norm_mean, norm_std: the normalization of the images, per RGB channel.
        device: where the encoder lives.
        components: all components of the engine, in order.
        train_images: makes an iterator over batches of training images (B, 3, H, W), RGB in [0, 1] on the CPU, not
            augmented; arguments are the number of images (0: all, else a random subset) and the seed of the subset.
            It moves no global generator.
        train_items: (path or paths, pid, camid, dsetid) of the training split, as torchreid numbers them.
        sources: names of the training data sets; an item's dsetid is its place here.
        encoder: the torchreid model as it starts, plain; to be copied, never changed.
    """

    feature_dim: int
    feature_map_shape: tuple[int, ...] | None
    num_classes: int
    height: int
    width: int
    norm_mean: tuple[float, ...]
    norm_std: tuple[float, ...]
    device: torch.device
    components: tuple[Component, ...]
    train_images: Callable[[int, int], Iterator[Tensor]] | None = None
    train_items: Sequence[tuple[Any, ...]] = ()
    sources: tuple[str, ...] = ()
    encoder: nn.Module | None = None

    def find(self, kind: type[Any]) -> Any:
        """Return the first component of that class, or None."""
        return next((component for component in self.components if isinstance(component, kind)), None)


@dataclass
class Batch:
    """One training batch as the encoder saw it.

    Attributes:
        images: (B, 3, H, W), RGB in [0, 1] (torchreid's normalization undone), on the encoder's device.
        pids: (B,), training labels.
        features: (B, d) with the graph of torchreid's own forward pass.
        feature_map: (B, C, h, w) with its graph, or None.
        progress: share of the training that is done, in [0, 1].
        data: torchreid's batch dict (camid, impath, ...).
    """

    images: Tensor
    pids: Tensor
    features: Tensor
    feature_map: Tensor | None
    progress: float
    data: dict[str, Any] = field(default_factory=dict)


class Trainable(NamedTuple):
    """A module with its optimizer and scheduler, to be saved and switched by torchreid's engine.

    Without an optimizer it is a state that goes with the checkpoint, and no step of the engine moves it.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    scheduler: Any = None


class Component:
    """Base class of privacy parts. Override what is needed; a component that does nothing is allowed.

    Order of the calls in a training step: `loss_terms` during the engine's ``compute_loss`` (their sum is added to the
    encoder's loss), then `finish_step` after torchreid's backward pass and optimizer step. `begin_epoch` and
    `finish_epoch` come before the first and after the last step of an epoch.
    """

    in_training = True  # False for a part that only evaluation uses: it needs no access to the feature

    def check_images(self, height: int, width: int) -> None:
        """Check that images of this size in pixels will do. Called before any data are read.

        Raises:
            ValueError: they will not.
        """

    def build(self, context: Context) -> None:
        """Make the modules. Called once, when the engine is constructed."""

    def trainables(self) -> dict[str, Trainable]:
        """Modules by name: torchreid saves each under ``save_dir/<name>``.

        Under ``torchrun`` their gradients are averaged before each step of these optimizers: every process must take
        as many (`ppreid_plugin.ranks.anywhere` tells whether any has something to learn from).
        """
        return {}

    def small_state(self) -> dict[str, Any]:
        """What a resumed run goes on with beside the modules, JSON-ready; kept for every checkpoint. Empty: nothing."""
        return {}

    def take_small_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what `small_state` returned; not called for checkpoints for which none was kept.

        Raises:
            KeyError, TypeError, ValueError: it cannot be that.
        """

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the encoder's loss by name, each a scalar with its graph."""
        return {}

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Take the component's own step; the returned figures are logged."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for the epoch (from 0)."""

    def start_at_once(self) -> None:
        """Give from the next batch on what is else given after many batches: steps are timed then, not learned from."""

    def finish_epoch(self, epoch: int) -> None:
        """Look back on the epoch (from 0); a checkpoint may be written next."""


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block and restore them: building parts must not move torchreid's draws.

    They are the CPU's and, once CUDA is in use, that of the current device.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def frozen(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Run ``module`` with its parameters detached: gradients reach the inputs, never the module.

    Shape:
        As ``module(*inputs)``.
    """
    state = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return torch.func.functional_call(module, state, inputs)
