"""On independent features the attackers' figures cover the floor: 200 seeds, each with other people.

    make bench BENCH_ARGS="-m slow"

LEAKAGE_SEEDS sets their number. The share of 95 % intervals that hold the floor must lie in the binomial 99.9 % band.
"""

import os

import numpy as np
import pytest
from scipy.stats import binom

from ppreid_plugin.leakage import (
    AttributesAttack,
    CameraAttack,
    IdentificationAttack,
    LeakageSet,
    LinkageAttack,
    MembershipAttack,
)
from ppreid_plugin.leakage.scores import combine

SEEDS = int(os.environ.get("LEAKAGE_SEEDS", "200"))
STATED = 0.95


def independent(people, seed):
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + 1, 6)
    labels = np.repeat(rng.permutation(people) % 2, 6)
    features = rng.normal(size=(len(pids), 16)).astype(np.float32)
    # a protection without clean rows: of membership the training game alone is played
    return LeakageSet(features, pids, np.tile(np.arange(6) % 3, people), {"a": labels}, protection="unknown")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [AttributesAttack, CameraAttack, IdentificationAttack, LinkageAttack, MembershipAttack]
)
def test_floor_is_covered(kind):
    held = []
    for seed in range(SEEDS):
        train, test = independent(90, 2 * seed), independent(120, 2 * seed + 1)
        attack = kind(seed=seed).fit(train)
        ((name, figure),) = attack.attack(test).items()
        found = combine([figure.score], [figure.standard_error])
        held.append(found.low <= attack.floor(test)[name] <= found.high)
    low, high = binom.interval(0.999, SEEDS, STATED)
    print(f"\n{kind.channel}: {np.mean(held):.1%} of {SEEDS} intervals hold the floor (band {low:.0f} to {high:.0f})")
    assert low <= sum(held) <= high
