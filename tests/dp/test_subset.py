"""Finite mechanisms: the sets against loops, exact probabilities and ratio, the draw, errors."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppreid_plugin.dp import build_mechanism
from ppreid_plugin.dp.subset import PriorSubset


def codewords(count=7, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, columns))


def build(epsilon=2.0, count=7, set_size=3, **options):
    return build_mechanism("prior_subset", epsilon=epsilon, codebook=codewords(count), set_size=set_size, **options)


def nearest_by_hand(row, codebook, set_size):
    cosines = []
    for word in codebook:
        product = math.fsum(a * b for a, b in zip(row, word, strict=True))
        cosines.append(product / math.hypot(*word))
    return set(sorted(range(len(codebook)), key=lambda s: (-round(cosines[s], 9), s))[:set_size])


@pytest.mark.parametrize("set_size", [1, 2, 6])
def test_the_set_is_the_nearest_codewords_with_ties_by_lowest_index(set_size):
    book = np.concatenate([codewords(4), codewords(4)[::-1] * 3, np.eye(3), np.eye(3)])  # every direction twice
    mechanism = build_mechanism("prior_subset", epsilon=1.0, codebook=book, set_size=set_size)
    rows = np.concatenate([np.random.default_rng(1).normal(size=(40, 3)), np.eye(3), -np.eye(3), np.ones((1, 3)), book])
    sets = mechanism.sets(torch.from_numpy(rows)).numpy()
    assert (sets.sum(axis=1) == set_size).all()
    for row, chosen in zip(rows, sets, strict=True):
        assert set(np.flatnonzero(chosen)) == nearest_by_hand(row, book, set_size)


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 4.0, 100.0, 700.0])
@pytest.mark.parametrize(("count", "set_size"), [(2, 1), (7, 1), (7, 3), (7, 6), (4096, 16)])
def test_probabilities_are_exact(epsilon, count, set_size):
    probabilities = build(epsilon, count, set_size).symbol_probabilities(np.random.default_rng(1).normal(size=(30, 3)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    ratio = np.log(probabilities.max(axis=0)) - np.log(probabilities.min(axis=0))
    assert ratio.max() == pytest.approx(epsilon, rel=1e-12)
    assert (probabilities == probabilities.max()).sum() == 30 * set_size
    if epsilon < 600:
        assert probabilities.max() == pytest.approx(
            math.exp(epsilon) / (set_size * math.exp(epsilon) + count - set_size), rel=1e-12
        )


@pytest.mark.parametrize("generator", [None, np.random.default_rng(3), torch.Generator().manual_seed(3)])
@pytest.mark.parametrize(("count", "set_size"), [(2, 1), (7, 3), (7, 6)])
def test_symbols_follow_the_probabilities(count, set_size, generator):
    """Chi-squared; false alarm 1e-5."""
    mechanism, draws = build(1.0, count, set_size), 50_000
    row = np.array([[0.3, -1.0, 0.2]])
    drawn = mechanism.symbols(np.repeat(row, draws, axis=0), generator=generator)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=count)
    assert len(counts) == count
    assert stats.chisquare(counts, mechanism.symbol_probabilities(row)[0] * draws).pvalue > 1e-5


def test_output_is_the_decoder_row_of_the_symbol():
    decoder = codewords(7, seed=5)
    mechanism, rows = build(decoder=decoder), np.random.default_rng(1).normal(size=(200, 3))
    symbols = mechanism.symbols(rows, generator=np.random.default_rng(2))
    released = mechanism.privatize(rows, generator=np.random.default_rng(2))
    np.testing.assert_array_equal(released, decoder[symbols])
    plain = build().privatize(torch.from_numpy(rows).float(), generator=np.random.default_rng(2))
    np.testing.assert_array_equal(plain.numpy(), codewords().astype(np.float32)[symbols])


def test_codebook_is_the_set_of_one():
    rows = np.random.default_rng(1).normal(size=(20, 3))
    one = build_mechanism("codebook", epsilon=3.0, codebook=codewords())
    np.testing.assert_array_equal(one.symbol_probabilities(rows), build(3.0, set_size=1).symbol_probabilities(rows))
    assert (one.set_size, one.describe()["codewords"], one.describe()["set_size"]) == (1, 7, 1)


@pytest.mark.parametrize(("epsilon", "kept"), [(4.0, 0.05), (8.0, 0.745), (16.0, 1.0)])
def test_kept_probability_of_the_field_notes(epsilon, kept):
    mechanism = build_mechanism("codebook", epsilon=epsilon, codebook=np.eye(1024))
    assert 1 - mechanism.outside == pytest.approx(kept, abs=2e-3)


def test_length_does_not_matter_and_a_zero_row_has_the_first_codewords():
    mechanism = build()
    row = np.array([[0.3, -1.0, 0.2]])
    scaled = np.concatenate([row * 1e300, row * 1e-300, row])
    assert (mechanism.symbol_probabilities(scaled) == mechanism.symbol_probabilities(row)).all()
    zero = mechanism.sets(torch.zeros(1, 3)).numpy()
    np.testing.assert_array_equal(zero, [[True, True, True, False, False, False, False]])


def test_chunks_change_nothing_but_the_order_of_draws(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(50, 3))
    whole = build().symbol_probabilities(rows)
    monkeypatch.setattr("ppreid_plugin.dp.arrays.CHUNK_ELEMENTS", 6)
    np.testing.assert_array_equal(build().symbol_probabilities(rows), whole)
    assert build(epsilon=200.0).privatize(rows).shape == (50, 3)
    symbols = build(epsilon=200.0).symbols(rows)
    assert all(whole[row, symbol] == whole.max() for row, symbol in enumerate(symbols))


def test_codebook_is_a_read_only_copy():
    book = codewords()
    mechanism = build_mechanism("codebook", epsilon=1.0, codebook=torch.from_numpy(book))
    book[:] = 0
    assert mechanism.codebook.any()
    with pytest.raises(ValueError, match="read-only"):
        mechanism.codebook[0] = 1


@pytest.mark.gpu
def test_gpu_gives_the_same_sets():
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 3)))
    np.testing.assert_array_equal(build().symbol_probabilities(rows.cuda()), build().symbol_probabilities(rows))
    assert build().privatize(rows.cuda()).is_cuda


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_mechanism("codebook", epsilon=1.0), r"mechanism 'codebook' needs codebook=\(M, d\)"),
        (lambda: build(set_size=0), "set_size is 0, must be 1 to 6"),
        (lambda: build(set_size=7), "set_size is 7, must be 1 to 6: with all 7 codewords in every set"),
        (lambda: build(set_size=2.0), "set_size is 2.0"),
        (lambda: build(set_size=True), "set_size is True"),
        (lambda: build(epsilon=0.0), "epsilon is 0.0"),
        (lambda: build(delta=1e-5), "delta is 1e-05, prior_subset is pure"),
        (lambda: build(decoder=codewords(6)), r"decoder has shape \(6, 3\), must be that of the codebook, \(7, 3\)"),
        (lambda: build(decoder=np.full((7, 3), np.nan)), r"decoder rows 0, 1, 2, 3, 4 \(7 of 7\) hold NaN"),
        (lambda: build_mechanism("codebook", epsilon=1.0, codebook=np.ones(3)), r"codebook has shape \(3,\), must be"),
        (lambda: build_mechanism("codebook", epsilon=1.0, codebook=np.ones((1, 3))), r"codebook has shape \(1, 3\)"),
        (lambda: build_mechanism("codebook", epsilon=1.0, codebook=np.zeros((2, 3))), "codebook row 0 is zero"),
        (lambda: build().privatize(np.ones((2, 4))), "features have 4 columns, the codebook has 3"),
        (lambda: build().symbols(np.full((1, 3), np.inf)), "hold NaN or infinity"),
        (
            lambda: build_mechanism("codebook", epsilon=1.0, set_size=2),
            "takes no argument 'set_size'; further arguments: codebook, decoder",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("set_size", [1, 4, 11])
def test_marginal_and_expected_are_those_of_the_full_matrix(set_size):
    rng = np.random.default_rng(3)
    mechanism = PriorSubset(epsilon=1.5, codebook=rng.normal(size=(12, 5)), set_size=set_size)
    rows, weights = rng.normal(size=(40, 5)), rng.normal(size=12)
    probabilities = mechanism.symbol_probabilities(rows)
    np.testing.assert_allclose(mechanism.marginal(rows), probabilities.mean(axis=0))
    np.testing.assert_allclose(mechanism.expected(rows, weights), probabilities @ weights)
