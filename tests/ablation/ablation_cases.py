"""A small plan: rows that train for a second, and few steps of the attackers."""

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = {
    "model.pretrained": False,
    "data.height": 64,
    "data.width": 32,
    "data.workers": 0,
    "data.sources": ["synthetic_pedestrians"],
    "data.targets": ["synthetic_pedestrians"],
    "train.max_epoch": 1,
    "train.batch_size": 16,
    "train.fixbase_epoch": 0,
    "use_gpu": False,
}
MEASURES = {
    "attacks": ["reconstruction"],
    "attack_seeds": 1,
    "deid_steps": 5,
    "inversion_steps": 3,
    "test_rows": 30,
    "step_pairs": 1,
}


def preset(name):
    return str(CONFIGS / f"im_osnet_x0_25_softmax_256x128_amsgrad_{name}.yaml")


ROWS = [{"name": "baseline", "config": preset("baseline")}, {"name": "one_stage", "config": preset("one_stage")}]
