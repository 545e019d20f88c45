"""Images as bytes: bit for bit what torchreid's own transform gives, and nothing where that is another transform."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ppreid_plugin.data.raw_images import RawImages

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def dataset(*steps):
    return SimpleNamespace(transform=transforms.Compose(list(steps)))


def test_values_are_those_of_the_own_transform_bit_for_bit():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 21, 3), dtype=np.uint8)) for _ in range(3)]
    own = dataset(transforms.Resize((48, 24)), transforms.ToTensor(), transforms.Normalize(MEAN, STD))
    raw = RawImages.of(own)
    stacked = torch.stack([raw.dataset.transform(image) for image in images])
    assert stacked.dtype == torch.uint8
    made = raw.normalized(stacked)
    assert torch.equal(made, torch.stack([own.transform(image) for image in images]))
    assert made.is_contiguous(memory_format=torch.channels_last)
    clips = raw.normalized(stacked[:, None].expand(-1, 2, -1, -1, -1))
    assert torch.equal(clips[:, 1], made)
    assert isinstance(own.transform.transforms[-1], transforms.Normalize)  # the set itself is as it was


def test_a_real_batch_is_the_same(make_engine):
    engine = make_engine("test.evaluate", True)
    loader = engine.test_loader["synthetic_pedestrians"]["query"]
    raw = RawImages.of(loader.dataset)
    rows = [raw.dataset[row] for row in range(4)]
    made = raw.normalized(torch.stack([row["img"] for row in rows]))
    wanted = [loader.dataset[row] for row in range(4)]
    assert torch.equal(made, torch.stack([row["img"] for row in wanted]))
    assert [row["impath"] for row in rows] == [row["impath"] for row in wanted]


class Other(torch.nn.Identity):
    """It has a mean and a standard deviation, and does something else with them."""

    mean, std = MEAN, STD


@pytest.mark.parametrize(
    "steps",
    [
        (transforms.ToTensor(),),
        (transforms.Resize(4), transforms.ToTensor(), Other()),
        (transforms.Resize(4), transforms.ToTensor(), torch.nn.Identity(), transforms.Normalize(MEAN, STD)),
        (torch.nn.Identity(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)),
        (transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])),
        (transforms.Normalize(MEAN, STD), transforms.ToTensor()),
    ],
)
def test_another_transform_is_left_to_the_data_set(steps):
    assert RawImages.of(dataset(*steps)) is None


def test_a_set_without_transform_is_left_alone():
    assert RawImages.of(object()) is None
