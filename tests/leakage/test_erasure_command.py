"""The command that fits concept erasure: what it writes is what the library of the transform fits, and errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from ppreid_plugin import cli
from ppreid_plugin.data.images import read_image
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.leakage import ArrayImages, Leace, image_components
from ppreid_plugin.leakage.erasure_command import erase_command


@pytest.fixture
def train(tmp_path):
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(40), 5)
    labels = {"gender": pids % 2, "bag": pids // 2 % 2}
    features = rng.normal(size=(200, 6))
    features[:, 0] += 3 * labels["gender"]
    features[:, 1] += 3 * labels["bag"]
    path = tmp_path / "train.npz"
    named = {f"attr_{name}": values for name, values in labels.items()}
    np.savez(path, features=features, pids=pids, camids=np.tile(np.arange(5), 40), **named)
    return path, features.astype(np.float32), labels


def between_classes(rows, labels):
    return np.abs(rows[labels == 0].mean(axis=0) - rows[labels == 1].mean(axis=0)).max()


def test_the_file_erases_what_was_named_and_nothing_else(train, tmp_path):
    path, features, labels = train
    out = tmp_path / "leace.safetensors"
    erase_command(["--train", str(path), "--only", "gender", "--out", str(out)])
    rows = build_transform(f"leace:{out}").transform(features)
    wanted = Leace(center=True).fit_concepts(features, labels["gender"][:, None]).transform(features)
    np.testing.assert_allclose(rows, wanted, atol=1e-6)
    assert between_classes(rows, labels["gender"]) < 1e-5
    assert between_classes(rows, labels["bag"]) > 0.1
    assert np.abs(rows.mean(axis=0)).max() < 1e-5


def test_all_attributes_and_the_mean_kept(train, tmp_path):
    path, features, labels = train
    out = tmp_path / "leace.safetensors"
    erase_command(["--train", str(path), "--no-center", "--out", str(out)])
    rows = Leace.load(out).transform(features)
    assert max(between_classes(rows, values) for values in labels.values()) < 1e-5
    assert np.abs(rows.mean(axis=0)).max() > 0.05


def shown(tmp_path, path, seed=3):
    """The training file with images whose brightness is what column 2 of the features says, and that as numbers."""
    arrays = dict(np.load(path))
    level = np.clip(128 + 30 * arrays["features"][:, 2], 0, 255)
    noise = np.random.default_rng(seed).integers(-20, 20, (len(level), 32, 16, 3))
    arrays["images"] = np.clip(level[:, None, None, None] + noise, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "shown.npz", **arrays)
    return tmp_path / "shown.npz", level


def test_image_components_and_only_the_attributes_that_are_named(train, tmp_path, capsys):
    _, features, labels = train
    path, level = shown(tmp_path, train[0])
    out = tmp_path / "leace.safetensors"

    def linked(rows):  # largest correlation of a column with the brightness
        return max(abs(np.corrcoef(column, level)[0, 1]) for column in np.asarray(rows).T)

    erase_command(["--train", str(path), "--image-components", "1", "--out", str(out)])
    assert "1 of 6 directions (1 image components)" in capsys.readouterr().out
    rows = Leace.load(out).transform(features)
    assert linked(features) > 0.9
    assert linked(rows) < 0.05  # the component is the brightness up to the noise
    assert between_classes(rows, labels["bag"]) > 0.1
    erase_command(["--train", str(path), "--image-components", "1", "--only", "bag", "--out", str(out)])
    rows = Leace.load(out).transform(features)
    assert linked(rows) < 0.05
    assert between_classes(rows, labels["bag"]) < 1e-5
    assert between_classes(rows, labels["gender"]) > 0.1


def test_image_components_are_the_principal_ones(train, tmp_path):
    images = ArrayImages(np.load(shown(tmp_path, train[0])[0])["images"])
    pixels = images.load(16, 8).reshape(200, -1) / 255
    wanted = PCA(3, svd_solver="full").fit_transform(pixels)
    np.testing.assert_allclose(np.abs(image_components(images, 3)), np.abs(wanted), atol=1e-9)
    with pytest.raises(ValueError, match="from 1 to 199"):
        image_components(images, 200)
    heads = images.load(32, 16)[:, :8].reshape(200, -1) / 255
    wanted = PCA(2, svd_solver="full").fit_transform(heads)
    np.testing.assert_allclose(np.abs(image_components(images, 2, head=True)), np.abs(wanted), atol=1e-9)


def test_head_components_beside_image_components(train, tmp_path, capsys):
    path, _ = shown(tmp_path, train[0])
    flags = ["--train", str(path), "--image-components", "2", "--head-components", "1"]
    erased = erase_command([*flags, "--out", str(tmp_path / "both.safetensors")])
    assert "3 of 6 directions (2 image components, 1 head components)" in capsys.readouterr().out
    images = ArrayImages(np.load(path)["images"])
    numbers = np.concatenate([image_components(images, 2), image_components(images, 1, head=True)], axis=1)
    wanted = Leace(center=True).fit_concepts(train[1], numbers=numbers)
    np.testing.assert_allclose(erased.transform(train[1]), wanted.transform(train[1]), atol=1e-9)


def test_each_image_file_is_read_once_for_whole_images_and_heads(train, tmp_path, monkeypatch):
    path, _ = shown(tmp_path, train[0])
    arrays = dict(np.load(path))
    names = [f"{place:04d}.png" for place in range(len(arrays["pids"]))]
    for name, pixels in zip(names, arrays.pop("images"), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    np.savez(tmp_path / "files.npz", **arrays, row_ids=np.array(names))
    read = []
    where = "ppreid_plugin.leakage.images.read_image"
    monkeypatch.setattr(where, lambda name: read.append(Path(name).name) or read_image(name))
    flags = ["--image-components", "2", "--head-components", "1", "--out", str(tmp_path / "leace.safetensors")]
    erased = erase_command(["--train", str(tmp_path / "files.npz"), "--images-root", str(tmp_path), *flags])
    assert sorted(read) == names
    wanted = erase_command(["--train", str(path), *flags])
    np.testing.assert_allclose(erased.transform(train[1]), wanted.transform(train[1]), atol=1e-9)


def test_errors_write_nothing(train, tmp_path, capsys):
    path, features, _ = train
    bare = tmp_path / "bare.npz"
    np.savez(bare, features=features, pids=np.arange(200), camids=np.zeros(200, dtype=int))
    one = tmp_path / "one.npz"
    np.savez(one, **dict(np.load(bare)), attr_hat=np.ones(200, dtype=int))
    out = tmp_path / "leace.safetensors"
    for flags, message in (
        (["--train", str(bare), "--out", str(out)], "has no attributes to erase"),
        (["--train", str(path), "--only", "gendr", "--out", str(out)], "Did you mean 'gender'"),
        (["--train", str(path), "--out", str(tmp_path / "no" / "leace.safetensors")], "is no folder. Make it first"),
        (["--train", str(path), "--image-components", "2", "--out", str(out)], "has no images. Add an array images"),
        (["--train", str(path), "--head-components", "2", "--out", str(out)], "2 head components are asked for"),
        (["--train", str(path), "--image-components", "-2", "--out", str(out)], "--image-components is -2"),
        (["--train", str(path), "--head-components", "4000", "--out", str(out)], "--head-components is 4000, must be"),
        (["--train", str(one), "--only", "hat", "--out", str(out)], "attribute 'hat' has the one value 1 among"),
    ):
        assert cli.run(erase_command, flags) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_an_attribute_that_the_rows_with_all_labels_do_not_vary_in_is_named(train, tmp_path, capsys):
    path, _, labels = train
    arrays = dict(np.load(path))
    arrays["attr_bag"] = np.where(labels["gender"] == 0, labels["bag"], np.where(labels["bag"] == 1, 1, -1))
    arrays["attr_gender"] = np.where(arrays["attr_bag"] == 0, -1, labels["gender"])
    np.savez(path, **arrays)
    argv = ["--train", str(path), "--out", str(tmp_path / "l.safetensors")]
    assert cli.run(erase_command, argv) == 2
    said = capsys.readouterr().err
    assert "attribute 'bag' has the one value 1 among the rows of --train with all of these labels: nothing to" in said
    assert cli.run(erase_command, [*argv, "--only", "bag"]) == 0
