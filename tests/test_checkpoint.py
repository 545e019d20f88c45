"""Checkpoints: stock torchreid's load safely, and what does not fit is named."""

import os
import pickle

import numpy as np
import pytest
import torch

from ppreid_plugin import build
from ppreid_plugin.checkpoint import CheckpointError, load_checkpoint, load_weights
from ppreid_plugin.config import ConfigError
from ppreid_plugin.toolbox import models, utils


@pytest.fixture
def model():
    return models.build_model("osnet_x0_25", 5, pretrained=False)


def test_a_checkpoint_with_a_numpy_rank1_as_stock_torchreid_writes_it_loads(model, tmp_path):
    state = {"state_dict": model.state_dict(), "epoch": 3, "rank1": np.float32(0.5), "optimizer": {}, "scheduler": {}}
    utils.save_checkpoint(state, str(tmp_path))
    path = tmp_path / "model.pth.tar-3"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # what makes stock torchreid fail
    loaded = load_checkpoint(path)
    assert loaded["epoch"] == 3
    assert float(loaded["rank1"]) == 0.5


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be loaded as weights"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_other_people_leave_the_classifier_new(model, tmp_path, prefix):
    other = models.build_model("osnet_x0_25", 9, pretrained=False)
    torch.save({prefix + key: value for key, value in other.state_dict().items()}, tmp_path / "w.pth")
    classifier = model.classifier.weight.clone()
    missing = load_weights(model, tmp_path / "w.pth")
    assert missing == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.classifier.weight, classifier)
    assert torch.equal(model.conv1.conv.weight, other.conv1.conv.weight)


def test_weights_of_the_same_people_load_whole(model, tmp_path):
    other = models.build_model("osnet_x0_25", 5, pretrained=False)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pth")
    assert load_weights(model, tmp_path / "w.pth") == []
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_weights_of_another_model_change_nothing(model, tmp_path):
    torch.save(models.build_model("resnet18", 5, pretrained=False).state_dict(), tmp_path / "w.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="weights of another model than osnet: .*conv1"):
        load_weights(model, tmp_path / "w.pth", model_name="osnet")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be loaded as weights"), (b"no checkpoint", "cannot be loaded as weights")],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x")


def test_a_file_without_a_state_dict(tmp_path):
    torch.save({"state_dict": {"a": 3}}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "x")


def test_resume_with_another_number_of_people_names_the_classifier(make_engine, run_engine, tmp_path):
    engine = make_engine()
    run_engine(engine)
    path = f"{engine.cfg.data.save_dir}/model/model.pth.tar-1"
    with pytest.raises(CheckpointError, match="another number of training people: classifier"):
        make_engine("model.resume", path, "privacy.validation.ids_fraction", 0.4)
    with pytest.raises(CheckpointError, match="a checkpoint of another model"):
        make_engine("model.resume", path, "model.name", "osnet_x0_5")
    torch.save(engine.model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="has no epoch, optimizer, scheduler"):
        make_engine("model.resume", tmp_path / "bare.pth")


def test_a_run_that_is_continued_without_its_decoder_says_so(make_engine, run_engine, tmp_path, caplog):
    engine = make_engine("privacy.deid.enabled", True)
    run_engine(engine)
    go_on = ("model.resume", f"{engine.cfg.data.save_dir}/model/model.pth.tar-1")
    make_engine("privacy.deid.enabled", True, *go_on)
    make_engine(*go_on, "test.evaluate", True)
    assert "leaves out" not in caplog.text
    make_engine(*go_on)
    assert "also trained deid_decoder, which this configuration leaves out: the model goes on without" in caplog.text


def test_a_test_without_weights_says_whose_features_these_are(make_engine, model, tmp_path, caplog):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    make_engine("test.evaluate", True, "model.load_weights", tmp_path / "w.pth")
    make_engine()
    assert "load_weights is empty" not in caplog.text
    make_engine("test.evaluate", True)
    assert "model.load_weights is empty: features are those of random weights, which have not learned" in caplog.text


def test_weights_of_the_zoo_are_no_run_to_go_on_with(make_cfg):
    cfg = make_cfg("model.resume", "zoo:osnet_x0_25_market1501")
    with pytest.raises(ConfigError, match="the zoo has weights, and no state .* model.load_weights zoo:osnet"):
        build.check(cfg)


def test_a_release_of_the_zoos_weights_is_compared_with_the_cached_file(make_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    cfg = make_cfg("model.load_weights", "zoo:osnet_x0_25_market1501")
    assert build._weights_fingerprint(cfg) == ""
    (tmp_path / "checkpoints" / "osnet_x0_25_market1501.pth").write_bytes(b"weights")
    assert build._weights_fingerprint(cfg).startswith("sha256:")
