"""Feature files: the same features as torchreid's own extraction, marked as clean, never overwritten by accident."""

import json
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppreid_plugin import cli, extraction
from ppreid_plugin.data.csv_dataset import register_csv_dataset
from ppreid_plugin.data.validation import VALIDATION, split_query_gallery
from ppreid_plugin.dp.feature_files import load_arrays, load_gallery, model_fingerprint
from ppreid_plugin.extraction import extract_splits
from ppreid_plugin.toolbox import data, engine, models, optim, utils


@pytest.fixture
def arguments(pedestrians, tmp_path):
    """Return the arguments of a small extraction."""
    return [
        *("--root", str(pedestrians), "-s", "synthetic_pedestrians", "-t", "synthetic_pedestrians"),
        *("--out", str(tmp_path / "features"), "model.name", "osnet_x0_25", "model.pretrained", "False"),
        *("data.height", "64", "data.width", "32", "data.workers", "0", "data.save_dir", str(tmp_path / "log")),
        *("use_gpu", "False"),
    ]


def test_features_are_those_of_torchreids_own_extractor(make_engine, pedestrians, tmp_path):
    engine = make_engine("test.evaluate", True)
    arrays = extract_splits(engine, root=str(pedestrians), splits=["query"])["query"]
    weights = tmp_path / "model.pth"
    torch.save({"state_dict": engine.model.state_dict()}, weights)
    extractor = utils.FeatureExtractor("osnet_x0_25", str(weights), image_size=(64, 32), device="cpu", verbose=False)
    paths = [str(pedestrians / row_id) for row_id in arrays["row_ids"]]
    np.testing.assert_allclose(arrays["features"], extractor(paths).numpy(), atol=1e-4)
    items = engine.datamanager.test_dataset["synthetic_pedestrians"]["query"]
    assert [(item[1], item[2]) for item in items] == list(zip(arrays["pids"], arrays["camids"], strict=True))


@pytest.mark.parametrize("fast", [False, True])
def test_no_graph_of_an_extracted_batch_is_kept(make_engine, fast):
    engine = make_engine("test.fast_extraction", fast)
    recording = []
    original = engine.extract_features

    def extract_features(images):
        recording.append(torch.is_grad_enabled())
        made = original(images)
        assert made.grad_fn is None
        return made

    engine.extract_features = extract_features
    engine.test()
    extract_splits(engine, splits=["query"], fast=fast)
    assert recording
    assert not any(recording)


def test_every_split_becomes_a_file_that_releases_and_sweeps_read(arguments, tmp_path):
    written = cli.extract_features([*arguments, "privacy.validation.ids_fraction", "0.3"])
    assert sorted(written) == ["gallery", "query", "train", "validation"]
    people = {split: set(load_arrays(path)["pids"]) for split, path in written.items()}
    assert len(people["train"]) + len(people["validation"]) == 8
    gallery = load_arrays(written["gallery"])
    assert str(gallery["privacy"]) == "clean"
    assert stat.S_IMODE(written["gallery"].stat().st_mode) == 0o600
    rows = load_gallery(written["gallery"])
    assert len(rows) == len(gallery["features"])
    assert all(not row_id.startswith("/") for row_id in rows.row_ids)


def test_of_people_held_out_every_image_is_extracted_and_the_same_queries_are_found(make_engine):
    found = {}
    for apart in (True, False):  # without cameras a query stands in no gallery
        engine = make_engine("privacy.validation.ids_fraction", 0.4, "test.exclude_same_camera", apart)
        arrays = extract_splits(engine, splits=["validation"])["validation"]
        found[apart] = dict(zip(arrays["row_ids"].tolist(), arrays["features"], strict=True))
        rows = list(zip(arrays["row_ids"].tolist(), arrays["pids"], arrays["camids"], strict=True))
        wanted = engine.datamanager.test_dataset[VALIDATION]["query"]
        query, _ = split_query_gallery(rows, exclude_same_camera=apart)
        assert [row[0] for row in query] == [item[0] for item in wanted]
    assert found[True].keys() == found[False].keys()
    for row, feature in found[True].items():
        np.testing.assert_allclose(found[False][row], feature, atol=1e-5)


def test_nothing_is_overwritten_unless_said(arguments, tmp_path):
    (tmp_path / "features").mkdir()
    kept = tmp_path / "features" / "query.npz"
    kept.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"holds query\.npz already"):
        cli.extract_features(arguments)
    cli.extract_features([*arguments, "--splits", "gallery"])
    assert kept.read_bytes() == b"mine"
    cli.extract_features([*arguments, "--splits", "query", "--overwrite"])
    assert load_arrays(kept)["features"].shape[1] == 512


def test_an_unknown_split_is_named_before_anything_is_extracted(make_engine, arguments, tmp_path):
    with pytest.raises(ValueError, match=r"--splits has 'galery'; there are: train, query, gallery"):
        cli.extract_features([*arguments, "--splits", "query", "galery"])
    assert not (tmp_path / "features").exists()
    with pytest.raises(ValueError, match=r"--splits has 'probe'; there are: train, query, gallery"):
        extract_splits(make_engine("test.evaluate", True), splits=["probe"])


def test_an_image_is_called_the_same_wherever_a_program_is_started(tmp_path, monkeypatch):
    """Accounts of the ledger are names of rows: by another name an image would have the budget again."""
    own, here, there = (tmp_path / name for name in ("own", "a", "b/c"))
    for folder in (own / "images", here, there):
        folder.mkdir(parents=True)
    lines = ["path,pid,camid,split", "images/t.png,1,0,train", "images/q.png,7,0,query", "../g.png,7,1,gallery"]
    (own / "own.csv").write_text("\n".join(lines))
    register_csv_dataset(f"named_{tmp_path.name.replace('-', '_')}={own / 'own.csv'}")
    found = []
    for folder, root in (
        (here, "reid-data"),
        (there, "reid-data"),
        (here, str(own)),
        (there, str(tmp_path)),
        (here, "/"),
        (there, ""),
    ):
        monkeypatch.chdir(folder)
        found.append([extraction._row_id(str(own / name), root) for name in ("images/q.png", "../g.png")])
        found[-1].append(extraction._row_id(str(tmp_path / "other" / "x.jpg"), "reid-data"))
        monkeypatch.setenv("HOME", str(tmp_path))
        found[-1].append(extraction._row_id(str(tmp_path / "reid" / "market" / "x.jpg"), "~/reid"))
    assert all(one == found[0] for one in found)
    assert found[0] == ["own/images/q.png", "g.png", (tmp_path / "other" / "x.jpg").as_posix(), "market/x.jpg"]


def test_images_of_two_data_sets_of_the_same_layout_have_two_names(tmp_path):
    """One would take the other's rows for its own: refused as its training rows, or paid for by the wrong people."""
    names = []
    for site in ("siteA", "siteB"):
        (tmp_path / site).mkdir()
        lines = ["path,pid,camid,split", "t.png,1,0,train", "q.png,7,0,query", "g.png,7,1,gallery"]
        (tmp_path / site / "data.csv").write_text("\n".join(lines))
        register_csv_dataset(f"{site}_{tmp_path.name.replace('-', '_')}={tmp_path / site / 'data.csv'}")
        names.append(extraction._row_id(str(tmp_path / site / "t.png"), "reid-data"))
    assert names == ["siteA/t.png", "siteB/t.png"]


def test_a_plain_engine_of_torchreid_is_extracted(pedestrians):
    size = {"height": 64, "width": 32, "workers": 0, "use_gpu": False}
    manager = data.ImageDataManager(root=str(pedestrians), sources="synthetic_pedestrians", **size)
    model = models.build_model("osnet_x0_25", manager.num_train_pids, pretrained=False, use_gpu=False)
    plain = engine.ImageSoftmaxEngine(manager, model, optim.build_optimizer(model), use_gpu=False)
    found = extract_splits(plain, root=str(pedestrians), splits=["gallery"])["gallery"]
    assert found["features"].shape == (len(manager.test_dataset["synthetic_pedestrians"]["gallery"]), 512)


def test_features_are_said_to_be_of_the_weights_that_made_them(pedestrians, make_engine, tmp_path):
    """A run that goes on has the weights of model.resume, whatever it started from."""
    start, end = tmp_path / "start.pth", tmp_path / "end.pth"
    for seed, path in enumerate((start, end)):
        torch.manual_seed(seed)
        engine = make_engine()
        state = {"epoch": 1, "optimizer": engine.optimizer.state_dict(), "scheduler": engine.scheduler.state_dict()}
        torch.save({"state_dict": engine.model.state_dict(), **state}, path)
    options = ["model.load_weights", start, "model.resume", end, "model.name", "osnet_x0_25", "data.height", 64]
    options += ["data.width", 32, "data.workers", 0, "use_gpu", False, "data.save_dir", tmp_path / "log"]
    options += ["data.sources", "['synthetic_pedestrians']", "data.targets", "['synthetic_pedestrians']"]
    argv = ["--root", pedestrians, "--out", tmp_path / "out", "--splits", "query", *options]
    assert cli.run(cli.extract_features, [str(word) for word in argv]) == 0
    with np.load(tmp_path / "out" / "query.npz") as arrays:
        assert str(arrays["model"]) == model_fingerprint(str(end))


def test_clean_features_of_ranks_that_were_stopped_are_deleted(pedestrians, make_cfg, tmp_path):
    left = tmp_path / "out" / ".shards" / "746e"
    left.mkdir(parents=True)
    (left / "about.json").write_text(json.dumps({"privacy": "clean"}))
    (left / "rows-000000000.safetensors").write_bytes(b"clean rows")
    args = SimpleNamespace(
        out=tmp_path / "out", splits=["query"], views=0, overwrite=False, plain=True, purge_cache=False
    )
    extraction.extract_command(make_cfg(), args)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["query.npz"]


def test_amp_extracts_in_bfloat16(pedestrians, make_engine):
    plain, half = (
        extraction.extract_splits(make_engine("train.amp", amp), splits=["query"])["query"]["features"]
        for amp in (False, True)
    )
    assert not np.array_equal(plain, half)
    cosine = (plain * half).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99
