r"""CMC of the CUHK03 protocol, in which each gallery person shows one image, chosen at random: the exact expectation.

torchreid draws the images ten times a query; we compute what the mean over all draws is. If the query's person shows
the positive k, a person p of :math:`n_p` images stands before it with probability :math:`a_{kp} = c_{kp} / n_p`, where
:math:`c_{kp}` of his images are above k. People are drawn independently: how many stand before it is a Poisson binomial
count, the sum of independent :math:`B_{kp} \in \{0, 1\}` of mean :math:`a_{kp}`. With P positives

.. math:: E[CMC(m)] = \frac1P \sum_k \Pr\Bigl[\sum_p B_{kp} \le m - 1\Bigr]

Source of the protocol: Li, Zhao, Xiao and Wang, "DeepReID: Deep Filter Pairing Neural Network for Person
Re-Identification", CVPR 2014. The closed form is ours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ppreid_plugin.retrieval.checks import IntArray

FloatArray = npt.NDArray[np.float64]


class SingleShot:
    """Adds up the expected curves of queries.

    Args:
        gallery_pids: (num_gallery,); rows of one pid are images of one person, background's too, as in torchreid.
        max_rank: length of the curve.
    """

    def __init__(self, gallery_pids: IntArray, max_rank: int) -> None:
        _, self._person, self._images = np.unique(gallery_pids, return_inverse=True, return_counts=True)
        self.total: FloatArray = np.zeros(max_rank)

    def add(self, row: npt.NDArray[np.floating], positives: IntArray) -> None:
        """Add the curve of one query.

        Args:
            row: (num_gallery,), scores, larger = closer; NaN where a row is not in the list.
            positives: its matches, ascending gallery indices, at least one.
        """
        reached = np.flatnonzero(row >= row[positives].min())
        ranked = reached[np.argsort(-row[reached], kind="stable")]
        person = self._person[ranked]
        own = self._person[positives[0]]
        others = np.unique(person[person != own])
        shares = np.zeros((len(positives), len(others)))  # of the images of each other person, those above a positive
        above = np.zeros(len(others), dtype=np.int64)
        start = 0
        for k, place in enumerate(np.flatnonzero(person == own)):
            between = person[start:place]
            above += np.bincount(np.searchsorted(others, between), minlength=len(others))
            shares[k] = above / self._images[others]
            start = place + 1
        self.total += _at_most(shares, len(self.total)).mean(axis=0)


def _at_most(shares: FloatArray, count: int) -> FloatArray:
    """Return the probability of at most 0, ..., count - 1 successes, (rows, count), for trials of these chances."""
    exactly = np.zeros((len(shares), count))
    exactly[:, 0] = 1
    for chance in shares.T[:, :, None]:
        passed = exactly * chance
        exactly -= passed
        exactly[:, 1:] += passed[:, :-1]
    return np.minimum(np.cumsum(exactly, axis=1), 1)
