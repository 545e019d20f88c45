"""The generated pedestrians: layout, boxes, bytes, and that nothing but the picture of a person says who it is."""

import importlib.util
import os
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppreid_plugin.data import pedestrians
from ppreid_plugin.data.generator import writer
from ppreid_plugin.data.generator.camera import CAMERAS
from ppreid_plugin.data.generator.person import sample_person
from ppreid_plugin.data.generator.render import render
from ppreid_plugin.data.pedestrians import SyntheticPedestrians, load_attributes, load_boxes, make_pedestrians
from ppreid_plugin.toolbox import data, image_datasets

TOOL = Path(__file__).parents[2] / "tools" / "make_synthetic.py"
MARKET = re.compile(r"([-\d]+)_c(\d)")  # torchreid's pattern for Market-1501
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
NUM_TRAIN, NUM_TEST = 10, 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("pedestrians")
    make_pedestrians(path, NUM_TRAIN, NUM_TEST, seed=5)
    return path


@pytest.fixture(scope="module")
def images(root):
    """Folder to list of (path, pid, camera from 1)."""
    table = {}
    for folder in FOLDERS:
        paths = sorted((root / pedestrians.NAME / folder).iterdir())
        table[folder] = [(path, *map(int, MARKET.search(path.name).groups())) for path in paths]
    return table


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pids_of(images, folder):
    return {pid for _, pid, _ in images[folder]}


def rank1(distances, query, gallery):
    """Market-1501: a gallery row of the same person in the same camera does not count."""
    q_pids, g_pids = (np.array([row[1] for row in rows]) for rows in (query, gallery))
    q_cams, g_cams = (np.array([row[2] for row in rows]) for rows in (query, gallery))
    dropped = (q_pids[:, None] == g_pids) & (q_cams[:, None] == g_cams)
    return float((g_pids[np.where(dropped, np.inf, distances).argmin(axis=1)] == q_pids).mean())


def histogram(image):
    bins = cv2.calcHist([image], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3).ravel()
    return bins / bins.sum()


def hsv_histogram(image):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    bins = cv2.calcHist([hsv], [0, 1, 2], None, [8, 8, 8], [0, 180, 0, 256, 0, 256]).ravel()
    return bins / bins.sum()


# Layout


def test_names_sizes_and_counts(root, images):
    for rows in images.values():
        for path, _, camera in rows:
            assert re.fullmatch(r"\d{4}_c[1-6]s[1-6]_\d{6}_\d{2}\.jpg", path.name)
            assert 1 <= camera <= 6
            assert cv2.imread(str(path)).shape == (256, 128, 3)
    per_person = defaultdict(list)
    for rows in images.values():
        for _, pid, camera in rows:
            per_person[pid].append(camera)
    street = per_person.pop(0)
    assert sorted(per_person) == list(range(1, NUM_TRAIN + NUM_TEST + 1))
    assert {len(cameras) for cameras in per_person.values()} <= set(range(12, 21))
    assert min(len(set(cameras)) for cameras in per_person.values()) >= 3
    assert len(street) / len(images["bounding_box_test"]) == pytest.approx(0.1, abs=0.005)


def test_train_and_test_people_are_disjoint(images):
    train, test = pids_of(images, "bounding_box_train"), pids_of(images, "query")
    assert (len(train), len(test)) == (NUM_TRAIN, NUM_TEST)
    assert not train & test
    assert pids_of(images, "bounding_box_test") == test | {0}
    assert 0 not in train


def test_one_query_a_camera_each_with_a_match_elsewhere(images):
    gallery = {(pid, camera) for _, pid, camera in images["bounding_box_test"]}
    queries = [(pid, camera) for _, pid, camera in images["query"]]
    assert len(queries) == len(set(queries))
    assert set(queries) == {row for row in gallery if row[0] != 0}
    assert all(any((pid, other) in gallery for other in range(1, 7) if other != camera) for pid, camera in queries)


def test_torchreid_reads_it(root, images):
    pedestrians.register()
    pedestrians.register()
    assert image_datasets()["synthetic_pedestrians"] is SyntheticPedestrians
    dataset = data.datasets.init_image_dataset("synthetic_pedestrians", root=str(root), verbose=False, split_id=0)
    assert [Path(row[0]).name for row in dataset.train] == [row[0].name for row in images["bounding_box_train"]]
    assert sorted({row[1] for row in dataset.train}) == list(range(NUM_TRAIN))
    order = {pid: label for label, pid in enumerate(sorted(pids_of(images, "bounding_box_train")))}
    assert [row[1] for row in dataset.train] == [order[row[1]] for row in images["bounding_box_train"]]
    assert [row[1:3] for row in dataset.query] == [(pid, camera - 1) for _, pid, camera in images["query"]]
    assert {row[2] for row in dataset.gallery} == set(range(6))
    combined = SyntheticPedestrians(root=str(root), combineall=True, verbose=False)
    assert combined.num_train_pids == NUM_TRAIN + NUM_TEST  # pid 0 is junk, not a person


def test_only_the_file_name_is_parsed(tmp_path):
    """A folder named like a picture must not be taken for one."""
    root = tmp_path / "0999_c9"
    make_pedestrians(root, 1, 1, seed=0, workers=1)
    dataset = SyntheticPedestrians(root=str(root), verbose=False)
    assert {row[2] for row in dataset.gallery} <= set(range(6))


# What the tables say


def test_attributes_cover_everybody_and_are_drawn(root, images):
    attributes = load_attributes(root)
    assert set(attributes) == pids_of(images, "bounding_box_train") | pids_of(images, "query")
    wanted = {"build", "age", "hair_length", "sleeve", "lower_length", "lower_kind", "bag", "backpack", "hat"}
    assert wanted | {"upper_color", "lower_color"} <= set(attributes[1])
    assert all(len({row[name] for row in attributes.values()}) > 1 for name in wanted)
    everything = [tuple(row.values()) for row in attributes.values()]
    assert len(set(everything)) == len(everything)


def test_boxes_lie_in_the_image_and_are_often_empty(root, images):
    boxes = load_boxes(root)
    files = {f"{folder}/{path.name}": pid for folder, rows in images.items() for path, pid, _ in rows}
    assert set(boxes) == set(files)
    for file, row in boxes.items():
        for box in row.values():
            if box is not None:
                assert files[file] != 0
                left, top, right, bottom = box
                assert 0 <= left < right <= 128
                assert 0 <= top < bottom <= 256
    for kind in ("face", "logo"):
        share = np.mean([row[kind] is not None for row in boxes.values()])
        assert 0.1 < share < 0.6


@pytest.mark.parametrize("kind", ["face", "logo"])
def test_boxes_point_at_what_is_drawn(kind):
    seen = 0
    for index in range(40):
        person = sample_person(np.random.default_rng(index))
        camera = CAMERAS[index % 6]
        shot = render(person, camera, index, 7)
        without = render(person, camera, index, 7, **{kind: False})
        box = getattr(shot, kind)
        if box is None:
            continue
        seen += 1
        left, top, right, bottom = box
        change = np.abs(shot.image.astype(int) - without.image).sum(axis=2)
        inside = change[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2].sum()  # 2 px: the lens blurs
        assert inside >= 0.99 * change.sum() > 0
        rows, columns = np.nonzero(change > 20)
        assert columns.max() - columns.min() > 0.3 * (right - left)
        assert rows.max() - rows.min() > 0.3 * (bottom - top)
    assert seen >= 8


def test_fine_cues_do_not_survive_pixelation():
    """With 8 blocks across the width two logos, or two faces, differ by a few gray levels at most."""
    fine, coarse = [], []
    for index in range(60):
        person = sample_person(np.random.default_rng(index))
        shot = render(person, CAMERAS[0], index, 7)
        without = render(person, CAMERAS[0], index, 7, face=False)
        if shot.face:
            pixelated = [
                cv2.resize(s.image, (8, 16), interpolation=cv2.INTER_AREA).astype(float) for s in (shot, without)
            ]
            fine.append(np.abs(shot.image.astype(float) - without.image).max())
            coarse.append(np.abs(pixelated[0] - pixelated[1]).max())
    assert len(fine) >= 10
    assert np.median(coarse) < 0.2 * np.median(fine)


# Bytes


def test_same_seed_same_bytes_whatever_the_workers(tmp_path):
    folders = [make_pedestrians(tmp_path / str(n), 3, 4, seed=11, workers=n) for n in (1, 2, 3)]
    first = contents(folders[0])
    assert len(first) > 7 * 12
    for folder in folders[1:]:
        assert contents(folder) == first
    text = b"".join(value for name, value in first.items() if not name.endswith(".jpg"))
    assert str(tmp_path).encode() not in text


def test_another_seed_gives_other_people_places_and_numbers(tmp_path):
    one, two = (make_pedestrians(tmp_path / str(seed), 2, 2, seed=seed, workers=1) for seed in (1, 2))
    assert not set(contents(one).values()) & set(contents(two).values())
    names = [{Path(name).name for name in contents(folder) if name.endswith(".jpg")} for folder in (one, two)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_of_opencv_are_left_as_they_were(tmp_path, workers):
    before = cv2.getNumThreads()
    make_pedestrians(tmp_path, 1, 1, seed=0, workers=workers)
    assert cv2.getNumThreads() == before


# Nothing leaks for free


def test_file_size_and_numbers_do_not_identify(root, images):
    query, gallery = images["query"], [row for row in images["bounding_box_test"] if row[1] != 0]
    chance = 1 / NUM_TEST
    for measure in (
        lambda path: path.stat().st_size,
        lambda path: int(path.name.split("_")[2]),  # frame number
        lambda path: int(path.stem.split("_")[3]),  # number of the box
    ):
        q, g = (np.array([float(measure(row[0])) for row in rows]) for rows in (query, gallery))
        # About 180 queries: 3 standard deviations above chance are 6 %.
        assert rank1(np.abs(q[:, None] - g), query, gallery) < chance + 3.5 * np.sqrt(chance / len(query))


def test_neighbors_in_pid_are_not_alike_and_splits_are_mixed(root, images):
    attributes = load_attributes(root)
    pids = sorted(attributes)
    codes = np.array([[hash(value) for value in attributes[pid].values()] for pid in pids])
    alike = (codes[:, None] == codes[None]).mean(axis=2)
    neighbors = np.mean([alike[i, i + 1] for i in range(len(pids) - 1)])
    others = alike[~np.eye(len(pids), dtype=bool)].mean()
    assert neighbors == pytest.approx(others, abs=0.05)
    train = pids_of(images, "bounding_box_train")
    assert max(train) > NUM_TEST / 2
    assert min(pids_of(images, "query")) <= NUM_TRAIN


def test_no_two_pictures_share_many_exact_pixels(images):
    """Pixels of one person in two cameras are not more often equal than those of two people."""
    shots = [(cv2.imread(str(path))[64:192, 32:96], pid, camera) for path, pid, camera in images["query"][:60]]
    same, different = [], []
    for i, (a, pid, camera) in enumerate(shots):
        for b, other, other_camera in shots[i + 1 :]:
            if camera != other_camera:
                (same if pid == other else different).append((a == b).all(axis=2).mean())
    assert np.mean(same) < 0.01
    assert np.mean(same) < np.mean(different) + 0.005


@pytest.mark.parametrize("describe", [histogram, hsv_histogram])
def test_color_histograms_are_weak(images, describe):
    """OSNet x0.25 reaches more than 0.5; a histogram of the whole image must stay below half of that."""
    query, gallery = images["query"], images["bounding_box_test"]
    q, g = (np.array([describe(cv2.imread(str(row[0]))) for row in rows]) for rows in (query, gallery))
    city_block = np.array([np.abs(row - g).sum(axis=1) for row in q])
    cosine = -(q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    assert rank1(city_block, query, gallery) < 0.15
    assert rank1(cosine, query, gallery) < 0.15


# Errors and interruptions


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_train_ids": 0}, ValueError, "num_train_ids is 0, must be >= 1"),
        ({"num_test_ids": -3}, ValueError, "num_test_ids is -3, must be >= 1"),
        ({"seed": -1}, ValueError, "seed is -1, must be >= 0"),
        ({"workers": 0}, ValueError, "workers is 0, must be >= 1"),
        ({"num_train_ids": 2.5}, TypeError, "num_train_ids is 2.5, must be an integer"),
        ({"seed": True}, TypeError, "seed is True, must be an integer"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make_pedestrians(tmp_path / "new", **({"num_train_ids": 1, "num_test_ids": 1, "seed": 0} | arguments))
    assert list(tmp_path.iterdir()) == []


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"file is not a folder\. Choose another root"):
        make_pedestrians(tmp_path / "file" / "below", 1, 1, seed=0)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write anywhere")
def test_root_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        make_pedestrians(tmp_path, 1, 1, seed=0)


def test_existing_folder_is_kept_reused_or_replaced(tmp_path, caplog):
    caplog.set_level("INFO", logger="ppreid_plugin")
    folder = make_pedestrians(tmp_path, 1, 1, seed=0, workers=1)
    stamp = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_pedestrians(tmp_path, 1, 1, seed=0, workers=1) == folder
    assert "reused" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamp
    with pytest.raises(
        FileExistsError, match=r"synthetic_pedestrians exists already, with seed 0 \(asked: 1\).*--overw"
    ):
        make_pedestrians(tmp_path, 1, 1, seed=1, workers=1)
    before = contents(folder)
    make_pedestrians(tmp_path, 1, 1, seed=1, workers=1, overwrite=True)
    assert contents(folder).keys() != before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic_pedestrians"]


def test_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "synthetic_pedestrians").mkdir()
    (tmp_path / "synthetic_pedestrians" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no meta\.json of this generator"):
        make_pedestrians(tmp_path, 1, 1, seed=0)
    assert contents(tmp_path) == {"synthetic_pedestrians/mine.txt": b"mine"}


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, failure, overwrite):
    if overwrite:
        make_pedestrians(tmp_path, 1, 1, seed=0, workers=1)
    before = contents(tmp_path)
    drawn = []
    draw_task = writer.draw_task

    def fail_on_second(task, folder):
        drawn.append(task)
        if len(drawn) == 2:
            raise failure
        return draw_task(task, folder)

    monkeypatch.setattr(writer, "draw_task", fail_on_second)
    with pytest.raises(type(failure)):
        make_pedestrians(tmp_path, 2, 2, seed=1, workers=1, overwrite=overwrite)
    assert len(drawn) == 2
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == overwrite


def test_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    make_pedestrians(tmp_path, 1, 1, seed=0, workers=1)
    before = contents(tmp_path)
    rename = Path.rename

    def fail_for_staging(self, target):
        if self.suffix == ".tmp":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_staging)
    with pytest.raises(OSError, match="no"):
        make_pedestrians(tmp_path, 1, 1, seed=1, workers=1, overwrite=True)
    assert contents(tmp_path) == before


def test_missing_folder_says_how_to_make_it(tmp_path):
    message = re.escape(f"Make the data set: python tools/make_synthetic.py --root {tmp_path}")
    for read in (lambda r: SyntheticPedestrians(root=r), load_attributes, load_boxes):
        with pytest.raises(FileNotFoundError, match=message + "$"):
            read(str(tmp_path))


def test_foreign_file_name_is_named(tmp_path):
    folder = make_pedestrians(tmp_path, 1, 1, seed=0, workers=1)
    (folder / "query" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holiday\.jpg is not named like"):
        SyntheticPedestrians(root=str(tmp_path), verbose=False)


def test_tool_makes_and_fails_with_one_line(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("make_synthetic", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    common = ["--root", str(tmp_path), "--num-train-ids", "1", "--workers", "1"]
    assert tool.main([*common, "--num-test-ids", "1", "--seed", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "synthetic_pedestrians")
    assert tool.main([*common, "--num-test-ids", "0"]) == 2
    assert re.fullmatch(r"Error: num_test_ids is 0, must be >= 1.*\n", capsys.readouterr().err)
    assert tool.main([*common, "--num-test-ids", "0", "--debug"]) == 2
    assert re.fullmatch(r"Traceback (?s:.*)\nError: num_test_ids is 0, .*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit) as stop:
        tool.main(["--seed", "one"])
    assert stop.value.code == 2
