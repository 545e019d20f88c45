"""What a step costs: which steps are compared, and that every part acts in them."""

from types import SimpleNamespace

import pytest

from ppreid_plugin import ReleaseAware
from ppreid_plugin.ablation import cost
from ppreid_plugin.suppression import ClassMeanErasure, ImageErasure

SAMPLER = ("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4)


def test_the_cost_is_the_median_of_private_over_plain_steps_after_the_first_pair(make_cfg, monkeypatch):
    took = [1.0, 90.0, *(1.0, 2.0), *(2.0, 6.0), *(1.0, 8.0)]  # plain, private, of four pairs
    clock = iter([moment for seconds in took for moment in (0.0, seconds)])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert cost.step_cost(make_cfg("privacy.image_erasure.enabled", True), pairs=3) == 3.0


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
    assert cost.step_cost(make_cfg(*options, "privacy.adversary.labels", labels), pairs=2) > 0
    assert len(given) == 3
    assert all(terms and all(bool(term.isfinite()) for term in terms.values()) for terms in given)
