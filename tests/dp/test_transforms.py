"""Public transforms: what they compute, and that they look at one row only."""

import json

import numpy as np
import pytest
import torch

from ppreid_plugin.dp import TRANSFORMS, build_transform


def features(n, d=5, seed=0, dtype=np.float64):
    return (np.random.default_rng(seed).normal(size=(n, d)) + 1).astype(dtype)


def centered_by_hand(row, training):
    mean = np.mean([other / np.linalg.norm(other) for other in training], axis=0)
    difference = row / np.linalg.norm(row) - mean
    return difference / np.linalg.norm(difference)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor])
def test_center(container, dtype):
    training, gallery = features(40), features(7, seed=1, dtype=dtype)
    transformed = build_transform("center").fit(training).transform(container(gallery))
    assert type(transformed) is type(container(gallery))
    assert transformed.dtype == container(gallery).dtype
    expected = [centered_by_hand(row.astype(float), training) for row in gallery]
    np.testing.assert_allclose(np.asarray(transformed), expected, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["center", "none"])
@pytest.mark.parametrize("columns", [3, 512, 2048])
def test_a_row_does_not_depend_on_the_other_rows(name, columns):
    transform = build_transform(name).fit(features(20, columns))
    gallery = features(64, columns, seed=1)
    whole = transform.transform(gallery)
    for row in (0, 7, 63):
        np.testing.assert_array_equal(transform.transform(gallery[row : row + 1])[0], whole[row])
    changed = gallery.copy()
    changed[1:] *= -100
    np.testing.assert_array_equal(transform.transform(changed)[0], whole[0])


def test_transforming_leaves_the_fit_alone():
    transform = build_transform("center").fit(features(20))
    mean = transform.mean.copy()
    transform.transform(features(9, seed=3))
    np.testing.assert_array_equal(transform.mean, mean)
    with pytest.raises(ValueError, match="read-only"):
        transform.mean[0] = 0


def test_a_row_on_the_mean_becomes_the_first_unit_vector():
    row = np.array([[0.6, 0.8, 0.0]])
    transform = build_transform("center").fit(row * 3)
    np.testing.assert_array_equal(transform.transform(row), [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(transform.transform(row * 7), [[1.0, 0.0, 0.0]])  # up to rounding error


def test_zero_and_huge_rows():
    transform = build_transform("center").fit(np.array([[2.0, 0.0]]))
    np.testing.assert_allclose(
        transform.transform(np.array([[0.0, 0.0], [0.0, 1e300], [0.0, 5e-324]])),
        [[-1.0, 0.0], [-(0.5**0.5), 0.5**0.5], [-(0.5**0.5), 0.5**0.5]],
    )


def test_chunks_change_nothing(monkeypatch):
    whole = build_transform("center").fit(features(33)).transform(features(33, seed=1))
    monkeypatch.setattr("ppreid_plugin.dp.arrays.CHUNK_ELEMENTS", 20)
    np.testing.assert_allclose(
        build_transform("center").fit(features(33)).transform(features(33, seed=1)), whole, atol=1e-14
    )


def test_none_needs_no_fit_and_returns_a_copy():
    gallery = features(3)
    transformed = build_transform("none").transform(gallery)
    np.testing.assert_array_equal(transformed, gallery)
    transformed[0, 0] = 9
    assert gallery[0, 0] != 9


@pytest.mark.parametrize("name", ["center", "none"])
def test_empty_gallery_and_description(name):
    transform = build_transform(name).fit(features(4))
    assert transform.transform(np.zeros((0, 5))).shape == (0, 5)
    assert json.loads(json.dumps(transform.describe()))["transform"] == name


def test_description_of_center_counts_and_shows_no_feature():
    described = build_transform("center").fit(features(4)).describe()
    assert described == {"transform": "center", "fitted_rows": 4, "columns": 5}


def test_unfitted_refuses():
    with pytest.raises(RuntimeError, match=r"transform 'center' is not fitted; call fit\("):
        build_transform("center").transform(features(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_transform("centre"), "public transform is 'centre'; registered: .*Did you mean 'center'"),
        (
            lambda: build_transform("center").fit(np.zeros((0, 3))),
            r"features has shape \(0, 3\), must hold at least one",
        ),
        (lambda: build_transform("center").fit(np.full((1, 3), np.nan)), r"features rows 0 \(1 of 1\) hold NaN"),
        (lambda: build_transform("center").fit(features(3)).transform(features(2, 4)), "have 4 columns.*fitted on 5"),
        (lambda: build_transform("none").transform(np.full((1, 3), np.inf)), "hold NaN or infinity"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_registry_lists_both():
    assert {"center", "none"} <= set(TRANSFORMS)
