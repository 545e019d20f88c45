"""Codebook releases stored as symbols: the scores are those of the decoded rows, and the order too."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import ArraySource, index_of, naive, release, subset, unit

from ppreid_plugin.dp.codebooks import LevelCodebook, ProjectedCodebook
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.search import build_index, open_index
from ppreid_plugin.search.symbols import SymbolTable, best_rows, bytes_for, postings

RNG = np.random.default_rng(2)
BASIS = np.linalg.qr(RNG.normal(size=(16, 5)))[0].T
LEVELS = [RNG.normal(size=(size, 16)) for size in (7, 6, 5)]
COEFFICIENTS = RNG.normal(size=(300, 5))
DECODER = RNG.normal(size=(40, 16))
BOOKS = {
    "dense": {"codewords": RNG.normal(size=(40, 16)), "codebook": DECODER.astype(np.float32)},
    "levels": LevelCodebook(*LEVELS).arrays(),
    "levels, decoded to means": {**LevelCodebook(*LEVELS).arrays(), "codebook": RNG.normal(size=(210, 16))},
    "projected": ProjectedCodebook(COEFFICIENTS, BASIS).arrays(),
}
# what each symbol stands for, from the definition in docs/release-format.md
STANDS_FOR = {
    "dense": DECODER,
    "levels": np.array([a + b + c for a, b, c in itertools.product(*LEVELS)]),
    "levels, decoded to means": BOOKS["levels, decoded to means"]["codebook"],
    "projected": COEFFICIENTS @ BASIS,
}


@pytest.mark.parametrize("book", BOOKS)
def test_codes_score_as_the_rows_that_they_stand_for(tmp_path, book):
    rows = unit(STANDS_FOR[book])
    symbols = np.random.default_rng(3).integers(0, len(rows), 700)
    source = ArraySource(symbols=symbols, arrays=BOOKS[book])
    codes, floats = (index_of(tmp_path / kind, source, storage=kind) for kind in ("codes", "float32"))
    queries = np.random.default_rng(4).normal(size=(11, 16))
    found = zip(codes.search(queries, 25), floats.search(queries, 25), naive(rows[symbols], queries, 25), strict=True)
    for by_code, by_float, (order, scores) in found:
        np.testing.assert_allclose(by_code.scores, scores, atol=1e-7 if book == "dense" else 1e-12)
        np.testing.assert_allclose(by_code.scores, by_float.scores, atol=1e-6)
        if book != "dense":  # the decoder of a dense one is float32, which may swap near ones
            assert by_code.numbers.tolist() == order
        assert sorted(symbols[by_code.numbers]) == sorted(symbols[order])
    assert codes.record.files["symbols.npy"]["bytes"] == 700 * (1 if len(rows) <= 256 else 2) + 128
    np.testing.assert_allclose(next(codes.batches(0, 700)).features, rows[symbols], atol=1e-6)
    np.testing.assert_array_equal(next(codes.batches(0, 700)).symbols, symbols)


@settings(deadline=None)
@given(
    size=st.sampled_from([2, 3, 255, 256, 257, 65_536, 65_537, 279_841, 2**24, 2**24 + 1]),
    data=st.data(),
)
def test_symbols_take_the_bytes_that_their_number_needs(size, data):
    table = object.__new__(SymbolTable)
    table.size = size
    table.bytes_a_symbol = bytes_for(size)
    assert 256 ** (table.bytes_a_symbol - 1) < size <= 256**table.bytes_a_symbol
    symbols = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    packed = table.packed(symbols)
    assert packed.shape == (len(symbols), table.bytes_a_symbol)
    np.testing.assert_array_equal(table.unpacked(packed), symbols)


@given(
    symbols=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    scores=st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.25 + 1e-16, 0.9]), min_size=7, max_size=7),
    top=st.integers(1, 40),
)
def test_reading_the_best_symbols_only_is_sorting_all_rows(symbols, scores, top):
    """Symbols with equal scores, symbols that no row has, lists longer than the gallery."""
    symbols, table = np.array(symbols), np.array(scores)
    found, numbers = best_rows(table, *postings(symbols, 7), min(top, len(symbols)))
    expected = sorted(range(len(symbols)), key=lambda row: (-table[symbols[row]], row))[:top]
    assert numbers.tolist() == expected
    np.testing.assert_array_equal(found, table[symbols[expected]])


def test_a_release_of_symbols_is_indexed_by_symbol(tmp_path):
    release(tmp_path, mechanism=subset())
    codes = build_index(tmp_path / "release", tmp_path / "codes")
    assert codes.options == {"storage": "codes"}
    build_index(tmp_path / "release", tmp_path / "floats", options={"storage": "float32"})
    stored = load_release(tmp_path / "release")
    with open_index(tmp_path / "codes") as one, open_index(tmp_path / "floats") as other:
        queries = one.transform_queries(np.random.default_rng(1).normal(size=(8, 12)))
        expected = naive(unit(stored.features), queries, 6)
        for a, b, (order, scores) in zip(one.search(queries, 6), other.search(queries, 6), expected, strict=True):
            np.testing.assert_allclose(a.scores, scores, atol=1e-7)
            np.testing.assert_allclose(b.scores, scores, atol=1e-7)
            assert a.row_ids == b.row_ids == tuple(stored.row_ids[row] for row in order)


def test_rows_are_not_stored_as_codes(tmp_path):
    release(tmp_path)
    with pytest.raises(ValueError, match="storage is 'codes', which needs a release of symbols"):
        build_index(tmp_path / "release", tmp_path / "i", options={"storage": "codes"})
    assert not (tmp_path / "i/index.json").exists()
