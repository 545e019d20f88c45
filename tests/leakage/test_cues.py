"""Fine cues: those of the generated pedestrians are found beside their pictures, and boxes are cut out as they are."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from ppreid_plugin.data.pedestrians import NAME, load_attributes, load_boxes
from ppreid_plugin.leakage import ArrayImages, FineCues, ImageFiles
from ppreid_plugin.leakage.images import row_images
from ppreid_plugin.leakage.inputs import load_set

BOXES = np.array([[1, 2, 7, 12], [-1, -1, -1, -1], [0, 0, 20, 40]])
PIXELS = np.random.default_rng(0).integers(0, 256, size=(3, 40, 20, 3), dtype=np.uint8)
BITS = np.array([[0, 1], [-1, -1], [1, 1]])


@pytest.fixture(scope="module")
def names(pedestrians):
    return [str(path.relative_to(pedestrians)) for path in sorted((pedestrians / NAME).glob("*/*.jpg"))]


def test_boxes_and_codes_of_the_generated_pedestrians_are_found_beside_them(pedestrians, names):
    cues = ImageFiles(pedestrians, names).cues()
    boxes, people = load_boxes(pedestrians), load_attributes(pedestrians)
    assert len(cues) == len(names) == len(boxes)
    for cue, attribute, bits in (("face", "freckles", 24), ("logo", "logo", 15)):
        assert 0 < cues.visible(cue).sum() < len(names)
        for row, name in enumerate(names):
            box, pid = boxes[name.removeprefix(f"{NAME}/")][cue], int(name.rsplit("/", 1)[1][:4])
            assert tuple(cues.boxes[cue][row]) == (box or (-1,) * 4)
            code = people[pid][attribute] if pid in people else None
            assert cues.codes[cue][row].tolist() == ([-1] * bits if code is None else [int(bit) for bit in code])


def test_a_box_is_cut_out_at_full_resolution(pedestrians, names):
    files = ImageFiles(pedestrians, names)
    chosen = np.flatnonzero(files.cues().visible("logo"))[:5]
    some = files.take(chosen)
    cut = some.crops(some.cues().boxes["logo"], 12)
    for row, place in enumerate(chosen):
        with Image.open(pedestrians / names[place]) as image:
            part = image.convert("RGB").crop(
                tuple(load_boxes(pedestrians)[names[place].removeprefix(f"{NAME}/")]["logo"])
            )
        np.testing.assert_array_equal(cut[row], np.asarray(part.resize((12, 12), Image.Resampling.BILINEAR)))


def test_other_files_have_no_cues(pedestrians, names, tmp_path):
    assert ImageFiles(pedestrians / NAME, [name.removeprefix(f"{NAME}/") for name in names]).cues() is not None
    (tmp_path / "a").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "a/0001_c1s1_000001_01.jpg")
    assert ImageFiles(tmp_path, ["a/0001_c1s1_000001_01.jpg"]).cues() is None
    assert ImageFiles(pedestrians, [*names, f"{NAME}/query/9999_c1s1_000001_01.jpg"]).cues() is None
    assert ArrayImages(PIXELS).cues() is None


def test_a_folder_that_was_made_anew_is_read_anew(pedestrians, names, tmp_path):
    shutil.copytree(pedestrians / NAME / "query", tmp_path / NAME / "query")
    for name in ("boxes.csv", "attributes.csv"):
        (tmp_path / NAME / name).write_bytes((pedestrians / NAME / name).read_bytes())
    query = [name for name in names if "/query/" in name]
    before, fingerprint = ImageFiles(tmp_path, query).cues(), ImageFiles(tmp_path, query).fingerprint()
    assert ImageFiles(tmp_path, query).fingerprint() == fingerprint
    rows = list(csv.reader((tmp_path / NAME / "boxes.csv").open()))
    (tmp_path / NAME / "boxes.csv").write_text(
        "\n".join(",".join([row[0], *row[5:], *row[5:]] if n else row) for n, row in enumerate(rows))
    )
    after = ImageFiles(tmp_path, query).cues()
    np.testing.assert_array_equal(after.boxes["face"], before.boxes["logo"])
    assert ImageFiles(tmp_path, query).fingerprint() != fingerprint  # a finished attack knew other boxes


def test_cues_follow_their_rows():
    cues = FineCues({"face": BOXES}, {"face": BITS})
    images = ArrayImages(PIXELS, cues)
    order = np.array([2, 0])
    assert images.take(order).cues().boxes["face"].tolist() == BOXES[order].tolist()
    assert images.take(order).cues().codes["face"].tolist() == BITS[order].tolist()
    assert cues.visible("face").tolist() == [True, False, True]
    cut = images.take(np.array([0])).crops(BOXES[:1], 6)[0]
    wanted = Image.fromarray(PIXELS[0][2:12, 1:7]).resize((6, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(cut, np.asarray(wanted))
    prints = [ArrayImages(PIXELS).fingerprint(), images.fingerprint()]
    prints += [ArrayImages(PIXELS, FineCues({"face": BOXES}, {"face": 1 - abs(BITS)})).fingerprint()]
    prints += [ArrayImages(PIXELS, FineCues({"face": BOXES[[2, 1, 0]]}, {"face": BITS})).fingerprint()]
    assert len(set(prints)) == 4


def test_arrays_of_a_file_of_features(tmp_path):
    arrays = {"features": np.ones((3, 2)), "pids": np.array([1, 2, 3]), "camids": np.zeros(3, int), "images": PIXELS}
    np.savez(tmp_path / "rows.npz", **arrays, box_face=BOXES, code_face=BITS)
    cues = load_set(tmp_path / "rows.npz", ()).images.cues()
    assert cues.boxes["face"].tolist() == BOXES.tolist()
    assert cues.codes["face"].tolist() == BITS.tolist()
    given = row_images({"box_face": BOXES}, ["a", "b", "c"], str(tmp_path))
    assert given.cues().boxes["face"].tolist() == BOXES.tolist()
    np.savez(tmp_path / "rows.npz", **arrays, box_face=BOXES[:2])
    with pytest.raises(ValueError, match="boxes of 2 rows for 3 images"):
        load_set(tmp_path / "rows.npz", ())


@pytest.mark.parametrize(
    ("boxes", "codes", "message"),
    [
        ({"face": BOXES[:, :3]}, {}, r"box_face has shape \(3, 3\), must be \(n, 4\)"),
        ({"face": BOXES.astype(float)}, {}, "type float64, must be .* whole numbers"),
        ({"face": np.array([[0, 0, 5, 5], [5, 0, 5, 9]])}, {}, r"box_face has \[5, 0, 5, 9\] in row 1 \(1 such rows\)"),
        ({"face": np.array([[-1, 0, 5, 9]])}, {}, r"\[-1, 0, 5, 9\] in row 0"),
        ({"face": BOXES, "logo": BOXES[:2]}, {}, r"of \[2, 3\] rows"),
        ({}, {"face": BITS}, "code_face must hold 0, 1 or -1 .* beside boxes box_face"),
        ({"face": BOXES}, {"face": 2 * BITS}, "code_face must hold 0, 1 or -1"),
    ],
)
def test_errors_name_the_array(boxes, codes, message):
    with pytest.raises(ValueError, match=message):
        FineCues(boxes, codes)


@pytest.mark.parametrize("box", [[0, 0, 21, 40], [0, 0, 20, 41], [-2, 0, 5, 5], [0, -2, 5, 5]])
def test_a_box_beyond_its_image_is_an_error(box):
    with pytest.raises(ValueError, match=r"row 1 has the box \[.*\], its image is 20 x 40 pixels"):
        ArrayImages(PIXELS[:2]).crops(np.array([[0, 0, 20, 40], box]), 4)
