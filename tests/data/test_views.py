"""Augmented views: of the same items, by seed and place alone, and what transforms and codebooks are fitted on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ppreid_plugin import build, cli
from ppreid_plugin.data.validation import loader_like, training_set_for_features
from ppreid_plugin.data.views import AugmentedView, training_views
from ppreid_plugin.dp.feature_files import load_arrays
from ppreid_plugin.extraction import extract_splits, extract_views

TARGET = "synthetic_pedestrians"
FIT = ("test.evaluate", True, "privacy.gallery.enabled", True, "privacy.gallery.mechanism", "none")


@pytest.fixture
def manager(make_cfg):
    """Data manager of the small generated data set."""
    return build.build_datamanager(make_cfg())


def images(loader):
    return torch.cat([batch["img"] for batch in loader])


def test_views_are_of_the_training_items_in_order_one_pass_after_the_other(manager):
    items = manager.train_loader.dataset.train
    loader = training_views(manager, 2, seed=5)
    assert loader.dataset.data == [*items, *items]
    batches = list(loader)
    assert [pid for batch in batches for pid in batch["pid"].tolist()] == [item[1] for item in [*items, *items]]
    assert [path for batch in batches for path in batch["impath"]] == [item[0] for item in [*items, *items]]
    some = training_views(manager, 2, 7, seed=5)
    assert some.dataset.data == training_set_for_features(manager, 7, 5).dataset.data * 2


def test_a_view_depends_on_seed_and_place_alone_and_moves_no_generator(manager):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = training_views(manager, 2, seed=5)
    first = images(loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(images(loader_like(loader, loader.dataset, num_workers=2, batch_size=3)), first)
    backwards = [loader.dataset[place]["img"] for place in reversed(range(len(loader.dataset)))]
    assert torch.equal(torch.stack(backwards[::-1]), first)
    half = len(first) // 2
    plain = images(training_set_for_features(manager))
    for other in (plain, images(training_views(manager, 1, seed=6)), first[half:]):
        assert (first[:half] != other).flatten(1).any(1).all()


def test_views_look_like_their_images(manager):
    """A view is nearer to its own image, or to that mirrored, than to most others."""
    blurred = transforms.Resize((8, 4), antialias=True)
    plain = blurred(images(training_set_for_features(manager))).flatten(1)
    mirrored = blurred(images(training_set_for_features(manager)).flip(-1)).flatten(1)
    views = blurred(images(training_views(manager, 1, seed=2))).flatten(1)
    distances = torch.minimum(torch.cdist(views, plain), torch.cdist(views, mirrored))
    ranks = (distances < distances.diagonal()[:, None]).sum(1)
    assert ranks.double().mean() < len(plain) / 10


def test_a_view_is_augmented_before_and_erased_after_the_test_transform():
    seen = []

    def transform(image):
        seen.append(image)
        return transforms.functional.to_tensor(image)

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(1, 256, (50, 20, 3), dtype=np.uint8))
    view = AugmentedView(transform, 64, 32)
    torch.manual_seed(0)
    made = [view(picture) for _ in range(40)]
    assert {image.size for image in seen} == {(32, 64)}
    erased = [float((tensor == 0).all(0).float().mean()) for tensor in made]
    assert 8 <= sum(share > 0.015 for share in erased) <= 32  # half of them
    assert max(erased) <= 0.34
    for tensor, image in zip(made, seen, strict=True):
        kept = ~(tensor == 0).all(0)
        assert torch.equal(tensor[:, kept], transforms.functional.to_tensor(image)[:, kept])
    assert "RandomErasing" in repr(view)


def test_image_transforms_of_the_test_are_in_the_views(make_cfg):
    manager = build.build_datamanager(make_cfg("data.transforms_test", "['pixelate:blocks=2']"))
    for view in images(training_views(manager, 1, seed=1)):
        blocks = view.unfold(1, 16, 16).unfold(2, 16, 16).flatten(-2)
        # flat, but where something was erased to 0
        assert all(len(block.round(decimals=4).unique()) <= 2 for block in blocks.flatten(0, -2))


def test_the_file_of_views_holds_the_training_rows_and_then_the_views(pedestrians, tmp_path, monkeypatch):
    argv = [
        *("--root", str(pedestrians), "-s", TARGET, "-t", TARGET, "--views", "2", "--splits", "train"),
        *("model.name", "osnet_x0_25", "model.pretrained", "False", "data.height", "64", "data.width", "32"),
        *("data.workers", "0", "data.save_dir", str(tmp_path / "log"), "use_gpu", "False", "train.seed", "3"),
    ]
    written = cli.extract_features([*argv, "--out", str(tmp_path / "a")])
    train, views = load_arrays(written["train"]), load_arrays(written["train_views"])
    count = len(train["pids"])
    assert len(views["features"]) == 3 * count
    np.testing.assert_array_equal(views["features"][:count], train["features"])
    for name in ("pids", "camids"):
        np.testing.assert_array_equal(views[name], np.tile(train[name], 3))
    wanted = [f"{row}{tail}" for tail in ("", "#view-1", "#view-2") for row in train["row_ids"]]
    assert views["row_ids"].tolist() == wanted
    assert str(views["privacy"]) == "clean"
    unit = views["features"] / np.linalg.norm(views["features"], axis=1, keepdims=True)
    assert (np.abs(unit[:count] - unit[count : 2 * count]).max(1) > 1e-4).all()

    cache = ["test.feature_cache", str(tmp_path / "cache")]
    again = cli.extract_features([*argv, "--out", str(tmp_path / "b"), *cache])
    np.testing.assert_allclose(load_arrays(again["train_views"])["features"], views["features"], atol=1e-5)
    monkeypatch.setattr("ppreid_plugin.extracting.torch.inference_mode", None)  # nothing is extracted a second time
    kept = cli.extract_features([*argv, "--out", str(tmp_path / "c"), *cache])
    np.testing.assert_array_equal(
        load_arrays(kept["train_views"])["features"], load_arrays(again["train_views"])["features"]
    )
    with pytest.raises(FileExistsError, match=r"holds train\.npz, train_views\.npz already"):
        cli.extract_features([*argv, "--out", str(tmp_path / "a")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--views", "1", "--splits", "gallery"], "--views is 1, and --splits leaves out the split that they are of"),
        (["--views", "-1"], "--views is -1, must be a whole number >= 0"),
    ],
)
def test_views_of_nothing_are_refused(pedestrians, tmp_path, words, message):
    argv = ["--root", str(pedestrians), "-s", TARGET, "-t", TARGET, "--out", str(tmp_path / "out"), *words]
    with pytest.raises(ValueError, match=message):
        cli.extract_features([*argv, "data.save_dir", str(tmp_path / "log"), "use_gpu", "False"])
    assert not (tmp_path / "out").exists()


def test_the_engine_fits_on_images_and_views(make_engine):
    engine = make_engine(*FIT, "privacy.gallery.fit_images", 9, "privacy.gallery.fit_views", 2, "train.seed", 4)
    fitted_on = []
    (gallery,) = engine.galleries
    fit = gallery.fit

    def record(features, pids):
        fitted_on.append((features, pids))
        return fit(features, pids)

    gallery.fit = record
    engine.test()
    ((features, pids),) = fitted_on
    loader = training_set_for_features(engine.datamanager, 9, 4)
    plain = extract_splits(engine, splits=["train"])["train"]
    places = [engine.datamanager.train_loader.dataset.train.index(item) for item in loader.dataset.data]
    views = extract_views(engine, 2, max_images=9, seed=4)
    wanted = np.concatenate([plain["features"][places], views["features"]])
    np.testing.assert_allclose(features.numpy(), wanted, atol=1e-5)
    np.testing.assert_array_equal(pids, np.concatenate([plain["pids"][places], views["pids"]]))
    unit = wanted / np.linalg.norm(wanted.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(gallery.public_transform.mean, unit.mean(0), atol=1e-6)
