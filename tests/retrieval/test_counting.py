"""The compiled count beside a stable sort and beside the count without it."""

import importlib.util
import itertools
import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from ppreid_plugin.retrieval import counting, evaluate, evaluate_distances
from ppreid_plugin.retrieval.counting import Matches, add_above, compiled_loop, positive_ranks

SINGLE = np.dtype(np.float32)
no_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="no Numba")


@pytest.fixture
def fresh_loop():
    """What is found out about Numba is found out again, and forgotten."""
    compiled_loop.cache_clear()
    yield
    compiled_loop.cache_clear()


def sorted_ranks(scores, positives, starts):
    """Ranks in a stable descending sort, NaN last."""
    ranks = np.empty(len(positives), dtype=np.int64)
    for query, row in enumerate(scores):
        place = np.empty(len(row), dtype=np.int64)
        place[np.argsort(-row, kind="stable")] = np.arange(len(row))
        span = slice(starts[query], starts[query + 1])
        ranks[span] = place[positives[span]] + 1
    return ranks


def ranks_of(scores, positives, starts, threads=1, widths=(10**9,), loop=compiled_loop):
    """Ranks of the counts of the columns that these widths make, one after the other, and queries that are left."""
    above = np.zeros(len(positives), dtype=np.int64)
    sought = scores[np.repeat(np.arange(len(scores)), np.diff(starts)), positives]
    start, left = 0, np.array([])
    for width in itertools.cycle(widths):
        part = scores[:, start : start + width]
        left = loop(scores.dtype)(part, positives - start, sought, starts, above, threads)
        start += width
        if start >= scores.shape[1]:
            return above + 1, left


def random_chunk(rng, queries, columns, most, dtype, levels):
    scores = rng.normal(size=(queries, columns)).astype(dtype)
    if levels:
        scores = np.round(scores * levels) / dtype(levels)  # ties, -0 among them
    counts = rng.integers(0, most + 1, queries)
    positives = [np.sort(rng.choice(columns, count, replace=False)) for count in counts]
    ignored = rng.random(scores.shape) < 0.05
    for query, own in enumerate(positives):
        ignored[query, own] = False
    scores[ignored] = np.nan
    return scores, np.concatenate(positives), np.concatenate([[0], np.cumsum(counts)])


def plain(dtype):
    """As :func:`compiled_loop`, the count without it."""

    def loop(*arguments):
        add_above(*arguments[:-1])
        return np.array([], dtype=np.int64)

    return loop


@no_numba
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 7, 255, 256, 257, 1000])
@pytest.mark.parametrize("levels", [0, 2])
def test_ranks_are_those_of_a_stable_sort(dtype, columns, levels):
    rng = np.random.default_rng(columns)
    chunk = random_chunk(rng, 23, columns, min(columns, 9), dtype, levels)
    expected = sorted_ranks(*chunk)
    for threads in (1, 2, 30):  # more than there are queries, too
        np.testing.assert_array_equal(ranks_of(*chunk, threads)[0], expected)
    np.testing.assert_array_equal(ranks_of(*chunk, loop=plain)[0], expected)


@no_numba
@pytest.mark.parametrize("loop", [compiled_loop, plain])
@pytest.mark.parametrize("sort_below", [0, 100])
@pytest.mark.parametrize("levels", [0, 2])
def test_counts_of_parts_add_up(monkeypatch, loop, sort_below, levels):
    monkeypatch.setattr(counting, "SORT_BELOW", sort_below)
    for seed, widths in enumerate([(1,), (300,), (255, 2, 400), (999, 1), (1, 999)]):
        chunk = random_chunk(np.random.default_rng(seed), 11, 1000, 9, np.float32, levels)
        np.testing.assert_array_equal(ranks_of(*chunk, 2, widths, loop)[0], sorted_ranks(*chunk))


@no_numba
def test_rows_of_any_layout():
    chunk = random_chunk(np.random.default_rng(3), 9, 600, 9, np.float32, 0)
    expected = sorted_ranks(*chunk)
    for scores in (np.asfortranarray(chunk[0]), np.repeat(chunk[0], 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(ranks_of(scores, *chunk[1:], 2)[0], expected)


@no_numba
def test_infinities_are_scores_like_others():
    scores = np.array([[np.inf, -np.inf, 0.0, -np.inf, np.nan, np.inf]], dtype=np.float32)
    ranks, _ = ranks_of(scores, np.array([1, 3, 5]), np.array([0, 3]))
    np.testing.assert_array_equal(ranks, [4, 5, 2])


@no_numba
def test_a_query_of_very_many_positives_is_left_to_the_sort(monkeypatch):
    from ppreid_plugin.retrieval.counting_compiled import MOST_POSITIVES

    rng = np.random.default_rng(1)
    pids = np.repeat([0, 1], [MOST_POSITIVES + 1, MOST_POSITIVES])
    chunk = rng.normal(size=(2, len(pids))).astype(np.float32)
    matches = Matches(np.array([0, 1]), pids, np.zeros(2, int), np.ones(len(pids), int), exclude_same_camera=True)
    own = matches.of(0, 2)
    ranks, left = ranks_of(chunk, own.positives, np.concatenate([[0], np.cumsum(own.counts)]))
    assert left.tolist() == [0]
    assert not (ranks[: MOST_POSITIVES + 1] - 1).any()
    assert (ranks[MOST_POSITIVES + 1 :] > 1).any()
    ((plain, counts),) = positive_ranks([(0, chunk.copy())], matches)
    monkeypatch.setattr(counting, "COMPILED_FROM", 0)
    ((found, again),) = positive_ranks([(0, chunk.copy())], matches)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(counts, [MOST_POSITIVES + 1, MOST_POSITIVES])
    np.testing.assert_array_equal(again, counts)


def large_case(dtype=np.float32):
    rng = np.random.default_rng(2)
    pids = rng.integers(0, 40, 150), rng.integers(0, 40, 3000)
    features = [(rng.normal(size=(40, 8))[own] + rng.normal(size=(len(own), 8))).round(1).astype(dtype) for own in pids]
    return *features, *pids, rng.integers(0, 3, 150), rng.integers(0, 3, 3000)


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "all"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_figures_do_not_depend_on_who_counts(monkeypatch, protocol, dtype, threads):
    case = large_case(dtype)
    plain = evaluate(*case, protocol=protocol, metric="euclidean", memory_mb=0.5)
    monkeypatch.setattr(counting, "COMPILED_FROM", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = evaluate(*case, protocol=protocol, metric="euclidean", memory_mb=0.5)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found.cmc, plain.cmc)
    assert (found.mAP, found.mINP, found.num_valid_queries) == (plain.mAP, plain.mINP, plain.num_valid_queries)


@no_numba
def test_the_compiled_count_is_used_from_its_size_on(monkeypatch):
    case = large_case()
    used = []
    real = compiled_loop(np.dtype(np.float32))
    monkeypatch.setattr(counting, "compiled_loop", lambda dtype: lambda *of: used.append(of[0].shape) or real(*of))
    evaluate(*case)
    assert not used
    monkeypatch.setattr(counting, "COMPILED_FROM", 150 * 3000)
    evaluate(*case, memory_mb=1)
    assert len(used) > 1
    assert sum(queries for queries, _ in used) == 150


def test_without_numba_nothing_is_said(monkeypatch, caplog, fresh_loop):
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.DEBUG):
        assert compiled_loop(SINGLE) is None
    assert not caplog.records


@pytest.mark.parametrize("numba", [types.ModuleType("numba"), None])
def test_a_numba_that_does_not_work_is_told_once(monkeypatch, caplog, fresh_loop, numba):
    if numba is None:
        pytest.importorskip("numba")
        monkeypatch.setitem(sys.modules, "ppreid_plugin.retrieval.counting_compiled", types.ModuleType("empty"))
    else:
        monkeypatch.setitem(sys.modules, "numba", numba)  # a stub
    monkeypatch.setattr(counting, "COMPILED_FROM", 0)
    case = large_case()
    found = [evaluate_distances(np.ones((150, 3000), np.float32), *case[2:]).mAP for _ in range(2)]
    assert found[0] == found[1]
    (record,) = caplog.records
    assert "without Numba" in record.message


@no_numba
def test_a_loop_that_counts_wrongly_is_not_used(monkeypatch, caplog, fresh_loop):
    from ppreid_plugin.retrieval import counting_compiled

    monkeypatch.setattr(counting_compiled, "add_above_compiled", lambda *of: of[4].fill(1))
    assert compiled_loop(SINGLE) is None
    assert "it counted [1, 1] where it is [2, 1]" in caplog.text


@no_numba
def test_a_loop_that_would_run_as_python_is_not_used(monkeypatch, caplog, fresh_loop):
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert compiled_loop(SINGLE) is None
    assert not caplog.records


PROGRAM = """
import logging, sys
import numpy as np
from ppreid_plugin.retrieval.counting import compiled_loop
logging.basicConfig(stream=sys.stdout, format="%(message)s")
loop = compiled_loop(np.dtype(np.float64))
above = np.array([1, 1])
loop(np.array([[1.0, 3.0, 2.0]]), np.array([0, 2]), np.array([1.0, 2.0]), np.array([0, 2]), above, 1)
print(above.tolist())
"""


@no_numba
def test_a_compiled_file_that_is_cut_off_stops_nothing_and_is_named(tmp_path):
    def run(cache):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout.splitlines()

    assert run(tmp_path) == ["[3, 2]"]
    kept = list(tmp_path.rglob("*.nbc"))
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:1000])
    warning, ranks = run(tmp_path)
    assert ranks == "[3, 2]"
    assert "compiled anew in each process" in warning
    assert "NUMBA_CACHE_DIR" in warning
