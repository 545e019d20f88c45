"""The battery: figures of several seeds with floors, clean counterparts and leakage; nothing finished runs again."""

import dataclasses
import json

import numpy as np
import pytest
from patched import patched
from planted import identities, planted

from ppreid_plugin.leakage import ATTACKS, Attack, Figure, IdentificationAttack, measure_leakage
from ppreid_plugin.leakage.command import USUAL
from ppreid_plugin.leakage.finished import FinishedRuns, fingerprint
from ppreid_plugin.leakage.identification import halves, nearest


class Counted(Attack):
    """Reaches what the mean of the first column says, plus its seed in thousandths."""

    channel = "counted"
    runs: list = []  # noqa: RUF012

    def __init__(self, *, seed=0, plus=0.0):
        super().__init__(seed=seed)
        self.plus = plus

    def fit(self, train):
        self.offset = float(train.features[0, 0])
        return self

    def attack(self, test):
        Counted.runs.append(self.seed)
        if len(Counted.runs) == getattr(Counted, "dies_at", -1):
            raise KeyboardInterrupt
        score = float(test.features[:, 0].mean()) + self.offset + self.seed / 1000 + self.plus
        return {name: Figure(score + plus, 0.01, "counter") for name, plus in (("x", 0.0), ("y", 0.1))}

    def floor(self, test):
        return {"x": 0.2, "y": 0.2}

    def ceiling(self, test):
        return {"x": 1.0, "y": 1.0}


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setitem(ATTACKS._entries, "counted", Counted)
    Counted.runs, Counted.dies_at = [], -1


def constant(value, rows=4):
    return identities(rows, rows_each=1).with_features(np.full((rows, 3), value, dtype=np.float32))


def test_figures_over_seeds_and_their_leakage(counted):
    found = measure_leakage(
        constant(0.0), constant(0.4), constant(0.6), constant(0.0), attacks=["counted"], seeds=3
    ).to_json()
    x = found["channels"]["counted"]["x"]
    assert set(x) >= {"score", "low", "high", "floor", "clean", "leakage", "attacker"}
    assert x["score"] == pytest.approx(0.402)
    assert x["clean"] == pytest.approx(0.602)
    assert (x["floor"], x["attacker"]) == (pytest.approx(0.2), "counter")
    assert x["leakage"] == pytest.approx(0.202 / 0.402)
    assert x["low"] < x["score"] < x["high"]
    y = found["channels"]["counted"]["y"]["leakage"]
    assert y == pytest.approx(0.302 / 0.502)
    assert found["non_task_max"]["channel"] == "counted: y"
    assert found["non_task_max"]["leakage"] == y
    assert found["task_max"] is None
    assert json.loads(json.dumps(found)) == found
    assert found["meta"]["test"] == {"rows": 4, "people": 4, "cameras": 1, "columns": 3}


def test_without_clean_features_leakage_is_null_and_never_1(counted):
    found = measure_leakage(constant(0.0), constant(0.4), attacks=["counted"], seeds=2).to_json()
    for figure in found["channels"]["counted"].values():
        assert figure["clean"] is None
        assert figure["leakage"] is None
    assert found["non_task_max"] is None


def test_every_seed_gets_its_own_draw(counted):
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return constant(0.1 * seed)

    found = measure_leakage(constant(0.0), draw, attacks=["counted"], seeds=3)
    assert drawn == [1, 2, 3]
    assert found.channels["counted"]["x"]["score"] == pytest.approx(0.202)


def test_an_interrupted_battery_goes_on_where_it_was(counted, tmp_path, monkeypatch):
    resume = tmp_path / "finished.json"

    def measure(test=0.4):
        return measure_leakage(
            constant(0.0), constant(test), constant(0.6), constant(0.0), attacks=["counted"], seeds=3, resume=resume
        )

    Counted.dies_at = 4
    with pytest.raises(KeyboardInterrupt):
        measure()
    assert len(json.loads(resume.read_text())["runs"]) == 3
    Counted.dies_at = -1
    Counted.runs = []
    resumed = measure()
    assert len(Counted.runs) == 3
    resume.unlink()
    assert measure().to_json() == resumed.to_json()
    Counted.runs = []
    measure()
    assert Counted.runs == []
    assert measure(0.5).channels["counted"]["x"]["score"] == pytest.approx(0.502)  # other features are another run
    assert Counted.runs == [1, 2, 3]
    monkeypatch.setattr("ppreid_plugin.__version__", "0.0")
    measure(0.5)
    assert Counted.runs[3:] == [1, 1, 2, 2, 3, 3]  # another version may attack otherwise


@pytest.mark.parametrize("name", ["features", "pids", "camids", "clean", "queries"])
def test_an_attribute_of_any_name_hides_nothing_from_a_fingerprint(name):
    rows = dataclasses.replace(constant(0.4), attributes={name: np.array([0, 1, 0, 1])})
    rows = dataclasses.replace(rows, clean=rows.features, queries=rows.features.copy())
    others = (
        dataclasses.replace(rows, features=rows.features + 1),
        dataclasses.replace(rows, pids=rows.pids + 1),
        dataclasses.replace(rows, camids=rows.camids + 1),
        dataclasses.replace(rows, clean=rows.features + 1),
        dataclasses.replace(rows, queries=rows.features + 1),
        dataclasses.replace(rows, attributes={name: np.array([1, 0, 1, 0])}),
        dataclasses.replace(rows, attributes={"other": np.array([0, 1, 0, 1])}),
    )
    assert len({fingerprint(one) for one in (rows, *others)}) == 8


def test_features_that_are_their_own_reference_are_attacked_once(counted):
    def measure(test):
        return measure_leakage(constant(0.0), test, constant(0.6), constant(0.0), attacks=["counted"], seeds=2)

    same = measure(constant(0.6))
    assert Counted.runs == [1, 2]
    assert same.channels["counted"]["x"]["leakage"] == pytest.approx(1.0)
    measure(dataclasses.replace(constant(0.6), protection="stated"))  # attackers may use what is stated
    assert Counted.runs == [1, 2, 1, 1, 2, 2]


@pytest.mark.slow
def test_features_that_say_nothing_reach_the_floor_of_every_usual_attack():
    """The defense of docs/ablation.md, 0 * features."""
    sets = [patched(15, seed=1, first_pid=1001, rows_each=4), patched(15, seed=2, rows_each=4)]
    train, test = (dataclasses.replace(rows, attributes={"a": rows.pids % 2}) for rows in sets)
    zeros = [rows.with_features(0 * rows.features, clean=rows.features) for rows in (train, test)]
    found = measure_leakage(*zeros, attacks=USUAL, seeds=1, options={"reconstruction": {"steps": 2}})
    assert len(found.channels) == len(USUAL)
    for name, one in found.figures():
        chance = 0.1 if name.startswith("patches") else 1e-9  # another constant than the floor's, of 15 people
        assert one["score"] == pytest.approx(one["floor"], abs=chance), name


def test_options_reach_the_attack_and_are_another_run(counted, tmp_path):
    def measure(**options):
        given = {"attacks": ["counted"], "seeds": 1, "resume": tmp_path / "finished.json"}
        found = measure_leakage(constant(0.0), constant(0.4), options={"counted": options}, **given)
        return found.channels["counted"]["x"]["score"]

    assert [measure(), measure(plus=0.2), measure()] == pytest.approx([0.401, 0.601, 0.401])
    assert len(Counted.runs) == 2


def test_two_processes_may_keep_their_runs_in_one_file(tmp_path):
    one, other = FinishedRuns(tmp_path / "kept.json"), FinishedRuns(tmp_path / "kept.json")
    one.put("a", {"x": 1})
    other.put("b", {"x": 2})
    both = FinishedRuns(tmp_path / "kept.json")
    assert (both.get("a"), both.get("b")) == ({"x": 1}, {"x": 2})


def test_a_file_that_is_no_resume_file_is_refused(counted, tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="does not hold finished attacks"):
        measure_leakage(constant(0.0), constant(0.4), attacks=["counted"], resume=tmp_path / "other.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": ["counts"]}, "Did you mean 'counted'"),
        ({"attacks": []}, "attacks is empty"),
        ({"seeds": 0}, "seeds is 0"),
        ({"options": {"counted": {"pluss": 1}}}, r"options\['counted'\] has 'pluss'; allowed: plus"),
        ({"clean": constant(0.1)}, "must both be given"),
        ({"test": identities(4, dim=5)}, "training rows have 3 columns, the rows to attack 5"),
        ({"attacks": ["camera"]}, "of one camera"),
        (
            {"attacks": ["attributes"], "test": (one := planted("gaussian", 4, dim=3)).take(one.attributes["a"] == 0)},
            "'a' has fewer than two",
        ),
        ({"attacks": ["identification"]}, "of one camera"),
        ({"attacks": ["counted", "linkage"]}, "fewer than two people of the test set have rows of two cameras"),
    ],
)
def test_errors_come_before_anything_is_trained(counted, change, message):
    given = {"train": constant(0.0), "test": constant(0.4), "attacks": ["counted"], **change}
    with pytest.raises(ValueError, match=message):
        measure_leakage(given.pop("train"), given.pop("test"), **given)
    assert Counted.runs == []


def test_halves_share_no_camera_and_hold_everybody():
    rng = np.random.default_rng(0)
    people = identities(30, rows_each=12, cameras=4)
    people = people.take(np.sort(rng.permutation(len(people))[:300]))
    known = halves(people, seed=1)
    for pid in np.unique(people.pids):
        mine = people.pids == pid
        given, asked = (set(people.camids[mine & side].tolist()) for side in (known, ~known))
        assert given
        assert asked
        assert not given & asked
    assert 0.4 < known.mean() < 0.6
    assert (halves(people, seed=2) != known).any()


def test_nearest_is_what_loops_say():
    rng = np.random.default_rng(0)
    rows, asked, names = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)), rng.integers(0, 5, size=30)
    for k in (1, 4):
        for row, said in zip(asked, nearest(names, rows.astype(np.float32), asked.astype(np.float32), k), strict=True):
            cosines = [float(row @ one / np.linalg.norm(one)) for one in rows]
            best = sorted(range(30), key=lambda index: -cosines[index])[:k]
            votes = {name: sum(names[index] == name for index in best) for name in names[best]}
            wanted = next(names[index] for index in best if votes[names[index]] == max(votes.values()))
            assert said == wanted


def test_identification_reaches_bayes_on_known_classes():
    """Two people whose rows are spherical around their centers: Bayes is the midplane."""
    train, test = identities(40, seed=1, centers=1.0), identities(60, seed=2, centers=1.0, rows_each=60)
    attack = IdentificationAttack(seed=1).fit(train)
    figure = attack.attack(test)[""]
    known = halves(test, 1)
    centers = np.stack([test.features[test.pids == pid].mean(axis=0) for pid in np.unique(test.pids)])
    asked = test.features[~known]
    nearest_center = ((asked[:, None] - centers[None]) ** 2).sum(axis=2).argmin(axis=1) + 1
    bayes = (nearest_center == test.pids[~known]).mean()
    assert figure.score > 0.95 * bayes - 0.05
    assert attack.floor(test) == {"": 1 / 60}


def test_identification_of_noise_is_at_its_floor_and_whitening_beats_plain_rows():
    noise = identities(50, seed=3, centers=0.0)
    figure = IdentificationAttack(seed=1).fit(identities(40, seed=4, centers=0.0)).attack(noise)[""]
    assert figure.score < 0.02 + 5 * figure.standard_error + 0.03
    stretch = np.array([30.0, 30.0, *np.ones(14)], dtype=np.float32)  # two columns of nothing but large noise
    rng = np.random.default_rng(0)

    def stretched(people, seed):
        rows = identities(people, seed=seed)
        features = rows.features.copy()
        features[:, :2] = rng.normal(size=(len(rows), 2))
        return rows.with_features(features * stretch)

    attack = IdentificationAttack(seed=1).fit(stretched(40, 5))
    assert attack.chosen.startswith(("whitened", "logistic", "mlp"))
    assert attack.attack(stretched(40, 6))[""].score > 0.95


def test_the_bound_stands_beside_pure_budgets_of_a_person_only():
    from ppreid_plugin.dp.bounds import bound_row_to_person

    train, test = identities(20, seed=1), identities(10, seed=2)
    stated = {"unit": "person", "epsilon": 2.0, "mechanism": {"pure": True}}
    attack = IdentificationAttack().fit(train)
    figure = attack.attack(test.with_features(test.features, protection=stated))[""]
    assert figure.others["bound"] == bound_row_to_person(2.0, 10)
    for other in ({**stated, "unit": "image"}, {**stated, "mechanism": {"pure": False}}, None):
        assert "bound" not in attack.attack(test.with_features(test.features, protection=other))[""].others


@pytest.mark.parametrize(("times", "within"), [(1, True), (16, False)])
def test_the_bound_of_identification_holds_for_what_was_spent_and_not_for_less(times, within):
    """Four rows of each person share a pure budget of 4, or spend 16 times as much as is said."""
    from ppreid_plugin.dp import build_mechanism

    rng, mechanism = np.random.default_rng(0), build_mechanism("privunit_g", epsilon=times * 4.0 / 4)
    stated = {"unit": "person", "epsilon": 4.0, "mechanism": {"pure": True}}

    def released(people, first_pid):
        rows = identities(people, rows_each=4, cameras=2, first_pid=first_pid)
        noised = mechanism.privatize(np.eye(32)[rows.pids - first_pid], generator=rng)
        return rows.with_features(noised, protection=stated)

    figure = IdentificationAttack(seed=1).fit(released(32, 1001)).attack(released(30, 1))[""]
    assert (figure.score <= figure.others["bound"]) == within
    assert abs(figure.score - figure.others["bound"]) > 4 * figure.standard_error


def test_roc_curves_are_means_over_the_seeds_beside_those_of_clean_features():
    train, test = identities(16, seed=1, first_pid=100), identities(12, seed=2)
    found = measure_leakage(train, test, test, train, attacks=["linkage"], seeds=2)
    figure = found.channels["linkage"]
    runs = [ATTACKS.get("linkage")(seed=seed).fit(train).attack(test)[""].tpr for seed in (1, 2)]
    np.testing.assert_allclose(figure["roc"]["tpr"], np.mean(runs, axis=0))
    assert figure["roc"]["clean_tpr"] == pytest.approx(figure["roc"]["tpr"])  # nothing protects them
    assert figure["roc"]["fpr"][-1] == figure["roc"]["tpr"][-1] == 1.0
    alone = measure_leakage(train, test, attacks=["linkage"], seeds=1).channels["linkage"]
    assert alone["roc"]["clean_tpr"] is None


class Sometimes(Counted):
    """Has a figure in some seeds only, as a game that needs more people than a seed draws."""

    channel = "sometimes"

    def attack(self, test):
        found = super().attack(test)
        return found if self.seed != 1 else {"x": found["x"]}


def test_a_figure_that_some_seeds_lack_is_that_of_the_others(counted, monkeypatch):
    monkeypatch.setitem(ATTACKS._entries, "sometimes", Sometimes)
    sets = constant(0.0), constant(0.4), constant(0.6), constant(0.0)
    figures = measure_leakage(*sets, attacks=["sometimes"], seeds=3).channels["sometimes"]
    assert figures["x"]["score"] == pytest.approx(0.402)
    assert "runs" not in figures["x"]
    assert figures["y"]["score"] == pytest.approx(0.5025)  # of seeds 2 and 3
    assert figures["y"]["clean"] == pytest.approx(0.7025)
    assert figures["y"]["runs"] == 2


def test_one_person_is_too_few_for_an_error(counted):
    rows = identities(4, rows_each=2)
    with pytest.raises(ValueError, match="the protected rows to attack are of 1 person: figures have no error"):
        measure_leakage(rows, rows.take(rows.pids == 1), attacks=["counted"])


def test_identification_is_checked_before_anything_is_trained(counted):
    few = identities(3)
    with pytest.raises(ValueError, match="3 training people were seen by two cameras, fewer than the 4"):
        measure_leakage(few, identities(9, seed=2), attacks=["counted", "identification"])
    assert not Counted.runs


def test_an_unknown_camera_is_none_in_identification():
    rows = identities(9)
    unknown = dataclasses.replace(rows, camids=np.where(rows.camids == 1, -1, 0))
    with pytest.raises(ValueError, match="are of one camera"):
        IdentificationAttack().check(rows, unknown)
