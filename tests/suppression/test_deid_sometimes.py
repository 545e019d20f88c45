"""Mixed images: each is either as it was or de-identified, as often as the share says."""

import pytest
import torch

from ppreid_plugin.suppression import Pixelate, Sometimes, parse_image_transform


def touched(made, images):
    same = (made == images).flatten(1).all(1)
    whole = (made == Pixelate()(images)).flatten(1).all(1)
    assert bool((same ^ whole).all())  # nothing in between
    return whole


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_images_is_de_identified_whole(share):
    images = torch.rand(600, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    images = (images * 255).round() / 255
    for made in (Sometimes(share=share)(images), Sometimes(share=share).fresh(images)):
        assert float(touched(made, images).float().mean()) == pytest.approx(share, abs=4 * (0.21 / 600) ** 0.5)


def test_test_images_keep_their_lot_and_training_images_draw_anew():
    images = (torch.rand(64, 3, 32, 16, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    mixed = Sometimes()
    state = torch.get_rng_state()
    assert torch.equal(mixed(images), mixed(images))
    assert torch.equal(mixed(images.flip(0)).flip(0), mixed(images))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert not torch.equal(mixed.fresh(images), mixed.fresh(images))
    assert not torch.equal(mixed(images), Sometimes(seed=2)(images))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sometimes:share=1.5", r"share is 1.5, must lie in \[0, 1\]"),
        ("sometimes:share=half", r"share is 'half', must lie in \[0, 1\]"),
        ("sometimes:target=pixelat", "Did you mean 'pixelate'"),
        ("sometimes:target=sometimes", "no transform of one image"),
        ("sometimes:target=mean_image", "no transform of one image"),
    ],
)
def test_errors_name_value_and_what_is_allowed(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_image_transform(spec)
