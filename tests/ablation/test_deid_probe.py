"""L_deid on test people: what the features hold of T(x) decides, and nothing else."""

import numpy as np
import pytest

from ppreid_plugin.ablation.deid_probe import DeIDProbe
from ppreid_plugin.leakage import ArrayImages, LeakageSet

TONES = (40, 120, 215)  # gray levels of the images, one a row


def rows(people, *, seed, tells=True):
    """Flat gray images, and features that are their tones, or of other images."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people), 4)
    tone = rng.choice(TONES, size=len(pids))
    images = np.broadcast_to(tone[:, None, None, None], (len(pids), 16, 8, 3)).astype(np.uint8)
    known = tone if tells else rng.choice(TONES, size=len(pids))
    features = np.stack([known == level for level in TONES], axis=1).astype(np.float32)
    return LeakageSet(features, pids, pids * 0, images=ArrayImages(images))


def probe(steps):
    return DeIDProbe("pixelate", height=64, width=32, steps=steps)


def test_features_that_tell_the_image_are_decoded_and_others_are_not():
    some = probe(60)
    told = some.loss(rows(12, seed=0), rows(12, seed=1))
    untold = some.loss(rows(12, seed=0, tells=False), rows(12, seed=1, tells=False))
    variance = np.var(np.array(TONES) / 255)  # what the best constant leaves
    assert told < 0.5 * variance
    assert 0.8 * variance < untold < 2 * variance
    bright = rows(12, seed=1)
    bright = bright.take(bright.features[:, 2] == 1)
    assert some.loss(rows(12, seed=0), bright) < 0.5 * variance  # a row does not count by those that it stands among


def test_scale_and_place_of_the_features_do_not_count():
    some = probe(5)
    train, test = rows(10, seed=0), rows(10, seed=1)
    moved = [one.with_features(100 * one.features + 7, clean=one.features) for one in (train, test)]
    assert some.loss(*moved, seed=2) == pytest.approx(some.loss(train, test, seed=2), rel=1e-3)


def test_the_figure_is_a_mean_over_people():
    train, test = rows(10, seed=0), rows(3, seed=1)
    person = test.pids == 0
    twice = test.take(np.concatenate([np.flatnonzero(person), np.arange(len(test))]))
    assert probe(5).loss(train, twice) == pytest.approx(probe(5).loss(train, test), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mean_image", "measures.deid_target is 'mean_image', which learns from training images first"),
        ("pixelat", "measures.deid_target is 'pixelat'; registered: .*Did you mean 'pixelate'"),
    ],
)
def test_a_target_that_cannot_be_made_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        DeIDProbe(target, height=64, width=32, steps=1)


def test_rows_without_images_are_refused():
    bare = LeakageSet(np.eye(4, dtype=np.float32), np.arange(4), np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match="have no images"):
        probe(1).loss(bare, bare)
