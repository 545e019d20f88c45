"""What the camera alone says of an attribute is no leakage of the features, and chance is not taken for it."""

import numpy as np
import pytest
from planted import planted

from ppreid_plugin.leakage import AttributesAttack, CameraAttack, LeakageSet, measure_leakage
from ppreid_plugin.leakage.camera_answers import CameraAnswers, camera_answers
from ppreid_plugin.leakage.scores import balanced_accuracy


def by_camera(people, *, seed, shares=(0.1, 0.5, 0.9), rows_each=6, sign=0.0, first_pid=1):
    """People of one camera each, whose attribute is as frequent as their camera's share says."""
    rng = np.random.default_rng(seed)
    camera = np.arange(people) % len(shares)
    labels = (rng.random(people) < np.array(shares)[camera]).astype(np.int64)
    pids = np.repeat(np.arange(people) + first_pid, rows_each)
    features = rng.normal(size=(len(pids), 6)).astype(np.float32)
    features[:, 0] += sign * (2 * np.repeat(labels, rows_each) - 1)
    return LeakageSet(features, pids, np.repeat(camera, rows_each), {"a": np.repeat(labels, rows_each)})


def test_answers_are_the_classes_that_a_camera_shows_relatively_often():
    labels, camids = np.array([0] * 90 + [1] * 10), np.array([1] * 50 + [2] * 40 + [1] * 2 + [2] * 8)
    learned = CameraAnswers.learn(labels, camids)
    assert learned(np.array([1, 2, 3])).tolist() == [0, 1, 0]  # 8 of 10 of the rare class are of camera 2


def test_noise_leaks_nothing_where_cameras_say_what_there_is_to_know():
    train, test = by_camera(300, seed=1), by_camera(300, seed=2)
    attack = AttributesAttack(seed=1).fit(train)
    figure, floor = attack.attack(test)["a"], attack.floor(test)["a"]
    alone = balanced_accuracy(
        test.attributes["a"], CameraAnswers.learn(train.attributes["a"], train.camids)(test.camids)
    )
    assert floor == alone > 0.6
    assert abs(figure.score - floor) < 3 * figure.standard_error
    shown = by_camera(300, seed=1, sign=2.0), by_camera(300, seed=2, sign=2.0)
    found = measure_leakage(train, test, shown[1], shown[0], attacks=["attributes"], seeds=1)
    assert abs(found.channels["attributes"]["a"]["leakage"]) < 0.15  # of 1 / 2 it would be 0.5


def test_a_floor_is_not_raised_by_chance():
    raised = 0
    for seed in range(40):
        rows = planted("independent", 60, seed=seed)
        raised += camera_answers(rows.attributes["a"], rows.camids, rows.pids, seed=seed) is not None
    assert raised == 0  # false alarms: 1e-3 each
    few = by_camera(4, seed=1)
    assert camera_answers(few.attributes["a"], few.camids, few.pids) is None


def test_answers_are_judged_on_people_whom_they_were_not_learned_from():
    """Where everybody has a camera of his own it says all of those who are known, and nothing of others."""
    rows = by_camera(60, seed=5)
    own = LeakageSet(rows.features, rows.pids, rows.pids, rows.attributes)
    assert camera_answers(own.attributes["a"], own.camids, own.pids) is None
    assert camera_answers(rows.attributes["a"], rows.camids, rows.pids) is not None


def test_unknown_labels_say_nothing_of_a_camera():
    rows = by_camera(300, seed=3)
    labels = rows.attributes["a"].copy()
    labels[rows.camids == 0] = -1
    answers = camera_answers(labels, rows.camids, rows.pids)
    assert answers.cameras.tolist() == [1, 2]
    test = LeakageSet(rows.features, rows.pids, rows.camids, {"a": labels})
    known = labels >= 0
    attack = AttributesAttack(seed=1).fit(test)
    assert attack.floor(test)["a"] == pytest.approx(balanced_accuracy(labels[known], answers(rows.camids[known])))


def test_the_camera_is_not_told_by_the_camera():
    rows = by_camera(60, seed=4)
    assert CameraAttack(seed=1).fit(rows).floor(rows)[""] == pytest.approx(1 / 3)
