"""Structured codebooks: what is published, how fine they are, and that the mechanism stays exactly private."""

import numpy as np
import pytest

from ppreid_plugin.dp.codebooks import gaussian_codebook, level_sizes, residual_codebook
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.prior import fit_prior

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


def test_a_residual_codeword_is_the_direction_of_a_sum_of_two_published_vectors():
    codewords, behind = residual_codebook(UNIT, PEOPLE, 64, seed=1)
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
    codewords, behind = gaussian_codebook(UNIT, PEOPLE, 500, seed=1, rank=6)
    assert behind.tolist() == [60]
    _, _, right = np.linalg.svd(UNIT, full_matrices=False)
    np.testing.assert_allclose(codewords @ right[6:].T, 0.0, atol=1e-9)
    # the drawn directions have the rows' own second moments, up to the normalization of each
    first, last = (np.square(codewords @ right[k]).mean() for k in (0, 5))
    assert first > 2 * last
    again, _ = gaussian_codebook(UNIT, PEOPLE, 500, seed=1, rank=6)
    np.testing.assert_array_equal(codewords, again)


@pytest.mark.parametrize("kind", ["residual", "gaussian"])
def test_the_mechanism_on_it_is_exactly_private_and_decodes_to_codewords(kind):
    prior = fit_prior(ROWS, PEOPLE, codewords=36, set_size=4, kind=kind, min_people=5, seed=2)
    assert prior.people_per_cell >= 5
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
        ({"kind": "residual", "codewords": 13}, "levels of 13 and 1; both must be 2 to 480"),
        ({"kind": "residual", "codewords": 400, "min_people": 55}, "people_per_cell is .* must be at least 55"),
        ({"kind": "residuum", "codewords": 16}, "allowed: gaussian, kmeans, raw, residual"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_prior(ROWS, PEOPLE, **arguments)
