"""Structured codebooks: what is published, how fine they are, and that the mechanism stays exactly private."""

import numpy as np
import pytest
import torch

from ppreid_plugin.dp.codebooks import (
    DenseCodebook,
    LevelCodebook,
    ProjectedCodebook,
    codebook_from_arrays,
    gaussian_codebook,
    level_sizes,
    residual_codebook,
)
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.prior import fit_prior
from ppreid_plugin.dp.subset import PriorSubset

RNG = np.random.default_rng(0)
PEOPLE = np.repeat(np.arange(60), 8)
CENTERS = RNG.normal(size=(60, 6)) @ RNG.normal(size=(6, 24))
ROWS = CENTERS[PEOPLE] + 0.4 * RNG.normal(size=(480, 24))
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


def nearest_cosine(codebook):
    return (UNIT @ codebook.T).max(axis=1).mean()


def test_levels_multiply_to_the_number_of_codewords():
    for count in (4, 6, 64, 1000, 4096):
        first, second = level_sizes(count)
        assert first * second == count
        assert first >= second
    assert level_sizes(7) == (7, 1)
    assert level_sizes(60, 3) == (5, 4, 3)


def test_three_levels_are_finer_than_two_with_as_many_published_vectors():
    two, three = (residual_codebook(UNIT, PEOPLE, count, seed=1, levels=levels) for count, levels in ((36, 2), (64, 3)))
    assert len(two.people_behind) == len(three.people_behind) == 12
    coarse, fine = (fitted.codebook.rows(np.arange(len(fitted.codebook))) for fitted in (two, three))
    assert nearest_cosine(coarse) < nearest_cosine(fine)
    by_hand = sum(level[place] for level, place in zip(three.codebook.levels, (1, 2, 3), strict=True))
    np.testing.assert_allclose(fine[1 * 16 + 2 * 4 + 3], by_hand / np.linalg.norm(by_hand))


def test_a_residual_codeword_is_the_direction_of_a_sum_of_two_published_vectors():
    codebook, behind = residual_codebook(UNIT, PEOPLE, 64, seed=1)
    codewords = codebook.rows(np.arange(64))
    assert codewords.shape == (64, 24)
    assert len(behind) == 16  # 8 + 8 vectors make 64 codewords
    np.testing.assert_allclose(np.linalg.norm(codewords, axis=1), 1.0)
    # two levels of 8 are finer than 8 centers and coarser than 64
    finer = fit_prior(ROWS, PEOPLE, codewords=64, prior_is_public=True).codebook
    coarse = fit_prior(ROWS, PEOPLE, codewords=8, prior_is_public=True).codebook
    assert nearest_cosine(coarse) < nearest_cosine(codewords) <= nearest_cosine(finer) + 1e-9


def test_people_behind_a_vector_are_counted_by_hand():
    from sklearn.cluster import KMeans

    _, behind = residual_codebook(UNIT, PEOPLE, 16, seed=3)
    labels = KMeans(4, n_init=1, max_iter=50, random_state=3).fit(UNIT).labels_
    assert behind[:4].tolist() == [len(set(PEOPLE[labels == cell])) for cell in range(4)]


def test_gaussian_codewords_lie_in_the_leading_components_and_depend_on_nobody_alone():
    codebook, behind = gaussian_codebook(UNIT, PEOPLE, 500, seed=1, rank=6)
    codewords = codebook.rows(np.arange(500))
    assert behind.tolist() == [10] * 6  # 60 people behind 6 components
    _, _, right = np.linalg.svd(UNIT, full_matrices=False)
    np.testing.assert_allclose(codewords @ right[6:].T, 0.0, atol=1e-9)
    # the drawn directions have the rows' own second moments, up to the normalization of each
    first, last = (np.square(codewords @ right[k]).mean() for k in (0, 5))
    assert first > 2 * last
    again, _ = gaussian_codebook(UNIT, PEOPLE, 500, seed=1, rank=6)
    np.testing.assert_array_equal(codewords, again.rows(np.arange(500)))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_power_is_the_exponent_of_the_components_variances(power):
    drawn, alike = (gaussian_codebook(UNIT, PEOPLE, 50, seed=1, rank=6, power=p)[0].coefficients for p in (power, 0.0))
    variances = np.linalg.svd(UNIT, compute_uv=False)[:6] ** 2 / len(UNIT)
    np.testing.assert_allclose(drawn / alike, np.tile(variances[::-1] ** (power / 2), (50, 1)))


def residual_of_three(*arguments, seed):
    return residual_codebook(*arguments, seed=seed, levels=3)


@pytest.mark.parametrize("fit", [residual_codebook, residual_of_three, gaussian_codebook])
def test_cosines_without_codewords_are_those_of_the_codewords(fit):
    levels = fit(UNIT, PEOPLE, 48, seed=1).codebook
    dense = DenseCodebook(levels.rows(np.arange(48)))
    rows = torch.from_numpy(UNIT)
    torch.testing.assert_close(levels.cosines(rows), dense.cosines(rows), rtol=0, atol=1e-12)
    again = codebook_from_arrays(levels.arrays())
    np.testing.assert_array_equal(again.rows(np.arange(48)), levels.rows(np.arange(48)))
    mechanisms = [PriorSubset(3.0, codebook=codebook, set_size=5) for codebook in (levels, dense)]
    first, second = (mechanism.members(rows).numpy() for mechanism in mechanisms)
    np.testing.assert_array_equal(first, second)
    for row, members in zip(UNIT[:40], first, strict=False):
        assert sorted(np.argsort(-(dense.codewords @ row))[:5]) == members.tolist()


@pytest.mark.parametrize(
    ("coefficients", "basis", "message"),
    [
        (np.ones((4, 2)), np.eye(3), "basis has 3 rows, the coefficients have 2"),
        (np.ones((4, 2)), 2 * np.eye(2), "basis is not orthonormal"),
        (np.zeros((4, 2)), np.eye(2), "codebook row 0 is zero"),
    ],
)
def test_a_basis_that_makes_no_codebook(coefficients, basis, message):
    with pytest.raises(ValueError, match=message):
        ProjectedCodebook(coefficients, basis)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "must have equally many columns"),
        (np.ones((1, 3)), np.zeros((1, 3)), "make one codeword only"),
        (np.eye(3), -np.eye(3), "sum of vectors that is zero"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "level 0 rows 0, 1"),
    ],
)
def test_levels_that_make_no_codebook(first, second, message):
    with pytest.raises(ValueError, match=message):
        LevelCodebook(first, second)


def test_an_unknown_set_of_arrays_is_no_codebook():
    with pytest.raises(ValueError, match="no codebook among symbols"):
        codebook_from_arrays({"symbols": np.zeros(3)})


@pytest.mark.parametrize("kind", ["residual", "gaussian"])
def test_the_mechanism_on_it_is_exactly_private_and_decodes_to_codewords(kind):
    prior = fit_prior(ROWS, PEOPLE, codewords=36, set_size=4, kind=kind, rank=6, min_people=5, seed=2)
    assert prior.people_behind >= 5
    mechanism = build_mechanism("prior_subset", epsilon=2.0, **prior.options())
    probabilities = mechanism.symbol_probabilities(UNIT[:50])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    worst = (probabilities[:, None] / probabilities[None]).max()
    assert worst == pytest.approx(np.exp(2.0), rel=1e-9)
    released = mechanism.privatize(UNIT, generator=np.random.default_rng(0))
    assert (released[:, None] == prior.codebook[None]).all(axis=2).any(axis=1).all()
    assert prior.describe()["prior"] == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "residual", "codewords": 13}, "levels of 13 and 1; all must be 2 to 480"),
        ({"kind": "residual", "codewords": 400, "min_people": 55}, "people_behind is .* must be at least 55"),
        (
            {"kind": "gaussian", "codewords": 400, "rank": 7},
            "people_behind is 8 .* at least 10. Take a smaller rank",
        ),
        ({"kind": "gaussian", "codewords": 400, "rank": 0}, "rank is 0, must be a whole number >= 1"),
        ({"kind": "gaussian", "codewords": 400, "power": -0.5}, "power is -0.5, must be a finite number >= 0"),
        ({"kind": "residuum", "codewords": 16}, "allowed: gaussian, kmeans, raw, residual"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_prior(ROWS, PEOPLE, **arguments)
