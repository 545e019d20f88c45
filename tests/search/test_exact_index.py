"""The exact backend against a loop over float64 products: every storage, ties, blocks, shapes, damaged files."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import ArraySource, index_of, naive, unit

from ppreid_plugin.search import exact, open_index
from ppreid_plugin.search.storage import STORAGES, build_storage, bytes_a_row

FLOATS = ("float32", "float16", "int8")
COUNTER = itertools.count()


def stored_rows(index):
    return np.concatenate([index.storage.decode(index.columns_at(slice(0, len(index)))).numpy()])


@pytest.mark.parametrize("storage", FLOATS)
@pytest.mark.parametrize("asked", [1, 5, 17])  # each multiplied in its own way
def test_the_answer_is_that_of_a_loop_in_float64(tmp_path, storage, asked, monkeypatch):
    rng = np.random.default_rng(1)
    source = ArraySource(rng.normal(size=(503, 24)), pids=np.arange(503) // 4)
    index = index_of(tmp_path / "i", source, storage=storage)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 4 * 24 * 50)  # eleven blocks
    queries = rng.normal(size=(asked, 24)).astype(np.float32)
    for hits, (order, scores) in zip(index.search(queries, 9), naive(stored_rows(index), queries, 9), strict=True):
        assert hits.numbers.tolist() == order
        np.testing.assert_allclose(hits.scores, scores, rtol=0, atol=1e-14)
        assert hits.row_ids == tuple(f"r{number}" for number in order)
        assert hits.pids.tolist() == [number // 4 for number in order]
        assert hits.camids is None


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    kinds=st.integers(1, 6),
    top=st.integers(1, 50),
    block=st.integers(1, 50),
    storage=st.sampled_from(FLOATS),
    seed=st.integers(0, 99),
)
def test_equal_rows_come_in_row_order_whatever_the_blocks(tmp_path_factory, rows, kinds, top, block, storage, seed):
    """Few kinds of rows: most scores tie, at the edge of the list too."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, kinds, rows)
    source = ArraySource(rng.normal(size=(kinds, 5))[which])
    index = index_of(tmp_path_factory.mktemp("h") / str(next(COUNTER)), source, storage=storage)
    queries = rng.normal(size=(3, 5))
    before = exact.BLOCK_BYTES
    try:
        exact.BLOCK_BYTES = 4 * 5 * block
        found = index.search(queries, top)
        alone = [index.search(query[None], top)[0] for query in queries]
    finally:
        exact.BLOCK_BYTES = before
    for hits, single, query in zip(found, alone, unit(queries), strict=True):
        assert len(hits) == min(top, rows)
        np.testing.assert_array_equal(hits.numbers, single.numbers)
        np.testing.assert_array_equal(hits.scores, single.scores)  # bit for bit: a query's batch does not matter
        scores = {kind: index.rescored(torch.from_numpy(query), np.flatnonzero(which == kind)[:1], 1)[0]
                  for kind in set(which)}  # fmt: skip
        expected = sorted(range(rows), key=lambda number: (-scores[which[number]][0], number))[:top]
        assert hits.numbers.tolist() == expected


def test_a_zero_query_ties_with_everything(tmp_path, monkeypatch):
    index = index_of(tmp_path / "i", ArraySource(np.random.default_rng(0).normal(size=(60, 4))))
    monkeypatch.setattr(exact, "BLOCK_BYTES", 4 * 4 * 7)
    (hits,) = index.search(np.zeros((1, 4)), 5)
    assert hits.numbers.tolist() == [0, 1, 2, 3, 4]
    assert not hits.scores.any()


def test_rows_that_float32_cannot_tell_apart_are_told_apart(tmp_path):
    """Scores that differ by less than float32 rounding: the order is that of the float64 products."""
    rng = np.random.default_rng(3)
    query = rng.normal(size=64)
    near = query + 1e-7 * rng.normal(size=(300, 64))
    index = index_of(tmp_path / "i", ArraySource(near))
    (hits,) = index.search(query[None], 20)
    ((order, _),) = naive(stored_rows(index), query[None], 20)
    assert hits.numbers.tolist() == order
    assert len(set(hits.scores.tolist())) > 10


@pytest.mark.parametrize(("storage", "most"), [("float32", 1e-7), ("float16", 6e-4), ("int8", 0.009)])
def test_what_storage_loses(tmp_path, storage, most):
    rng = np.random.default_rng(4)
    rows = unit(rng.normal(size=(200, 64)))
    index = index_of(tmp_path / "i", ArraySource(rows), storage=storage)
    kept = stored_rows(index)
    loss = np.linalg.norm(kept - rows, axis=1)
    # int8: a step is the largest number over 127, its rounding error uniform: sqrt(64 / 12) steps
    assert most / 100 < loss.max() < most if storage != "int8" else loss.max() < most
    expected = {"float32": 256, "float16": 128, "int8": 68}[storage]
    assert bytes_a_row(index.storage) == expected
    sizes = {name: told["bytes"] for name, told in index.record.files.items() if name.startswith(("rows", "scales"))}
    assert sum(sizes.values()) == 200 * expected + 128 * len(sizes)  # and the header of each file


def test_int8_rows_keep_their_length_and_a_zero_row_stays(tmp_path):
    rows = np.random.default_rng(4).normal(size=(30, 8))
    rows[7] = 0
    index = index_of(tmp_path / "i", ArraySource(rows), storage="int8")
    lengths = np.linalg.norm(stored_rows(index), axis=1)
    np.testing.assert_allclose(np.delete(lengths, 7), 1.0, atol=1e-6)
    assert lengths[7] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(np.ones((1, 5)), 3), r"queries have 5 columns, the index of release .* has 6"),
        (lambda index: index.search(np.full((1, 6), np.nan), 3), r"queries rows 0 \(1 of 1\) hold NaN"),
        (lambda index: index.search(np.ones(6), 3), r"queries has shape \(6,\), must be"),
        (lambda index: index.search(np.ones((1, 6)), 0), "top is 0, must be a whole number >= 1"),
        (lambda index: index.search(np.ones((1, 6), dtype=int), 3), "queries is of type int64, must be floating"),
        (lambda index: build_storage("float8", 6, None), "storage is 'float8'; registered: codes, float16, float32"),
        (lambda index: build_storage("codes", 6, None), "needs a release of symbols"),
    ],
)
def test_errors_name_the_value_and_the_fix(tmp_path, call, message):
    index = index_of(tmp_path / "i", ArraySource(np.eye(6)))
    with pytest.raises(ValueError, match=message):
        call(index)


@pytest.mark.parametrize("name", ["rows.npy", "row_ids.npy", "pids.npy"])
@pytest.mark.parametrize("cut", [1, 60, 10**6])
def test_a_file_that_was_cut_off_or_removed_is_named(tmp_path, name, cut):
    index_of(tmp_path / "i", ArraySource(np.eye(6), pids=np.arange(6)))
    path = tmp_path / "i/rows-0001" / name
    data = path.read_bytes()
    if cut < len(data):
        path.write_bytes(data[:-cut])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=rf"{name}' (holds \d+ bytes, must be \d+: cut off|is missing)"):
        open_index(tmp_path / "i")


def test_a_file_of_another_shape_is_named(tmp_path):
    index_of(tmp_path / "i", ArraySource(np.eye(6)))
    path = tmp_path / "i/rows-0001/rows.npy"
    np.save(path, np.zeros((9, 4), dtype=np.float32))  # as long as the right one
    with pytest.raises(ValueError, match=r"holds float32 of shape \(9, 4\), index.json says float32 of shape \(6, 6\)"):
        open_index(tmp_path / "i")


def test_the_file_is_never_written_by_a_search(tmp_path):
    index = index_of(tmp_path / "i", ArraySource(np.eye(6)), storage="int8")
    before = (tmp_path / "i/rows-0001/rows.npy").read_bytes()
    index.stored["rows"][:] = 0
    assert (tmp_path / "i/rows-0001/rows.npy").read_bytes() == before
    assert sorted(STORAGES.names()) == ["codes", "float16", "float32", "int8"]
