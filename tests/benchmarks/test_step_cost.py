"""Cost of a training step with privacy on, against off, in turn in one run: 256 x 128, batch 32.

OSNet x0.25 on the CPU; on a GPU that and the models of STEP_MODELS (default osnet_x1_0,resnet50) too, plain and amp.
"""

import ctypes
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import pytest
import torch

PRIVACY = ("privacy.deid.enabled", True, "privacy.adversary.enabled", True)
FORK = multiprocessing.get_context("fork")
SIZE = ("data.height", 256, "data.width", 128, "train.batch_size", 32)


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_step_cost(make_engine, benchmark, loss):
    torch.set_num_threads(2)
    triplet = ("loss.name", "triplet", "loss.triplet.weight_x", 1.0, "sampler.train_sampler", "RandomIdentitySampler")
    options = (*SIZE, *(triplet if loss == "triplet" else ()))
    engines = {"plain": make_engine(*options), "private": make_engine(*options, *PRIVACY)}
    batch = next(iter(engines["plain"].train_loader))
    seconds = {name: [] for name in engines}

    def step(name):
        engine = engines[name]
        engine.max_epoch = 1
        start = time.perf_counter()
        engine.forward_backward(batch)
        return time.perf_counter() - start

    for engine in engines.values():
        engine.set_model_mode("train")
    for name in engines:
        step(name)

    def pair():
        for name in engines:
            seconds[name].append(step(name))

    benchmark.pedantic(pair, rounds=12, warmup_rounds=1)
    ratios = [private / plain for plain, private in zip(seconds["plain"], seconds["private"], strict=True)]
    ratio = statistics.median(ratios)
    benchmark.extra_info["private / plain, median of pairs"] = ratio
    spread = f"{len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}"
    print(f"\n{loss}: a private step costs {ratio:.3f} of a plain one (median of {spread})")
    assert ratio < 1.2  # goal: 1.15


MODELS = ("osnet_x0_25", *os.environ.get("STEP_MODELS", "osnet_x1_0,resnet50").split(","))


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("model", MODELS)
def test_step_cost_on_a_gpu(make_engine, benchmark, model, amp):
    options = (*SIZE, "use_gpu", True, "model.name", model, "train.amp", amp, "train.channels_last", amp)
    engines, states, peaks = {}, {}, {}
    batch = None
    for name, more in {"plain": (), "private": PRIVACY}.items():
        held = torch.cuda.memory_allocated()
        engine = engines[name] = make_engine(*options, *more)
        engine.max_epoch = 1
        engine.set_model_mode("train")
        batch = next(iter(engine.train_loader)) if batch is None else batch
        for _ in range(3):  # cuDNN tries algorithms, and the memory that they want, at the first step
            engine.forward_backward(batch)
        states[name] = torch.cuda.memory_allocated() - held
    for name, engine in engines.items():
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        engine.forward_backward(batch)
        peaks[name] = states[name] + torch.cuda.max_memory_allocated() - held
    seconds = {name: [] for name in engines}

    def pair():
        for name, engine in engines.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            engine.forward_backward(batch)
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(pair, rounds=30, warmup_rounds=5)
    ratio = statistics.median(b / a for a, b in zip(seconds["plain"][5:], seconds["private"][5:], strict=True))
    plain, memory = statistics.median(seconds["plain"][5:]), peaks["private"] / peaks["plain"]
    benchmark.extra_info.update({"private / plain, median of pairs": ratio, "memory": memory})
    print(
        f"\n{model}, {'amp' if amp else 'float32'}, {torch.cuda.get_device_name()}: a private step costs {ratio:.3f} "
        f"of a plain one, which takes {1000 * plain:.1f} ms; memory {memory:.3f} times of "
        f"{peaks['plain'] / 2**20:.0f} MiB"
    )
    assert memory < 1.2  # goal: 1.1
    assert ratio < 1.6  # goal: 1.15; where starting kernels takes longer than they do, a step costs what it starts


def peak_mib():
    lines = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 1024


def steps(make_engine, options, answers):
    """Take three steps in a process of its own, and answer by how much its peak grew."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).malloc_trim(0)  # what tests before this one freed is inherited, and would be used for nothing
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    engine = make_engine(*options)
    engine.max_epoch = 1
    engine.set_model_mode("train")
    batch = next(iter(engine.train_loader))
    for _ in range(3):
        engine.forward_backward(batch)
    answers.put(peak_mib() - before)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the memory peak cannot be reset here")
def test_step_memory(make_engine):
    torch.set_num_threads(1)
    peaks = {}
    for name, options in {"plain": SIZE, "private": (*SIZE, *PRIVACY)}.items():
        answers = FORK.SimpleQueue()
        process = FORK.Process(target=steps, args=(make_engine, options, answers))
        process.start()
        peaks[name] = answers.get()
        process.join()
    ratio = peaks["private"] / peaks["plain"]
    print(f"\nthree steps: {peaks['plain']:.0f} MiB plain, {peaks['private']:.0f} MiB private, {ratio:.3f} times")
    assert ratio < 1.1
