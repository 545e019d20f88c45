"""Sets with planted leakage of known strength: shared by the tests of the attackers."""

import numpy as np
from scipy.stats import norm

from ppreid_plugin.leakage import LeakageSet

BIT = 1.6  # distance of a bit's two values from 0, in standard deviations of the rows around them
BIT_ACCURACY = norm.cdf(BIT)


def planted(kind, people=400, *, seed=0, dim=8, rows_each=10, cameras=3, first_pid=1, background=0):
    """Rows whose attribute ``a`` is hidden as ``kind`` says; ``accuracy(kind)`` is what Bayes reaches."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows_each)
    camids = np.tile(np.arange(rows_each) % cameras, people)
    labels = np.repeat(rng.permutation(people) % 2, rows_each)
    sign = 2.0 * labels - 1
    features = rng.normal(size=(len(pids), dim))
    if kind == "gaussian":
        features[:, 0] += BIT * sign
    elif kind == "xor":
        other = np.repeat(rng.choice([-1.0, 1.0], size=people), rows_each)
        features[:, 0] += BIT * other
        features[:, 1] += BIT * other * sign
    elif kind == "norm":
        features *= (np.exp(0.1 * (sign * BIT + rng.normal(size=len(pids)))) / np.linalg.norm(features, axis=1))[
            :, None
        ]
    elif kind == "camera":
        features[:, 0] += BIT * sign * np.where(camids == 1, -1, 1)
    rows = LeakageSet(features.astype(np.float32), pids, camids, {"a": labels})
    if not background:
        return rows
    junk = np.zeros(background, dtype=np.int64)
    return LeakageSet(
        np.concatenate([rows.features, rng.normal(size=(background, dim)).astype(np.float32)]),
        np.concatenate([pids, junk]),
        np.concatenate([camids, np.arange(background) % cameras]),
        {"a": np.concatenate([labels, junk])},
    )


def accuracy(kind):
    return {"independent": 0.5, "xor": BIT_ACCURACY**2 + (1 - BIT_ACCURACY) ** 2}.get(kind, BIT_ACCURACY)


def identities(people, *, seed=0, dim=16, noise=1.0, rows_each=6, cameras=3, first_pid=1, centers=3.0):
    """Rows around a center a person, in spherical noise."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows_each)
    features = np.repeat(centers * rng.normal(size=(people, dim)), rows_each, axis=0)
    features = features + noise * rng.normal(size=features.shape)
    camids = np.tile(np.arange(rows_each) % cameras, people)
    return LeakageSet(features.astype(np.float32), pids, camids, {"a": pids % 2})
