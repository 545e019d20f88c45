"""Faster extraction with the same features, to float rounding: a copy of the model made for inference alone.

* BatchNorm after a convolution is an affine map once training is over, so it is folded into the convolution;
* weights and images lie channels last, the layout that oneDNN and cuDNN compute in;
* no autograd bookkeeping (``torch.inference_mode``); on CUDA the forward pass runs under float16 autocast.

OSNet has many small convolutions, where memory traffic and the norms between them are half of the time. A ResNet-50 is
all arithmetic: there is little to win in float32.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .features import unwrap

_log = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def inference_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, channels last, with its batch norms folded where they can be.

    The copy computes what ``model.eval()`` computes, up to float rounding. A model whose graph cannot be traced keeps
    its batch norms.

    Args:
        model: a torchreid model, plain or wrapped; the copy is plain. It is not changed.
    """
    copied = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
    for convolution, norm in _foldable(copied):
        pair: Any = copied.get_submodule(convolution), copied.get_submodule(norm)
        copied.set_submodule(convolution, fuse_conv_bn_eval(*pair))
        copied.set_submodule(norm, nn.Identity())
    return copied.to(memory_format=torch.channels_last)


def _foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norm that alone reads each of them."""
    defaults = {name: p.default for name, p in list(inspect.signature(model.forward).parameters.items())[1:]}
    try:
        graph = fx.symbolic_trace(model, concrete_args=defaults or None).graph
    except Exception as error:  # whatever a model's forward does with a stand-in for a tensor
        _log.info("batch norms of %s stay as they are: %s", type(model).__name__, " ".join(str(error).split())[:200])
        return []
    modules = dict(model.named_modules(remove_duplicate=False))
    # one module under two names, or called twice, must not be changed for one of its uses
    uses = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _BatchNorm):
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution, norm = modules[str(source.target)], modules[str(node.target)]
        once = uses[id(convolution)] == uses[id(norm)] == 1
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in (convolution, norm))
        if type(convolution) in _CONVOLUTIONS and norm.running_mean is not None and once and not watched:
            pairs.append((str(source.target), str(node.target)))
    return pairs


@contextmanager
def fast_model(engine: Any, enabled: bool = True) -> Iterator[None]:
    """Inside the block ``engine.model`` is an `inference_copy`, which takes images in any layout.

    Args:
        engine: a torchreid engine in evaluation mode; several GPUs of a DataParallel model are all used.
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    model = engine.model
    copied = inference_copy(model)
    if isinstance(model, nn.DataParallel):
        copied = nn.DataParallel(copied, device_ids=model.device_ids)
    engine.model = _InferenceModel(copied)
    try:
        yield
    finally:
        engine.model = model


class _InferenceModel:
    """Calls an `inference_copy`; on CUDA under float16 autocast, in float32 again where that overflows."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layout = torch.channels_last

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type != "cuda":
            return self._forward(images)
        with torch.autocast("cuda", dtype=torch.float16):
            features = self._forward(images).float()
        return features if bool(torch.isfinite(features).all()) else self._forward(images)

    def _forward(self, images: Tensor) -> Tensor:
        try:
            return self.model(images.contiguous(memory_format=self.layout))
        except RuntimeError:
            if self.layout == torch.contiguous_format:
                raise
            # the forward of PCB and of MuDeep views a feature map as if its channels lay first
            self.layout = torch.contiguous_format
            self.model.to(memory_format=self.layout)
            return self._forward(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
