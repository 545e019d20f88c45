"""Probes find planted labels as well as Bayes does, whatever hides them, and nothing where nothing is."""

import numpy as np
import pytest
from planted import accuracy, planted

from ppreid_plugin.leakage import AttributesAttack, CameraAttack, LeakageSet
from ppreid_plugin.leakage.probe_models import Columns, Targets, fit_logistic
from ppreid_plugin.leakage.probes import best_probe, fit_probes, probabilities
from ppreid_plugin.leakage.scores import balanced_accuracy


def advantage(figure, kind):
    return (figure.score - 0.5) / (accuracy(kind) - 0.5)


@pytest.mark.parametrize("kind", ["gaussian", "xor", "norm", "camera"])
def test_planted_attributes_are_read_nearly_as_well_as_bayes_reads_them(kind):
    attack = AttributesAttack(seed=1).fit(planted(kind, seed=1))
    test = planted(kind, 1000, seed=2)
    figure = attack.attack(test)["a"]
    assert 0.95 <= advantage(figure, kind) <= 1.03
    assert figure.attacker == attack.probes["a"].name
    if kind == "xor":  # which no line separates
        lines = best_probe(planted(kind, seed=1).features, *labels_and_people(kind), families=["logistic"])
        assert lines.held_out < 0.56


def labels_and_people(kind):
    rows = planted(kind, seed=1)
    return rows.attributes["a"], rows.pids


def test_trees_alone_find_what_hides_behind_the_camera_and_the_probe_of_cameras_does_not_get_it():
    train, test = planted("camera", seed=3), planted("camera", 600, seed=4)
    probe = best_probe(train.features, train.attributes["a"], train.pids, camids=train.camids, families=["trees"])
    said = probe.predict(test.features, test.camids)
    assert balanced_accuracy(test.attributes["a"], said) > 0.5 + 0.9 * (accuracy("camera") - 0.5)
    with pytest.raises(ValueError, match="trained with camids"):
        probe.predict(test.features)
    figure = CameraAttack(seed=1).fit(train).attack(test)[""]
    assert abs(figure.score - 1 / 3) < 4 * figure.standard_error  # their own labels as columns would give 1


def test_independent_features_stay_at_the_floor():
    figures = []
    for seed in range(3):
        attack = AttributesAttack(seed=seed).fit(planted("independent", 150, seed=10 + seed))
        test = planted("independent", 300, seed=20 + seed)
        figures.append((attack.attack(test)["a"], attack.floor(test)["a"]))
    for figure, floor in figures:
        assert floor == 0.5
        assert abs(figure.score - 0.5) < 4 * figure.standard_error  # false alarms: 2e-4 of the seeds
        assert 0.005 < figure.standard_error < 0.02


def test_held_out_people_are_never_trained_on():
    """A label that is the person's own, and nothing else, is only found by whoever knows the person."""
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(60), 10)
    features = (8 * rng.normal(size=(60, 32)))[pids] + 0.1 * rng.normal(size=(600, 32))
    labels = rng.permutation(60)[pids] % 2
    probe = best_probe(features.astype(np.float32), labels, pids, families=["mlp", "logistic"])
    assert probe.held_out < 0.75
    mixed = best_probe(features.astype(np.float32), labels, rng.permutation(600), families=["mlp"])
    assert mixed.held_out > 0.95  # with his rows on both sides it would look like leakage


def test_several_labels_at_once_are_what_each_alone_gives():
    train, test = planted("gaussian", 100, seed=5), planted("gaussian", 100, seed=6)
    other = (train.features[:, 1] > 0).astype(np.int64)
    other[::7] = -1
    both = fit_probes(
        train.features, {"a": train.attributes["a"], "b": other}, train.pids, families=["logistic"], seed=2
    )
    said = probabilities(both, test.features)
    np.testing.assert_allclose(said["a"], both["a"].probabilities(test.features), atol=1e-6)
    alone = best_probe(train.features, other, train.pids, families=["logistic"], seed=2)
    answers = both["b"].predict(test.features)
    assert (answers == alone.predict(test.features)).mean() > 0.97  # the solver stops early, elsewhere
    assert (answers == (test.features[:, 1] > 0)).mean() > 0.9


def test_logistic_is_the_minimum_that_scikit_learn_finds():
    from sklearn.linear_model import LogisticRegression

    rows = planted("gaussian", 40, seed=7)
    labels = np.where(np.arange(len(rows)) % 3 > 0, rows.attributes["a"], 0)  # classes of different size
    columns = Columns.fit(rows.features, None)(rows.features, None)
    path = fit_logistic(columns, Targets((labels,), (2,)))
    for step, penalty in enumerate((2.0, 0.7, 0.2, 0.05)):
        # two rows of weights w and -w: half their squares is |w|^2, of which scikit-learn's one row 2w has a quarter
        wanted = LogisticRegression(C=2 / penalty / len(rows), class_weight="balanced", tol=1e-8).fit(columns, labels)
        np.testing.assert_allclose(path.answer(columns, step, 0), wanted.predict_proba(columns), atol=5e-3)


def test_rounding_is_no_column():
    rows = planted("gaussian", 50).features
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    columns = Columns.fit(unit, None)
    assert columns.scale[-1] == 0
    assert (columns.scale[:-1] > 0).all()
    seen = columns(unit, None)
    np.testing.assert_allclose(seen[:, :-1].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, :-1].std(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("plain_wins", [True, False])
def test_models_of_clean_rows_count_by_what_they_reach_on_protected_people(plain_wins):
    rng = np.random.default_rng(1)
    clean = planted("gaussian", 60, seed=8, dim=4)
    sigma, flip = (6.0, 1) if plain_wins else (0.1, -1)
    noise = rng.normal(size=(len(clean), 4)) * (sigma if plain_wins else 0.1)
    protected = (flip * clean.features + noise).astype(np.float32)
    probe = best_probe(
        protected, clean.attributes["a"], clean.pids, clean=clean.features, families=["logistic"], seed=3
    )
    alone = best_probe(protected, clean.attributes["a"], clean.pids, families=["logistic"], seed=3)
    assert probe.held_out >= alone.held_out
    if not plain_wins:
        assert probe.learned_from == "protected"
        assert probe.held_out > 0.9


def test_a_direction_that_protection_flips_is_learned_from_protected_rows():
    """Trained on clean rows only, the attacker answers wrongly: training rows must go through the protection."""
    train, test = planted("gaussian", 100, seed=9), planted("gaussian", 100, seed=10)
    flipped = test.with_features(-test.features)
    adaptive = AttributesAttack().fit(train.with_features(-train.features)).attack(flipped)["a"]
    plain = AttributesAttack().fit(train).attack(flipped)["a"]
    assert adaptive.score > 0.9
    assert plain.score < 0.1


def test_background_rows_count_nowhere():
    train = planted("gaussian", 60, seed=11)
    test = planted("gaussian", 60, seed=12, background=500)
    attack = CameraAttack(seed=1).fit(train)
    assert attack.attack(test) == attack.attack(test.people)


def probe_of(rows, groups=None, **kwargs):
    return best_probe(rows.features, rows.attributes["a"], rows.pids if groups is None else groups, **kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda rows: best_probe(rows.features, rows.attributes["a"], rows.pids % 2),
            "2 training people are fewer than 3",
        ),
        (
            lambda rows: best_probe(rows.features, rows.attributes["a"], rows.pids, families=["svm"]),
            "allowed: logistic",
        ),
        (lambda rows: best_probe(rows.features, rows.attributes["a"], rows.pids, folds=1), "folds is 1"),
        (lambda rows: best_probe(rows.features, 0 * rows.pids, rows.pids), "fewer than two classes"),
        (lambda rows: AttributesAttack().attack(rows), "not fitted"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(planted("gaussian", 10))


def test_a_class_of_one_person_is_no_reason_to_fail():
    """The fold that holds him out learns from people of one class only."""
    rows = planted("gaussian", 30, rows_each=6)
    labels = (rows.pids == 5).astype(np.int64)
    for families in (["trees"], ["logistic"], ["mlp"]):
        probe = best_probe(rows.features, labels, rows.pids, families=families)
        said = probe.probabilities(rows.features)
        assert said.shape == (len(rows), 2)
        assert np.isfinite(said).all()


def test_a_fold_without_a_label_says_nothing_of_it():
    rows = planted("gaussian", 30, rows_each=6)
    known = {"a": rows.attributes["a"], "b": np.where(rows.pids == 5, 0, np.where(rows.pids == 6, 1, -1))}
    probes = fit_probes(rows.features, known, rows.pids, families=["trees"])
    assert probes["b"].predict(rows.features).shape == (len(rows),)
    assert probes["a"].held_out == best_probe(rows.features, known["a"], rows.pids, families=["trees"]).held_out


def test_an_unknown_camera_is_none_to_be_read():
    rows = planted("gaussian", 30)
    half = LeakageSet(rows.features, rows.pids, np.where(rows.camids == 2, -1, 0))
    with pytest.raises(ValueError, match=r"are of one camera \(0\): there is none to tell"):
        CameraAttack().check(rows, half)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (lambda rows: LeakageSet(rows.features, rows.pids, rows.camids), "the training rows have no attributes"),
        (lambda rows: rows.take(rows.pids <= 2), "2 training people are fewer than 3 folds"),
        (lambda rows: LeakageSet(rows.features, rows.pids, rows.camids, {"b": rows.pids % 2}), "have no labels of a"),
        (
            lambda rows: LeakageSet(rows.features, rows.pids, rows.camids, {"a": 0 * rows.pids}),
            "fewer than two classes",
        ),
    ],
)
def test_training_rows_are_checked_before_anything_is_trained(learned, message):
    rows = planted("gaussian", 30)
    with pytest.raises(ValueError, match=message):
        AttributesAttack().check(learned(rows), rows)
