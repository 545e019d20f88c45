"""Published figures on Market-1501; needs REID_DATA with market1501/ and weights/osnet_x0_25_market1501.pth."""

import os
from pathlib import Path

import pytest

from ppreid_plugin import cli


@pytest.mark.real_data
@pytest.mark.slow
def test_the_zoo_model_reaches_torchreids_published_figures(tmp_path):
    root = Path(os.environ["REID_DATA"])
    weights = root / "weights" / "osnet_x0_25_market1501.pth"
    if not weights.is_file():
        pytest.skip(f"{weights} does not exist")
    config = Path(__file__).parent.parent / "configs/im_osnet_x0_25_softmax_256x128_amsgrad.yaml"
    record = cli.train(
        [
            *("--config-file", str(config), "--root", str(root), "model.load_weights", str(weights)),
            *("test.evaluate", "True", "data.save_dir", str(tmp_path)),
        ]
    )
    clean = record["targets"]["market1501"]["clean"]
    assert clean["num_valid_queries"] == 3368
    assert clean["rank1"] == pytest.approx(0.9118, abs=5e-4)  # published: 91.2 (75.0)
    assert clean["mAP"] == pytest.approx(0.7494, abs=5e-4)
