"""Color quantization and the mean image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppreid_plugin.components import Context
from ppreid_plugin.suppression import Blur, ColorQuantize, DeIDDecoder, MeanImage


@given(levels=st.integers(2, 256), seed=st.integers(0, 1000))
def test_quantization_goes_to_the_nearest_of_equally_spaced_levels(levels, seed):
    images = torch.rand(1, 3, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    palette = torch.linspace(0, 1, levels, dtype=torch.float64)
    distance = (images[..., None] - palette).abs()
    got = ColorQuantize(levels)(images)
    torch.testing.assert_close((images - got).abs(), distance.min(-1).values, atol=1e-12, rtol=0)
    assert torch.isin((got * (levels - 1)).round(), torch.arange(levels)).all()
    torch.testing.assert_close(ColorQuantize(levels)(got), got)  # again changes nothing


def test_blur_one_axis_after_the_other_is_the_blur_in_two_dimensions():
    from torchvision.transforms.functional import gaussian_blur

    images = torch.rand(2, 3, 40, 30)
    wanted = gaussian_blur(images, kernel_size=[13, 13], sigma=[2.0, 2.0])
    torch.testing.assert_close(Blur(sigma=0.05)(images), wanted, atol=1e-5, rtol=0)


def mean_by_pillow(items, height, width):
    total = np.zeros((3, height, width))
    for path, *_ in items:
        picture = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        total += np.asarray(picture).transpose(2, 0, 1) / 255
    return total / len(items)


@pytest.mark.parametrize("held_out", [0.0, 0.4])
def test_the_mean_image_is_that_of_the_training_split_alone(make_engine, held_out):
    engine = make_engine(
        "privacy.deid.enabled",
        True,
        "privacy.deid.target",
        "mean_image",
        "privacy.deid.loss",
        "l1",
        "privacy.validation.ids_fraction",
        held_out,
    )
    (decoder,) = engine.components
    target = decoder.targets["mean_image"]
    assert target.mean is None  # nothing is read before it is needed
    images, state = torch.rand(2, 3, 64, 32), torch.get_rng_state()
    got = target(images)
    assert torch.equal(torch.get_rng_state(), state)
    items = engine.train_loader.dataset.train
    wanted = mean_by_pillow(items, 64, 32)
    np.testing.assert_allclose(got[0].numpy(), wanted, atol=1e-5)
    assert torch.equal(got[0], got[1])
    everything = [*items, *engine.datamanager.test_dataset["synthetic_pedestrians"]["query"]]
    assert np.abs(mean_by_pillow(everything, 64, 32) - wanted).max() > 1e-3  # the test could tell
    before = got.clone()
    decoder.deidentify(torch.rand(4, 3, 64, 32))
    assert torch.equal(target(torch.rand(2, 3, 64, 32)), before)  # never changes


def test_a_subset_of_the_training_images_is_seeded():
    drawn = []

    def train_images(max_images, seed):
        drawn.append((max_images, seed))
        yield torch.full((3, 3, 4, 2), 0.25)
        yield torch.full((1, 3, 4, 2), 0.75)

    context = Context(8, None, 3, 4, 2, (0,) * 3, (1,) * 3, torch.device("cpu"), (), train_images=train_images)
    target = MeanImage(max_images=4, seed=5)
    target.prepare(context)
    got = target(torch.rand(2, 3, 8, 4))
    assert torch.equal(got, torch.full((2, 3, 8, 4), 0.375))
    assert drawn == [(4, 5)]
    target(torch.rand(1, 3, 8, 4))
    assert len(drawn) == 1


def test_a_mean_image_without_training_images_is_an_error():
    context = Context(8, None, 3, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), ())
    with pytest.raises(RuntimeError, match="give its DeIDDecoder to an engine first"):
        MeanImage()(torch.rand(1, 3, 32, 16))
    with pytest.raises(ValueError, match="learns from training images"):
        DeIDDecoder("mean_image").build(context)
    target = MeanImage()
    target.prepare(
        Context(
            8, None, 3, 4, 2, (0,) * 3, (1,) * 3, torch.device("cpu"), (), train_images=lambda count, seed: iter(())
        )
    )
    with pytest.raises(RuntimeError, match="the training split is empty"):
        target(torch.rand(1, 3, 4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ColorQuantize(1), "levels is 1, must be a whole number from 2 to 256"),
        (lambda: ColorQuantize(2.0), "levels is 2.0, must be a whole number"),
        (lambda: MeanImage(max_images=-1), "max_images of mean_image is -1, must be a whole number >= 0"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_engine_trains_several_targets_at_once(make_engine, run_engine):
    names = ["blur", "color_quantize", "dp_pixelate", "mask", "mean_image", "noise", "none", "pixelate"]
    engine = make_engine(
        *("privacy.deid.enabled", True, "privacy.deid.target", ",".join(f"{name}:0.5" for name in names)),
        *("privacy.deid.loss", "mse:1.0,ssim:0.1", "privacy.deid.scales", 2, "privacy.deid.decoder", "hdr"),
        *("privacy.deid.input", "feature_map", "privacy.deid.height", 32, "privacy.deid.width", 0),
        *("privacy.adversary.enabled", True, "train.max_epoch", 1, "train.batch_size", 64),
    )
    run_engine(engine)
    decoder = engine.components[0]
    images = torch.rand(2, 3, 64, 32)
    targets = decoder.deidentify(images)
    assert targets.shape == (2, 3 * len(names), 32, 32)
    assert ((targets >= 0) & (targets <= 1)).all()
    different = targets.unflatten(1, (len(names), 3))
    assert all(not torch.allclose(different[:, i], different[:, j]) for i in range(len(names)) for j in range(i))
