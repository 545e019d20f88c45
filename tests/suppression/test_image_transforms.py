"""De-ID targets as image transforms: where they stand, what they leave alone, and what noise they draw."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as vision

from ppreid_plugin import build, toolbox
from ppreid_plugin.config import ConfigError, check_config, get_default_config, merge_options
from ppreid_plugin.suppression import Blur, ColorQuantize, DPPixelate, Pixelate, parse_image_transform
from ppreid_plugin.suppression.image_transforms import describe_guarantee, insert_image_transforms

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def torchreid_transforms(*names):
    return toolbox.submodule("data.transforms").build_transforms(64, 32, list(names))


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 40, 3), np.uint8))


def kinds(compose):
    return [type(step).__name__ for step in compose.transforms]


def test_they_stand_between_tensor_and_normalization_in_the_order_of_the_list():
    names = ["blur", "random_flip", "pixelate:blocks=4", "random_erase"]
    train, _ = torchreid_transforms(*names)
    made = insert_image_transforms(train, names, fresh=True)
    wanted = ["Resize", "RandomHorizontalFlip", "ToTensor", "ImageTransform", "ImageTransform", "Normalize"]
    assert kinds(train) == [*wanted, "RandomErasing"]
    assert [type(step.target) for step in made] == [Blur, Pixelate]
    assert made[1].target.blocks == 4


def test_nothing_changes_where_none_is_named():
    train, test = torchreid_transforms("random_flip", "color_jitter")
    before = [list(train.transforms), list(test.transforms)]
    assert insert_image_transforms(train, ["Random_Flip", "color_jitter"], fresh=True) == []
    assert insert_image_transforms(test, [], fresh=False) == []
    assert [train.transforms, test.transforms] == before


def test_the_model_gets_the_targets_image(picture):
    for spec, target in {
        "pixelate:blocks=4": Pixelate(4),
        "blur:sigma=0.05": Blur(0.05),
        "color_quantize:levels=3": ColorQuantize(3),
    }.items():
        _, test = torchreid_transforms()
        insert_image_transforms(test, [spec], fresh=False)
        image = vision.to_tensor(vision.resize(picture, [64, 32]))
        torch.testing.assert_close(test(picture) * STD + MEAN, target(image[None])[0], atol=1e-5, rtol=0)


def test_training_noise_is_new_each_time_and_seeded_test_noise_belongs_to_the_image(picture):
    spec = "dp_pixelate:epsilon=50.0+blocks=4"
    train, test = torchreid_transforms()
    insert_image_transforms(train, [spec], fresh=True)
    insert_image_transforms(test, [spec], fresh=False)
    torch.manual_seed(3)
    first, second = train(picture), train(picture)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.manual_seed(3)
    assert torch.equal(train(picture), first)
    state = torch.get_rng_state()
    image = vision.to_tensor(vision.resize(picture, [64, 32]))
    wanted = DPPixelate(blocks=4, epsilon=50.0)(image[None])[0]
    torch.testing.assert_close(test(picture) * STD + MEAN, wanted, atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_draw_different_noise_that_follows_the_seed(make_cfg):
    """Two workers: no two images of an epoch, nor two epochs, share noise; the same seed gives the same batches."""

    def epochs():
        cfg = make_cfg("data.transforms", ["dp_pixelate:epsilon=1000.0+blocks=2"], "data.workers", 2)
        torch.manual_seed(1)
        loader = build.build_datamanager(cfg).train_loader
        return [
            {path: image for batch in loader for path, image in zip(batch["impath"], batch["img"], strict=True)}
            for _ in range(2)
        ]

    first, second = epochs(), epochs()
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[path], two[path]) for path in one)
    shared = first[0].keys() & first[1].keys()
    assert len(shared) > 30
    assert not any(torch.allclose(first[0][path], first[1][path], atol=1e-4) for path in shared)


def test_an_engine_trains_on_noised_and_tests_on_anonymized_images(make_engine, run_engine, capsys):
    engine = make_engine(
        "data.transforms",
        ["random_flip", "dp_pixelate:epsilon=2.0+blocks=4"],
        "data.transforms_test",
        ["pixelate:blocks=4"],
        "privacy.deid.enabled",
        True,
        "privacy.validation.ids_fraction",
        0.3,
        "train.max_epoch",
        3,
    )
    printed = capsys.readouterr().out
    assert "training pass through: dp_pixelate(blocks=4, epsilon=2.0, neighborhood=16, seed=1)" in printed
    assert "test pass through: pixelate(blocks=4)" in printed
    assert "dp_pixelate: epsilon 6 each time an image is read, 18 over 3 epochs" in printed
    engine.max_epoch = engine.cfg.train.max_epoch = 1
    batch = next(iter(engine.train_loader))
    images = batch["img"] * STD + MEAN
    torch.testing.assert_close(Pixelate(4)(images), images, atol=1e-5, rtol=0)
    for loaders in engine.test_loader.values():  # of validation people too
        for loader in loaders.values():
            images = next(iter(loader))["img"] * STD + MEAN
            torch.testing.assert_close(Pixelate(4)(images), images, atol=1e-5, rtol=0)
    run_engine(engine)
    assert 0 <= engine.results["synthetic_pedestrians"].clean.mAP <= 1


def test_what_training_spends_is_said_only_of_dp_pixelation():
    train, _ = torchreid_transforms()
    assert describe_guarantee(insert_image_transforms(train, ["pixelate", "noise"], fresh=True), 60) == ""
    made = insert_image_transforms(train, ["dp_pixelate:epsilon=0.5", "dp_pixelate:epsilon=0.1"], fresh=True)
    # the second sees what the first let through: it costs nothing more
    assert "epsilon 1.5 each time an image is read, 90 over 60 epochs" in describe_guarantee(made, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.transforms", "['pixelat']"], "data.transforms is 'pixelat'; allowed: .*Did you mean 'pixelate'?"),
        (["data.transforms", "['mean_image']"], "data.transforms is 'mean_image'; allowed: blur, color_jitter"),
        (["data.transforms", "['none']"], "data.transforms is 'none'; allowed"),
        (["data.transforms_test", "['random_flip']"], "data.transforms_test is 'random_flip'; allowed: blur, color_q"),
        (["data.transforms", "['pixelate:block=4']"], "data.transforms 'pixelate' has 'block'; allowed: blocks"),
        (["data.transforms", "['pixelate:4']"], "data.transforms 'pixelate': '4' must be NAME=VALUE, such as blocks=8"),
        (["data.transforms", "['pixelate:blocks=4+blocks=8']"], "'pixelate' gives 'blocks' twice; give it once"),
        (["data.transforms_test", "['noise:noise_std=0']"], "noise_std is 0, must be a finite number > 0"),
        (["data.transforms", "['dp_pixelate:epsilon=-1']"], "epsilon of dp_pixelate is -1, must be a finite number"),
        (
            ["data.transforms", "['dp_pixelate:blocks=200']"],
            "data.transforms has 'dp_pixelate:blocks=200': blocks is 200, must be <= the image width of 128 pixels",
        ),
        (["data.transforms_test", "['mask:blocks=200']"], "data.transforms_test has 'mask:blocks=200': blocks is 200"),
        (["privacy.deid.loss", "mse:1,sim:2"], "privacy.deid.loss is 'sim'; allowed: l1, mse, ssim"),
        (["privacy.deid.scales", "0"], "privacy.deid.scales is 0, must be > 0"),
        (["privacy.deid.height", "-1"], "privacy.deid.height is -1, must be >= 0"),
    ],
)
def test_errors_come_before_any_data_are_read(options, message):
    cfg = get_default_config()
    merge_options(cfg, options)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


def test_only_its_own_names_are_given_to_torchreid():
    assert parse_image_transform("random_flip", known=("random_flip",)) is None
    with pytest.raises(ValueError, match="allowed: blur, color_quantize, dp_pixelate, mask, noise, pixelate"):
        parse_image_transform("random_flip")
    compose = toolbox.submodule("data.transforms").Compose([])
    with pytest.raises(ValueError, match="torchreid's transform has none"):
        insert_image_transforms(compose, ["pixelate"], fresh=True)
