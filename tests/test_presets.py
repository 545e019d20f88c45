"""Presets train, and what they save is stock torchreid's: no key is missing, none is unexpected."""

import ast
import shutil

import pytest
import torch

from ppreid_plugin import build
from ppreid_plugin.config import get_default_config, merge_file, merge_options
from ppreid_plugin.toolbox import models, utils
from test_config import PRESETS, preset_file

CASES = [
    *(("osnet_x0_25", "softmax", preset) for preset in PRESETS),
    ("osnet_x0_25", "triplet", "one_stage_attr"),
    ("osnet_x1_0", "softmax", "deid_adv"),
    ("osnet_x1_0", "triplet", "image_adv"),
    ("resnet50", "softmax", "one_stage"),
    ("resnet50", "triplet", "two_stage"),
]


@pytest.fixture
def trained(pedestrians, tmp_path):
    """Return a function that takes two training steps of a preset and saves; it returns the engine and the file."""

    def train(model, loss, preset):
        cfg = get_default_config()
        merge_file(cfg, preset_file(model, loss, preset))
        small = {
            "use_gpu": False, "model.pretrained": False, "data.root": str(pedestrians), "data.height": 64,
            "data.width": 32, "data.workers": 0, "train.batch_size": 16, "data.save_dir": str(tmp_path / "log"),
            "data.sources": "['synthetic_pedestrians']", "data.targets": "['synthetic_pedestrians']",
            "privacy.adversary.labels": str(pedestrians / "synthetic_pedestrians/attributes.csv"),
        }  # fmt: skip
        merge_options(cfg, [str(word) for pair in small.items() for word in pair])
        engine = build.build_engine(cfg)
        engine.max_epoch = 1
        engine.set_model_mode("train")
        for _, batch in zip(range(2), engine.train_loader, strict=False):
            figures = engine.forward_backward(batch)
        assert all(torch.isfinite(torch.tensor(float(value))) for value in figures.values())
        engine.save_model(0, 0.5, str(tmp_path / "log"))
        return engine, tmp_path / "log/model/model.pth.tar-1"

    return train


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_a_presets_checkpoint_is_stock_torchreids(trained, pedestrians, case, capsys):
    engine, file = trained(*case)
    model, loss, _ = case
    before = models.build_model(model, engine.datamanager.num_train_pids, loss=loss, pretrained=False)
    state = torch.load(file, weights_only=True)["state_dict"]
    assert list(state) == list(before.state_dict())
    capsys.readouterr()
    utils.load_pretrained_weights(before, str(file))
    said = capsys.readouterr().out
    assert "Successfully loaded" in said
    assert "discarded" not in said
    for key, value in before.state_dict().items():
        assert torch.equal(value, engine.model.state_dict()[key]), key
    extractor = utils.FeatureExtractor(model, str(file), image_size=(64, 32), device="cpu", verbose=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "discarded" in line]
    assert len(lines) == 1  # an extractor has a classifier of one class
    assert ast.literal_eval(lines[0].partition(": ")[2]) == ["classifier.weight", "classifier.bias"]
    images = sorted(str(path) for path in (pedestrians / "synthetic_pedestrians/query").glob("*.jpg"))[:3]
    loader = engine.test_loader["synthetic_pedestrians"]["query"]
    engine.set_model_mode("eval")
    batch = next(iter(loader))
    with torch.no_grad():
        own = engine.model(batch["img"])
    places = [batch["impath"].index(image) for image in images]
    assert torch.allclose(extractor(images), own[places], atol=1e-5)
    shutil.rmtree(file.parent.parent)
