"""Public transforms: what they compute, and that they look at one row only."""

import json

import numpy as np
import pytest
import torch
from sklearn import decomposition, discriminant_analysis

from ppreid_plugin.dp import TRANSFORMS, build_transform, transform_from_state

PROJECTIONS = ["pca", "whiten", "lda"]
NAMES = ["center", "none", *PROJECTIONS]


def features(n, d=5, seed=0, dtype=np.float64):
    return (np.random.default_rng(seed).normal(size=(n, d)) + 1).astype(dtype)


def fitted(name, training, **options):
    pids = np.arange(len(training)) % 4
    return build_transform(name, **options).fit(training, pids)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [3, 512])
def test_a_row_does_not_depend_on_the_other_rows(name, columns):
    transform = fitted(name, features(20, columns))
    gallery = features(64, columns, seed=1)
    whole = transform.transform(gallery)
    for row in (0, 7, 63):  # a matrix product's rounding may depend on the number of rows, never on what they hold
        slack = 1e-11 if name in PROJECTIONS else 0
        np.testing.assert_allclose(transform.transform(gallery[row : row + 1])[0], whole[row], rtol=0, atol=slack)
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


@pytest.mark.parametrize("name", NAMES)
def test_empty_gallery_and_description(name):
    transform = fitted(name, features(8))
    assert len(transform.transform(np.zeros((0, 5)))) == 0
    assert json.loads(json.dumps(transform.describe()))["transform"] == name


def test_description_of_center_counts_and_shows_no_feature():
    described = build_transform("center").fit(features(4)).describe()
    assert described == {"transform": "center", "fitted_rows": 4, "columns": 5}


@pytest.mark.parametrize("name", NAMES)
def test_state_brings_the_transform_back(name, tmp_path):
    transform, gallery = fitted(name, features(20)), features(7, seed=1, dtype=np.float32)
    np.savez(tmp_path / "state.npz", **transform.state())
    again = transform_from_state(name, dict(np.load(tmp_path / "state.npz")))
    np.testing.assert_array_equal(again.transform(gallery), transform.transform(gallery))
    assert again.describe() == transform.describe()
    state = transform.state()
    for values in state.values():
        values[...] = 0  # copies: the transform keeps its own
    np.testing.assert_array_equal(again.transform(gallery), transform.transform(gallery))


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("components", [None, 2])
def test_projections_give_unit_rows_of_the_asked_width(name, components):
    transform = fitted(name, features(40), components=components)
    for dtype in (np.float32, np.float64):
        projected = transform.transform(features(9, seed=1, dtype=dtype))
        assert projected.dtype == dtype
        assert projected.shape == (9, components or (3 if name == "lda" else 5))
        np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(transform.transform(1000 * features(9, seed=1, dtype=dtype)), projected, atol=1e-5)
    zero = transform.transform(np.zeros((1, 5)))
    assert np.isfinite(zero).all()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pca_and_whitening_against_scikit_learn():
    training, gallery = features(200, 6), features(9, 6, seed=1)
    reference = decomposition.PCA().fit(unit(training))
    expected = unit(reference.transform(unit(gallery)))
    projected = build_transform("pca").fit(training).transform(gallery)
    np.testing.assert_allclose(np.abs(projected), np.abs(expected), atol=1e-9)  # signs of axes are free
    kept = build_transform("pca", components=2).fit(training).transform(gallery)
    np.testing.assert_allclose(np.abs(kept), np.abs(unit(reference.transform(unit(gallery))[:, :2])), atol=1e-9)
    whitened = build_transform("whiten", shrinkage=0.0).fit(training).transform(gallery)
    white = decomposition.PCA(whiten=True).fit(unit(training)).transform(unit(gallery))
    np.testing.assert_allclose(np.abs(whitened), np.abs(unit(white)), atol=1e-9)


def test_lda_against_scikit_learn():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(5), 40)
    training = rng.normal(size=(5, 6))[pids] * 2 + rng.normal(size=(200, 6)) + 3
    reference = discriminant_analysis.LinearDiscriminantAnalysis(solver="eigen").fit(unit(training), pids)
    gallery = features(9, 6, seed=1)
    centered = unit(gallery) - unit(training).mean(axis=0)
    expected = unit(centered @ reference.scalings_[:, :4])
    projected = build_transform("lda", shrinkage=0.0).fit(training, pids).transform(gallery)
    np.testing.assert_allclose(np.abs(projected), np.abs(expected), atol=1e-8)


def test_lda_accepts_people_of_one_row_and_tensors():
    training = torch.from_numpy(features(6))
    transform = build_transform("lda").fit(training, torch.arange(6))
    assert np.isfinite(transform.transform(features(3))).all()


def test_unfitted_refuses():
    with pytest.raises(RuntimeError, match=r"transform 'center' is not fitted; call fit\("):
        build_transform("center").transform(features(2))
    with pytest.raises(RuntimeError, match="transform 'pca' is not fitted"):
        build_transform("pca").state()


def test_arguments_in_the_name_are_those_of_the_constructor():
    rng = np.random.default_rng(0)
    training, pids = rng.normal(size=(60, 8)), np.arange(60) % 12
    named = build_transform("lda:components=3+shrinkage=2.5").fit(training, pids)
    given = build_transform("lda", components=3, shrinkage=2.5).fit(training, pids)
    np.testing.assert_array_equal(named.transform(training), given.transform(training))
    usual = build_transform("lda", components=3).fit(training, pids).transform(training)
    assert np.abs(named.transform(training) - usual).max() > 1e-3
    assert named.describe()["shrinkage"] == 2.5
    again = transform_from_state("lda", named.state())
    np.testing.assert_array_equal(again.transform(training), named.transform(training))
    assert again.describe() == named.describe()


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
        (lambda: fitted("pca", features(8)).transform(features(2, 4)), "have 4 columns.*fitted on 5"),
        (lambda: fitted("pca", features(3), components=4), "components is 4, but 3 training rows give 2 axes"),
        (lambda: fitted("pca", np.ones((3, 5))), "3 training rows give 0 axes"),
        (lambda: build_transform("pca", components=0), "components is 0, must be a whole number >= 1"),
        (lambda: build_transform("whiten", shrinkage=-1), "shrinkage is -1, must be a finite number >= 0"),
        (
            lambda: build_transform("lda:component=3"),
            "has 'component'; allowed: components, shrinkage",
        ),
        (lambda: build_transform("lda:components=3+2"), "'2' must be NAME=VALUE, such as components=64"),
        (lambda: build_transform("lda").fit(features(3)), "pids is None, but this transform learns from labels"),
        (lambda: build_transform("lda").fit(features(3), [0, 1]), r"pids has shape \(2,\) of int64, must be \(3,\)"),
        (lambda: build_transform("lda").fit(features(3), [0.0, 1.0, 1.0]), "of float64, must be"),
        (lambda: build_transform("lda").fit(features(3), [1, 1, 1]), "pids name 1 person, lda needs at least 2"),
        (lambda: transform_from_state("pca", {"mean": [0.0]}), r"state of transform 'pca' holds \['mean'\], must hold"),
        (
            lambda: transform_from_state("center", {"mean": [np.nan], "fitted_rows": 1}),
            "state of transform 'center': mean holds NaN",
        ),
        (lambda: build_transform("none").transform(np.full((1, 3), np.inf)), "hold NaN or infinity"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_registry_lists_all():
    assert set(NAMES) <= set(TRANSFORMS)
