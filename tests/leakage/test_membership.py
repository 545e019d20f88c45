"""Membership: planted members found, none where there are none, and bounds that hold for the canary game."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ppreid_plugin.dp import build_mechanism, compose_gaussian, gaussian_epsilon
from ppreid_plugin.dp.codebooks import LevelCodebook
from ppreid_plugin.dp.mechanisms import GaussianMechanism
from ppreid_plugin.dp.sphere import PrivUnitG
from ppreid_plugin.dp.subset import PriorSubset
from ppreid_plugin.leakage import LeakageSet
from ppreid_plugin.leakage.linkage_figures import auc
from ppreid_plugin.leakage.membership import MembershipAttack, gallery_membership
from ppreid_plugin.leakage.membership_canary import canary_membership
from ppreid_plugin.leakage.membership_games import likelihood_score, person_figures

GAMES = ("gallery_image", "gallery_person", "training")


def people(count=60, rows=6, d=12, spread=1.0, seed=0, scale=1.0, first_pid=1):
    """People around centers of their own; ``spread`` is that of their rows."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(first_pid, first_pid + count), rows)
    features = rng.normal(size=(count, d)).repeat(rows, axis=0) + spread * rng.normal(size=(count * rows, d))
    return LeakageSet(scale * features, pids, np.tile(np.arange(rows) % 3, count))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def released(rows, mechanism, seed=0):
    clean = unit(rows.features.astype(float))
    noised = unit(mechanism.privatize(clean, generator=np.random.default_rng(seed)))
    return rows.with_features(noised, mechanism, clean)


def independent(rows, seed=0):
    """A release that tells nothing: other rows than the clean ones."""
    clean = unit(rows.features.astype(float))
    return rows.with_features(unit(np.random.default_rng(seed).normal(size=clean.shape)), "unknown", clean)


def test_clean_rows_that_are_there_are_found():
    figures = MembershipAttack().fit(people(seed=1, spread=0.7, d=32)).attack(people(seed=2, spread=0.7, d=32))
    assert figures["gallery_image"].score == 1.0
    assert figures["gallery_image"].others["tpr_at_fpr_0.001"] == 1.0
    assert figures["gallery_person"].score > 0.95


def test_who_has_no_row_in_the_gallery_is_not_asked_about_as_one_who_has():
    """With one row a person nobody has another image: held back, he is not in the gallery at all."""
    figures = MembershipAttack().fit(people(seed=1, rows=1)).attack(people(seed=2, rows=1))
    assert set(figures) == {"gallery_image"}
    close = [people(count=400, rows=2, spread=0.05, d=32, seed=seed) for seed in (1, 2)]  # half of them keep one
    assert MembershipAttack().fit(close[0]).attack(close[1])["gallery_person"].score > 0.99


def test_releases_that_tell_nothing_are_at_the_floor():
    attack = MembershipAttack().fit(independent(people(count=200, seed=1)))
    test = independent(people(count=200, seed=2), seed=1)
    figures = attack.attack(test)
    assert set(figures) == set(GAMES) == set(attack.floor(test)) == set(attack.ceiling(test))
    for figure in figures.values():
        assert abs(figure.score - 0.5) < 4 * figure.standard_error  # false alarm: 2e-4, with this seed none
    assert not attack.task


def test_noise_lowers_the_figure_and_knowing_it_raises_it():
    rows, scores = people(count=400, rows=2, d=8, spread=3.0, seed=0), {}
    for sigma in (0.1, 0.6):
        mechanism = GaussianMechanism(epsilon=1.0)
        mechanism.sigma = sigma
        gallery = released(rows.take(rows.pids <= 200), mechanism)
        clean = rows.with_features(unit(rows.features))
        figures = gallery_membership(gallery, clean.take(rows.pids <= 200), clean.take(rows.pids > 200))
        scores[sigma] = {name: figure.score for name, figure in figures.items()}
    assert scores[0.1]["cosine"] > 0.95
    assert scores[0.6]["cosine"] < 0.8
    assert scores[0.6]["likelihood"] >= scores[0.6]["cosine"] - 0.01


def test_likelihood_of_a_finite_mechanism_is_the_sum_over_symbols():
    rng = np.random.default_rng(0)
    mechanism = PriorSubset(epsilon=3.0, codebook=rng.normal(size=(9, 4)), set_size=2)
    train, clean, asked = rng.normal(size=(50, 4)), rng.normal(size=(20, 4)), rng.normal(size=(6, 4))
    symbols = mechanism.symbols(clean, generator=np.random.default_rng(1))
    rows = unit(mechanism.decode(symbols))
    marginal = mechanism.symbol_probabilities(train).mean(axis=0)
    expected = [
        np.log(sum(mechanism.symbol_probabilities(row[None])[0, symbol] / marginal[symbol] for symbol in symbols))
        for row in asked
    ]
    np.testing.assert_allclose(likelihood_score(asked, rows.astype(np.float32), mechanism, train), expected)
    assert likelihood_score(asked, rows, mechanism) is None  # q is not known
    levels = LevelCodebook(rng.normal(size=(5, 4)), rng.normal(size=(4, 4)))
    many = PriorSubset(epsilon=3.0, codebook=levels, set_size=3)
    drawn = many.symbols(clean, generator=np.random.default_rng(1))
    ratio = np.bincount(drawn, minlength=20) / many.symbol_probabilities(train).mean(axis=0)
    found = likelihood_score(asked, unit(many.decode(drawn)).astype(np.float32), many, train)
    np.testing.assert_allclose(found, np.log(many.symbol_probabilities(asked) @ ratio))
    assert likelihood_score(asked, rng.normal(size=(5, 4)), mechanism, train) is None  # no symbols of it


def test_the_manifest_of_gaussian_noise_is_enough():
    rows, mechanism = np.random.default_rng(0).normal(size=(9, 5)), GaussianMechanism(epsilon=4.0, clip_norm=2.0)
    manifest = {"mechanism": mechanism.describe()}
    np.testing.assert_array_equal(likelihood_score(rows, rows, manifest), likelihood_score(rows, rows, mechanism))
    assert likelihood_score(rows, rows, {"mechanism": {"mechanism": "privunit_g", "sigma": None}}) is None


@pytest.mark.parametrize(("change", "score"), [({"scale": 2.0}, "norm"), ({"spread": 0.3}, "tightness")])
def test_training_people_who_differ_are_told(change, score):
    train, test = people(count=120, seed=1, **change), people(count=120, seed=2)
    figure = MembershipAttack().fit(train).attack(test)["training"]
    assert figure.score > 0.95
    assert figure.others[f"auc_{score}"] > 0.95
    assert figure.others["people_differ"] == 1.0


def test_training_people_in_one_direction_are_told_by_the_regression():
    train, test = people(count=600, seed=1), people(count=600, seed=2)
    moved = train.with_features(train.features + np.eye(12)[0] * 1.5)
    figure = MembershipAttack().fit(moved).attack(test)["training"]
    assert figure.attacker == "logistic"
    along = [person_figures(side, per_person=4, seed=0)[1]["mean"][:, 0] for side in (moved, test)]
    knows_it = auc(np.concatenate(along), np.arange(1200) < 600)
    assert knows_it > 0.8
    assert figure.score > 0.5 + 0.9 * (knows_it - 0.5)


def test_the_number_of_rows_of_a_person_tells_nothing():
    attack = MembershipAttack().fit(people(count=150, rows=20, seed=1))
    figure = attack.attack(people(count=150, rows=5, seed=2))["training"]
    assert abs(figure.score - 0.5) < 4 * figure.standard_error


def test_person_figures_by_hand():
    rows = LeakageSet(np.array([[3.0, 0.0], [0.0, 4.0], [5.0, 0.0]]), np.array([7, 7, 8]), np.zeros(3, int))
    pids, figures = person_figures(rows, per_person=2, seed=0)
    assert pids.tolist() == [7]
    np.testing.assert_allclose([figures["norm"][0], figures["tightness"][0]], [3.5, 0.0])
    np.testing.assert_allclose(figures["mean"], [[0.5, 0.5]])


def test_without_clean_rows_the_gallery_games_are_left_out():
    hidden = people(seed=2).with_features(people(seed=3).features, "a release")
    assert set(MembershipAttack().fit(people(seed=1)).attack(hidden)) == {"training"}
    with pytest.raises(ValueError, match="can play none of its games.* there are 60 and 1"):
        MembershipAttack().fit(people(seed=1)).attack(people(count=1))
    with pytest.raises(RuntimeError, match="call fit"):
        MembershipAttack().attack(people())


class HalfSigma(GaussianMechanism):
    def randomize(self, rows, noise):
        return rows + (super().randomize(rows, noise) - rows) / 2


class DoubleEpsilon(PrivUnitG):
    def parameters(self, dimension):
        return PrivUnitG(2 * self.epsilon).parameters(dimension)


def codebook(epsilon):
    return build_mechanism("codebook", epsilon=epsilon, codebook=np.concatenate([np.eye(4), -np.eye(4)]))


def doubled_codebook(epsilon):
    mechanism = codebook(2 * epsilon)
    mechanism.epsilon = epsilon
    return mechanism


HONEST = [
    lambda epsilon: build_mechanism("gaussian", epsilon=epsilon),
    lambda epsilon: build_mechanism("privunit_g", epsilon=epsilon),
    lambda epsilon: build_mechanism("privunit", epsilon=epsilon),
    codebook,
]


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("build", HONEST)
def test_honest_canaries_stay_within_the_bounds(build, epsilon):
    figure = canary_membership(build(epsilon), trials=50_000, seed=1)
    assert figure.others["exceeds"] == 0  # wrong for an honest mechanism at most once in a million
    assert figure.score < figure.others["bound_auc"] + 5 * figure.standard_error
    for rate in (0.01, 0.001):
        assert figure.others[f"tpr_at_fpr_{rate}"] < figure.others[f"bound_tpr_at_fpr_{rate}"] + 0.05


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0, 16.0])
def test_canaries_at_half_sigma_exceed_the_bounds(epsilon):
    figure = canary_membership(HalfSigma(epsilon=epsilon), trials=50_000, seed=1)
    assert figure.others["exceeds"] == 1
    honest = canary_membership(GaussianMechanism(epsilon=epsilon), trials=50_000, seed=1)
    assert honest.score == pytest.approx(honest.others["bound_auc"], abs=5 * honest.standard_error)  # the game is tight
    mu = 2 * 2 / honest_sigma(epsilon)
    assert figure.score == pytest.approx(norm.cdf(mu / 2**0.5), abs=5 * figure.standard_error + 1e-4)


class Averaged(GaussianMechanism):
    """The mean of several releases of each row; it claims what one of them does."""

    releases = 1

    def privatize(self, features, *, generator=None):
        draws = [super(Averaged, self).privatize(features, generator=generator) for _ in range(self.releases)]
        return np.mean(draws, axis=0)


@pytest.mark.parametrize("releases", [1, 2, 4, 9])
@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_averaging_over_releases_follows_the_composition_curve(epsilon, releases):
    """Who averages T releases reaches what sqrt(T) mu allows: no less (fresh noise), and no more (it is the bound)."""
    mechanism = Averaged(epsilon=epsilon)
    mechanism.releases = releases
    mu = mechanism.sensitivity / mechanism.sigma
    figure = canary_membership(mechanism, trials=20_000, seed=1)
    composed = compose_gaussian([mu] * releases)
    assert composed == pytest.approx(releases**0.5 * mu)
    # 5 standard errors: of the eight cells one is outside with probability 5e-6, with this seed none
    assert figure.score == pytest.approx(norm.cdf(composed / 2**0.5), abs=5 * figure.standard_error)
    tpr = norm.cdf(norm.ppf(0.01) + composed)
    assert figure.others["tpr_at_fpr_0.01"] == pytest.approx(tpr, abs=0.05)
    assert figure.others["exceeds"] == (releases > 1)  # the claim of a single release
    total = gaussian_epsilon(mechanism.sigma, mechanism.delta, releases**0.5 * mechanism.sensitivity)
    allowed = canary_membership(GaussianMechanism(epsilon=total), trials=1000)  # one draw at the sum
    assert figure.score == pytest.approx(allowed.others["bound_auc"], abs=5 * figure.standard_error)


def honest_sigma(epsilon):
    return GaussianMechanism(epsilon=epsilon).sigma


@pytest.mark.parametrize("build", [lambda: DoubleEpsilon(epsilon=2.0), lambda: doubled_codebook(2.0)])
def test_pure_canaries_at_twice_the_epsilon_exceed_the_bounds(build):
    assert canary_membership(build(), trials=50_000, seed=1).others["exceeds"] == 1


def test_how_often_an_honest_mechanism_is_said_to_exceed():
    mechanism = build_mechanism("gaussian", epsilon=4.0)  # meets its bound with equality: the worst case
    assert not any(canary_membership(mechanism, trials=2000, seed=seed).others["exceeds"] for seed in range(200))


def test_canaries_repeat_with_their_seed_and_refuse_what_has_no_bound():
    mechanism = build_mechanism("gaussian", epsilon=4.0)
    assert canary_membership(mechanism, 2000, 3) == canary_membership(mechanism, 2000, 3)
    with pytest.raises(ValueError, match="'none' is neither pure nor Gaussian"):
        canary_membership(build_mechanism("none", epsilon=1.0))
    with pytest.raises(ValueError, match="trials is 10, must be"):
        canary_membership(mechanism, trials=10)


def test_rows_of_a_component_count():
    class Component:
        mechanism = GaussianMechanism(epsilon=4.0)

    rows = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    np.testing.assert_array_equal(
        likelihood_score(rows, rows, Component()), likelihood_score(rows, rows, Component.mechanism)
    )


def through(rows, change):
    """Rows through a defense that changes queries alike, as the ablation's are."""
    made = change(rows.features).astype(np.float32)
    return rows.with_features(made, clean=rows.features, queries=made)


@pytest.mark.parametrize("change", [lambda rows: rows[:, ::-1], lambda rows: rows[:, :20], lambda rows: -3 * rows])
def test_who_sends_pictures_sends_them_through_the_same_defense(change):
    """So nothing that keeps angles hides anybody, whatever it makes of single columns."""
    sides = [through(people(seed=seed, spread=0.7, d=32), change) for seed in (1, 2)]
    figures = MembershipAttack().fit(sides[0]).attack(sides[1])
    bare = [side.with_features(side.features) for side in sides]
    wanted = MembershipAttack().fit(bare[0]).attack(bare[1])
    assert figures["gallery_image"].score == 1.0
    assert {name: figure.score for name, figure in figures.items()} == {n: f.score for n, f in wanted.items()}


def test_clean_rows_of_other_columns_ask_no_game_of_the_gallery():
    sides = [people(seed=seed, d=8) for seed in (1, 2)]
    sides = [side.with_features(side.features[:, :4], clean=side.features) for side in sides]
    assert set(MembershipAttack().fit(sides[0]).attack(sides[1])) == {"training"}


@pytest.mark.parametrize(("taught", "asked"), [(4, 5), (5, 4), (4, 60), (60, 4)])
def test_few_people_play_the_same_games_for_every_seed(taught, asked):
    for seed in range(40):
        attack = MembershipAttack(seed=seed).fit(people(count=taught, seed=1, first_pid=500))
        assert set(attack.attack(people(count=asked, seed=2))) == set(GAMES)


def test_few_people_who_happen_to_be_told_apart_prove_nothing():
    """Noise alone: a perfect score of two or three people asked about has an error all the same."""
    with pytest.raises(ValueError, match="there are 20 and 3"):
        MembershipAttack().fit(people(count=20, seed=1)).attack(people(count=3, seed=2))
    errors = []
    for seed in range(20):
        figure = MembershipAttack(seed=seed).fit(people(count=20, seed=1)).attack(people(count=4, seed=2))["training"]
        errors.append(figure.standard_error)
    assert min(errors) >= 0.25


def test_a_gallery_of_single_rows_releases_one_at_least():
    for seed in range(40):
        attack = MembershipAttack(seed=seed).fit(people(count=5, rows=1, seed=1))
        assert set(attack.attack(people(count=5, rows=1, seed=2))) == {"gallery_image"}


def test_nothing_to_play_is_told_before_anything_is_trained():
    test = released(people(count=5, rows=1, seed=2), GaussianMechanism(epsilon=1.0))
    hidden = test.with_features(test.features, test.protection)
    for attack in (MembershipAttack(), MembershipAttack().fit(people(seed=1))):
        with pytest.raises(ValueError, match="can play none of its games.* there are 60 and 0. Give more, or leave"):
            attack.check(people(seed=1), hidden) if attack._train is None else attack.attack(hidden)
