"""The judge: which model it is, what it is shown, and ranks against loops."""

import numpy as np
import pytest
import torch
from pictured import pictured

from ppreid_plugin.checkpoint import CheckpointError
from ppreid_plugin.leakage import ArrayImages, Judge
from ppreid_plugin.leakage.inversion_decoder import to_images
from ppreid_plugin.leakage.judge import has_matches
from ppreid_plugin.toolbox import models


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "weights.pth"
    torch.save(models.build_model("osnet_x0_25", 7, pretrained=False).state_dict(), path)
    return path


def test_features_are_those_of_the_model(weights):
    judge = Judge("osnet_x0_25", weights, height=64, width=32)
    images = pictured(2).images
    model = models.build_model("osnet_x0_25", 7, pretrained=False)
    model.load_state_dict(torch.load(weights))
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = model.eval()((to_images(images.load()) - mean) / deviation)
    np.testing.assert_allclose(judge.features(to_images(images.load())), wanted, atol=1e-4)
    np.testing.assert_allclose(judge.real_features(images), wanted, atol=1e-4)
    assert judge.real_features(images) is judge.real_features(images)
    assert repr(judge).startswith("Judge('osnet_x0_25', 'sha256:")


def test_small_images_are_enlarged(weights):
    judge = Judge("osnet_x0_25", weights)
    seen = []
    judge._network = lambda images: seen.append(images.shape) or images.mean((2, 3))
    judge.features(torch.zeros(3, 3, 64, 32))
    judge.real_features(ArrayImages(np.zeros((2, 128, 64, 3), dtype=np.uint8)))
    assert seen == [(3, 3, 256, 128), (2, 3, 256, 128)]


def test_rank1_is_what_loops_say(weights):
    judge = Judge("osnet_x0_25", weights)
    judge._network = lambda images: images.mean((2, 3))
    rows = pictured(12, seed=3)
    rng = np.random.default_rng(0)
    made = to_images(rows.images.load()) + torch.tensor(rng.normal(scale=0.05, size=(len(rows), 3, 1, 1))).float()
    asked, real = judge.features(made), judge.features(to_images(rows.images.load(256, 128)))
    right = []
    for row, pid, camera in zip(asked, rows.pids, rows.camids, strict=True):
        others = np.flatnonzero((rows.pids != pid) | (rows.camids != camera))
        cosines = [row @ real[one] / np.linalg.norm(row) / np.linalg.norm(real[one]) for one in others]
        right.append(rows.pids[others[int(np.argmax(cosines))]] == pid)
    assert judge.rank1(made, rows.images, rows.pids, rows.camids) == pytest.approx(np.mean(right))
    assert 0.0 < np.mean(right) < 1.0
    assert judge.rank1(made, rows.images, rows.pids, 0 * rows.camids) is None
    assert not has_matches(rows.pids, 0 * rows.camids)
    assert has_matches(np.array([1, 1, 2]), np.array([0, 1, 0]))


def test_a_judge_that_cannot_be_had(weights, tmp_path):
    with pytest.raises(ValueError, match="judge's model is 'osnet_x025'.*Did you mean 'osnet_x0_25'"):
        Judge("osnet_x025", weights)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Judge("osnet_x0_25", tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="weights of another model"):
        Judge("osnet_x0_5", weights)
