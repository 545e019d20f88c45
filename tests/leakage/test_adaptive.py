"""An attacker who learned from rows protected alike is never weaker than one who learned from clean rows."""

import numpy as np
import pytest
from planted import identities

from ppreid_plugin.leakage import AttributesAttack, CameraAttack, IdentificationAttack, LinkageAttack

NOISE = np.array([6.0] * 8 + [0.3] * 8, dtype=np.float32)  # a protection that hides half of the columns


def protected(rows, seed):
    noise = NOISE[: rows.features.shape[1]] * np.random.default_rng(seed).normal(size=rows.features.shape)
    return rows.with_features(rows.features + noise, "half of the columns")


def people(count, seed, first_pid):
    """Identities in 16 columns; camera and attribute shift two columns of either half."""
    rows = identities(count, seed=seed, first_pid=first_pid, centers=0.7, noise=0.5)
    features = rows.features.copy()
    for column in (0, 15):
        features[:, column] += rows.attributes["a"] - 0.5
        features[:, column - 1] += rows.camids - 1
    return rows.with_features(features)


@pytest.mark.parametrize(
    ("attack", "gain"),
    [(AttributesAttack, 0.05), (CameraAttack, 0.1), (IdentificationAttack, 0.0), (LinkageAttack, 0.05)],
)
def test_learning_from_rows_protected_alike_pays(attack, gain):
    train, test = people(60, 1, 1001), protected(people(60, 2, 1), 3)
    adaptive, plain = (
        next(iter(attack(seed=1).fit(rows).attack(test).values())) for rows in (protected(train, 4), train)
    )
    assert adaptive.score >= plain.score + gain
