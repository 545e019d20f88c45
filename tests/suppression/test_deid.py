"""De-ID targets, their parsing, and the decoder networks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppreid_plugin import build
from ppreid_plugin.suppression import (
    DEID_TARGETS,
    Blur,
    DeIDDecoder,
    DeIDLoss,
    LightDecoder,
    NoDeID,
    Pixelate,
    parse_deid_targets,
    register_deid_target,
    standalone_deid_target,
)


def pixelate_by_loops(image, blocks):
    """Mean of every block, block by block, for sizes that divide."""
    height, width, _ = image.shape
    side = width // blocks
    result = np.empty_like(image)
    for top in range(0, height, side):
        for left in range(0, width, side):
            result[top : top + side, left : left + side] = image[top : top + side, left : left + side].mean((0, 1))
    return result


@given(blocks=st.sampled_from([1, 2, 4, 8]), ratio=st.integers(1, 3), scale=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_pixelate_is_the_mean_of_square_blocks(blocks, ratio, scale):
    width = blocks * scale
    images = torch.rand(2, 3, ratio * width, width)
    got = Pixelate(blocks)(images)
    for image, pixelated in zip(images, got, strict=True):
        wanted = pixelate_by_loops(image.permute(1, 2, 0).numpy(), blocks)
        np.testing.assert_allclose(pixelated.permute(1, 2, 0).numpy(), wanted, atol=1e-6)
    assert torch.allclose(Pixelate(blocks)(got), got, atol=1e-6)  # again changes nothing


def test_pixelate_at_an_odd_size_keeps_shape_range_and_block_count():
    got = Pixelate(8)(torch.rand(1, 3, 61, 29))
    assert got.shape == (1, 3, 61, 29)
    assert len(torch.unique(got[0, 0, 0])) == 8
    assert len(torch.unique(got[0, 0, :, 0])) == round(8 * 61 / 29)


def test_pixelate_does_not_depend_on_the_input_size():
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 16), scale_factor=4, mode="nearest")
    small, large = Pixelate(8)(images[..., ::4, ::4]), Pixelate(8)(images)
    assert torch.allclose(small, large[..., ::4, ::4], atol=1e-6)


def test_blur_is_a_gaussian_in_fractions_of_the_height():
    images = torch.zeros(1, 3, 100, 80)
    images[..., 50, 40] = 1.0
    got = Blur(sigma=0.04)(images)[0, 0].double()
    rows = torch.arange(100.0).double() - 50
    assert got.sum().item() == pytest.approx(1.0, abs=1e-4)
    variance = float((got.sum(1) * rows.square()).sum())
    assert variance == pytest.approx(4.0**2, rel=0.05)  # 0.04 * 100 = 4 pixels; cut at 3 sigma


def test_blur_works_on_images_smaller_than_its_kernel():
    assert torch.isfinite(Blur(sigma=0.5)(torch.rand(1, 3, 8, 4))).all()


def test_none_is_the_clean_decoder():
    images = torch.rand(2, 3, 8, 4)
    assert torch.equal(NoDeID()(images), images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_deid_targets("pixelize"), "privacy.deid.target is 'pixelize'; registered: .*'pixelate'"),
        (lambda: parse_deid_targets("pixelate:-1"), "the weight '-1', must be a number > 0"),
        (lambda: parse_deid_targets("pixelate:x"), "the weight 'x', must be a number > 0"),
        (lambda: parse_deid_targets("pixelate,pixelate"), "names 'pixelate' twice"),
        (lambda: Pixelate(0), "blocks is 0, must be a whole number >= 1"),
        (lambda: Pixelate(2.5), "blocks is 2.5, must be a whole number"),
        (lambda: Pixelate(64)(torch.rand(1, 3, 64, 32)), "blocks is 64, must be <= the image width of 32"),
        (lambda: Blur(0.0), "sigma is 0.0, must be a finite number > 0"),
        (lambda: DeIDLoss("huber"), "'huber'; allowed: l1, mse, ssim"),
        (lambda: DeIDLoss()(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3)), "must be equal"),
        (lambda: DeIDDecoder(weight=-1.0), "De-ID weight is -1.0, must be a finite number >= 0"),
        (lambda: DeIDDecoder(input="pixels"), "'pixels'; allowed: feature, feature_map"),
        (lambda: DeIDDecoder(decoder="lihgt"), "privacy.deid.decoder is 'lihgt'; registered: hdr, light"),
        (lambda: LightDecoder((8,), 3, 60, 32), "60 x 32; both must be multiples of 8"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(set(DEID_TARGETS.names()) - {"mean_image"}))
@pytest.mark.parametrize("size", [(4, 40), (9, 8), (16, 7), (64, 32)])
def test_a_target_takes_the_sizes_that_its_check_lets_through_and_no_others(name, size):
    """The check before training says what the first batch would."""
    target = DEID_TARGETS.get(name)()
    needs_blocks = name in {"pixelate", "dp_pixelate", "mask", "sometimes"}
    for call in (lambda: target.check_size(*size), lambda: target(torch.rand(1, 3, *size))):
        if needs_blocks and size[1] < 8:
            with pytest.raises(ValueError, match="blocks is 8, must be <= the image width of 7 pixels"):
                call()
        else:
            call()


def test_more_blocks_than_pixels_are_refused_before_data_are_read(make_cfg):
    cfg = make_cfg("privacy.deid.enabled", True, "privacy.deid.blocks", 300, "data.root", "nowhere")
    with pytest.raises(ValueError, match=f"blocks is 300, must be <= the image width of {cfg.data.width} pixels"):
        build.check(cfg)


def test_only_the_mean_image_needs_training_images_first():
    with pytest.raises(ValueError, match="--target is 'mean_image', which learns from training images first"):
        standalone_deid_target("mean_image", key="--target")
    images = torch.rand(2, 3, 16, 8)
    for name in set(DEID_TARGETS.names()) - {"mean_image"}:
        made = standalone_deid_target(name, key="--target")()
        assert type(made) is DEID_TARGETS.get(name)
        assert made(images).shape == images.shape  # nothing was prepared
    with pytest.raises(ValueError, match="--target is 'blurr'; registered: .*Did you mean 'blur'"):
        standalone_deid_target("blurr", key="--target")


def test_a_name_is_not_replaced_by_accident():
    with pytest.raises(ValueError, match="registered already"):
        register_deid_target("pixelate")(NoDeID)
    with pytest.raises(TypeError, match="must be a subclass of DeIDTarget"):
        register_deid_target("mine")(dict)


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (64, 32), (128, 64), (64, 64)])
@pytest.mark.parametrize("shape", [(512,), (128, 16, 8)])
def test_the_light_decoder_makes_images_of_the_size_asked_for(size, shape):
    decoder = LightDecoder(shape, 6, *size)
    images = decoder(torch.randn(2, *shape))
    assert images.shape == (2, 6, *size)
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_light_decoder_costs_at_most_ten_million_multiply_adds():
    from torch.utils.flop_counter import FlopCounterMode

    decoder = LightDecoder((512,), 3, 64, 32)
    with FlopCounterMode(display=False) as counter:
        decoder(torch.randn(1, 512))
    assert counter.get_total_flops() / 2 <= 10e6


def test_several_targets_have_channels_of_their_own_and_weighted_losses():
    from ppreid_plugin.components import Batch, Context

    decoder = DeIDDecoder("pixelate:1.0,blur:0.5", weight=1.0, height=16, width=16, options={"blocks": 4, "sigma": 0.1})
    decoder.build(Context(8, None, 3, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,)))
    images, features = torch.rand(4, 3, 32, 16), torch.randn(4, 8, requires_grad=True)
    (loss,) = decoder.loss_terms(Batch(images, torch.zeros(4), features, None, 0.0)).values()
    decoded, wanted = decoder.decode(features), decoder.deidentify(images)
    assert decoded.shape == wanted.shape == (4, 6, 16, 16)
    mse = torch.nn.functional.mse_loss
    assert loss.item() == pytest.approx(
        (mse(decoded[:, :3], wanted[:, :3]) + 0.5 * mse(decoded[:, 3:], wanted[:, 3:])).item(), rel=1e-5
    )


def test_targets_are_made_at_full_size_and_averaged_down():
    decoder = DeIDDecoder("pixelate", weight=1.0, height=16, width=16, options={"blocks": 4})
    images = torch.rand(2, 3, 64, 32)
    got = decoder.deidentify(images)
    wanted = torch.nn.functional.interpolate(Pixelate(4)(images), size=(16, 16), mode="area")
    assert torch.allclose(got, wanted)
    assert len(torch.unique(got[0, 0, 0])) == 4


def test_the_decoder_learns_the_target_when_the_feature_holds_it():
    """Features that hold the pixelated image linearly: the De-ID loss must fall far below the mean image's."""
    from ppreid_plugin.components import Batch, Context

    torch.manual_seed(0)
    decoder = DeIDDecoder("pixelate", weight=1.0, height=16, width=16, lr=3e-3, options={"blocks": 2})
    decoder.build(Context(24, None, 3, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,)))
    images = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 2), size=(32, 16), mode="nearest")
    features = (torch.nn.functional.adaptive_avg_pool2d(images, (4, 2)).flatten(1) - 0.5) * 3
    target = decoder.deidentify(images)
    floor = (target - target.mean(0)).square().mean().item()
    for _ in range(300):
        (loss,) = decoder.loss_terms(Batch(images, torch.zeros(64), features, None, 0.0)).values()
        loss.backward()
        decoder.finish_step(None)
    assert loss.item() < 0.25 * floor


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ({}, {}, "has no targets. Name one or more"),
        ({"pixelate": -1.0}, {}, "De-ID weight of 'pixelate' is -1.0, must be"),
        ({"pixelat": 1.0}, {}, "Did you mean 'pixelate'"),
        ("pixelate", {"options": {"bloks": 4}}, "De-ID decoder options has 'bloks'; allowed: blocks.*Did you mean"),
        ("pixelate", {"options": {"sigma": 0.1}}, "De-ID decoder options has 'sigma'; allowed: blocks"),
        ("pixelate", {"lr": -1}, "De-ID decoder lr is -1, must be"),
    ],
)
def test_a_decoder_refuses_what_no_target_takes(targets, options, message):
    with pytest.raises(ValueError, match=message):
        DeIDDecoder(targets, **options)
