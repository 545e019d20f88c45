"""Images of rows: arrays and files, resized as Pillow does, and named when they are missing."""

import numpy as np
import pytest
from pictured import pictured
from PIL import Image

from ppreid_plugin import DPGallery
from ppreid_plugin.data.images import ImageError
from ppreid_plugin.leakage import ArrayImages, ImageFiles, LeakageSet
from ppreid_plugin.leakage.images import row_images
from ppreid_plugin.leakage.inputs import load_set
from ppreid_plugin.leakage.protection import protect

PIXELS = np.random.default_rng(0).integers(0, 256, size=(4, 96, 48, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for place, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"set/{place}.png")
    return tmp_path


def test_array_and_files_give_the_same_images(folder):
    array, files = ArrayImages(PIXELS), ImageFiles(folder, [f"set/{place}.png" for place in range(4)]).check()
    loaded = array.load()
    assert loaded.shape == (4, 64, 32, 3)
    np.testing.assert_array_equal(loaded, files.load())
    wanted = Image.fromarray(PIXELS[2]).resize((32, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(loaded[2], np.asarray(wanted))
    np.testing.assert_array_equal(array.load(96, 48), PIXELS)
    order = np.array([3, 0])
    for images in (array, files):
        np.testing.assert_array_equal(images.take(order).load(), loaded[order])
        assert len(images.take(order)) == 2


def test_fingerprints_change_with_the_images(folder):
    names = ["set/0.png", "set/1.png"]
    files = ImageFiles(folder, names)
    before = files.fingerprint()
    assert ImageFiles(folder, names).fingerprint() == before
    assert files.take(np.array([1, 0])).fingerprint() != before
    Image.fromarray(PIXELS[3, :50]).save(folder / "set/1.png")
    assert files.fingerprint() != before
    assert ArrayImages(PIXELS).fingerprint() != ArrayImages(255 - PIXELS).fingerprint()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS[0], r"shape \(96, 48, 3\) and type uint8, must be \(n, H, W, 3\), uint8"),
        (PIXELS.astype(float), "type float64"),
        (PIXELS[..., :1], r"shape \(4, 96, 48, 1\)"),
        (PIXELS[:, :0], r"shape \(4, 0, 48, 3\)"),
    ],
)
def test_arrays_that_hold_no_images(array, message):
    with pytest.raises(ValueError, match=message):
        ArrayImages(array)


def test_files_that_cannot_be_read_are_named(folder):
    with pytest.raises(ImageError, match=r"2.jpg'.*; .*3.jpg'"):
        ImageFiles(folder, ["set/0.png", "set/2.jpg", "set/3.jpg"]).check()
    (folder / "set/0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0.png' cannot be decoded"):
        ImageFiles(folder, ["set/0.png"]).check().load()


def write(path, **changes):
    arrays = {
        "features": np.eye(4, dtype=np.float32),
        "pids": np.array([1, -1, 2, 0]),
        "camids": np.arange(4),
        "row_ids": np.array([f"set/{place}.png" for place in range(4)]),
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_files_of_features_find_their_images(folder):
    path = write(folder / "rows.npz")
    assert load_set(path, (0,)).images is None
    rows = load_set(path, (0,), str(folder))
    np.testing.assert_array_equal(rows.images.load(96, 48), PIXELS[[0, 2, 3]])  # without junk
    np.testing.assert_array_equal(rows.people.images.load(96, 48), PIXELS[[0, 2]])
    path = write(folder / "rows.npz", row_ids=np.arange(4).astype(str), paths=np.array(["set/3.png"] * 4))
    np.testing.assert_array_equal(load_set(path, (0,), str(folder)).images.load(96, 48)[1], PIXELS[3])
    path = write(folder / "rows.npz", images=PIXELS)
    np.testing.assert_array_equal(load_set(path, (0,)).images.load(96, 48), PIXELS[[0, 2, 3]])


@pytest.mark.parametrize(
    ("changes", "root", "message"),
    [
        ({"images": PIXELS[:3]}, None, "rows.npz': there are 3 images for 4 rows"),
        ({"images": PIXELS / 255}, None, "rows.npz': images has shape"),
        ({}, "nowhere", "--images-root is 'nowhere', which is no folder"),
        ({"row_ids": None}, ".", "holds neither images, paths nor row_ids"),
        ({"row_ids": np.array(["a", "b", "c", "d"])}, ".", "'a'"),
    ],
)
def test_images_that_do_not_fit(folder, monkeypatch, changes, root, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        load_set(write(folder / "rows.npz", **changes), (0,), root)


def test_images_follow_their_rows():
    rows = pictured(6, marked=True)
    for taken in (rows.take(rows.pids > 2), rows.take(np.array([9, 3])), rows.people):
        assert taken.images.load()[:, 0, 0, 0].tolist() == taken.pids.tolist()
    protected = protect(rows, DPGallery("gaussian", epsilon=8.0, max_rows_per_person=2).fit(rows.features), seed=1)
    assert len(protected) == 12
    assert protected.images.load()[:, 0, 0, 0].tolist() == protected.pids.tolist()
    with pytest.raises(ValueError, match="there are 30 images for 1 rows"):
        LeakageSet(rows.features[:1], rows.pids[:1], rows.camids[:1], images=rows.images)
    assert row_images({}, [], None) is None


def test_a_prototype_has_no_image():
    rows = pictured(6)
    gallery = DPGallery("gaussian", epsilon=8.0, unit="person").fit(rows.features)
    assert protect(rows, gallery, seed=1).images is None


def test_noise_can_be_drawn_again():
    rows = pictured(6)
    protected = protect(rows, DPGallery("gaussian", epsilon=8.0).fit(rows.features), seed=1)
    np.testing.assert_array_equal(protected.redraw(1), protected.features)
    again = protect(rows, protected.protection, seed=2).features
    np.testing.assert_array_equal(protected.redraw(2), again)
    assert np.abs(again - protected.features).max() > 0.01
    places = np.array([7, 2])
    np.testing.assert_array_equal(protected.take(places).take(np.array([1])).redraw(2), again[[2]])
    assert rows.redraw is None
    assert protected.with_features(rows.features).redraw is None
