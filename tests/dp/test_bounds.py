"""Each bound against the exact Bayes attacker of its own game, enumerated; and what it does not bound."""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from ppreid_plugin.dp import build_mechanism, gaussian_delta
from ppreid_plugin.dp.bounds import (
    bound_auc_gaussian,
    bound_auc_pure,
    bound_query_to_row,
    bound_row_to_person,
    bound_row_to_person_gaussian,
    bound_tpr_gaussian,
    bound_tpr_pure,
)


def laws(epsilon, people, symbols, set_size, seed=0):
    """Exact law of each person's symbol under a prior subset mechanism: (people, symbols)."""
    rng = np.random.default_rng(seed)
    mechanism = build_mechanism(
        "prior_subset", epsilon=epsilon, codebook=rng.normal(size=(symbols, 3)), set_size=set_size
    )
    return mechanism.symbol_probabilities(rng.normal(size=(people, 3)))


def bayes_row_to_person(laws):
    """Success of naming the likeliest person for each symbol, uniform prior."""
    return laws.max(axis=0).sum() / len(laws)


def bayes_query_to_row(laws, query):
    """Success of finding person ``query``'s row among all rows in random order, knowing every law.

    Each outcome is a tuple of symbols by place; the row stands at each place with the same probability, the others in
    each order.
    """
    people, symbols = laws.shape
    others = [person for person in range(people) if person != query]
    orders = list(itertools.permutations(others))
    success = 0.0
    for outcome in itertools.product(range(symbols), repeat=people):
        joint = []
        for place in range(people):
            rest = outcome[:place] + outcome[place + 1 :]
            likelihood = np.mean([math.prod(laws[o, s] for o, s in zip(order, rest, strict=True)) for order in orders])
            joint.append(laws[query, outcome[place]] * likelihood / people)
        success += max(joint)
    return success


def rank1_of_bits(epsilon, people):
    """Query to row when the query's set is {1} and everybody else's {0}: counted over the number of rows that say 1."""
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    total = (1 - p) * p ** (people - 1) / people
    for others in range(people):
        total += p * math.comb(people - 1, others) * (1 - p) ** others * p ** (people - 1 - others) / (1 + others)
    return total


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(("people", "symbols", "set_size"), [(2, 2, 1), (3, 3, 1), (5, 4, 1), (5, 6, 3), (20, 8, 2)])
def test_row_to_person_holds_for_the_bayes_attacker(epsilon, people, symbols, set_size):
    for seed in range(5):
        exact = bayes_row_to_person(laws(epsilon, people, symbols, set_size, seed))
        assert exact <= bound_row_to_person(epsilon, people) * (1 + 1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("people", [2, 3, 50])
def test_row_to_person_is_reached_by_a_symbol_for_each_person(epsilon, people):
    mechanism = build_mechanism("codebook", epsilon=epsilon, codebook=np.eye(people))
    exact = bayes_row_to_person(mechanism.symbol_probabilities(np.eye(people)))
    assert exact == pytest.approx(bound_row_to_person(epsilon, people), rel=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 0.2])
def test_row_to_person_with_delta_is_reached_by_a_mechanism_that_fails(delta):
    """With probability delta the row is named outright, else a symbol for each person."""
    epsilon, people = 2.0, 5
    pure = build_mechanism("codebook", epsilon=epsilon, codebook=np.eye(people)).symbol_probabilities(np.eye(people))
    exact = bayes_row_to_person(np.concatenate([delta * np.eye(people), (1 - delta) * pure], axis=1))
    assert exact == pytest.approx(delta + (1 - delta) * bound_row_to_person(epsilon, people), rel=1e-12)
    assert exact == pytest.approx(bound_row_to_person(epsilon, people, delta=delta), rel=1e-12)


@pytest.mark.parametrize("mu", [0.3, 1.67, 4.0])
@pytest.mark.parametrize("people", [2, 5, 748])
def test_row_to_person_gaussian_holds(mu, people):
    """People at the corners of a simplex of edge 1, noise 1/mu: success by integration."""
    scale = mu / math.sqrt(2)
    exact = quad(lambda z: norm.pdf(z - scale) * norm.cdf(z) ** (people - 1), -12, 12 + scale, limit=200)[0]
    bound = bound_row_to_person_gaussian(mu, people)
    assert exact * (1 - 1e-12) <= bound <= 1
    for epsilon in (0.0, 0.5, 2.0, 8.0, 20.0):
        delta = gaussian_delta(1 / mu, epsilon, 1.0)
        assert bound <= bound_row_to_person(epsilon, people, delta=delta) * (1 + 1e-12)
    if people == 2:
        assert bound == pytest.approx(norm.cdf(mu / 2), rel=1e-6)  # two points: exactly the best test


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(("people", "symbols", "set_size"), [(2, 2, 1), (3, 3, 1), (3, 4, 2), (4, 3, 1), (4, 2, 1)])
def test_query_to_row_holds_for_the_bayes_attacker(epsilon, people, symbols, set_size):
    for seed in range(2):
        for query in (0, people - 1):
            exact = bayes_query_to_row(laws(epsilon, people, symbols, set_size, seed), query)
            assert exact <= bound_query_to_row(epsilon, people) * (1 + 1e-12)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("people", [2, 3, 4, 5])
def test_query_to_row_is_reached_by_bits(epsilon, people):
    mechanism = build_mechanism("codebook", epsilon=epsilon, codebook=np.array([[1.0], [-1.0]]))
    bits = mechanism.symbol_probabilities(np.array([[1.0]] + [[-1.0]] * (people - 1)))
    exact = bayes_query_to_row(bits, 0)
    assert exact == pytest.approx(bound_query_to_row(epsilon, people), rel=1e-12)
    assert rank1_of_bits(epsilon, people) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("epsilon", "expected"), [(2.0, 0.0099), (4.0, 0.073), (8.0, 0.884)])
def test_query_to_row_of_the_design(epsilon, expected):
    assert bound_query_to_row(epsilon, 748) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("people", "epsilon"), [(21, 3.0), (748, math.log(750))])
def test_row_to_person_does_not_bound_rank1(people, epsilon):
    """Binary sets: half of the row-to-person game is won at most, of rank-1 more."""
    assert bound_row_to_person(epsilon, people) == pytest.approx(0.501, abs=5e-4)
    assert rank1_of_bits(epsilon, people) == pytest.approx(bound_query_to_row(epsilon, people), rel=1e-9)
    assert bound_query_to_row(epsilon, people) > 0.61


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_auc_and_tpr_of_pure_mechanisms(epsilon):
    """The Bayes test on two rows of finite mechanisms: each point of its curve lies under the bound."""
    for symbols, set_size in ((2, 1), (4, 1), (6, 3)):
        for seed in range(5):
            yes, no = laws(epsilon, 2, symbols, set_size, seed)
            order = np.argsort(-yes / no, kind="stable")
            tpr, fpr = np.concatenate([[0], yes[order].cumsum()]), np.concatenate([[0], no[order].cumsum()])
            assert np.trapezoid(tpr, fpr) <= bound_auc_pure(epsilon) + 1e-12
            for true, false in zip(tpr, fpr, strict=True):
                assert true <= bound_tpr_pure(min(1.0, float(false)), epsilon) + 1e-12
    rates = np.linspace(0, 1, 100_001)
    area = np.trapezoid([bound_tpr_pure(float(rate), epsilon) for rate in rates], rates)
    assert area == pytest.approx(bound_auc_pure(epsilon), abs=1e-6)
    corner = 1 / (1 + math.exp(epsilon))
    assert bound_tpr_pure(corner, epsilon) == pytest.approx(1 - corner)


@pytest.mark.parametrize("mu", [0.268, 0.925, 1.67, 2.91])
def test_auc_and_tpr_of_the_gaussian(mu):
    table = {0.268: (0.575, 0.020), 0.925: (0.744, 0.081), 1.67: (0.881, 0.255), 2.91: (0.980, 0.719)}[mu]
    assert (bound_auc_gaussian(mu), bound_tpr_gaussian(0.01, mu)) == pytest.approx(table, abs=2e-3)
    area = quad(lambda rate: bound_tpr_gaussian(rate, mu), 0, 1)[0]
    assert area == pytest.approx(bound_auc_gaussian(mu), abs=1e-6)
    assert (bound_tpr_gaussian(0.0, mu), bound_tpr_gaussian(1.0, mu)) == (0.0, 1.0)


@pytest.mark.parametrize("people", [1, 2, 748])
def test_ends_of_the_range(people):
    for bound in (bound_row_to_person, bound_query_to_row):
        assert bound(0.0, people) == pytest.approx(1 / people)
        assert bound(1e4, people) == pytest.approx(1.0)
        values = [bound(epsilon, people) for epsilon in np.linspace(0, 40, 200)]
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert (bound_tpr_pure(0.0, 1e4), bound_tpr_pure(0.5, 1e4), bound_auc_pure(1e4)) == (0.0, 1.0, 1.0)
    assert (bound_auc_pure(0.0), bound_tpr_pure(0.3, 0.0)) == (0.5, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bound_row_to_person(-1.0, 5), "epsilon is -1.0, must be a finite number >= 0"),
        (lambda: bound_row_to_person(1.0, 0), "n is 0, must be a whole number >= 1"),
        (lambda: bound_row_to_person(1.0, 5, delta=2), "delta is 2, must be in"),
        (lambda: bound_row_to_person_gaussian(0.0, 5), "mu is 0.0, must be"),
        (lambda: bound_row_to_person_gaussian(1.0, 5.5), "n is 5.5"),
        (lambda: bound_query_to_row(math.inf, 5), "epsilon is inf"),
        (lambda: bound_query_to_row(1.0, True), "n is True"),
        (lambda: bound_auc_gaussian(-1.0), "mu is -1.0"),
        (lambda: bound_auc_pure(math.nan), "epsilon is nan"),
        (lambda: bound_tpr_gaussian(1.5, 1.0), "fpr is 1.5, must be in"),
        (lambda: bound_tpr_pure(-0.1, 1.0), "fpr is -0.1, must be in"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
