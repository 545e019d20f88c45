"""Open-set figures against a naive loop, cases by hand, and what a watch list must not depend on."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from ppreid_plugin.retrieval import enrolled, evaluate_enrolled, evaluate_open_set

FPIRS = (0.05, 0.1, 0.3)


def split(pids, num_background, seed, fraction=0.5, most=10_000):
    """Listed, calibration and test people, then calibration and test rows, as documented."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(sorted(pids)).tolist()
    rows = generator.permutation(num_background).tolist()[:most]
    listed = max(1, int(fraction * len(order)))
    people = listed + math.ceil((len(order) - listed) / 2)
    middle = math.ceil(len(rows) / 2)
    return order[:listed], order[listed:people], order[people:], rows[:middle], rows[middle:]


def naive(
    query, gallery, q_pids, g_pids, q_camids, g_camids, background=(), b_camids=(), nobody=(0,), exclude=True, **options
):
    """Counts at each of FPIRS, and the sizes of the groups."""
    parts = split(set(g_pids) - set(nobody), len(background), **options)
    listed, calibration_people, test_people, calibration_rows, test_rows = parts

    def ranked(row, camid):
        scores = []
        for pid in listed:
            rows = [
                oracles.unit(gallery[g])
                for g in range(len(g_pids))
                if g_pids[g] == pid and not (exclude and g_camids[g] == camid)
            ]
            if rows:
                template = oracles.unit([math.fsum(column) for column in zip(*rows, strict=True)])
                score = math.fsum(a * b for a, b in zip(oracles.unit(row), template, strict=True))
                scores.append((-score, pid))
        return sorted(scores)

    def best(people, rows):
        from_people = [ranked(query[q], q_camids[q]) for q in range(len(q_pids)) if q_pids[q] in people]
        from_rows = [ranked(background[b], b_camids[b]) for b in rows]
        return [-scores[0][0] for scores in from_people + from_rows if scores], sum(map(bool, from_rows))

    (calibration, num_calibration), (test, num_test) = (
        best(calibration_people, calibration_rows),
        best(test_people, test_rows),
    )
    mated = []
    for q in range(len(q_pids)):
        scores = ranked(query[q], q_camids[q])
        if q_pids[q] in [pid for _, pid in scores]:
            mated.append((-scores[0][0], scores[0][1] == q_pids[q]))
    points = []
    for fpir in FPIRS:
        threshold = min(t for t in calibration if sum(s > t for s in calibration) / len(calibration) <= fpir)
        points.append(
            (
                threshold,
                sum(own and score > threshold for score, own in mated),
                sum(s > threshold for s in calibration),
                sum(s > threshold for s in test),
            )
        )
    return points, (len(listed), len(mated), len(calibration), len(test), num_calibration, num_test)


def random_case(seed, num_query=120, num_gallery=70, people=13, cameras=3, dimension=6, num_background=45):
    """Person 3 was seen by one camera; person ``people`` is in the queries only; noise leaves every figure open."""
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, people + 1, num_query), rng.integers(0, people, num_gallery)
    q_camids, g_camids = rng.integers(0, cameras, num_query), rng.integers(0, cameras, num_gallery)
    g_camids[g_pids == 3] = 0
    centers = rng.normal(size=(people + 1, dimension))
    query = centers[q_pids] + 0.5 * rng.normal(size=(num_query, dimension))
    gallery = (centers[g_pids] + 0.5 * rng.normal(size=(num_gallery, dimension))) * rng.uniform(
        0.1, 9, (num_gallery, 1)
    )
    background, b_camids = rng.normal(size=(num_background, dimension)), rng.integers(0, cameras, num_background)
    return (query, gallery, q_pids, g_pids, q_camids, g_camids), {
        "background_features": background,
        "background_camids": b_camids,
    }


def sizes(result):
    return (
        result.num_listed,
        result.num_mated,
        result.num_calibration,
        result.num_test,
        result.num_background_calibration,
        result.num_background_test,
    )


def assert_same(result, expected):
    points, counts = expected
    assert sizes(result) == counts
    for point, (threshold, identified, calibration_alarms, test_alarms) in zip(result.points, points, strict=True):
        assert point.threshold == pytest.approx(threshold, abs=1e-12)
        assert (point.identified, point.calibration_alarms) == (identified, calibration_alarms)
        assert point.test_alarms == test_alarms
        assert point.tpir == identified / counts[1]
        assert point.test_fpir == test_alarms / counts[3]
        assert point.reason is None


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("nobody", [(0,), (), (2, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_naive_loop(seed, nobody, exclude):
    case, background = random_case(seed)
    result = evaluate_open_set(
        *case, **background, background_pids=nobody, fpirs=FPIRS, seed=seed, exclude_same_camera=exclude
    )
    assert_same(result, naive(*case, *background.values(), nobody=nobody, exclude=exclude, seed=seed))


@pytest.mark.parametrize(("fraction", "most"), [(0.2, 10_000), (0.7, 31), (0.01, 8), (1, 44)])
def test_other_shares_and_fewer_background_probes_equal_the_naive_loop(fraction, most):
    case, background = random_case(7)
    result = evaluate_open_set(
        *case, **background, fpirs=FPIRS, seed=3, listed_fraction=fraction, max_background_probes=most
    )
    assert_same(result, naive(*case, *background.values(), seed=3, fraction=fraction, most=most))


@pytest.mark.parametrize("absent", [None, np.zeros((0, 6))])
def test_without_background_equals_the_naive_loop(absent):
    case, _ = random_case(8)
    assert_same(evaluate_open_set(*case, background_features=absent, fpirs=FPIRS, seed=5), naive(*case, seed=5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors(dtype):
    case, background = random_case(1)
    case = [torch.from_numpy(part) for part in case]
    case[0], case[1] = case[0].to(dtype), case[1].to(dtype)
    background = {name: torch.from_numpy(part) for name, part in background.items()}  # of another float type
    points, counts = naive(*(part.tolist() for part in (*case, *background.values())), seed=1)
    result = evaluate_open_set(*case, **background, fpirs=FPIRS)
    assert sizes(result) == counts
    assert [(p.identified, p.calibration_alarms, p.test_alarms) for p in result.points] == [p[1:] for p in points]


def test_chunks_change_nothing(monkeypatch):
    case, background = random_case(2)
    whole = evaluate_open_set(*case, **background, fpirs=FPIRS)
    monkeypatch.setattr(enrolled, "_QUERIES_PER_CHUNK", 7)
    parts = evaluate_open_set(*case, **background, fpirs=FPIRS)
    for a, b in zip(whole.points, parts.points, strict=True):
        assert dataclasses.replace(a, threshold=0) == dataclasses.replace(b, threshold=0)
        assert a.threshold == pytest.approx(b.threshold, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    case_seed=st.integers(0, 99),
    seed=st.integers(0, 99),
    fpirs=st.lists(st.floats(0.03, 0.99), min_size=1, max_size=6),
)
def test_a_higher_rate_never_lowers_tpir_and_each_is_kept_on_the_calibration_probes(case_seed, seed, fpirs):
    case, background = random_case(case_seed, num_query=60, num_gallery=50, num_background=70)
    result = evaluate_open_set(*case, **background, fpirs=sorted(fpirs), seed=seed)
    for point in result.points:  # scores are distinct: one alarm more would be too many
        assert point.calibration_alarms / result.num_calibration <= point.fpir
        assert (point.calibration_alarms + 1) / result.num_calibration > point.fpir
    for low, high in zip(result.points, result.points[1:], strict=False):
        assert low.threshold >= high.threshold
        assert low.identified <= high.identified
        assert low.test_alarms <= high.test_alarms


@pytest.mark.parametrize("count", [7, 30, 49, 100])
def test_a_rate_of_k_in_n_allows_k_alarms_whatever_its_rounding(count):
    background = np.column_stack([np.linspace(0.1, 0.9, 2 * count), np.ones(2 * count)])
    result = evaluate_open_set(
        *one_person(),
        background_features=background,
        background_camids=[0] * 2 * count,
        fpirs=[k / count for k in range(1, count)],
    )
    assert [point.calibration_alarms for point in result.points] == list(range(1, count))


def one_person(score=1.0):
    query = np.array([[score, math.sqrt(1 - score**2)]])
    return query, np.array([[1.0, 0.0]]), [1], [1], [0], [1]


def test_perfect_features_identify_everybody_and_the_rate_is_as_asked():
    """Strangers are exchangeable, 4000 on each side: over 4 deviations apart less than once in 10,000 runs."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(40, 128))
    pids = np.arange(1, 41)
    result = evaluate_open_set(
        people,
        people,
        pids,
        pids,
        pids * 0,
        pids * 0 + 1,
        background_features=rng.normal(size=(8000, 128)),
        background_camids=np.zeros(8000, dtype=int),
    )
    for point in result.points:
        assert point.tpir == 1.0
        deviation = math.sqrt(2 * point.fpir * (1 - point.fpir) / 4000)
        assert point.test_fpir == pytest.approx(point.fpir, abs=4 * deviation)


def test_random_features_identify_as_often_as_chance():
    """A stranger's alarm names the right one of 20 people by chance: 0.1 / 20 of 3,000, 15 expected; 5 deviations."""
    rng = np.random.default_rng(1)
    pids = np.arange(1, 41)
    q_pids = np.repeat(pids, 150)
    result = evaluate_open_set(
        rng.normal(size=(6000, 64)),
        rng.normal(size=(40, 64)),
        q_pids,
        pids,
        q_pids * 0,
        pids * 0 + 1,
    )
    assert result.num_mated == 3000
    assert 0 < result.at(0.1).identified < 15 + 5 * math.sqrt(15)
    assert result.at(0.01).identified < 1.5 + 5 * math.sqrt(1.5)


def test_the_threshold_does_not_see_the_test_probes():
    case, background = random_case(3)
    before = evaluate_open_set(*case, **background, fpirs=FPIRS, seed=2)
    _, _, people, _, rows = split(set(case[3].tolist()) - {0}, 45, 2)
    query, background["background_features"] = case[0].copy(), background["background_features"].copy()
    top = case[1][np.isin(case[3], split(set(case[3].tolist()) - {0}, 45, 2)[0])][0]
    query[np.isin(case[2], people)] = top  # every stranger of the test looks like a listed person
    background["background_features"][rows] = top
    after = evaluate_open_set(query, *case[1:], **background, fpirs=FPIRS, seed=2)
    for a, b in zip(before.points, after.points, strict=True):
        assert (a.threshold, a.identified, a.calibration_alarms) == (b.threshold, b.identified, b.calibration_alarms)
        assert b.test_alarms > a.test_alarms


def test_gallery_rows_of_unlisted_people_and_of_background_change_nothing():
    case, background = random_case(4)
    before = evaluate_open_set(*case, **background, fpirs=FPIRS)
    listed = split(set(case[3].tolist()) - {0}, 45, 1)[0]
    gallery = np.where(np.isin(case[3], listed)[:, None], case[1], case[0][: len(case[1])])
    assert evaluate_open_set(case[0], gallery, *case[2:], **background, fpirs=FPIRS) == before
    assert len(listed) == before.num_listed


def test_the_seed_changes_the_split_and_nothing_else():
    case, background = random_case(5)
    results = [evaluate_open_set(*case, **background, fpirs=FPIRS, seed=seed) for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]
    order = np.random.default_rng(0).permutation(len(case[2]))
    shuffled = (case[0][order], case[1], case[2][order], case[3], case[4][order], case[5])
    again = evaluate_open_set(*shuffled, **background, fpirs=FPIRS, seed=1)
    assert sizes(again) == sizes(results[0])
    assert [p.identified for p in again.points] == [p.identified for p in results[0].points]
    everybody = [evaluate_open_set(*case, **background, listed_fraction=1, seed=seed) for seed in range(4)]
    assert {result.num_mated for result in everybody} == {evaluate_enrolled(*case).num_valid_queries}


def test_another_person_at_the_head_is_no_identification_however_high_the_score():
    gallery = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    background = {"background_features": np.tile([0.1, 0.1, 1.0], (40, 1)), "background_camids": [0] * 40}
    labels = [1, 2], [0, 0], [1, 1]
    for query, tpir in [([0.0, 1.0, 0.1], 0.0), ([1.0, 0.0, 0.1], 1.0), ([1.0, 1.0, 0.0], 1.0)]:  # the last: a tie
        point = evaluate_open_set(
            np.array([query, query]), gallery, [1, 9], *labels, **background, listed_fraction=1
        ).at(0.1)
        assert point.tpir == tpir
    tied = evaluate_open_set(np.ones((2, 3)), gallery, [2, 9], *labels, **background, listed_fraction=1).at(0.1)
    assert tied.tpir == 0.0  # the lower pid comes first


@pytest.mark.parametrize(("score", "tpir"), [(0.6, 0.0), (0.7, 1.0)])
def test_a_score_at_the_threshold_raises_no_alarm(score, tpir):
    result = evaluate_open_set(
        *one_person(score), background_features=np.tile([0.6, 0.8], (40, 1)), background_camids=[0] * 40
    )
    point = result.at(0.1)
    assert (point.threshold, point.tpir, point.calibration_alarms, point.test_fpir) == (0.6, tpir, 0, 0.0)


def test_the_camera_of_a_background_image_leaves_its_rows_out():
    """Only camera 1 has a listed person's look-alike row of the strangers; strangers of camera 1 do not meet it."""
    gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
    arguments = (np.array([[1.0, 0.0]]), gallery, [1], [1, 1], [2], [0, 1])
    strangers = np.tile([0.0, 1.0], (40, 1))
    for camid, threshold in [(0, 1.0), (1, 0.0), (2, math.sqrt(0.5))]:
        result = evaluate_open_set(*arguments, background_features=strangers, background_camids=[camid] * 40)
        assert result.at(0.1).threshold == pytest.approx(threshold)


def test_a_probe_without_a_list_is_dropped():
    background = {"background_features": np.ones((40, 2)), "background_camids": np.repeat([0, 1], [30, 10])}
    result = evaluate_open_set(*one_person(), **background)  # all rows are from camera 1
    assert result.num_background_calibration + result.num_background_test == 30
    assert result.num_calibration == result.num_background_calibration


def test_prototypes_have_no_camera():
    prototypes, pids = np.eye(8), np.arange(8)
    query, q_pids = np.repeat(np.eye(8), 20, axis=0), np.repeat(pids, 20)
    strangers = -np.random.default_rng(0).random((300, 8))
    result = evaluate_open_set(
        query,
        prototypes,
        q_pids,
        pids,
        q_pids % 3,
        pids * 0 - 1,
        background_features=strangers,
        background_pids=(),
        exclude_same_camera=False,
    )
    assert sizes(result) == (4, 80, 190, 190, 150, 150)
    assert result.at(0.01).tpir == 1.0


@pytest.mark.parametrize("people", range(1, 8))
def test_few_people_evaluate(people):
    pids = np.arange(people)
    result = evaluate_open_set(np.eye(people), np.eye(people), pids, pids, pids * 0, pids * 0 + 1, background_pids=())
    listed = max(1, people // 2)
    assert sizes(result)[:2] == (listed, listed)
    assert result.num_calibration + result.num_test == people - listed
    for point in result.points:
        assert (point.tpir, point.threshold, point.identified, point.test_fpir) == (None,) * 4
        assert point.reason.startswith(f"{result.num_calibration} calibration probes cannot show")


@pytest.mark.parametrize(("probes", "shown"), [(19, False), (20, True)])
def test_a_rate_needs_one_calibration_probe_an_alarm(probes, shown):
    background = {"background_features": np.ones((2 * probes, 2)), "background_camids": [0] * 2 * probes}
    point = evaluate_open_set(*one_person(), **background, fpirs=(0.05,)).at(0.05)
    assert (point.tpir is not None) == shown
    assert (point.reason is None) == shown


def test_no_query_of_a_listed_person_gives_a_reason_and_no_error():
    gallery, strangers = np.eye(2), {"background_features": np.ones((40, 2)), "background_camids": [0] * 40}
    results = [
        evaluate_open_set(gallery[:1], gallery, [1], [1, 2], [0], [1, 1], **strangers, seed=seed) for seed in range(9)
    ]
    assert {result.num_mated for result in results} == {0, 1}
    for point, result in [(result.at(0.1), result) for result in results]:
        assert (point.tpir is None) == (result.num_mated == 0)
        assert point.test_fpir == 0.0
        assert point.reason == (
            None if result.num_mated else "No listed person has a query with a template. Pass another seed."
        )


def test_results_are_frozen():
    result = evaluate_open_set(*one_person())
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.num_mated = 2
    with pytest.raises(ValueError, match=r"fpir is 0.5; evaluated: 0.01, 0.1. Evaluate with fpirs=\(0.5,\)"):
        result.at(0.5)


def call(**changes):
    arguments = {
        "query_features": np.ones((1, 2)),
        "gallery_features": np.ones((2, 2)),
        "query_pids": [1],
        "gallery_pids": [1, 2],
        "query_camids": [0],
        "gallery_camids": [1, 1],
        "background_features": np.ones((3, 2)),
        "background_camids": [0, 0, 0],
    }
    return evaluate_open_set(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pids": [7]}, "the pids of query and gallery do not overlap"),
        ({"query_pids": [0], "gallery_pids": [0, 0]}, "do not overlap"),
        ({"gallery_camids": [0, 0]}, "every match shares the query's camera.*say exclude_same_camera=False"),
        ({"gallery_camids": [0, 1]}, "every match shares the query's camera"),
        ({"gallery_features": np.full((2, 2), np.nan)}, r"gallery_features rows 0, 1 \(2 of 2\) hold NaN"),
        ({"gallery_pids": [1]}, r"gallery_pids has shape \(1,\), must be \(2,\)"),
        ({"background_features": np.full((3, 2), np.inf)}, r"background_features rows 0, 1, 2 \(3 of 3\) hold NaN"),
        ({"background_features": np.ones((3, 4))}, "background_features have 4 columns and query_features 2"),
        ({"background_features": np.ones((3, 2), int)}, "background_features is of type int64"),
        ({"background_camids": [0]}, r"background_camids has shape \(1,\), must be \(3,\)"),
        ({"background_features": None}, r"background_camids has shape \(3,\), must be \(0,\)"),
        ({"background_camids": None}, "background_camids is None, must be one camid.*or exclude_same_camera=False"),
        ({"fpirs": ()}, r"fpirs is \(\), must be rates in \(0, 1\)"),
        ({"fpirs": (0.1, 0)}, r"fpirs is \(0.1, 0\), must be rates"),
        ({"fpirs": (1.0,)}, r"fpirs is \(1.0,\), must be rates"),
        ({"listed_fraction": 0}, r"listed_fraction is 0, must lie in \(0, 1\]"),
        ({"listed_fraction": 1.1}, "listed_fraction is 1.1"),
        ({"listed_fraction": math.nan}, "listed_fraction is nan"),
        ({"seed": -1}, "seed is -1, must be a whole number >= 0"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"seed": True}, "seed is True"),
        ({"max_background_probes": 0}, "max_background_probes is 0"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
