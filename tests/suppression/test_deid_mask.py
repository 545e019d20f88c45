"""The mask target: two sizes of blocks, true silhouettes of generated people, turned as the augmented image is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as vision

from ppreid_plugin import toolbox
from ppreid_plugin.components import Batch, Context
from ppreid_plugin.data.pedestrians import NAME
from ppreid_plugin.data.silhouettes import silhouette_of
from ppreid_plugin.suppression import DeIDDecoder, DeIDLoss, Mask


@pytest.fixture(scope="module")
def paths(pedestrians):
    return sorted(map(str, (pedestrians / NAME / "bounding_box_train").glob("*.jpg")))[:6]


def read(paths, height=256, width=128):
    pictures = [Image.open(path).resize((width, height), Image.Resampling.BILINEAR) for path in paths]
    return torch.stack([vision.to_tensor(picture) for picture in pictures])


def blocks_by_loops(image, seen):
    """Weighted block means: a quarter of the width in the top quarter of the rows, an eighth below."""
    height, width, _ = image.shape
    result = np.empty_like(image)
    for side, top, bottom in ((width // 4, 0, height // 4), (width // 8, height // 4, height)):
        for row in range(top, bottom, side):
            for column in range(0, width, side):
                place = np.s_[row : row + side, column : column + side]
                for part in (seen[place], ~seen[place]):
                    if part.any():
                        result[place][part] = image[place][part].mean(0)
    return result


def test_blocks_are_a_quarter_of_the_width_over_the_head_and_an_eighth_below():
    images = torch.rand(2, 3, 64, 32)
    got = Mask()(images)
    for image, masked in zip(images, got, strict=True):
        wanted = blocks_by_loops(image.permute(1, 2, 0).numpy(), np.ones((64, 32), bool))
        np.testing.assert_allclose(masked.permute(1, 2, 0).numpy(), wanted, atol=1e-6)


def test_with_a_silhouette_person_and_street_have_block_means_of_their_own():
    seen = np.zeros((64, 32), bool)
    seen[5:60, 7:20] = True
    mask = Mask(silhouettes=lambda path: seen)
    image = torch.rand(1, 3, 64, 32)
    mask._known[("a.jpg", 64, 32)] = (
        np.packbits(seen),
        torch.nn.functional.adaptive_avg_pool2d(image, (32, 16))[0].numpy(),
    )
    got = mask.of_batch(image, ["a.jpg"])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, blocks_by_loops(image[0].permute(1, 2, 0).numpy(), seen), atol=1e-5)


def test_true_silhouettes_of_generated_people_cut_the_blocks(paths):
    images, mask = read(paths), Mask()
    got = mask.of_batch(images, paths)
    for image, masked, path in zip(images, got, paths, strict=True):
        wanted = blocks_by_loops(image.permute(1, 2, 0).numpy(), silhouette_of(path))
        np.testing.assert_allclose(masked.permute(1, 2, 0).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(256, 128), (128, 64)])
def test_the_silhouette_is_turned_as_the_image_is(paths, size):
    images, mask = read(paths, *size), Mask()
    flipped = torch.tensor([False, True] * 3)
    turned = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    got = mask.place(turned, paths)
    step = 256 // size[0]
    for place, path in enumerate(paths):
        seen = torch.from_numpy(silhouette_of(path).copy())
        fitted = seen[step // 2 :: step, step // 2 :: step].float()
        wanted = fitted.flip(-1) if flipped[place] else fitted
        assert torch.equal(got[place, 0], wanted)
        assert 0.05 < wanted.mean() < 0.6


def test_torchreids_own_flips_and_erasing_keep_the_silhouette(paths):
    """Through torchreid's training transform: each image has the direct or the mirrored silhouette, never none."""
    torch.manual_seed(0)
    build = toolbox.submodule("data.transforms").build_transforms
    transform, _ = build(128, 64, ["random_flip", "random_erase"])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    mask, turned = Mask(), set()
    for _ in range(4):
        images = torch.stack([transform(Image.open(path)) * std + mean for path in paths]).clamp(0, 1)
        placed = mask.place(images, paths)
        truth = mask.place(read(paths, 128, 64), paths)
        for got, wanted in zip(placed, truth, strict=True):
            assert torch.equal(got, wanted) or torch.equal(got, wanted.flip(-1))
            turned.add(torch.equal(got, wanted))
    assert turned == {True, False}


@pytest.mark.parametrize(
    "change", [lambda x: (x * 1.1 + 0.02).clamp(0, 1), lambda x: x.roll(6, dims=-2)], ids=["jitter", "moved"]
)
def test_where_neither_orientation_fits_there_is_no_silhouette(paths, change):
    images, mask = read(paths), Mask()
    assert (mask.place(change(images), paths) == 1).all()
    torch.testing.assert_close(mask.of_batch(change(images), paths), mask(change(images)), atol=1e-5, rtol=0)


def test_images_of_other_data_sets_have_blocks_only(tmp_path):
    images = torch.rand(2, 3, 64, 32)
    names = ["market1501/bounding_box_train/0002_c1s1_000451_03.jpg", str(tmp_path / "x.jpg")]
    torch.testing.assert_close(Mask().of_batch(images, names), Mask()(images), atol=1e-6, rtol=0)


def test_the_decoder_component_passes_the_batchs_files_to_its_targets(paths):
    decoder = DeIDDecoder("mask:1.0,pixelate:0.5", weight=1.0, height=32, width=16)
    context = Context(8, None, 3, 256, 128, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,))
    decoder.build(context)
    images, features = read(paths), torch.randn(len(paths), 8)
    batch = Batch(images, torch.zeros(len(paths)), features, None, 0.0, {"impath": paths})
    (loss,) = decoder.loss_terms(batch).values()
    wanted = torch.nn.functional.interpolate(Mask().of_batch(images, paths), size=(32, 16), mode="area")
    decoded = decoder.decode(features)
    rest = DeIDLoss()(decoded[:, 3:], decoder.deidentify(images)[:, 3:])
    assert loss.item() == pytest.approx((DeIDLoss()(decoded[:, :3], wanted) + 0.5 * rest).item(), rel=1e-5)
    assert not torch.allclose(decoder.deidentify(images, paths), decoder.deidentify(images), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mask(blocks=1), "blocks is 1, must be >= 2 for mask"),
        (lambda: Mask(blocks=2.0), "blocks is 2.0, must be a whole number"),
        (lambda: Mask().of_batch(torch.rand(2, 3, 32, 16), ["a"]), "1 paths for 2 images"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
