"""Attackers who know half of the gallery's people: who is known, what they find that others do not, what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import accuracy, identities, planted

from ppreid_plugin.leakage import ATTACKS, Attack, Figure, measure_leakage
from ppreid_plugin.leakage.known_people import known_half, split_known, stronger

FAMILY = {"attacks": ["attributes"], "seeds": 1}


@settings(max_examples=30, deadline=None)
@given(people=st.integers(2, 30), background=st.integers(0, 5), seed=st.integers(0, 1000))
def test_everybody_is_known_or_attacked_and_nobody_both(people, background, seed):
    rows = planted("gaussian", people, rows_each=3, background=background)
    known = known_half(rows, seed)
    assert len(known) == people // 2
    learned, attacked = split_known(rows, known)
    assert set(learned.pids) == set(known)
    assert not set(learned.pids) & set(attacked.pids)
    assert set(learned.pids) | set(attacked.pids) == set(range(1, people + 1))  # and the background in neither
    assert len(learned) + len(attacked) == 3 * people
    for half in (learned, attacked):  # rows and labels stay together
        for feature, pid, label in zip(half.features, half.pids, half.attributes["a"], strict=True):
            place = int(np.flatnonzero((rows.features == feature).all(axis=1))[0])
            assert (rows.pids[place], rows.attributes["a"][place]) == (pid, label)


def test_who_is_known_depends_on_the_seed_alone():
    rows = planted("gaussian", 40, rows_each=3)
    assert np.array_equal(known_half(rows, 3), known_half(rows.take(np.arange(len(rows))[::-1]), 3))
    assert len({tuple(known_half(rows, seed)) for seed in range(5)}) == 5


def test_what_training_people_do_not_show_is_found_by_who_knows_some_of_the_gallery():
    """Suppression that holds for training people only: their attribute is gone, the gallery's is as it was."""
    train, gallery = planted("independent", 150, first_pid=1001), planted("gaussian", 300, seed=1)
    clean = planted("gaussian", 150, first_pid=1001)
    fooled = measure_leakage(train, gallery, gallery, clean, **FAMILY).channels["attributes"]["a"]
    assert abs(fooled["leakage"]) < 0.3
    assert fooled["learn_from"] == "train"
    assert "weaker" not in fooled
    knows = measure_leakage(train, gallery, gallery, clean, learn_from=["gallery"], **FAMILY).channels["attributes"][
        "a"
    ]
    assert knows["score"] == pytest.approx(accuracy("gaussian"), abs=0.02)
    assert knows["leakage"] == pytest.approx(1.0)
    both = measure_leakage(train, gallery, gallery, clean, learn_from=["train", "gallery"], **FAMILY)
    figure = both.channels["attributes"]["a"]
    assert (figure["learn_from"], figure["leakage"]) == ("gallery", knows["leakage"])
    assert figure["weaker"]["leakage"] == fooled["leakage"]
    assert both.non_task_max["leakage"] == knows["leakage"]
    assert both.meta["learn_from"] == ["train", "gallery"]


def test_the_stronger_is_found_for_each_figure_alone_and_without_clean_features_by_the_score():
    """Few people in the gallery: whoever learns from half of them does worse than from many others."""
    found = measure_leakage(
        planted("xor", 300, first_pid=1001), planted("xor", 16, seed=1), learn_from=["gallery", "train"], **FAMILY
    ).channels["attributes"]["a"]
    assert found["learn_from"] == "train"
    assert found["score"] - found["floor"] > found["weaker"]["score"] - found["weaker"]["floor"]


def test_a_leakage_that_is_available_is_never_dropped_and_without_any_the_distance_from_the_floor_counts():
    known, unknown = {"score": 0.9, "floor": 0.8, "leakage": 0.5}, {"score": 0.7, "floor": 0.5, "leakage": None}
    for train, gallery, by in ((known, unknown, "train"), (unknown, known, "gallery")):
        found = stronger({"train": train, "gallery": gallery})
        assert (found["learn_from"], found["leakage"], found["weaker"]["leakage"]) == (by, 0.5, None)
    less = {"score": 0.9, "floor": 0.8, "leakage": None}
    assert stronger({"train": less, "gallery": unknown})["learn_from"] == "gallery"


class Names(Attack):
    """Keeps the people that it learned from and attacked."""

    channel = "names"
    seen: list = []  # noqa: RUF012

    def fit(self, train):
        self.learned = set(train.pids.tolist())
        return self

    def attack(self, test):
        Names.seen.append((self.seed, self.learned, set(test.pids.tolist())))
        return {"": Figure(0.5, 0.01, "names")}

    def floor(self, test):
        return {"": 0.0}

    def ceiling(self, test):
        return {"": 1.0}


def test_the_same_people_are_known_on_both_sides(monkeypatch):
    monkeypatch.setitem(ATTACKS._entries, "names", Names)
    Names.seen = []
    gallery = identities(10, rows_each=2)
    released = gallery.take(gallery.pids > 3).with_features(2 * gallery.features[gallery.pids > 3])
    train = identities(6, first_pid=100)
    options = {"attacks": ["names"], "seeds": 2, "learn_from": ["gallery"]}
    with pytest.raises(ValueError, match=r"clean and test differ in 3 people, such as pid 1: leakage is a share of"):
        measure_leakage(train, released, gallery, train, **options)
    measure_leakage(train, released, gallery.take(gallery.pids > 3), train, **options)
    assert [seed for seed, _, _ in Names.seen] == [1, 1, 2, 2]
    for (_, learned, attacked), (_, clean_learned, clean_attacked) in (Names.seen[:2], Names.seen[2:]):
        assert learned == clean_learned
        assert attacked == clean_attacked
        assert learned | attacked == set(range(4, 11))
        assert len(learned) == 3
    assert Names.seen[1][1] != Names.seen[3][1]


def test_membership_is_told_by_training_people_only():
    train, gallery = identities(12, seed=1, first_pid=100), identities(12, seed=2)
    with pytest.raises(ValueError, match="membership cannot learn from half of the gallery's people"):
        measure_leakage(train, gallery, attacks=["membership"], learn_from=["gallery"], seeds=1)
    found = measure_leakage(train, gallery, attacks=["membership"], learn_from=["train", "gallery"], seeds=1)
    assert {figure["learn_from"] for figure in found.channels["membership"].values()} == {"train"}


@pytest.mark.parametrize("value", ["train", [], ["query"], ["train", "all"]])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match=r"learn_from is .*, must be one or more of: train, gallery"):
        measure_leakage(identities(4), identities(4), learn_from=value)


def test_one_person_has_no_halves():
    with pytest.raises(ValueError, match="the gallery holds 1 person, so there are no two halves"):
        measure_leakage(identities(4), identities(1), attacks=["identification"], learn_from=["gallery"])


def test_every_half_that_will_be_drawn_is_checked_before_anything_is_trained():
    """Two people of 20 carry a label: some seed knows both of them, and then the others have one class."""
    train, test = planted("gaussian", 30, first_pid=1001), planted("gaussian", 20, seed=1)
    rare = dataclasses.replace(test, attributes={"a": np.isin(test.pids, [3, 4]).astype(np.int64)})
    started = []

    class Starts(Names):
        def fit(self, train):
            started.append(self.seed)
            return super().fit(train)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS._entries, "names", Starts)
        with pytest.raises(ValueError, match="attribute 'a' has fewer than two classes"):
            measure_leakage(train, rare, learn_from=["gallery"], attacks=["names", "attributes"], seeds=12)
    assert not started
