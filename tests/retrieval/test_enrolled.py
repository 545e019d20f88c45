"""The enrolled protocol against a naive loop over templates."""

import numpy as np
import pytest
import torch

import oracles
from ppreid_plugin.retrieval import evaluate_enrolled


def random_case(seed, num_query=25, num_gallery=60, people=9, cameras=3, dimension=8):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, people + 1, num_query), rng.integers(0, people, num_gallery)
    q_camids, g_camids = rng.integers(0, cameras, num_query), rng.integers(0, cameras, num_gallery)
    g_camids[g_pids == 3] = 0  # this person is in the lists of two cameras only
    centers = rng.normal(size=(people + 1, dimension))
    query = centers[q_pids] + rng.normal(size=(num_query, dimension))
    gallery = (centers[g_pids] + rng.normal(size=(num_gallery, dimension))) * rng.uniform(0.1, 9, (num_gallery, 1))
    return query, gallery, q_pids, g_pids, q_camids, g_camids


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("background", [(0,), (), (2, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_loop(seed, background, exclude):
    case = random_case(seed)
    ranks = np.array(oracles.enrolled_ranks(*case, background=background, same_camera_dropped=exclude))
    result = evaluate_enrolled(*case, background_pids=background, exclude_same_camera=exclude, max_rank=12)
    np.testing.assert_allclose(result.cmc, [(ranks <= k).mean() for k in range(1, 13)])
    assert result.mrr == pytest.approx((1 / ranks).mean())
    assert result.rank1 == (ranks == 1).mean()
    assert result.num_valid_queries == len(ranks)


@pytest.mark.parametrize("max_rank", [2, 3])
def test_a_match_exactly_at_max_rank_counts(max_rank):
    gallery = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    result = evaluate_enrolled(gallery[:1], gallery, [3], [1, 2, 3], [0], [1, 1, 1], max_rank=max_rank)
    np.testing.assert_array_equal(result.cmc, [0.0, 0.0, 1.0][:max_rank])


def test_people_and_rows_a_person_leave_background_out():
    _, gallery, _, _, _, _ = random_case(0, num_gallery=10)
    result = evaluate_enrolled(gallery[:1], gallery, [1], [0, 0, 0, 0, 0, 1, 2, 2, 3, 3], [5], np.zeros(10, int))
    assert (result.num_people, result.rows_median, result.rows_largest) == (3, 2.0, 2)


def test_same_camera_rows_leave_every_template_and_not_only_the_querys():
    """Person 2 has a perfect row in the query's camera: it must not be able to win the list."""
    gallery = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    arguments = (np.array([[1.0, 0.0]]), gallery, [1], [1, 2, 2], [0], [1, 0, 1])
    assert evaluate_enrolled(*arguments).rank1 == 1.0
    gallery[2] = [-1e-3, 1e-3]  # rows count as directions: a short row weighs as much as a long one
    assert evaluate_enrolled(*arguments, exclude_same_camera=False).rank1 == 1.0


def test_templates_are_averaged_in_float64():
    """1 + 2 x 2^-25 - 1 is nothing in float32."""
    tiny = 2.0**-25
    theirs = np.array([[1, 0], [tiny, 1], [tiny, -1], [-1, 0]], dtype=np.float32)
    gallery = np.concatenate([theirs, np.array([[1, 1]], dtype=np.float32)])
    result = evaluate_enrolled(
        np.array([[1, 0]], dtype=np.float32), gallery, [5], [5, 5, 5, 5, 6], [0], np.ones(5, int)
    )
    assert result.rank1 == 1.0


def test_ties_go_to_the_lower_pid():
    gallery, camids = np.ones((3, 2)), [1, 1, 1]
    for pid, rank in [(4, 1), (5, 2), (9, 3)]:
        assert evaluate_enrolled(np.ones((1, 2)), gallery, [pid], [9, 5, 4], [0], camids).mrr == pytest.approx(1 / rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors(dtype):
    case = [torch.from_numpy(part) for part in random_case(1)]
    case[0], case[1] = case[0].to(dtype), case[1].to(dtype)
    ranks = oracles.enrolled_ranks(*(part.tolist() for part in case))
    assert evaluate_enrolled(*case).mrr == pytest.approx(np.mean(1 / np.array(ranks)))


def call(**changes):
    arguments = {
        "query_features": np.ones((1, 2)),
        "gallery_features": np.ones((2, 2)),
        "query_pids": [1],
        "gallery_pids": [1, 2],
        "query_camids": [0],
        "gallery_camids": [1, 1],
    }
    return evaluate_enrolled(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pids": [7]}, "the pids of query and gallery do not overlap"),
        ({"query_pids": [0], "gallery_pids": [0, 0]}, "do not overlap"),
        ({"gallery_camids": [0, 0]}, "every match shares the query's camera.*say exclude_same_camera=False"),
        ({"gallery_camids": [0, 1]}, "every match shares the query's camera"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"gallery_features": np.full((2, 2), np.nan)}, r"gallery_features rows 0, 1 \(2 of 2\) hold NaN"),
        ({"gallery_pids": [1]}, r"gallery_pids has shape \(1,\), must be \(2,\)"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
