"""Linkage: figures against closed forms, planted people found, independent features at the floor."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from ppreid_plugin.leakage import LeakageSet
from ppreid_plugin.leakage.linkage import LinkageAttack, camera_halves, link
from ppreid_plugin.leakage.linkage_alignment import refined
from ppreid_plugin.leakage.linkage_figures import ROC_FPRS, auc, auc_error, d_sys, eer, roc, tpr_at
from ppreid_plugin.leakage.linkage_pairs import draw_pairs


def gallery(people=60, rows=6, cameras=3, d=16, spread=0.3, seed=0, background=0):
    """People around centers of their own, rows spread over cameras; ``spread`` None: rows that know of nobody."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, people + 1), rows)
    centers = rng.normal(size=(people + 1, d)) * np.linspace(1.5, 0.5, d) + 0.5 * rng.exponential(size=(people + 1, d))
    features = rng.normal(size=(len(pids), d)) if spread is None else centers[pids]
    if spread is not None:
        features = features + spread * rng.normal(size=features.shape)
    pids[:background] = 0
    return LeakageSet(features, pids, np.tile(np.arange(rows) % cameras, people))


def rotation(d, seed=7):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_rates_are_those_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=500), rng.random(500) < 0.3
    scores = np.round(scores + positive) if ties else scores + positive
    weights = rng.integers(0, 4, 500).astype(float)
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert auc(scores, positive, weights) == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    for rate in (0.01, 0.1, 0.5):
        assert tpr_at(scores, positive, rate) == pytest.approx(tpr[fpr <= rate].max())
    assert roc(scores, positive) == pytest.approx([tpr[fpr <= rate].max() for rate in ROC_FPRS])
    crossing = np.interp(0, fpr + tpr - 1, fpr)  # where fpr = 1 - tpr on the polygon
    assert eer(scores, positive) == pytest.approx(crossing, abs=1e-9)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0, 4.0])
def test_figures_of_gaussian_scores(distance):
    n = 40_000
    scores = np.random.default_rng(1).normal(size=2 * n) + distance * (np.arange(2 * n) < n)
    positive = np.arange(2 * n) < n

    def linked(s):
        mated, others = norm.pdf(s - distance), norm.pdf(s)
        return mated * max(0.0, (mated - others) / (mated + others))

    assert auc(scores, positive) == pytest.approx(norm.cdf(distance / 2**0.5), abs=0.01)
    assert eer(scores, positive) == pytest.approx(norm.cdf(-distance / 2), abs=0.01)
    assert d_sys(scores, positive) == pytest.approx(quad(linked, -8, 12)[0], abs=0.015)


def test_d_sys_sees_what_no_threshold_does():
    scores = np.concatenate([np.repeat([-1.0, 1.0], 500), np.zeros(1000)])
    positive = np.arange(2000) < 1000
    assert auc(scores, positive) == pytest.approx(0.5)
    assert d_sys(scores, positive) == pytest.approx(1.0)


def test_the_error_is_that_of_drawing_people():
    drawn, errors = [], []
    for seed in range(60):
        halves = camera_halves(gallery(people=30, d=4, spread=1.5, seed=seed), seed=seed)
        figure = link(*halves, pairs=1000, seed=seed)
        drawn.append(figure.score)
        errors.append(figure.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(drawn), rel=0.4)  # 60 draws know their own spread to 9 %


def test_pairs_are_people_alike_and_cameras_alike():
    first, second = gallery(seed=0, background=12), gallery(seed=1, background=12)
    pairs = draw_pairs(first, second, seed=0, count=3000, across_cameras=True)
    assert (first.camids[pairs.first] != second.camids[pairs.second])[pairs.mated].all()
    assert ((first.pids[pairs.first] == second.pids[pairs.second]) == pairs.mated).all()
    assert not np.isin(0, pairs.first_pids)
    people, counts = np.unique(pairs.first_pids[pairs.mated], return_counts=True)
    assert len(people) == 58
    assert len(set(counts)) == 1
    for camids in (first.camids[pairs.first], second.camids[pairs.second]):
        shares = [np.bincount(camids[kind], minlength=3) / kind.sum() for kind in (pairs.mated, ~pairs.mated)]
        np.testing.assert_allclose(*shares, atol=0.01)


def test_a_camera_in_the_features_links_nobody():
    rows = gallery(people=80, spread=None)
    marked = rows.with_features(rows.features * 0.1 + 10 * np.eye(16)[rows.camids])
    figure = link(*camera_halves(marked), pairs=4000)
    assert abs(figure.score - 0.5) < 4 * figure.standard_error  # false alarm: 6e-5, with this seed none


def test_two_releases_of_the_same_people():
    figure = link(gallery(), gallery(), pairs=2000)
    assert figure.score > 0.99
    assert figure.others["eer"] < 0.05
    assert figure.others["people"] == 60


@pytest.mark.parametrize(("method", "known"), [("procrustes", range(1, 26)), ("covariance", ()), ("gram", ())])
def test_people_behind_an_unknown_rotation_are_found(method, known):
    rows = gallery(people=120, rows=4, cameras=2, d=8, spread=0.1)
    halves = camera_halves(rows)
    clear = link(*halves, known_pids=known, pairs=2000).score
    turned = halves[1].with_features(3 * halves[1].features @ rotation(8))
    order = np.random.default_rng(5).permutation(len(turned))
    figure = link(halves[0], turned.take(order), method=method, known_pids=known, pairs=2000)
    assert abs(link(halves[0], turned, pairs=2000).score - 0.5) < 0.2  # nothing without alignment
    assert figure.score > 0.5 + 0.95 * (clear - 0.5)
    assert figure.others["people"] == 120 - len(known)


def test_two_models_of_different_width():
    rng, rows = np.random.default_rng(0), gallery(people=200, d=8, spread=0.2)
    wide = rows.with_features(rows.features @ rotation(12)[:8] + 0.01 * rng.normal(size=(len(rows), 12)))
    assert link(rows, wide, method="procrustes", known_pids=range(1, 101), pairs=2000).score > 0.97


def test_no_method_finds_people_who_are_not_there():
    first, second = gallery(people=100, spread=None, seed=0), gallery(people=100, spread=None, seed=1)
    for method in ("cosine", "procrustes", "covariance", "gram"):
        figure = link(
            first, second, method=method, known_pids=range(1, 41) if method == "procrustes" else (), pairs=2000
        )
        assert abs(figure.score - 0.5) < 4 * figure.standard_error
        assert figure.others["d_sys"] < 0.1


def test_alignments_do_not_look_at_pids():
    first, second = gallery(), gallery(seed=1)
    rng = np.random.default_rng(0)
    for method in ("covariance", "gram"):
        from ppreid_plugin.leakage import linkage_alignment

        align = getattr(linkage_alignment, method)
        shuffled = LeakageSet(first.features, rng.permutation(first.pids), first.camids)
        for one, two in zip(align(first, second), align(shuffled, second), strict=True):
            np.testing.assert_array_equal(one, two)


def test_refinement_keeps_a_perfect_alignment():
    rows = gallery().features.astype(float)
    one, two = refined(rows, rows @ rotation(16), (np.eye(16), rotation(16).T))
    np.testing.assert_allclose(one @ two.T @ rotation(16).T, np.eye(16), atol=1e-6)


def nuisance(seed, people=120):
    """People in 4 columns, ten times as much of nothing in 12 others."""
    rows = gallery(people=people, d=4, spread=0.2, seed=seed)
    noise = 10 * np.random.default_rng(seed + 50).normal(size=(len(rows), 12))
    return rows.with_features(np.concatenate([rows.features, noise], axis=1))


def test_the_attack_learns_what_the_cosine_does_not_see():
    figure = LinkageAttack(pairs=3000).fit(nuisance(1)).attack(nuisance(2))[""]
    assert figure.others["cosine_auc"] < 0.7
    assert figure.score > 0.9
    assert figure.attacker != "cosine"


def test_rows_that_span_few_directions_are_linked_as_others_are():
    """As those of a small codebook do: fewer than the columns of LDA that are tried."""
    inside = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))[0]
    train, test = (
        gallery(d=6, seed=seed).with_features(gallery(d=6, seed=seed).features @ inside.T) for seed in (1, 2)
    )
    narrow = LinkageAttack().fit(train).attack(test)[""]
    plain = LinkageAttack().fit(gallery(d=6, seed=1)).attack(gallery(d=6, seed=2))[""]
    assert narrow.score == pytest.approx(plain.score, abs=0.01)
    assert narrow.score > 0.9


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e-5])
@pytest.mark.parametrize("d", [1, 3, 16, 512])
def test_rows_that_are_all_the_same_link_nobody(value, d):
    """As behind the perfect suppressor: nothing tells a pair from another, which is the floor."""
    train, test = (rows.with_features(np.full((len(rows), d), value)) for rows in (gallery(seed=1), gallery(seed=2)))
    figure = LinkageAttack(pairs=500).fit(train).attack(test)[""]
    assert (figure.score, figure.attacker) == (0.5, "cosine")
    assert figure.standard_error == 1 / (figure.others["people"] + 1)  # the bootstrap has nothing to vary


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_rows_that_are_all_the_same_on_one_side_are_linked_by_what_the_other_shows(value):
    same, differ = gallery(seed=1).with_features(np.full((360, 16), value)), gallery(seed=2)
    blind = LinkageAttack(pairs=500).fit(same).attack(differ)[""]
    assert blind.attacker == "cosine"
    assert blind.score == blind.others["cosine_auc"] > 0.9
    taught = LinkageAttack(pairs=500).fit(differ).attack(same)[""]
    assert taught.score == pytest.approx(0.5, abs=0.02)


def test_the_attack_on_independent_rows_is_at_its_floor():
    attack = LinkageAttack(pairs=3000).fit(gallery(people=120, spread=None, seed=1))
    test = gallery(people=120, spread=None, seed=2)
    figure = attack.attack(test)[""]
    assert abs(figure.score - attack.floor(test)[""]) < 4 * figure.standard_error
    assert attack.ceiling(test) == {"": 1.0}
    assert attack.task


def test_halves_share_no_camera_of_a_person():
    rows = gallery(cameras=3)
    first, second = camera_halves(rows, seed=3)
    assert len(first) + len(second) == len(rows)
    for pid in np.unique(rows.pids):
        assert not set(first.camids[first.pids == pid]) & set(second.camids[second.pids == pid])


def test_same_seed_same_figure():
    rows = gallery(spread=1.0)
    one, two = (LinkageAttack(seed=4, pairs=1000).fit(gallery(seed=5)).attack(rows) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one, two: link(one, two, method="cosin"), "'cosin'; allowed: .*Did you mean 'cosine'"),
        (lambda one, two: link(one, two, method="learned"), "needs score=PairScore"),
        (lambda one, two: link(one, two.with_features(two.features[:, :8])), "16 columns, the second 8"),
        (lambda one, two: link(one, two, method="procrustes", known_pids=[1]), "names 1 people"),
        (lambda one, two: link(one, two, known_pids=range(1, 61)), "nobody is left to link"),
        (lambda one, two: LinkageAttack().attack(one.take(one.camids == 0)), "fewer than two people"),
        (lambda one, two: link(one.take(one.pids < 3), two.take(two.pids == 1)), "1 people have a row in both sets"),
    ],
)
def test_errors_name_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(gallery(), gallery(seed=1))


def test_error_of_a_bootstrap_of_single_rows():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=2000) + (np.arange(2000) < 1000), np.arange(2000) < 1000
    expected = np.sqrt(  # DeLong
        np.var([(scores[~positive] < one).mean() for one in scores[positive]]) / 1000
        + np.var([(scores[positive] > one).mean() for one in scores[~positive]]) / 1000
    )
    assert auc_error(scores, positive, np.arange(2000)) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("people", [12, 14, 20, 30])
def test_training_people_who_share_no_camera_leave_the_cosine(people):
    """A fifth of few people, each in two of six cameras, mostly share none: no pairs can be drawn of it."""
    plain = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        camids = np.concatenate([np.repeat(rng.permutation(6)[:2], 3) for _ in range(people)])
        rows = gallery(people)
        rows = LeakageSet(rows.features, rows.pids, camids)
        attack = LinkageAttack(seed=seed).fit(rows)
        assert attack.attack(gallery(30, seed=9))[""].score > 0.8
        plain += attack._score.chosen == "cosine"
    assert plain


def test_people_of_disjoint_cameras_are_told_before_anything_is_trained():
    rows = gallery(3, rows=4)
    alone = LeakageSet(rows.features, rows.pids, np.repeat([0, 1, 2, 3, 4, 5], 2))
    with pytest.raises(ValueError, match="every camera of the second set .* has one person only"):
        LinkageAttack().check(gallery(), alone)


def test_an_unknown_camera_is_none():
    rows = gallery(6, rows=4)
    camids = np.where(rows.pids <= 3, -1, rows.camids)
    first, second = camera_halves(LeakageSet(rows.features, rows.pids, camids))
    assert set(first.pids) | set(second.pids) == {4, 5, 6}
    camids = np.where(np.arange(len(rows)) % 4 == 0, -1, rows.camids)
    for half in camera_halves(LeakageSet(rows.features, rows.pids, camids)):
        assert (half.camids >= 0).all()
