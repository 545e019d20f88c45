"""Cost of De-ID targets, losses and decoders as shares of a plain training step: OSNet x0.25, 256 x 128, batch 32."""

import statistics
import time

import pytest
import torch

from ppreid_plugin.suppression import DECODERS, DeIDLoss, build_deid_target

TARGETS = ("pixelate", "blur", "noise", "mask", "color_quantize", "dp_pixelate")


def processor_seconds(call, rounds=3):
    """Median of the processor's seconds, after one call to warm up: other programs do not count."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


@pytest.fixture
def batch(make_engine):
    """A plain step in processor seconds, the images of a batch in [0, 1], and their files."""
    torch.set_num_threads(1)
    engine = make_engine("data.height", 256, "data.width", 128, "train.batch_size", 32)
    engine.set_model_mode("train")
    engine.max_epoch = 1
    data = next(iter(engine.train_loader))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    images = (data["img"] * std + mean).clamp(0, 1)
    return processor_seconds(lambda: engine.forward_backward(data)), images, data["impath"]


def test_cost_of_targets_losses_and_decoders(batch):
    plain, images, paths = batch
    calls = {name: (lambda target=build_deid_target(name): target.of_batch(images, paths)) for name in TARGETS}
    decoded, wanted = torch.rand(2, 32, 3, 64, 32)
    for kind in ("mse", "l1", "ssim"):
        calls[kind] = lambda loss=DeIDLoss(kind): loss(decoded.requires_grad_(), wanted).backward()
    features = torch.randn(32, 512, requires_grad=True)
    for name, size in (("light", (64, 32)), ("hdr", (256, 128))):
        calls[name] = lambda network=DECODERS.get(name)((512,), 3, *size): network(features).mean().backward()
    shares = {name: processor_seconds(call) / plain for name, call in calls.items()}
    print("\nshare of a plain step: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    assert max(shares[name] for name in (*TARGETS, "light")) < 0.5
