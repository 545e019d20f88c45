"""De-ID images as features: columns against plain block means, labels kept, what an attacker makes of them, errors."""

import stat

import numpy as np
import pytest
import torch
from PIL import Image

from ppreid_plugin import cli
from ppreid_plugin.dp.feature_files import load_arrays
from ppreid_plugin.leakage import ArrayImages, LeakageSet, ReconstructionAttack, deid_features
from ppreid_plugin.leakage.deid_features_command import deid_features_command
from ppreid_plugin.leakage.image_scores import ssim
from ppreid_plugin.leakage.inputs import load_set
from ppreid_plugin.leakage.inversion_decoder import to_images
from ppreid_plugin.suppression.deid import Blur, Pixelate

SIZE = {"height": 64, "width": 32}


def pictures(rows, seed=0, height=64, width=32):
    """Images with something coarse and something fine in them: (n, H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (rows, 8, 4, 3)).repeat(height // 8, axis=1).repeat(width // 4, axis=2)
    return np.clip(coarse + rng.integers(0, 56, (rows, height, width, 3)), 0, 255).astype(np.uint8)


def write(path, images, **more):
    pids = np.repeat(np.arange(len(images) // 2), 2)
    arrays = {"features": np.ones((len(images), 3)), "pids": pids, "camids": np.tile([0, 1], len(pids) // 2)}
    np.savez(path, **arrays, images=images, attr_bag=pids % 2, model=np.array("m"), privacy=np.array("clean"), **more)
    return str(path)


@pytest.mark.parametrize(("blocks", "pixels"), [(8, 4), (4, 8), (1, 32)])
def test_the_columns_are_the_block_means(blocks, pixels):
    images = pictures(5)
    (rows,) = deid_features([ArrayImages(images)], Pixelate(blocks=blocks), **SIZE)
    means = images.reshape(5, 64 // pixels, pixels, blocks, pixels, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(rows, means.transpose(0, 3, 1, 2).reshape(5, -1), atol=1e-5)
    assert rows.dtype == np.float32


def test_images_are_deidentified_at_the_size_of_the_models_input():
    images = pictures(3, height=256, width=128)
    (rows,) = deid_features([ArrayImages(images)], Blur(sigma=0.02))
    blurred = Blur(sigma=0.02)(to_images(images))
    means = blurred.unflatten(3, (32, 4)).unflatten(2, (64, 4)).mean(dim=(3, 5))
    np.testing.assert_allclose(rows, means.flatten(1), atol=1e-5)
    (small,) = deid_features([ArrayImages(images)], Blur(sigma=0.02), **SIZE)
    assert np.abs(small - rows).max() > 0.004


def test_blocks_are_found_over_all_rows_of_all_sets():
    gray = np.full((300, 64, 32, 3), 100, dtype=np.uint8)
    (alone,) = deid_features([ArrayImages(gray)], Pixelate(), **SIZE)
    assert alone.shape == (300, 2 * 3)  # squares of 32 pixels
    gray[299, 0, 0] = 200  # the last of many
    (one,) = deid_features([ArrayImages(gray)], Pixelate(), **SIZE)
    assert one.shape == (300, 16 * 8 * 3)
    beside = deid_features([ArrayImages(gray[:299]), ArrayImages(pictures(2))], Pixelate(blocks=4), **SIZE)
    assert [rows.shape for rows in beside] == [(299, 8 * 4 * 3), (2, 8 * 4 * 3)]
    assert [rows.shape for rows in deid_features([ArrayImages(gray[:0])], Pixelate(), **SIZE)] == [(0, 6)]


def test_an_attacker_makes_at_least_the_target_of_it():
    """The De-ID image is itself a reconstruction from these features: who learns comes near it, or beats it."""
    rng = np.random.default_rng(0)
    looks = np.einsum("nk,khwc->nhwc", rng.dirichlet(np.ones(6), 120), pictures(6))  # few ways to look, as people have
    images = (looks + rng.integers(0, 30, looks.shape)).clip(0, 255).astype(np.uint8)
    (rows,) = deid_features([ArrayImages(images)], Pixelate(blocks=4), **SIZE)
    pids = np.repeat(np.arange(40), 3)
    held = LeakageSet(rows, pids, np.tile([0, 1, 2], 40), images=ArrayImages(images))
    train, test = held.take(pids < 30), held.take(pids >= 30)
    figure = ReconstructionAttack(seed=1, steps=8).fit(train).attack(test)[""]
    shown = ssim(Pixelate(blocks=4)(to_images(images)), to_images(images))[torch.from_numpy(pids >= 30)].mean()
    assert figure.score > float(shown) - 0.02
    assert figure.score > figure.others["mean_image_ssim"] + 0.2


def test_the_files_hold_the_labels_and_are_read_as_features(tmp_path, capsys):
    sources = [write(tmp_path / "train.npz", pictures(6)), write(tmp_path / "gallery.npz", pictures(4, seed=1))]
    out = tmp_path / "deid"
    argv = [
        "--features",
        *sources,
        "--out",
        str(out),
        "--target",
        "pixelate:blocks=4",
        "--height",
        "64",
        "--width",
        "32",
    ]
    assert [path.name for path in deid_features_command(argv)] == ["train.npz", "gallery.npz"]
    assert "6 rows of 96 columns" in capsys.readouterr().out
    rows = load_set(out / "gallery.npz", ())
    np.testing.assert_array_equal(rows.pids, [0, 0, 1, 1])
    np.testing.assert_array_equal(rows.attributes["bag"], [0, 0, 1, 1])
    (wanted,) = deid_features([ArrayImages(pictures(4, seed=1))], Pixelate(blocks=4), **SIZE)
    np.testing.assert_array_equal(rows.features, wanted)
    assert rows.images is not None
    assert str(load_arrays(out / "gallery.npz")["model"]) == "deid pixelate:blocks=4 at 64 x 32"
    assert stat.S_IMODE((out / "gallery.npz").stat().st_mode) == 0o600
    deid_features_command(argv)  # the same again, in its place
    for change in (["--target", "pixelate:blocks=8"], ["--height", "32"]):
        with pytest.raises(ValueError, match=r"holds the images of another target \(pixelate:blocks=4 at 64 x 32\)"):
            deid_features_command([*argv, *change])
    np.testing.assert_array_equal(load_arrays(out / "gallery.npz")["features"], wanted)


def test_images_in_files(tmp_path):
    images = pictures(2)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    np.savez(tmp_path / "t.npz", features=np.eye(2), pids=[0, 1], camids=[0, 1], row_ids=np.array(["0.png", "1.png"]))
    argv = ["--features", str(tmp_path / "t.npz"), "--images-root", str(tmp_path), "--out", str(tmp_path / "out")]
    (path,) = deid_features_command([*argv, "--height", "64", "--width", "32"])
    (wanted,) = deid_features([ArrayImages(images)], Pixelate(), **SIZE)
    np.testing.assert_array_equal(load_arrays(path)["features"], wanted)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--target", "pixelize"], "--target is 'pixelize'; allowed: "),
        (["--target", "mean_image"], "--target is 'mean_image'; allowed: "),
        (["--target", "pixelate:block=4"], "--target 'pixelate' has 'block'; allowed: blocks. Did you mean 'blocks'?"),
        (["--target", "pixelate:blocks=0"], "blocks is 0, must be a whole number"),
        (["--target", "pixelate:blocks=200"], "blocks is 200, must be <= the image width of 128 pixels"),
        (["--height", "0"], "--height is 0, must be a whole number >= 1 (pixels)"),
        (["--out", "."], "'t.npz' exists, and holds no De-ID images: it would be lost. Name another folder: --out"),
        (["--features", "t.npz", "more/t.npz"], "--features has two files that would be written as 'out/t.npz'"),
        (["--features", "no.npz"], "'no.npz' is not there"),
        (["--features", "bare.npz"], "'bare.npz' holds no images. Name the folder"),
        (["--features", "few.npz"], "'few.npz' has 1 images for 2 rows"),
        (["--features", "unnamed.npz"], "'unnamed.npz' lacks camids"),
        (["--features", "bare.npz", "--images-root", "."], "'bare.npz' holds neither images, paths nor row_ids"),
        (["--features", "named.npz", "--images-root", "."], "image 'gone.png': No such file"),
        (["--features", "named.npz", "--images-root", "nowhere"], "--images-root is 'nowhere', which is no folder"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("t.npz", pictures(2))
    labels = {"features": np.eye(2), "pids": [0, 1], "camids": [0, 1]}
    np.savez("bare.npz", **labels)
    np.savez("few.npz", **labels, images=pictures(1))
    np.savez("named.npz", **labels, row_ids=np.array(["gone.png", "gone.png"]))
    np.savez("unnamed.npz", features=np.eye(2), pids=[0, 1])
    before = sorted(path.name for path in tmp_path.iterdir())
    code = cli.run(deid_features_command, ["--features", "t.npz", "--out", "out", *argv])
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
