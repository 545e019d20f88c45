"""The inversion adversary: its floor is the mean of the images it has learned from, sample by sample."""

import numpy as np
import pytest
import torch
from adversary_cases import SOURCES, memorize, setup
from torch.nn import functional as F

from ppreid_plugin.suppression import ImageAdversary
from ppreid_plugin.suppression.adversary_members import take
from ppreid_plugin.suppression.image_adversary import Inverter


def reduced(batch):
    return F.interpolate(batch.images, size=(16, 16), mode="area")


def test_the_mean_image_is_that_of_all_images_however_they_come():
    images = torch.rand(11, 3, 8, 4)
    inverter = Inverter(torch.nn.Identity(), 8, 4)
    for part in images.split([1, 4, 6]):
        inverter.observe(part)
    assert torch.allclose(inverter.mean_image, images.mean(0), atol=1e-6)
    assert inverter.images_seen == 11


def test_the_bound_of_a_sample_is_the_error_of_the_mean_image_on_it(tmp_path):
    _, _, adversary, batch = setup("image", tmp_path, input="feature")
    assert torch.equal(adversary.bounds(adversary.module, batch), torch.zeros(12))  # no image seen, no gradient
    assert next(iter(adversary.loss_terms(batch).values())).item() == 0
    adversary.finish_step(batch)
    images = reduced(batch).numpy().astype(np.float64)
    wanted = [((image - images.mean(0)) ** 2).mean() for image in images]
    got = adversary.bounds(adversary.module, batch)
    assert got.tolist() == pytest.approx(wanted, rel=1e-5)
    assert got.std() > 0  # images differ in how far they are from the mean


def test_no_constant_image_does_better_on_average_than_the_floor(tmp_path):
    _, _, adversary, batch = setup("image", tmp_path, input="feature")
    adversary.observe(adversary.module, batch)
    floor = adversary.bounds(adversary.module, batch).mean()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        constant = adversary.module.mean_image + 0.1 * torch.randn(3, 16, 16, generator=generator)
        assert adversary.sample_losses(constant.expand(12, -1, -1, -1), batch).mean() > floor


def test_each_fold_has_the_mean_of_the_people_it_learns(tmp_path):
    _, _, adversary, batch = setup("image", tmp_path, input="feature", people="cross_fit")
    adversary.loss_terms(batch)
    adversary.finish_step(batch)
    for member in adversary.members:
        mine = reduced(batch)[member.learns[batch.pids]]
        assert torch.allclose(member.module.mean_image, mine.mean(0), atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_it_learns_to_reconstruct_what_it_has_seen(source, tmp_path):
    _, decoder, adversary, batch = setup("image", tmp_path, input=source)
    memorize(adversary, decoder, batch)  # below 0.85 of the floor on every sample
    read = decoder.decode(batch.features) if source == "reconstruction" else batch.features.detach()
    assert adversary.module(read).shape == (12, 3, 16, 16)
    error = adversary.sample_losses(adversary.module(read), batch).mean().item()
    figures = adversary.figures(adversary.module(read), batch)
    assert figures["psnr_adversary_image"] == pytest.approx(10 * np.log10(1 / error), rel=1e-5)


def test_rows_keep_their_images_labels_cameras_and_files(tmp_path):
    _, _, _, batch = setup("image", tmp_path)
    batch.data["weight"] = torch.tensor(1.0)  # of no row
    part = take(batch, torch.tensor([7, 2]))
    assert torch.equal(part.images, batch.images[[7, 2]])
    assert part.pids.tolist() == batch.pids[[7, 2]].tolist()
    assert part.data["camid"].tolist() == batch.data["camid"][[7, 2]].tolist()
    assert part.data["impath"] == [batch.data["impath"][7], batch.data["impath"][2]]
    # a clip of three images has one camera
    batch.data["camid"] = torch.tensor([0, 1, 2, 3])
    assert take(batch, torch.tensor([2, 3, 11])).data["camid"].tolist() == [0, 1, 3]


def test_a_size_that_the_decoder_lacks_is_an_error():
    for height in (20, 8, "a"):
        with pytest.raises(ValueError, match=f"image adversary height is {height!r}, must be .*image:height=64"):
            ImageAdversary(input="feature", height=height)
