"""Patches: what features hold is found, on other people; what they do not hold is not; the camera is no finding."""

import dataclasses

import numpy as np
import pytest
from patched import BITS, SIDE, patched
from scipy.stats import norm
from sklearn.linear_model import Ridge

from ppreid_plugin import DPGallery
from ppreid_plugin.leakage import ATTACKS, ArrayImages, FineCues, LeakageSet, PatchAttack, measure_leakage, patch_models
from ppreid_plugin.leakage.inversion import split_people
from ppreid_plugin.leakage.patches import bit_accuracy, without_mean_color
from ppreid_plugin.leakage.protection import protect
from ppreid_plugin.leakage.recovery import DRAWS, explained, fit_recovery


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(patch_models, "STEPS", 60)


def attacked(tells, *, people=60, seed=1, **options):
    train = patched(people, seed=seed, tells=tells, first_pid=1001, **options)
    test = patched(40, seed=seed + 100, tells=tells, **options)
    return train, test, PatchAttack(seed=1, size=SIDE).fit(train).attack(test)


@pytest.fixture(scope="module")
def told():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_models, "STEPS", 60)
        return attacked("all")


def visible(rows):
    return rows.take(rows.images.cues().visible("badge"))


def pixels(rows):
    return rows.images.crops(rows.images.cues().boxes["badge"], SIDE).reshape(len(rows), -1) / 255


def test_what_the_features_hold_is_recovered(told):
    _, _, figures = told
    assert set(figures) == {"badge", "badge detail", "badge code"}
    assert figures["badge"].score > 0.98  # the rest are gray levels that were rounded
    assert figures["badge detail"].score > 0.98
    assert figures["badge code"].score > 0.95
    assert figures["badge code"].others["balanced_accuracy"] > 0.99
    assert all(0 <= figure.standard_error < 0.02 for figure in figures.values())


def test_a_linear_patch_is_found_as_well_as_by_ridge(told):
    train, test, figures = told
    learned, asked = visible(train), visible(test)
    oracle = Ridge(alpha=1.0).fit(learned.features, pixels(learned)).predict(asked.features)
    errors = [((made - pixels(asked)) ** 2).sum(axis=1) for made in (oracle, pixels(learned).mean(axis=0))]
    share = np.divide(*(np.mean([one[asked.pids == pid].mean() for pid in np.unique(asked.pids)]) for one in errors))
    assert figures["badge"].score > 1 - share - 0.01
    assert figures["badge"].others["people"] == len(np.unique(asked.pids))
    assert figures["badge"].others["rows"] == len(asked) == 150


def test_nothing_is_recovered_where_features_hold_nothing():
    _, _, figures = attacked("nothing")
    for figure in figures.values():
        assert abs(figure.score) < 0.03
    assert figures["badge code"].others["balanced_accuracy"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("tells", "known", "unknown"),
    [
        ("pattern", {"badge", "badge detail"}, {"badge code"}),
        ("color", {"badge"}, {"badge detail", "badge code"}),
        ("code", {"badge code"}, {"badge", "badge detail"}),
    ],
)
def test_each_figure_is_of_its_own_kind(tells, known, unknown):
    _, _, figures = attacked(tells)
    assert all(figures[name].score > 0.25 for name in known)
    assert all(-0.1 < figures[name].score < 0.03 for name in unknown)
    if tells == "pattern":
        assert figures["badge detail"].score > 0.98 > figures["badge"].score  # the color is missing


def test_what_is_not_linear_is_recovered_too():
    train, test, figures = attacked("product", people=100)
    assert figures["badge detail"].attacker in {"kernel ridge", "decoder"}
    assert figures["badge detail"].score > 0.3
    learned = visible(train)
    linear = Ridge(alpha=1.0).fit(learned.features, without_mean_color(pixels(learned)))
    assert linear.score(visible(test).features, without_mean_color(pixels(visible(test)))) < 0.05


def test_a_code_cannot_be_guessed_from_people_who_were_learned_by_heart():
    _, _, figures = attacked("pid", people=40)
    assert abs(figures["badge code"].score) < 0.03


def test_what_the_camera_does_to_a_patch_is_not_recovered_from_the_feature():
    train, test, figures = attacked("camera", by_camera=3.0)
    assert abs(figures["badge"].score) < 0.03
    one_mean = pixels(visible(train)).mean(axis=0)
    rows = visible(test)
    cameras = np.stack([pixels(visible(train).take(visible(train).camids == c)).mean(axis=0) for c in range(3)])
    assert explained(cameras[rows.camids], pixels(rows), np.tile(one_mean, (len(rows), 1)), rows.pids)[0] > 0.3


def test_a_camera_that_nobody_was_trained_on_gets_the_mean_of_all():
    train = patched(30, seed=1, tells="nothing", by_camera=3.0)
    test = patched(30, seed=2, tells="nothing", by_camera=3.0)
    test = dataclasses.replace(test, camids=test.camids + 7)
    assert abs(PatchAttack(seed=1, size=4).fit(train).attack(test)["badge"].score) < 0.05


def test_rows_that_hide_the_cue_and_background_count_nowhere(told):
    train, test, figures = told
    changed = []
    for rows in (train, test):
        cues, shown = rows.images.cues(), rows.images.cues().visible("badge")
        pictures = rows.images.load(32, 16).copy()
        pictures[~shown] = 0
        features = rows.features.copy()
        features[~shown] += 50
        codes = np.where(shown[:, None], cues.codes["badge"], -1)
        images = ArrayImages(pictures, FineCues(cues.boxes, {"badge": codes}))
        changed.append(dataclasses.replace(rows, features=features, images=images))
    learned, asked = changed
    strangers = np.arange(len(asked)) < 25
    attack = PatchAttack(seed=1, size=SIDE).fit(learned)
    assert attack.attack(asked) == figures
    marked = dataclasses.replace(asked, pids=np.where(strangers, 0, asked.pids))
    assert attack.attack(marked) == attack.attack(asked.take(~strangers))


def test_explained_variance_is_that_of_loops_and_people_count_alike():
    rng = np.random.default_rng(0)
    made, wanted, constant = (rng.normal(size=(30, 4)).astype(np.float32) for _ in range(3))
    pids = np.repeat([5, 3, 9], [3, 7, 20])
    left = whole = 0.0
    for pid in (3, 5, 9):
        mine = [row for row in range(30) if pids[row] == pid]
        left += sum(float(((made[row] - wanted[row]) ** 2).sum()) for row in mine) / len(mine)
        whole += sum(float(((constant[row] - wanted[row]) ** 2).sum()) for row in mine) / len(mine)
    assert explained(made, wanted, constant, pids)[0] == pytest.approx(1 - left / whole, rel=1e-5)
    twice = [np.concatenate([one, one[pids == 3]]) for one in (made, wanted, constant)]
    again = explained(*twice, np.concatenate([pids, pids[pids == 3]]))
    assert again == pytest.approx(explained(made, wanted, constant, pids), rel=1e-6)
    assert explained(wanted, wanted, wanted, pids) == (0.0, 0.0)


def test_the_error_is_that_of_drawing_other_people():
    """3,000 worlds of 25 people: the true value lies within two errors about as often as Student's curve says."""
    rng = np.random.default_rng(3)
    wanted = rng.normal(size=(3000, 75, 2))
    made = wanted + 0.5 * rng.normal(size=wanted.shape)
    pids = np.repeat(np.arange(25), 3)
    inside = []
    for one, true in zip(made, wanted, strict=True):
        score, error = explained(one, true, np.zeros_like(true), pids)
        inside.append(abs(score - 0.75) <= 2 * error)
    assert np.mean(inside) == pytest.approx(2 * norm.cdf(2) - 1, abs=0.04)


def test_bits_are_counted_class_by_class():
    made = np.array([[1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [-1.0, 1.0, 2.0], [1.0, 1.0, -2.0]])
    wanted = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], dtype=np.float32)
    assert bit_accuracy(made, wanted) == pytest.approx(((1 + 0.5) / 2 + (2 / 3 + 1) / 2) / 2)  # the last never varies
    assert bit_accuracy(made, np.ones_like(wanted)) is None


def test_the_battery_sets_protected_rows_beside_clean_ones():
    train, test = patched(60, seed=1, first_pid=1001), patched(40, seed=101)
    gallery = DPGallery(mechanism="gaussian", epsilon=40.0, transform="none", seed=1)
    noised = [protect(rows, gallery, seed) for rows, seed in ((train, 1), (test, 2))]
    found = measure_leakage(*noised, test, train, attacks=["patches"], seeds=1, options={"patches": {"size": 4}})
    figures = found.channels["patches"]
    assert set(figures) == {"badge", "badge detail", "badge code"}
    for figure in figures.values():
        assert figure["floor"] == 0.0
        assert 0.0 < figure["score"] < 0.8 * figure["clean"]
        assert figure["leakage"] == pytest.approx(figure["score"] / figure["clean"])
    assert found.task_max is None
    assert found.non_task_max["channel"].startswith("patches: badge")


def test_noise_is_drawn_again_for_learning():
    train, test = patched(40, seed=1, first_pid=1001), patched(40, seed=101)
    draws = []

    def redraw(seed):
        draws.append(seed)
        return train.features + np.random.default_rng(seed).normal(size=train.features.shape).astype(np.float32)

    again = train.with_features(redraw(0), redraw=redraw)
    draws.clear()
    assert PatchAttack(seed=1, size=4).fit(again).attack(test)["badge"].score > 0.3
    assert len(set(draws)) == DRAWS
    assert 0 not in draws  # never the draw that the rows themselves are of


def test_clean_rows_are_learned_from_where_they_are_the_better_ones():
    train = patched(40, seed=1, first_pid=1001)
    _, held = split_people(visible(train), 1)
    spoiled = np.random.default_rng(5).normal(size=train.features.shape).astype(np.float32)
    kept = np.isin(train.pids, held.pids)
    protected = train.with_features(np.where(kept[:, None], train.features, spoiled), clean=train.features)
    figures = PatchAttack(seed=1, size=4).fit(protected).attack(patched(40, seed=101))
    assert figures["badge"].attacker == "ridge, clean rows"
    assert figures["badge"].score > 0.95


@pytest.mark.parametrize("by_camera", [0.0, 3.0])
def test_the_constant_is_the_mean_of_all_or_of_the_camera_as_is_nearer(by_camera):
    rows = visible(patched(40, seed=3, tells="nothing", by_camera=by_camera))
    recovery = fit_recovery(rows, pixels, {"": lambda patches: patches}, seed=1)[""]
    learned, _ = split_people(rows, 1)
    means = [pixels(learned.take(learned.camids == camera)).mean(axis=0) for camera in range(3)]
    wanted = means if by_camera else [pixels(learned).mean(axis=0)] * 3
    np.testing.assert_allclose(recovery.constant(np.arange(3)), wanted, rtol=1e-5)


def test_errors_name_what_is_missing():
    rows = patched(4)
    bare = dataclasses.replace(rows, images=None)
    unmarked = dataclasses.replace(rows, images=ArrayImages(rows.images.load(32, 16)))
    attack = PatchAttack(seed=1, size=4)
    for some in (bare, unmarked):
        for call in (lambda: attack.check(some, rows), lambda: attack.check(rows, some), lambda: attack.fit(some)):  # noqa: B023
            with pytest.raises(ValueError, match="no boxes of fine cues"):
                call()
    hidden = ArrayImages(rows.images.load(32, 16), FineCues({"badge": np.full((len(rows), 4), -1)}))
    with pytest.raises(ValueError, match="no fine cue is visible on two training people"):
        attack.check(dataclasses.replace(rows, images=hidden), rows)
    with pytest.raises(ValueError, match="all of background pids"):
        attack.check(rows, dataclasses.replace(rows, background_pids=tuple(range(10))))
    with pytest.raises(RuntimeError, match=r"not fitted; call fit\(train\)"):
        attack.attack(rows)
    with pytest.raises(ValueError, match="size is 1, must be a whole number >= 2"):
        PatchAttack(size=1)
    cues = rows.images.cues()
    longer = FineCues(cues.boxes, {"badge": np.zeros((len(rows), BITS + 1), dtype=int)})
    fitted = attack.fit(patched(12, first_pid=100))
    with pytest.raises(ValueError, match=f"code_badge has {BITS + 1} bits, that of the training rows {BITS}"):
        fitted.attack(dataclasses.replace(rows, images=ArrayImages(rows.images.load(32, 16), longer)))
    assert ATTACKS.get("patches") is PatchAttack
    assert isinstance(rows, LeakageSet)
