"""People instead of rows: templates as the enrolled protocol defines them, and a person's best row."""

import numpy as np
import pytest
import torch
from search_cases import ArraySource, gallery, index_of, release, unit

from ppreid_plugin.retrieval.enrolled import evaluate_enrolled, templates_of
from ppreid_plugin.search import build_index, open_index, people, search_people

RNG = np.random.default_rng(11)
COUNT, DIM = 240, 10
PIDS = RNG.integers(0, 40, COUNT)
CAMIDS = RNG.integers(0, 4, COUNT)
FEATURES = RNG.normal(size=(40, DIM))[PIDS] + 0.8 * RNG.normal(size=(COUNT, DIM))
QUERIES = RNG.normal(size=(23, DIM))


@pytest.fixture
def index(tmp_path):
    with index_of(tmp_path / "i", ArraySource(FEATURES, pids=PIDS, camids=CAMIDS)) as opened:
        yield opened


@pytest.mark.parametrize("camera", [None, 2])
def test_templates_are_those_of_the_enrolled_protocol(index, camera, monkeypatch):
    monkeypatch.setattr(people, "_BATCH", 37)
    monkeypatch.setattr(people, "_TEMPLATES_AT_ONCE", 7)
    used = (PIDS != 0) & (np.ones(COUNT, bool) if camera is None else np.not_equal(CAMIDS, camera))
    names, person = np.unique(PIDS[used], return_inverse=True)
    rows = torch.from_numpy(unit(FEATURES)[used])
    _, templates = templates_of(rows, person)
    for hits, query in zip(
        search_people(index, QUERIES, 6, exclude_camera=camera), torch.from_numpy(unit(QUERIES)), strict=True
    ):
        scores = (templates @ query).numpy()
        order = np.lexsort((names, -scores))[:6]
        assert hits.pids.tolist() == names[order].tolist()
        np.testing.assert_allclose(hits.scores, scores[order], atol=1e-6)
        assert hits.row_ids == ()


def test_rank_1_is_that_of_the_enrolled_evaluation(index):
    q_pids, q_camids = RNG.integers(1, 40, 23), RNG.integers(0, 4, 23)
    expected = evaluate_enrolled(QUERIES, FEATURES, q_pids, PIDS, q_camids, CAMIDS)
    counted, right = 0, 0
    for query, pid, camera in zip(QUERIES, q_pids, q_camids, strict=True):
        (hits,) = search_people(index, query[None], 40, exclude_camera=int(camera))
        if pid in hits.pids:
            counted += 1
            right += hits.pids[0] == pid
    assert counted == expected.num_valid_queries
    assert right / counted == pytest.approx(expected.rank1)


@pytest.mark.parametrize("camera", [None, 1])
@pytest.mark.parametrize("top", [1, 3, 39, 100])
def test_a_persons_best_row(index, top, camera):
    rows = unit(FEATURES).astype(np.float32).astype(np.float64)
    for hits, query in zip(
        search_people(index, QUERIES, top, fuse="best", exclude_camera=camera), unit(QUERIES), strict=True
    ):
        scores = rows @ query
        best = {}
        for number in np.argsort(-scores, kind="stable"):
            if PIDS[number] != 0 and CAMIDS[number] != camera:
                best.setdefault(int(PIDS[number]), (scores[number], number))
        order = sorted(best, key=lambda pid: (-best[pid][0], pid))[:top]
        assert hits.pids.tolist() == order
        assert hits.row_ids == tuple(f"r{best[pid][1]}" for pid in order)
        np.testing.assert_allclose(hits.scores, [best[pid][0] for pid in order], atol=1e-12)


@pytest.mark.parametrize("fuse", ["best", "template"])
def test_people_with_equal_scores_come_by_pid(tmp_path, fuse):
    """The same row for all: the lower pid is first, though its rows stand last."""
    source = ArraySource(np.ones((30, 4)), pids=np.repeat([9, 8, 7, 6, 5], 6))
    index = index_of(tmp_path / "i", source)
    (hits,) = search_people(index, np.ones((1, 4)), 2, fuse=fuse)
    assert hits.pids.tolist() == [5, 6]


def test_templates_are_made_once(index, monkeypatch):
    passes = []
    batches = index.batches
    monkeypatch.setattr(index, "batches", lambda *arguments: passes.append(1) or batches(*arguments))
    for _ in range(3):
        search_people(index, QUERIES, 2)
    assert len(passes) == 1
    search_people(index, QUERIES, 2, exclude_camera=1)
    assert len(passes) == 2


def test_a_prototype_is_its_own_template(tmp_path):
    stored = release(tmp_path, gallery(people=5), unit="person")
    build_index(tmp_path / "release", tmp_path / "i")
    with open_index(tmp_path / "i") as index:
        queries = index.transform_queries(np.random.default_rng(0).normal(size=(4, 12)))
        for hits, row in zip(search_people(index, queries, 9), index.search(queries, 9), strict=True):
            real = row.pids != 0  # background rows are units of their own, and nobody
            assert hits.pids.tolist() == row.pids[real].tolist()
            np.testing.assert_allclose(hits.scores, row.scores[real], atol=1e-6)
        with pytest.raises(ValueError, match="exclude_camera is 1, but these rows are prototypes"):
            search_people(index, queries, exclude_camera=1)
    assert stored.manifest["unit"] == "person"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fuse": "mean"}, "fuse is 'mean'; allowed: template, best"),
        ({"top": 0}, "top is 0, must be a whole number >= 1"),
        ({"queries": np.ones((1, 3))}, "queries have 3 columns"),
        ({"queries": np.ones((1, 3)), "fuse": "best"}, "queries have 3 columns"),
    ],
)
def test_errors(index, arguments, message):
    with pytest.raises(ValueError, match=message):
        search_people(index, arguments.pop("queries", QUERIES), **arguments)


def test_an_anonymous_release_has_no_people(tmp_path):
    index = index_of(tmp_path / "i", ArraySource(FEATURES))
    with pytest.raises(ValueError, match="is anonymous: its rows carry no pid, so there are no people"):
        search_people(index, QUERIES)
