"""A training step with privacy off against stock torchreid's: the same batch in turn in one run.

Processor seconds on the CPU, plain and with the weights laid out channels last; seconds on a GPU.
"""

import os
import statistics
import time

import pytest
import torch

from ppreid_plugin import arguments
from ppreid_plugin.toolbox import engine as torchreid_engine
from ppreid_plugin.toolbox import models, optim

PAIRS = int(os.environ.get("STEP_PAIRS", "30"))


@pytest.mark.parametrize(("channels_last", "at_most"), [(False, 1.02), (True, 0.8)])
def test_a_step_without_privacy_costs_what_torchreids_costs(make_engine, benchmark, channels_last, at_most):
    torch.set_num_threads(1)
    ratio = ratio_to_torchreids(make_engine, benchmark, time.process_time, "train.channels_last", channels_last)
    layout = ", channels last," if channels_last else ""
    print(f"\na step without privacy{layout} costs {ratio:.4f} of torchreid's (median of {PAIRS} pairs)")
    assert ratio < at_most


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["osnet_x0_25", "osnet_x1_0", "resnet50"])
def test_a_step_without_privacy_on_a_gpu(make_engine, benchmark, model):
    def clock():
        torch.cuda.synchronize()
        return time.perf_counter()

    ratio = ratio_to_torchreids(make_engine, benchmark, clock, "use_gpu", True, "model.name", model)
    print(f"\n{model}: a step without privacy costs {ratio:.4f} of torchreid's on a GPU (median of {PAIRS} pairs)")
    assert ratio < 1.1


def ratio_to_torchreids(make_engine, benchmark, clock, *options):
    ours = make_engine("data.height", 256, "data.width", 128, "train.batch_size", 32, *options)
    cfg, manager = ours.cfg, ours.datamanager
    model = models.build_model(cfg.model.name, manager.num_train_pids, loss=cfg.loss.name, pretrained=False)
    model = model.cuda() if cfg.use_gpu else model
    optimizer = optim.build_optimizer(model, **arguments.optimizer_arguments(cfg))
    stock = torchreid_engine.ImageSoftmaxEngine(manager, model, optimizer, use_gpu=cfg.use_gpu)
    engines = {"torchreid": stock, "ours": ours}
    batch = next(iter(ours.train_loader))
    seconds = {name: [] for name in engines}

    def step(name):
        start = clock()
        engines[name].forward_backward(batch)
        seconds[name].append(clock() - start)

    for engine in engines.values():
        engine.set_model_mode("train")
        engine.max_epoch = 1

    def pair():
        for name in engines if len(seconds["ours"]) % 2 else reversed(list(engines)):
            step(name)

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=2)
    ratios = [own / plain for plain, own in zip(seconds["torchreid"][2:], seconds["ours"][2:], strict=True)]
    ratio = statistics.median(ratios)
    benchmark.extra_info.update({"ours / torchreid, median of pairs": ratio, "pairs": PAIRS})
    return ratio
