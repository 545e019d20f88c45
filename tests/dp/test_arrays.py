"""The norm bound: it must hold after rounding, for every row, whatever the row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppreid_plugin.dp import clip_rows

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 16))
LARGEST = {np.float16: 65504.0, np.float32: float(np.finfo(np.float32).max), np.float64: float(np.finfo(float).max)}


def norms(rows):
    """Norms in extended precision, of rows of any size."""
    rows = np.asarray(rows).astype(np.longdouble)
    return np.sqrt((rows**2).sum(axis=1))


@st.composite
def features(draw):
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    width = np.dtype(dtype).itemsize * 8
    top = LARGEST[dtype]
    return draw(arrays(dtype, SHAPES, elements=st.floats(-top, top, width=width, allow_subnormal=True)))


@settings(max_examples=300, deadline=None)
@given(features=features(), clip_norm=st.sampled_from([1.0, 0.1, 3.0, 1e-6, 1e6, 1e-30, 1e30]))
def test_clip_bounds_the_norm_row_by_row(features, clip_norm):
    clipped = clip_rows(features, clip_norm)
    assert clipped.dtype == features.dtype
    assert (norms(clipped) <= clip_norm).all()
    assert np.linalg.norm(clipped.astype(np.float64), axis=1).max() <= clip_norm
    np.testing.assert_array_equal(clip_rows(features[:1], clip_norm), clipped[:1])  # no row depends on its neighbors
    np.testing.assert_array_equal(clip_rows(clipped, clip_norm), clipped)
    short = norms(features) < clip_norm * (1 - 1e-11)
    np.testing.assert_array_equal(clipped[short], features[short])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 2, 512, 2048])
def test_clipped_rows_keep_direction_and_nearly_all_their_length(dtype, columns):
    rows = (np.random.default_rng(0).normal(size=(50, columns)) * 9).astype(dtype)
    rows = rows[norms(rows) > 1.01]
    clipped = clip_rows(rows, 1.0)
    np.testing.assert_allclose(
        clipped.astype(float), rows / norms(rows)[:, None].astype(float), atol=2 * np.finfo(dtype).eps
    )
    assert (norms(clipped) <= 1.0).all()


@pytest.mark.parametrize("columns", [3, 64, 512, 2048])
def test_unit_rows_are_bounded_whichever_way_the_norm_is_summed(columns):
    rows = np.random.default_rng(0).normal(size=(500, columns))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clipped = clip_rows(rows, 1.0)
    np.testing.assert_allclose(clipped, rows, rtol=1e-11)
    for order in (clipped, clipped[:, ::-1], np.sort(clipped, axis=1)):
        assert max(sum(value * value for value in row) for row in order.tolist()) <= 1.0
        assert np.linalg.norm(order, axis=1).max() <= 1.0


@pytest.mark.parametrize("value", [1e300, -1e300, 1.7e308, 5e-324, 1e-310, 0.0])
def test_huge_denormal_and_zero_rows(value):
    clipped = clip_rows(np.full((3, 4), value), 1.0)
    expected = 0.5 * np.sign(value) if abs(value) > 1 else value
    np.testing.assert_allclose(clipped, np.full((3, 4), expected), rtol=1e-11)


def test_input_is_left_alone_and_may_be_read_only_or_strided():
    rows = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 8)) * 5)[::2, ::-1]
    rows.flags.writeable = False
    before = rows.copy()
    np.testing.assert_array_equal(clip_rows(rows, 1.0), clip_rows(before, 1.0))
    np.testing.assert_array_equal(rows, before)
    short = torch.full((2, 2), 0.1)
    assert clip_rows(short, 1.0).data_ptr() != short.data_ptr()


def test_tensors_and_chunks_give_the_same_rows(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(37, 8)).astype(np.float32)
    whole = clip_rows(rows, 1.0)
    monkeypatch.setattr("ppreid_plugin.dp.arrays.CHUNK_ELEMENTS", 50)
    np.testing.assert_array_equal(clip_rows(rows, 1.0), whole)
    tensor = clip_rows(torch.from_numpy(rows).requires_grad_(), 1.0)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), whole)
    assert not tensor.requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty(shape):
    assert clip_rows(np.zeros(shape), 1.0).shape == shape


@pytest.mark.parametrize(
    ("features", "clip_norm", "message"),
    [
        (np.ones((2, 2)), 0.0, "clip_norm is 0.0, must be a finite number > 0"),
        (np.ones((2, 2)), np.nan, "clip_norm is nan"),
        (np.ones((2, 2)), True, "clip_norm is True"),
        (np.ones((2, 2)), 1e-40, r"clip_norm is 1e-40, must be in \[1e-30, 1e\+30\]"),
        (np.ones(2), 1.0, r"features has shape \(2,\), must be \(n, d\)"),
        (np.ones((2, 2), int), 1.0, "features is of type int64, must be float16, float32 or float64"),
        (torch.ones(2, 2, dtype=torch.int32), 1.0, "features is of type int32"),
        ([["a"]], 1.0, "features is of type <U1"),
        (np.array([[1.0], [np.nan], [np.inf]]), 1.0, r"features rows 1, 2 \(2 of 3\) hold NaN or infinity"),
        (torch.full((9, 1), torch.nan), 1.0, r"rows 0, 1, 2, 3, 4, ... \(9 of 9\) hold NaN"),
    ],
)
def test_errors(features, clip_norm, message):
    with pytest.raises(ValueError, match=message):
        clip_rows(features, clip_norm)
