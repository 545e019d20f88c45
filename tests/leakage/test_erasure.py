"""LEACE against its closed form, and what it promises about linear attackers."""

import json

import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import LogisticRegression

from ppreid_plugin.dp import TRANSFORMS, build_transform, transform_from_state
from ppreid_plugin.leakage.erasure import Leace


def planted(n=600, d=8, seed=0):
    """Unit rows that show two concepts: of two classes along one direction, of three in a plane."""
    rng = np.random.default_rng(seed)
    concepts = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n)], axis=1)
    mixing = rng.normal(size=(d, d))
    rows = rng.normal(size=(n, d)) @ mixing + 3 * np.eye(2)[concepts[:, 0]] @ rng.normal(size=(2, d))
    return unit(rows + 3 * np.eye(3)[concepts[:, 1]] @ rng.normal(size=(3, d))), concepts


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def one_hot(concepts):
    return np.concatenate([np.eye(column.max() + 1)[column] for column in concepts.T], axis=1)


def closed_form(rows, targets):
    """Equation (1) of the paper, with scipy's matrix roots."""
    mean, covariance = rows.mean(axis=0), np.cov(rows.T)
    root = scipy.linalg.sqrtm(covariance).real
    whitening = np.linalg.inv(root)
    basis = scipy.linalg.orth(whitening @ (rows - mean).T @ (targets - targets.mean(axis=0)) / (len(rows) - 1), 1e-9)
    return rows - (rows - mean) @ (root @ basis @ basis.T @ whitening).T


def probe(rows, labels):
    return LogisticRegression(max_iter=2000).fit(rows, labels).score(rows, labels)


def test_is_the_closed_form():
    rows, concepts = planted()
    erased = Leace().fit_concepts(7 * rows, concepts).transform(0.1 * rows)  # lengths do not matter
    np.testing.assert_allclose(erased, closed_form(rows, one_hot(concepts)), atol=1e-9)


def test_nothing_linear_is_left_and_other_concepts_stay():
    rows, concepts = planted()
    both, first = Leace().fit_concepts(rows, concepts), Leace().fit_concepts(rows, concepts[:, :1])
    assert probe(rows, concepts[:, 0]) > 0.8
    assert probe(rows, concepts[:, 1]) > 0.8
    covariance = (both.transform(rows) - rows.mean(axis=0)).T @ one_hot(concepts)
    assert np.abs(covariance).max() < 1e-9
    for column in (0, 1):
        majority = np.bincount(concepts[:, column]).max() / len(rows)
        assert probe(both.transform(rows), concepts[:, column]) == pytest.approx(majority, abs=1e-3)
    assert probe(first.transform(rows), concepts[:, 1]) > 0.8
    assert both.right.shape == (8, 3)  # classes - 1, summed


def test_numbers_are_erased_alone_and_beside_concepts():
    rows, concepts = planted()
    numbers = rows @ np.random.default_rng(1).normal(size=(8, 2)) + 0.1 * concepts
    alone = Leace().fit_concepts(rows, numbers=7 * numbers)
    np.testing.assert_allclose(alone.transform(rows), closed_form(rows, numbers), atol=1e-9)  # scale does not matter
    assert probe(alone.transform(rows), concepts[:, 0]) > 0.7
    hidden = concepts[:, :1].copy()
    hidden[::3] = -1
    known = hidden[:, 0] >= 0
    both = Leace().fit_concepts(rows, hidden, numbers=numbers)
    targets = np.concatenate([one_hot(concepts[known, :1]), numbers[known]], axis=1)
    np.testing.assert_allclose(both.transform(rows[known]), closed_form(rows[known], targets), atol=1e-9)
    assert both.right.shape == (8, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to erase"),
        ({"numbers": np.ones((599, 2))}, r"numbers has shape \(599, 2\)"),
        ({"numbers": np.ones(600)}, r"numbers has shape \(600,\)"),
        ({"numbers": np.array([[np.nan]] * 600)}, "NaN or infinity in row 0"),
    ],
)
def test_numbers_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        Leace().fit_concepts(planted()[0], **given)


def test_a_rare_class_is_erased_too():
    rng = np.random.default_rng(0)
    rows, concept = rng.normal(size=(20_000, 4)), np.zeros((20_000, 1), dtype=int)
    concept[:4], rows[:4, 0] = 1, rows[:4, 0] + 1  # its whitened covariance is 3e-4
    erased = Leace().fit_concepts(rows, concept).transform(rows)
    np.testing.assert_allclose(erased[:4].mean(axis=0), erased[4:].mean(axis=0), atol=1e-9)


def test_no_other_erasing_map_changes_less():
    rows, concepts = planted(n=300, d=6)
    targets, mean = one_hot(concepts), rows.mean(axis=0)
    changed = np.square(Leace().fit_concepts(rows, concepts).transform(rows) - rows).sum()
    null = scipy.linalg.null_space(((rows - mean).T @ targets).T)  # maps that vanish on the covariance's columns
    rng = np.random.default_rng(0)
    best = np.linalg.lstsq((rows - mean) @ null, rows - mean, rcond=None)[0]
    for scale in (0.0, 1e-3, 0.1):
        other = (rows - mean) @ null @ (best + scale * rng.normal(size=best.shape)) + mean
        assert np.square(other - rows).sum() >= changed * (1 - 1e-9)


def test_a_mean_that_is_taken_off_changes_nothing_else():
    rows, concepts = planted()
    kept, off = (Leace(center=center).fit_concepts(rows, concepts).transform(rows) for center in (False, True))
    np.testing.assert_allclose(kept - off, np.tile(rows.mean(axis=0), (len(rows), 1)), atol=1e-12)
    np.testing.assert_allclose(off.mean(axis=0), 0, atol=1e-12)


def test_a_row_does_not_depend_on_the_gallery():
    rows, concepts = planted()
    transform, gallery = Leace().fit_concepts(rows, concepts), planted(seed=1)[0]
    state = transform.state()
    whole = transform.transform(gallery)
    changed = gallery.copy()
    changed[1:] *= -5
    np.testing.assert_array_equal(transform.transform(changed)[0], whole[0])
    np.testing.assert_allclose(transform.transform(gallery[:1])[0], whole[0], atol=1e-12)
    for name, array in transform.state().items():
        np.testing.assert_array_equal(array, state[name])


def test_rows_without_a_label_are_left_out():
    rows, concepts = planted()
    hidden = concepts.copy()
    hidden[::3, 1] = -1
    known = (hidden >= 0).all(axis=1)
    expected = Leace().fit_concepts(rows[known], concepts[known]).transform(rows)
    np.testing.assert_allclose(Leace().fit_concepts(rows, hidden).transform(rows), expected, atol=1e-12)


def test_state_and_file_bring_it_back(tmp_path):
    rows, concepts = planted()
    transform = Leace(center=True).fit_concepts(rows, concepts)
    file = transform.save(tmp_path / "leace.safetensors")
    for again in (transform_from_state("leace", transform.state()), Leace.load(file)):
        np.testing.assert_array_equal(again.transform(rows), transform.transform(rows))
        assert json.loads(json.dumps(again.describe())) == transform.describe()
    assert transform.describe() == {"transform": "leace", "fitted_rows": 600, "columns": 8, "erased_directions": 3}


def test_registered_and_not_fitted_by_mistake():
    transform = build_transform("leace")
    assert isinstance(transform, Leace)
    assert "leace" in TRANSFORMS.names()
    with pytest.raises(RuntimeError, match="fit_concepts"):
        transform.transform(np.ones((1, 2)))
    with pytest.raises(ValueError, match="fit_concepts"):
        transform.fit(np.ones((3, 2)), np.array([1, 1, 2]))


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (np.zeros(4, int), r"shape \(4,\).*labels\[:, None\]"),
        (np.zeros((3, 1), int), r"must be \(4, k\)"),
        (np.zeros((4, 1)), "whole numbers"),
        (np.array([[0], [1], [1], [-2]]), "holds -2"),
        (np.array([[0, 3], [1, 3], [1, 3], [0, 3]]), "column 1 has the one class 3"),
        (np.array([[0], [-1], [-1], [-1]]), "1 rows with all labels"),
    ],
)
def test_bad_concepts_are_named(concepts, message):
    with pytest.raises(ValueError, match=message):
        Leace().fit_concepts(np.eye(4), concepts)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        Leace.load(tmp_path / "leace.npz")
    with pytest.raises(FileNotFoundError, match=r"Leace\.save"):
        Leace.load(tmp_path / "leace.safetensors")
    (tmp_path / "leace.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        Leace.load(tmp_path / "leace.safetensors")
