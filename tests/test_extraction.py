"""Feature files: the same features as torchreid's own extraction, marked as clean, never overwritten by accident."""

import stat

import numpy as np
import pytest
import torch

from ppreid_plugin import cli
from ppreid_plugin.data.validation import VALIDATION, split_query_gallery
from ppreid_plugin.dp.feature_files import load_arrays, load_gallery
from ppreid_plugin.extraction import extract_splits
from ppreid_plugin.toolbox import utils


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
