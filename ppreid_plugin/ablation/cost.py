"""Cost of a training step: a row's step over the plain one, timed in turn in one process."""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from yacs.config import CfgNode

from .. import build
from ..config import disable_privacy


def step_cost(cfg: CfgNode, pairs: int) -> float:
    """Return the median over pairs of the seconds of a private step over those of a plain one.

    Both engines start from the same weights and see the same batch; a first pair is not counted. Parts that wait for
    many batches before they act (`Component.start_at_once`) act at once. A row without privacy parts in training costs
    1 by definition.

    Args:
        cfg: configuration of a row that is trained.
        pairs: number of pairs.
    """
    if not any(part.in_training for part in build.build_components(cfg)):
        return 1.0
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for private in (False, True):
            one = cfg.clone()
            one.data.save_dir, one.model.resume = folder, ""
            one.privacy.gallery.enabled = False
            if not private:
                disable_privacy(one)
            engine = build.build_engine(one)
            engine.max_epoch = max(1, one.train.max_epoch)
            engine.set_model_mode("train")
            for part in engine.components:
                part.start_at_once()
            engines.append(engine)
        batch = next(iter(engines[0].train_loader))
        ratios = []
        for _ in range(pairs + 1):
            seconds = []
            for engine in engines:
                start = time.perf_counter()
                engine.forward_backward(batch)
                if cfg.use_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[1:])
