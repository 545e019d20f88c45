"""The hdr decoder: sizes, the cost that its docstring states, and that it learns and serves adversaries."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppreid_plugin.components import Batch, Context
from ppreid_plugin.suppression import DeIDDecoder, HDRDecoder, IdentityAdversary


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (64, 32), (32, 32), (160, 64), (40, 48)])
@pytest.mark.parametrize("shape", [(12,), (12, 4, 2), (12, 16, 8)])
def test_it_makes_images_of_the_size_asked_for(size, shape):
    decoder = HDRDecoder(shape, 6, *size)
    images = decoder(torch.randn(1, *shape))
    assert images.shape == (1, 6, *size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert min(decoder.start) >= 4


def test_the_docstring_states_its_cost():
    rows = re.findall(r"^ *(feature(?: map)?), ([\d x]+?)  +([\d.]+) +([\d.]+) M$", HDRDecoder.__doc__, re.MULTILINE)
    assert len(rows) == 3
    for _, shape, megamacs, millions in rows:
        sizes = tuple(map(int, shape.split(" x ")))
        decoder = HDRDecoder(sizes, 3, 256, 128)
        with FlopCounterMode(display=False) as counter:
            decoder(torch.randn(1, *sizes))
        assert counter.get_total_flops() / 2e6 == pytest.approx(float(megamacs), abs=0.06)
        assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(float(millions), abs=0.006)


def test_it_learns_the_target_when_the_feature_holds_it():
    torch.manual_seed(0)
    decoder = DeIDDecoder("pixelate", weight=1.0, decoder="hdr", height=0, width=0, lr=3e-3, options={"blocks": 2})
    decoder.build(Context(12, None, 3, 32, 32, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,)))
    assert (decoder.height, decoder.width) == (32, 32)  # 0: the input's
    images = torch.nn.functional.interpolate(torch.rand(16, 3, 2, 2), size=(32, 32), mode="nearest")
    features = (torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) - 0.5) * 3
    floor = (images - images.mean(0)).square().mean().item()
    for _ in range(60):
        (loss,) = decoder.loss_terms(Batch(images, torch.zeros(16), features, None, 0.0)).values()
        loss.backward()
        decoder.finish_step(None)
    assert loss.item() < 0.25 * floor


@pytest.mark.parametrize("source", ["feature", "feature_map"])
def test_an_adversary_reads_its_full_image_and_teaches_the_encoder_only(source):
    decoder = DeIDDecoder("pixelate", decoder="hdr", input=source, scales=3, height=32, width=32)
    adversary = IdentityAdversary(ramp=False)
    context = Context(8, (8, 4, 4), 3, 32, 32, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder, adversary))
    decoder.build(context)
    adversary.build(context)
    features, maps = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, 4, 4, requires_grad=True)
    batch = Batch(torch.rand(4, 3, 32, 32), torch.arange(4) % 3, features, maps, 0.5)
    image = decoder.decode_frozen(batch)
    assert image.shape == (4, 3, 32, 32)
    image.square().sum().backward()
    read = features if source == "feature" else maps
    assert read.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in decoder.network.parameters())
    decoder.network.eval()
    torch.testing.assert_close(decoder.decode(read), image)  # the same in training and frozen


@pytest.mark.parametrize("size", [(256, 100), (24, 64), (64, 24)])
def test_sizes_that_it_cannot_make_are_named(size):
    message = f"{size[0]} x {size[1]}; both must be multiples of 8 and >= 32, such as 256 x 128"
    with pytest.raises(ValueError, match=message):
        HDRDecoder((8,), 3, *size)
