"""Fine cues of generated people, in a small training that is fixed: a plain encoder's features hold them, and show them
on people whom neither encoder nor attacker has seen. Without the components of heads the face is gone and matching is
not; behind the DP gallery both are."""

import pytest
import yaml
from ablation_cases import CONFIGS

from ppreid_plugin.ablation.command import ablation_command
from ppreid_plugin.data.pedestrians import make_pedestrians
from ppreid_plugin.leakage import patch_models, recovery

PLAN = {
    "seeds": [1],
    "options": {
        "privacy.deid.enabled": False,
        "privacy.adversary.enabled": False,
        "privacy.gallery.enabled": False,
        "train.channels_last": True,
        "train.max_epoch": 2,
        "test.fast_extraction": True,
        "test.eval_freq": -1,
        "data.workers": 0,
        "use_gpu": False,
    },
    "measures": {"attacks": ["patches"], "attack_seeds": 1, "step_pairs": 0, "deid_target": ""},
    "rows": [
        {"name": "baseline", "config": str(CONFIGS / "im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml")},
        {"name": "head erased", "of": "baseline", "defense": "leace:head_components=8"},
        {"name": "DP", "of": "baseline", "defense": "dp:mechanism=gaussian,epsilon=16"},
    ],
}


@pytest.mark.slow
def test_a_plain_encoder_holds_face_and_logo_and_what_is_erased_or_protected_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_models, "STEPS", 200)
    monkeypatch.setattr(recovery, "DRAWS", 1)
    make_pedestrians(tmp_path / "data", num_train_ids=100, num_test_ids=50, seed=7)
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(PLAN))
    record = ablation_command(["--plan", str(plan), "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    plain, erased, protected = (
        record["records"][name][0]["leakage"]["channels"]["patches"] for name in ("baseline", "head erased", "DP")
    )
    for cue in ("face", "logo"):
        assert plain[cue]["low"] > 0  # 95 %, over people
        assert plain[cue]["score"] > 0.03
        assert protected[cue]["score"] < 0.3 * plain[cue]["score"]
        cells = (record["rows"][name][f"{cue} recovered"]["mean"] for name in ("baseline", "DP"))
        assert list(cells) == [plain[cue]["score"], protected[cue]["score"]]
    # of 50 people the ratio of the scores is known to some 0.4, and moves with the processor's rounding (0.31 on one)
    assert erased["face"]["low"] < 0
    assert erased["face"]["score"] < 0.5 * plain["face"]["score"]
    plain_map, erased_map = (record["rows"][name]["mAP (cosine)"]["mean"] for name in ("baseline", "head erased"))
    assert erased_map > 0.85 * plain_map
