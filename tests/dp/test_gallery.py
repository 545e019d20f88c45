"""The DP gallery component: order of the steps, what is fitted on whom, and every mechanism through the engine."""

import numpy as np
import pytest
import torch

from ppreid_plugin import DPGallery
from ppreid_plugin.dp import MECHANISMS, build_mechanism

RNG = np.random.default_rng(0)
PIDS = np.repeat(np.arange(40), 6)
MIXED = RNG.normal(size=(40, 16))[PIDS] + 0.3 * RNG.normal(size=(240, 16)) + 2.0
TRAIN = torch.from_numpy(MIXED)
CODEBOOK = {"codewords": 16, "set_size": 2, "min_people": 2}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_steps_are_those_of_the_design_in_their_order():
    gallery = DPGallery("gaussian", epsilon=3.0, seed=7).fit(TRAIN)
    rows = torch.from_numpy(RNG.normal(size=(20, 16)) + 2.0)
    mean = unit(TRAIN.numpy()).mean(axis=0)
    centered = unit(unit(rows.numpy()) - mean)
    mechanism = build_mechanism("gaussian", epsilon=3.0)
    noised = mechanism.privatize(centered, generator=np.random.default_rng(7))
    np.testing.assert_allclose(gallery.protect(rows).numpy(), unit(noised), atol=1e-12)
    np.testing.assert_allclose(gallery.transform(rows).numpy(), centered, atol=1e-12)


def test_a_row_of_the_gallery_changes_only_its_own_released_row():
    rows = torch.from_numpy(RNG.normal(size=(20, 16)))
    other = rows.clone()
    other[3] = -other[3]
    for name, options in (("gaussian", {}), ("privunit_g", {}), ("prior_subset", CODEBOOK)):
        gallery = DPGallery(name, epsilon=5.0, options=options).fit(TRAIN, PIDS)
        differs = (gallery.protect(rows) != gallery.protect(other)).any(1).nonzero().flatten().tolist()
        assert set(differs) <= {3}


def test_the_codebook_is_fitted_on_transformed_training_rows_and_described():
    gallery = DPGallery("prior_subset", epsilon=4.0, options=CODEBOOK)
    with pytest.raises(RuntimeError, match="codebook of 'prior_subset' is not fitted"):
        gallery.protect(TRAIN)
    gallery.fit(TRAIN, PIDS)
    assert gallery.prior.people == 40
    assert len(gallery.prior.codebook) == 16
    # codewords are near the centered training rows, not the raw ones
    cosines = gallery.transform(TRAIN).numpy() @ gallery.prior.codebook.T
    assert cosines.max(axis=1).mean() > 0.6
    described = gallery.describe()
    assert described["prior"]["people_per_cell"] >= 2
    assert described["epsilon"] == 4.0
    released = gallery.protect(TRAIN).numpy()
    decoder = unit(gallery.mechanism.decoder)
    assert (np.abs(released[:, None] - decoder[None]).max(axis=2).min(axis=1) < 1e-9).all()


def test_a_transform_that_learns_from_labels_gets_them():
    gallery = DPGallery("none", epsilon=1.0, transform="lda").fit(TRAIN, PIDS)
    rows = gallery.transform(TRAIN).numpy()
    same, other = rows[0] @ rows[1], rows[0] @ rows[6]
    assert same > other


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DPGallery("prior_subset", epsilon=1.0), "needs a codebook: its size is missing.*kwargs.codewords"),
        (lambda: DPGallery("prior_subset", epsilon=-1.0, options=CODEBOOK), "epsilon is -1.0"),
        (lambda: DPGallery("prior_subset", epsilon=1.0, delta=0.1, options=CODEBOOK), "needs delta 0"),
        (lambda: DPGallery("gaussian", epsilon=1.0, options={"set_size": 3}), "has 'set_size'; allowed: clip_norm"),
        (lambda: DPGallery("gausian", epsilon=1.0), "privacy.gallery.mechanism is 'gausian'"),
        (lambda: DPGallery("gaussian", epsilon=1.0).fit(None), "need features of the training split"),
        (lambda: DPGallery("codebook", epsilon=1.0, options={"codewords": 4}).fit(TRAIN), "needs the pids"),
        (lambda: DPGallery("gaussian", epsilon=1.0, unit="person"), "unit is 'person'; allowed: image"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(MECHANISMS.names()))
def test_every_mechanism_works_from_a_configuration(make_engine, name):
    kwargs = ()
    if name in ("codebook", "prior_subset"):
        kwargs = ("privacy.gallery.kwargs.codewords", 8, "privacy.gallery.kwargs.min_people", 1)
    engine = make_engine(
        *("privacy.gallery.enabled", True, "privacy.gallery.mechanism", name, "privacy.gallery.epsilon", 6, *kwargs)
    )
    engine.test()
    (result,) = engine.results["synthetic_pedestrians"].protected
    assert result.anonymous.num_valid_queries > 0
    assert result.description["mechanism"] == name
    assert result.person_epsilon[1] >= result.person_epsilon[0] >= 6
