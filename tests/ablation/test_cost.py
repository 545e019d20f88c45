"""What a step costs: every part acts in the steps that are timed."""

import pytest

from ppreid_plugin import ReleaseAware
from ppreid_plugin.ablation.cost import step_cost
from ppreid_plugin.suppression import ClassMeanErasure, ImageErasure

SAMPLER = ("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        (ClassMeanErasure, ("privacy.erasure.enabled", True)),
        (ImageErasure, ("privacy.image_erasure.enabled", True)),
        (ReleaseAware, (*SAMPLER, "privacy.aware.enabled", True, "privacy.aware.codewords", 64)),
    ],
)
def test_parts_that_wait_for_many_batches_act_in_every_step(make_cfg, pedestrians, monkeypatch, part, options):
    labels = pedestrians / "synthetic_pedestrians/attributes.csv"
    given, own = [], part.loss_terms
    monkeypatch.setattr(part, "loss_terms", lambda self, batch: given.append(own(self, batch)) or given[-1])
    assert step_cost(make_cfg(*options, "privacy.adversary.labels", labels), pairs=2) > 0
    assert len(given) == 3
    assert all(terms and all(bool(term.isfinite()) for term in terms.values()) for terms in given)
