"""De-ID losses: closed forms, our own SSIM as an oracle, several scales, gradients by finite differences."""

import pytest
import torch
from torch.nn import functional as F

from ppreid_plugin.components import Batch, Context
from ppreid_plugin.leakage.image_scores import ssim
from ppreid_plugin.suppression import DeIDDecoder, DeIDLoss, build_deid_target, parse_deid_loss


def pair(height=16, width=16, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64) for _ in range(2))


def reflected_ssim(x, y):
    """Our own SSIM, which is checked against scikit-image, on images whose borders are reflected."""
    return ssim(*(F.pad(images, (5, 5, 5, 5), mode="reflect") for images in (x, y))).mean().item()


def test_each_loss_is_its_formula():
    x, y = pair(20, 14)
    assert DeIDLoss("mse")(x, y).item() == pytest.approx((x - y).square().mean().item())
    assert DeIDLoss("l1")(x, y).item() == pytest.approx((x - y).abs().mean().item())
    assert DeIDLoss("ssim")(x, y).item() == pytest.approx(1 - reflected_ssim(x, y), abs=1e-9)


@pytest.mark.parametrize("kind", ["mse", "l1", "ssim", "mse:1.0,ssim:0.2"])
def test_equal_images_have_no_loss_and_others_have_some(kind):
    x, y = pair()
    assert DeIDLoss(kind)(x, x).item() == pytest.approx(0, abs=1e-9)
    assert DeIDLoss(kind)(x, y).item() > 0.01


def test_a_mix_is_the_weighted_sum():
    x, y = pair()
    parts = {kind: DeIDLoss(kind)(x, y).item() for kind in ("mse", "l1", "ssim")}
    wanted = 2 * parts["mse"] + 0.3 * parts["l1"] + 0.2 * parts["ssim"]
    assert DeIDLoss("mse:2.0,l1:0.3,ssim:0.2")(x, y).item() == pytest.approx(wanted)
    assert parse_deid_loss("mse:2.0,ssim") == {"mse": 2.0, "ssim": 1.0}


@pytest.mark.parametrize("kind", ["mse", "l1", "mse:1.0,ssim:0.5"])
def test_several_scales_are_the_mean_over_halved_images(kind):
    x, y = pair(48, 48)
    wanted = 0.0
    for size in (48, 24, 12):
        wanted += DeIDLoss(kind)(*(F.adaptive_avg_pool2d(images, size) for images in (x, y))).item() / 3
    assert DeIDLoss(kind, scales=3)(x, y).item() == pytest.approx(wanted)
    assert DeIDLoss(kind, scales=1)(x, y).item() != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("kind", "scales"), [("mse", 1), ("l1", 1), ("ssim", 1), ("mse:1.0,ssim:0.2", 1), ("l1", 3)])
def test_gradients_are_those_of_finite_differences(kind, scales):
    x, y = pair(12, 12, channels=1)
    loss = DeIDLoss(kind, scales=scales)
    assert torch.autograd.gradcheck(lambda decoded: loss(decoded, y), x.requires_grad_())


def test_the_decoder_component_uses_loss_and_scales_for_every_target():
    specs = {"pixelate": 1.0, "noise": 0.5, "color_quantize": 0.25, "dp_pixelate": 2.0}
    decoder = DeIDDecoder(
        ",".join(f"{name}:{weight}" for name, weight in specs.items()),
        weight=1.0,
        loss="mse:1.0,ssim:0.2",
        scales=2,
        height=32,
        width=32,
        seed=7,
        options={"blocks": 4, "noise_std": 0.1, "levels": 3, "epsilon": 2.0, "neighborhood": 4},
    )
    decoder.build(Context(8, None, 3, 64, 64, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,)))
    images, features = torch.rand(3, 3, 64, 64), torch.randn(3, 8, requires_grad=True)
    (loss,) = decoder.loss_terms(Batch(images, torch.zeros(3), features, None, 0.0)).values()
    arguments = {
        "pixelate": {"blocks": 4},
        "noise": {"noise_std": 0.1, "seed": 7},
        "color_quantize": {"levels": 3},
        "dp_pixelate": {"blocks": 4, "epsilon": 2.0, "neighborhood": 4, "seed": 7},
    }
    wanted = 0.0
    for index, (name, weight) in enumerate(specs.items()):
        target = F.adaptive_avg_pool2d(build_deid_target(name, **arguments[name])(images), 32)
        decoded = decoder.decode(features)[:, 3 * index : 3 * index + 3]
        for size in (32, 16):
            x, y = F.adaptive_avg_pool2d(decoded, size), F.adaptive_avg_pool2d(target, size)
            wanted += weight * (F.mse_loss(x, y).item() + 0.2 * (1 - reflected_ssim(x, y))) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeIDLoss("msee"), "privacy.deid.loss is 'msee'; allowed: l1, mse, ssim. Did you mean 'mse'?"),
        (lambda: DeIDLoss("mse:0"), "privacy.deid.loss gives 'mse' the weight '0', must be a number > 0"),
        (lambda: DeIDLoss("mse,mse"), "privacy.deid.loss names 'mse' twice"),
        (lambda: DeIDLoss(scales=0), "privacy.deid.scales is 0, must be a whole number >= 1"),
        (lambda: DeIDLoss("ssim")(*pair(10, 16)), "window of 11 pixels does not fit images of 10 x 16"),
        (lambda: DeIDLoss(scales=3)(*pair(16, 18)), "16 x 18 must be multiples of 4 pixels"),
        (lambda: DeIDDecoder(loss="ssim", scales=3), "does not fit images of 16 x 8"),
        (lambda: DeIDDecoder(height=-8), "De-ID decoder height is -8, must be a whole number >= 0"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
