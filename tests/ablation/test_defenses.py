"""Defenses of the comparison: closed forms, properties and independent versions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppreid_plugin.ablation import DEFENSES, Defense, register_defense
from ppreid_plugin.ablation.defense import build_defense
from ppreid_plugin.ablation.gallery_defenses import DPDefense
from ppreid_plugin.ablation.measuring import retrieval_figures
from ppreid_plugin.dp.gallery import DPGallery
from ppreid_plugin.evaluation import Extracted
from ppreid_plugin.leakage import LeakageSet, MembershipAttack
from ppreid_plugin.retrieval import evaluate


def rows(number=60, columns=12, seed=0, attributes=False):
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, number // 4 + 1), 4)
    features = rng.normal(size=(number // 4, columns))[pids - 1] + 0.4 * rng.normal(size=(number, columns))
    labels = {"hair": pids % 2, "bag": (pids // 2) % 2} if attributes else {}
    for name, values in labels.items():
        features[:, len(name)] += 4 * values
    return LeakageSet(features, pids, np.tile(np.arange(4), number // 4), labels)


def extracted(some):
    return Extracted(torch.from_numpy(some.features), some.pids, some.camids)


def test_a_projection_keeps_what_its_orthonormal_directions_hold():
    some = rows()
    full = build_defense("projection:dims=12").fit(some).apply(some.features)
    assert full @ full.T == pytest.approx(some.features @ some.features.T, abs=1e-3)
    half = build_defense("projection:dims=6").fit(some).apply(some.features)
    assert half.shape == (60, 6)
    share = (half**2).sum() / (some.features**2).sum()
    assert 0.2 < share < 0.8
    other = build_defense("projection:dims=6,seed=1").fit(some).apply(some.features)
    assert not np.allclose(half, other)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_quantizing_leaves_as_many_values_as_bits_say_and_errs_half_a_step_at_most(bits):
    some = rows(400)
    defense = build_defense(f"quantize:bits={bits},tail=0.0").fit(some)
    made = defense.apply(some.features)
    low, high = some.features.min(axis=0), some.features.max(axis=0)
    for column in range(made.shape[1]):
        assert len(np.unique(made[:, column])) == 2**bits
    assert (np.abs(made - some.features) <= (high - low) / 2**bits / 2 + 1e-5).all()
    beyond = defense.apply(some.features + 100)
    assert beyond == pytest.approx(np.broadcast_to(high - (high - low) / 2 ** (bits + 1), made.shape), abs=1e-4)


def test_quantizing_passes_over_as_many_values_at_either_end():
    some = rows(400)
    made = build_defense("quantize:bits=2,tail=0.1").fit(some).apply(some.features)
    low, high = np.quantile(some.features, [0.1, 0.9], axis=0)
    assert made.min(axis=0) == pytest.approx(low + (high - low) / 8, abs=1e-5)
    assert made.max(axis=0) == pytest.approx(high - (high - low) / 8, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(key=st.integers(0, 10_000))
def test_a_keyed_permutation_preserves_all_distances_and_changes_matches_across_keys(key):
    some, other = rows(), rows(seed=1)
    one = build_defense(f"permute:key={key}").fit(some)
    query, gallery = one.matched(extracted(some), extracted(other), seed=5)
    before = torch.cdist(extracted(some).features, extracted(other).features)
    assert torch.allclose(torch.cdist(query.features, gallery.features), before, atol=1e-4)
    assert np.array_equal(np.sort(one.apply(some.features), axis=1), np.sort(some.features, axis=1))
    again = build_defense(f"permute:key={key + 1}").apply(some.features)
    assert not np.array_equal(again, one.apply(some.features))


def k_same_oracle(features, k, seed):
    """Newton's algorithm as it is told: draw a row, take the most similar of those left, average."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    left = list(np.random.default_rng(seed).permutation(len(features)))
    made = np.zeros_like(features)
    while left:
        group = (
            sorted(left, key=lambda row: -(2.0 if row == left[0] else units[row] @ units[left[0]]))[:k]
            if len(left) >= 2 * k
            else list(left)
        )
        for row in group:
            made[row] = features[group].mean(axis=0)
        left = [row for row in left if row not in group]
    return made


@pytest.mark.parametrize("k", [2, 3, 7, 60])
def test_k_same_is_newtons_algorithm_and_every_mean_stands_for_k_rows(k):
    some = rows()
    defense = build_defense(f"k_same:k={k},seed=3")
    made = defense.averaged(some.features)
    assert made == pytest.approx(k_same_oracle(some.features, k, 3), abs=1e-5)
    counts = np.unique(made, axis=0, return_counts=True)[1]
    assert counts.min() >= k
    assert counts.max() < 2 * k
    assert made.mean(axis=0) == pytest.approx(some.features.mean(axis=0), abs=1e-4)
    query, gallery = defense.matched(extracted(some), extracted(some), seed=0)
    assert torch.equal(query.features, extracted(some).features)
    assert np.array_equal(gallery.features.numpy(), made)


def test_k_same_refuses_fewer_rows_than_it_promises_to_mix():
    with pytest.raises(ValueError, match="k_same has k 5, must be <= the 3 rows that it averages"):
        build_defense("k_same:k=5").averaged(np.eye(3, dtype=np.float32))


def test_leace_leaves_no_linear_trace_of_the_named_attributes_only():
    some = rows(400, attributes=True)

    def correlation(features, labels):
        return np.abs((features - features.mean(axis=0)).T @ (labels - labels.mean())).max() / len(labels)

    hair = build_defense("leace:attributes=hair").fit(some).apply(some.features)
    assert correlation(hair, some.attributes["hair"]) < 1e-5
    assert correlation(hair, some.attributes["bag"]) > 1e-3
    both = build_defense("leace").fit(some).apply(some.features)
    assert max(correlation(both, values) for values in some.attributes.values()) < 1e-5
    with pytest.raises(ValueError, match="leace has the attribute 'hat'; the labels have: bag, hair"):
        build_defense("leace:attributes=hat").fit(some)
    with pytest.raises(ValueError, match="leace has no attributes to take out. Give labels"):
        build_defense("leace").fit(rows())


def test_the_dp_defense_draws_by_seed_and_costs_utility_by_its_budget():
    some = rows()
    defense = build_defense("dp:mechanism=gaussian,epsilon=8,transform=none").fit(some)
    one, same, other = (defense.protect(some, seed).features for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)
    assert np.linalg.norm(one, axis=1) == pytest.approx(1.0, abs=1e-5)
    noise = one.mean(axis=0)
    assert np.isfinite(noise).all()

    def mean_ap(epsilon):
        spent = build_defense(f"dp:mechanism=gaussian,epsilon={epsilon},transform=none").fit(some)
        query, gallery = spent.matched(extracted(some), extracted(some), seed=1)
        return evaluate(
            query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids, metric="cosine"
        ).mAP

    assert mean_ap(1) < mean_ap(200) <= 1
    _, gallery = defense.matched(extracted(some), extracted(some), seed=2)
    assert gallery.features.numpy() == pytest.approx(other, abs=1e-6)  # what is matched is what is attacked


def test_figures_of_a_random_defense_are_means_over_the_draws_that_are_attacked():
    some = rows()
    defense = build_defense("dp:mechanism=gaussian,epsilon=30,transform=none").fit(some)
    found = retrieval_figures(extracted(some), extracted(some), defense, seed=4, draws=3)
    query, each = extracted(some), []
    for draw in (4001, 4002, 4003):
        gallery = extracted(defense.protect(some, draw))
        result = evaluate(
            query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids, metric="cosine"
        )
        each.append(result.mAP)
    assert len(set(each)) == 3
    assert found["cosine"]["mAP"] == pytest.approx(np.mean(each))
    assert found["euclidean"] is None


def test_a_gallery_is_fitted_on_as_many_training_rows_as_it_says():
    some = rows()
    made = {}
    for name, images in (("defense", 20), ("by hand", 0), ("all", 0)):
        gallery = DPGallery("gaussian", epsilon=8, transform="center", fit_images=images, seed=3)
        if name == "by hand":  # as the engine's training_set_for_features draws them
            keep = np.random.default_rng(3).choice(60, 20, replace=False)
            gallery.fit(torch.from_numpy(some.features[keep]), some.pids[keep])
        else:
            DPDefense.of(gallery).fit(some)
        made[name] = gallery.transform(torch.from_numpy(some.features)).numpy()
    assert made["defense"] == pytest.approx(made["by hand"], abs=1e-6)
    assert not np.allclose(made["defense"], made["all"], atol=1e-3)


def test_row_defenses_tell_attackers_what_their_own_rows_were():
    some = rows()
    made = build_defense("quantize:bits=1").fit(some).protect(some, seed=0)
    assert np.array_equal(made.clean, some.features)
    assert np.array_equal(made.pids, some.pids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantise", "defense is 'quantise'; registered: dp, k_same, .*Did you mean 'quantize'"),
        ("quantize:bits=0", "bits is 0, must be a whole number from 1 to 16"),
        ("quantize:bits=17", "bits is 17, must be a whole number from 1 to 16"),
        ("quantize:tail=0.5", r"tail 0.5, must be a number that lies in \[0, 0.5\)"),
        ("quantize:tail=abc", "tail 'abc', must be a number"),
        ("permute:key=secret", "key is 'secret', must be a whole number >= 0"),
        ("permute:key=-1", "key is -1, must be a whole number >= 0"),
        ("projection:seed=foo", "seed is 'foo', must be a whole number >= 0"),
        ("k_same:seed=a", "seed is 'a', must be a whole number >= 0"),
        ("quantize:bit=1", "has 'bit'; allowed: bits, tail"),
        ("k_same:k=1", "k is 1, must be a whole number >= 2"),
        ("projection:dims=1.5", "dims is 1.5, must be a whole number"),
        ("dp:mechanism=gausian", "Did you mean 'gaussian'"),
        ("dp:epsilon=-1", "epsilon"),
        ("dp:bits=3", "bits"),
        ("dp:mechanism=codebook,codewords=1", "^codewords of defense 'dp' is 1, must be a whole number >= 2"),
        ("dp:mechanism=codebook,codewords=4,seed=x", "^seed of defense 'dp' is 'x', must be a whole number"),
        ("dp:clip_norm=0", "^clip_norm of defense 'dp' is 0, must be a finite number > 0"),
        ("dp:transform=pca:components=0", "^components of transform of defense 'dp' is 0, must be a whole number >= 1"),
    ],
)
def test_errors_name_value_and_what_is_allowed(text, message):
    with pytest.raises(ValueError, match=message):
        build_defense(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp:mechanism=codebook,codewords=9999", "^codewords of defense 'dp' is 9999, must be 2 to .* training rows"),
        ("dp:transform=pca:components=99", "^components of transform of defense 'dp' is 99, but .* training rows give"),
    ],
)
def test_errors_of_a_fit_name_the_defense(text, message):
    defense = build_defense(text)
    with pytest.raises(ValueError, match=message):
        defense.fit(rows())


def test_more_directions_than_columns_are_refused_and_nothing_works_unfitted():
    with pytest.raises(ValueError, match="dims 13, must be <= the 12 columns"):
        build_defense("projection:dims=13").fit(rows())
    for name in ("projection", "quantize"):
        with pytest.raises(RuntimeError, match=r"is not fitted; call fit\(train\)"):
            build_defense(name).apply(rows().features)


def test_a_defense_of_ones_own_is_one_class():
    @register_defense("zero")
    class Zero(Defense):
        def protect(self, some, seed):
            return some.with_features(np.zeros_like(some.features))

        def matched(self, query, gallery, seed):
            return query, gallery

    try:
        assert not build_defense("zero").protect(rows(), 0).features.any()
    finally:
        del DEFENSES._entries["zero"]


@pytest.mark.parametrize("text", ["permute", "projection:dims=8", "quantize:bits=1"])
def test_rows_of_a_defense_are_asked_for_as_queries_reach_them(text):
    """A permutation hides nobody from who may have his own picture matched."""
    train, test = rows(seed=1), rows(seed=2)
    fitted = build_defense(text).fit(train)
    made = fitted.protect(test, 1)
    np.testing.assert_array_equal(made.queries, made.features)
    query, _ = fitted.matched(extracted(test), extracted(test), 1)
    np.testing.assert_allclose(made.queries, query.features.numpy(), atol=1e-6)
    figures = MembershipAttack().fit(fitted.protect(train, 1)).attack(made)
    assert figures["gallery_image"].score > 0.9
