"""The DP gallery component: order of the steps, what is fitted on whom, and every mechanism through the engine."""

import numpy as np
import pytest
import torch

from ppreid_plugin import DPGallery
from ppreid_plugin.dp import MECHANISMS, build_mechanism, person_level_epsilon

RNG = np.random.default_rng(0)
PIDS = np.repeat(np.arange(40), 6)
MIXED = RNG.normal(size=(40, 16))[PIDS] + 0.3 * RNG.normal(size=(240, 16)) + 2.0
TRAIN = torch.from_numpy(MIXED)
CODEBOOK = {"codewords": 16, "set_size": 2, "min_people": 1}


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


def person(**options):
    return DPGallery(**{"mechanism": "gaussian", "epsilon": 4.0, "unit": "person", **options}).fit(TRAIN)


ROWS = torch.from_numpy(RNG.normal(size=(24, 16)) + 2.0)
ROW_PIDS = np.array([0, 0, 0, 0] + [5] * 8 + [6] * 8 + [7] * 4)
CAMIDS = np.tile([0, 1, 2, 3], 6)


def test_a_prototype_is_the_mean_of_the_unit_rows_from_the_enrolling_cameras():
    gallery = person()
    clean = gallery.clean_rows(ROWS, ROW_PIDS, CAMIDS)
    assert gallery.enroll_cameras == (0, 1)  # the first half
    assert clean.pids.tolist() == [0, 0, 5, 6, 7]  # background rows are units of their own
    assert clean.camids.tolist() == [0, 1, -1, -1, -1]
    assert clean.places.tolist() == [0, 1, 4, 12, 20]
    centered = gallery.transform(ROWS).numpy()
    mine = centered[(ROW_PIDS == 6) & (CAMIDS < 2)]
    np.testing.assert_allclose(clean.features[3].numpy(), unit(mine.mean(axis=0, keepdims=True))[0], atol=1e-12)
    noised = build_mechanism("gaussian", epsilon=4.0).privatize(
        clean.features.numpy(), generator=np.random.default_rng(1)
    )
    released = gallery.protect_rows(ROWS, ROW_PIDS, CAMIDS)
    np.testing.assert_allclose(released.features.numpy(), unit(noised), atol=1e-12)
    assert gallery.queried(CAMIDS).tolist() == [False, False, True, True] * 6
    assert gallery.person_level_epsilon(8) == 4.0


def test_all_rows_of_a_person_together_change_only_his_prototype():
    gallery = person(seed=3)
    other = ROWS.clone()
    other[ROW_PIDS == 5] *= -1
    first, second = (gallery.protect_rows(rows, ROW_PIDS, CAMIDS).features for rows in (ROWS, other))
    assert (first != second).any(1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(("mechanism", "composed"), [("privunit_g", 4.0), ("gaussian", 4.0), ("prior_subset", 4.0)])
def test_rows_at_a_share_each_cost_the_person_his_budget_together(mechanism, composed):
    options = CODEBOOK if mechanism == "prior_subset" else {}
    gallery = DPGallery(mechanism, epsilon=4.0, unit="person", prototype=False, options=options).fit(TRAIN, PIDS)
    for rows in (1, 2, 5):
        share = gallery.share(rows)
        assert person_level_epsilon(share, rows, delta=gallery.mechanism.delta or None) == pytest.approx(composed)
    released = gallery.protect_rows(ROWS, ROW_PIDS, CAMIDS)
    assert released.pids.tolist() == [0, 0] + [5] * 4 + [6] * 4 + [7] * 2
    clean = gallery.clean_rows(ROWS, ROW_PIDS, CAMIDS)
    np.testing.assert_allclose(clean.features.numpy(), gallery.transform(ROWS).numpy()[released.places], atol=1e-12)


def test_a_share_of_nothing_is_refused():
    gallery = DPGallery("gaussian", epsilon=0.1, delta=1e-2, unit="person", prototype=False)
    with pytest.raises(ValueError, match=r"epsilon 0.1 over 71 rows of a person leaves nothing for each"):
        gallery.share(71)
    gallery = DPGallery("privunit", epsilon=2e-100, unit="person", prototype=False).fit(TRAIN)
    with pytest.raises(ValueError, match=r"^a row's share of privacy.gallery.epsilon 2e-100 among 4 rows .* is 5e-101"):
        gallery.share(4)


def test_a_share_is_drawn_with_the_noise_of_the_share():
    gallery = DPGallery("gaussian", epsilon=4.0, unit="person", prototype=False, transform="none")
    seen = []
    gallery._noised = lambda rows, mechanism, generator: seen.append((len(rows), mechanism.sigma)) or rows
    gallery.protect_rows(ROWS, ROW_PIDS, CAMIDS)
    whole = gallery.mechanism.sigma
    wanted = [(2, 1.0), (2, 2.0), (8, 4.0)]  # two background rows; one person with two rows; two with four
    assert [count for count, _ in seen] == [count for count, _ in wanted]
    np.testing.assert_allclose([(sigma / whole) ** 2 for _, sigma in seen], [k for _, k in wanted], rtol=1e-9)


def test_rows_above_the_limit_are_left_out_spread_over_cameras():
    gallery = DPGallery("gaussian", epsilon=4.0, max_rows_per_person=3).fit(TRAIN)
    released = gallery.protect_rows(ROWS, ROW_PIDS, CAMIDS)
    assert released.pids.tolist() == [0] * 4 + [5] * 3 + [6] * 3 + [7] * 3
    assert released.camids.tolist() == [0, 1, 2, 3] + [0, 1, 2] * 3
    assert not gallery.is_whole_gallery


def test_noised_queries_get_noise_of_their_own():
    clean, noised = (DPGallery("gaussian", epsilon=9.0, query=query).fit(TRAIN) for query in ("clean", "noised"))
    np.testing.assert_array_equal(clean.transform_query(ROWS), clean.transform(ROWS))
    query, gallery = noised.transform_query(ROWS).numpy(), noised.protect(ROWS).numpy()
    sigma = noised.mechanism.sigma
    assert 0 < (query * clean.transform(ROWS).numpy()).sum(axis=1).mean() < 1
    assert np.abs(query - gallery).max() > 0.1  # not the gallery's draw: it would match itself
    np.testing.assert_array_equal(query, noised.transform_query(ROWS).numpy())
    assert sigma == clean.mechanism.sigma


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DPGallery("prior_subset", epsilon=1.0), "needs a codebook: its size is missing.*kwargs.codewords"),
        (lambda: DPGallery("prior_subset", epsilon=-1.0, options=CODEBOOK), "^privacy.gallery.epsilon is -1.0"),
        (lambda: DPGallery("prior_subset", epsilon=1.0, delta=0.1, options=CODEBOOK), "needs delta 0"),
        (lambda: DPGallery("gaussian", epsilon=1.0, options={"set_size": 3}), "has 'set_size'; allowed: none"),
        (lambda: DPGallery("gaussian", epsilon=1.0, options={"epsilon": 3}), "kwargs has 'epsilon'; allowed: none"),
        (lambda: DPGallery("gausian", epsilon=1.0), "privacy.gallery.mechanism is 'gausian'"),
        (lambda: DPGallery("gaussian", epsilon=1.0).fit(None), "need features of the training split"),
        (lambda: DPGallery("codebook", epsilon=1.0, options={"codewords": 4}).fit(TRAIN), "needs the pids"),
        (
            lambda: DPGallery("codebook", epsilon=1.0, options={"codewords": len(TRAIN) + 1}).fit(TRAIN, PIDS),
            f"^privacy.gallery.kwargs.codewords is {len(TRAIN) + 1}, must be 2 to {len(TRAIN)}, the number of training",
        ),
        (
            lambda: DPGallery("gaussian", epsilon=1.0, transform="pca:components=0"),
            "^components of privacy.gallery.transform is 0, must be a whole number",
        ),
        (lambda: DPGallery("gaussian", epsilon=1.0, unit="people"), "unit is 'people'; allowed: image, person"),
        (lambda: DPGallery("gaussian", epsilon=1.0, query="noisy"), "query is 'noisy'; allowed: clean, noised"),
        (lambda: DPGallery("gaussian", epsilon=1.0, max_rows_per_person=-1), "max_rows_per_person is -1"),
        (lambda: DPGallery("gaussian", epsilon=1.0, fit_views=-1), "privacy.gallery.fit_views is -1"),
        (lambda: person(enroll_cameras=[7]).protect_rows(ROWS, ROW_PIDS, CAMIDS), "is .7., and the gallery has no row"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codewords": 1}, "codewords is 1, must be a whole number >= 2"),
        ({"codewords": 2.0}, "codewords is 2.0, must be"),
        ({"kind": "means"}, "kind is 'means'; allowed: "),
        ({"kind": "raw"}, "kind is 'raw', which publishes"),
        ({"set_size": 4}, "set_size is 4, must be 1 to 3"),
        ({"seed": -1}, "seed is -1, must be"),
        ({"min_people": 0}, "min_people is 0, must be"),
        ({"kind": "gaussian", "rank": 0}, "rank is 0, must be"),
        ({"kind": "gaussian", "power": -1.0}, "power is -1.0, must be"),
        ({"kind": "residual", "levels": 0}, "levels is 0, must be"),
        ({"kind": "residual", "levels": 3}, "codewords is 4, which splits into levels of 2 and 2 and 1; .* at least 2"),
    ],
)
def test_the_options_of_a_prior_are_checked_before_anything_is_trained(given, message):
    with pytest.raises(ValueError, match=f"^privacy.gallery.kwargs.{message}"):
        DPGallery("prior_subset", epsilon=1.0, options={"codewords": 4, **given})


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
