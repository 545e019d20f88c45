"""Scores, errors over people, combination over seeds, and the rule of what is not available."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score

from ppreid_plugin.leakage.scores import (
    balanced_accuracy,
    balanced_accuracy_error,
    combine,
    figure_record,
    macro_top1,
    maximum,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_balanced_accuracy_is_scikit_learns(pairs):
    labels, answers = np.array(pairs).T
    wanted = np.mean([(answers[labels == one] == one).mean() for one in np.unique(labels)])
    assert balanced_accuracy(labels, answers) == pytest.approx(wanted)
    if set(answers) <= set(labels) and len(set(labels)) > 1:
        assert balanced_accuracy(labels, answers) == pytest.approx(balanced_accuracy_score(labels, answers))


def test_the_error_is_that_of_drawing_people():
    """Rows of a person all alike: the error is the binomial one of the people, not of their rows."""
    rng = np.random.default_rng(0)
    people = 400
    pids, labels = np.repeat(np.arange(people), 12), np.repeat(np.arange(people) % 2, 12)
    right = np.repeat(rng.random(people) < 0.8, 12)
    answers = np.where(right, labels, 1 - labels)
    recalls = [right[labels == one].mean() for one in (0, 1)]
    wanted = math.sqrt(sum(p * (1 - p) / (people / 2) for p in recalls)) / 2
    assert balanced_accuracy_error(labels, answers, pids) == pytest.approx(wanted, rel=0.12)
    of_rows = balanced_accuracy_error(labels, answers, np.arange(len(pids)))
    assert of_rows == pytest.approx(wanted / math.sqrt(12), rel=0.12)


def test_macro_top1_counts_people_alike():
    labels, answers = np.array([1, 1, 1, 1, 2]), np.array([1, 1, 1, 2, 1])
    score, error = macro_top1(labels, answers)
    assert score == pytest.approx((0.75 + 0) / 2)
    assert error == pytest.approx(np.std([0.75, 0], ddof=1) / math.sqrt(2))


def test_seeds_and_people_add_up():
    found = combine([0.5, 0.6, 0.7], [0.03, 0.03, 0.03])
    assert found.value == pytest.approx(0.6)
    assert found.standard_error == pytest.approx(math.sqrt(0.03**2 + 0.01 / 3))
    only_seeds = combine([0.5, 0.6, 0.7], [0.0, 0.0, 0.0])
    assert only_seeds.high == pytest.approx(0.6 + student.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert only_seeds.low + only_seeds.high == pytest.approx(1.2)
    assert combine([0.5], [0.1]).high == pytest.approx(0.5 + 1.959964 * 0.1)
    same = combine([0.5] * 5, [0.1] * 5)
    assert (same.standard_error, same.high) == (pytest.approx(0.1), pytest.approx(0.5 + 1.959964 * 0.1))


def test_intervals_cover():
    """95 % intervals over people and seeds hold the truth in 95 % of the runs (2,000 runs, so 0.5 % error)."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        shared = 0.02 * rng.normal()
        found = combine(0.5 + shared + 0.02 * rng.normal(size=3), [0.02] * 3)
        hits += found.low <= 0.5 <= found.high
    assert 0.93 < hits / 2000 < 0.985


def record(score, clean, error=0.01, floor=0.5):
    return figure_record(
        combine([score], [error]), floor, None if clean is None else combine([clean], [error]), attacker="mlp"
    )


def test_leakage_is_the_share_of_what_clean_features_give():
    half = record(0.7, 0.9)
    assert half["leakage"] == pytest.approx(0.5)  # without the floor it would be 0.78
    assert half["leakage_high"] - half["leakage"] == pytest.approx(1.959964 * 0.01 * math.hypot(1, 0.5) / 0.4)
    assert record(0.45, 0.9)["leakage"] == pytest.approx(-0.125)  # never clipped
    assert record(0.95, 0.9)["leakage"] == pytest.approx(1.125)
    assert set(half) >= {"score", "low", "high", "floor", "clean", "leakage", "attacker"}


@pytest.mark.parametrize(("clean", "there"), [(0.5299, False), (0.5301, True), (0.45, False), (0.5, False)])
def test_not_available_under_three_standard_errors(clean, there):
    found = record(0.52, clean)
    assert (found["leakage"] is not None) == there
    assert found["clean"] == pytest.approx(clean)
    assert (found["reason"] is None) == there
    if not there:
        assert "less than 3 standard errors" in found["reason"]


def test_without_clean_features_there_is_no_leakage():
    found = record(0.8, None)
    assert found["clean"] is None
    assert found["leakage"] is None
    assert found["reason"] == "no clean features were given"


def test_the_maximum_is_of_what_is_available():
    figures = [("a", record(0.6, 0.9)), ("b", record(0.8, 0.9)), ("c", record(0.9, 0.505)), ("d", record(1, None))]
    found = maximum(figures)
    assert (found["channel"], found["leakage"]) == ("b", pytest.approx(0.75))
    assert found["low"] == figures[1][1]["leakage_low"]
    assert found["high"] == figures[1][1]["leakage_high"]
    assert maximum(figures[2:]) is None


@pytest.mark.parametrize("people", [2, 3, 4, 6])
def test_few_people_who_agree_by_chance_are_no_finding(people):
    """Few guesses stand three standard errors above chance; intervals of so few hold it less often than they say."""
    rng = np.random.default_rng(people)
    held = passed = 0
    for draw in range(200):
        pids = np.repeat(np.arange(people), 5)
        labels = np.repeat(rng.permutation(people) % 2, 5)
        answers = np.repeat(rng.integers(0, 2, people), 5)
        score = balanced_accuracy(labels, answers)
        error = balanced_accuracy_error(labels, answers, pids, seed=draw)
        assert error >= 1 / (people + 1)
        held += abs(score - 0.5) <= 1.96 * error
        passed += score - 0.5 >= 3 * error
    assert held >= 145
    assert passed <= 10


def test_one_person_has_an_error():
    assert macro_top1(np.array([3, 3]), np.array([3, 3])) == (1.0, 0.5)
