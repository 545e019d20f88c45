r"""Scores of membership: how much a release looks as if a clean row were in it, and how much people look trained on.

*Gallery*: the attacker holds clean rows and asks which of them were released. The largest cosine with a released row,
and the likelihood under the mechanism where it is known:

.. math:: \ell(x) = \log \sum_{r} \frac{p(r \mid x)}{q(r)}

over the released rows r, q the release of a training row; members' own release is one of the terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp

from ..dp.codebooks import DenseCodebook
from ..dp.mechanisms import Mechanism
from ..dp.subset import PriorSubset
from .data import LeakageSet

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]

_CHUNK = 2**22  # cosines at a time
_ROUNDING = 1e-4  # of a released row that is a float32 copy of a symbol's


def largest_cosine(candidates: Rows, released: Rows) -> Floats:
    """Return each candidate's largest cosine with a released row: (n, d), (m, d) -> (n,)."""
    return _over_released(candidates, released, lambda cosines: cosines.max(axis=1))


def likelihood_score(
    candidates: Rows, released: Rows, protection: Any, train_clean: Rows | None = None
) -> Floats | None:
    r"""Return the likelihood score of each candidate under the mechanism, (n,); None where it is not known how.

    Gaussian noise, on rows that were normalized after it: their length is nearly constant in many columns, about
    :math:`\sqrt{1 + d\sigma^2}` (C = 1), which makes :math:`p(r \mid x)` proportional to
    :math:`e^{\kappa \langle r, x\rangle}` with :math:`\kappa = \sqrt{1 + d\sigma^2} / \sigma^2`. Finite mechanisms:
    from the probabilities of their symbols, q from ``train_clean``.

    Args:
        candidates: clean rows as they reach the noise, (n, d).
        released: (m, d).
        protection: a component with a ``mechanism``, a mechanism, or a manifest (Gaussian noise only).
        train_clean: clean rows of other people, (k, d), needed for finite mechanisms.
    """
    mechanism = getattr(protection, "mechanism", protection)
    sigma = _sigma(mechanism)
    if sigma is not None:
        kappa = np.sqrt(1 + released.shape[1] * sigma**2) / sigma**2
        return _over_released(candidates, released, lambda cosines: logsumexp(kappa * cosines, axis=1))
    if not isinstance(mechanism, PriorSubset) or train_clean is None:
        return None
    symbols = _symbols(released, mechanism)
    if symbols is None:
        return None
    marginal = mechanism.marginal(train_clean)
    return np.log(mechanism.expected(candidates, np.bincount(symbols, minlength=len(marginal)) / marginal))


def person_figures(rows: LeakageSet, *, per_person: int, seed: int) -> tuple[npt.NDArray[np.int64], dict[str, Floats]]:
    """Return the people with ``per_person`` rows or more, and figures of that many of their rows, drawn at random.

    ``norm``: mean length. ``tightness``: mean, over a person's rows, of the largest cosine with another one of them.
    ``mean``: mean unit row, (people, d). The number of rows is the same for all, so that it tells nothing.
    """
    rng, pids, norm, tightness, means = np.random.default_rng(seed), [], [], [], []
    order = np.argsort(rows.pids, kind="stable")
    _, starts = np.unique(rows.pids[order], return_index=True)
    for his in np.split(order, starts[1:]):
        if len(his) < per_person:
            continue
        taken = rows.features[rng.choice(his, per_person, replace=False)].astype(np.float64)
        unit = _unit(taken)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        pids.append(rows.pids[his[0]])
        norm.append(np.linalg.norm(taken, axis=1).mean())
        tightness.append(cosines.max(axis=1).mean())
        means.append(unit.mean(axis=0))
    figures = {"norm": np.array(norm), "tightness": np.array(tightness), "mean": np.array(means)}
    return np.array(pids, dtype=np.int64), figures


def _sigma(mechanism: Any) -> float | None:
    if isinstance(mechanism, Mechanism):
        return None if mechanism.sigma is None else mechanism.sigma / mechanism.clip_norm
    described = mechanism.get("mechanism", {}) if isinstance(mechanism, Mapping) else {}
    sigma = described.get("sigma") if isinstance(described, Mapping) else None
    return None if sigma is None else float(sigma) / float(described.get("clip_norm") or 1.0)


def _symbols(released: Rows, mechanism: PriorSubset) -> npt.NDArray[np.int64] | None:
    """Return the symbol of each released row, (m,); None if some row is none."""
    words = mechanism.codewords if mechanism.decodes_to_codewords else DenseCodebook(mechanism.decoder)
    if released.shape[1] != words.columns:
        return None
    result, unit = np.empty(len(released), dtype=np.int64), torch.from_numpy(_unit(released.astype(np.float64)))
    step = max(1, _CHUNK // len(words))
    for start in range(0, len(released), step):
        likeness, nearest = words.cosines(unit[start : start + step]).max(dim=1)
        if (likeness < 1 - _ROUNDING).any():
            return None
        result[start : start + step] = nearest.numpy()
    return result


def _over_released(candidates: Rows, released: Rows, reduce: Callable[[Rows], Rows]) -> Floats:
    own, theirs = (_unit(rows.astype(np.float32)) for rows in (candidates, released))
    step = max(1, _CHUNK // len(theirs))
    parts = [reduce(own[start : start + step] @ theirs.T) for start in range(0, len(own), step)]
    return np.concatenate(parts).astype(np.float64)


def _unit(rows: Rows) -> Rows:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
