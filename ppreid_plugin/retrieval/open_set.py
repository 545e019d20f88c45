"""Open-set figures of the enrolled protocol: most people who pass a camera are on no watch list.

Our definition. Half of the gallery's people are listed; the others, and background images, are strangers to the list.
The threshold is chosen on one part of the strangers and the alarms it raises are counted on the other part, so no
probe is judged by a threshold that has seen it. Templates and scores are those of :mod:`.enrolled`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.number_checks import is_number, require_whole
from ppreid_plugin.retrieval.checks import (
    Features,
    IntArray,
    Labels,
    as_feature_pair,
    as_labels,
    as_matrix,
    as_pids,
    require_finite,
)
from ppreid_plugin.retrieval.distances import normalize_rows
from ppreid_plugin.retrieval.enrolled import by_camera, template_scores, templates_of
from ppreid_plugin.retrieval.ranking import NoMatchError, no_match_message

_Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OpenSetPoint:
    """The figures at one false positive identification rate (FPIR); rates are fractions in [0, 1].

    A figure that the data cannot give is None.

    Attributes:
        fpir: the rate asked for.
        threshold: smallest calibration score above which at most ``fpir`` of the calibration probes lie.
        tpir: true positive identification rate, ``identified / num_mated``.
        test_fpir: the rate that the test probes really show, ``test_alarms / num_test``; it scatters around ``fpir``.
        identified: mated probes whose own person heads the list with a score above the threshold.
        calibration_alarms, test_alarms: non-mated probes of either part with a score above the threshold.
        reason: why there is no ``tpir``; None where there is one.
    """

    fpir: float
    threshold: float | None
    tpir: float | None
    test_fpir: float | None
    identified: int | None
    calibration_alarms: int | None
    test_alarms: int | None
    reason: str | None


@dataclass(frozen=True)
class OpenSetResult:
    """The figures of one evaluation in which most probes may show nobody on the list.

    The counts are those of binomial trials, but probes of one person are not independent: an interval that takes
    them as such is too narrow.

    Attributes:
        points: one for each rate of ``fpirs``, in that order.
        num_listed: people that the list is made of.
        num_mated: queries of listed people that have a template.
        num_calibration, num_test: non-mated probes of either part, background among them.
        num_background_calibration, num_background_test: how many of these are background.
    """

    points: tuple[OpenSetPoint, ...]
    num_listed: int
    num_mated: int
    num_calibration: int
    num_test: int
    num_background_calibration: int
    num_background_test: int

    def at(self, fpir: float) -> OpenSetPoint:
        """Return the figures at the rate ``fpir``.

        Raises:
            ValueError: it is not one of those evaluated.
        """
        for point in self.points:
            if point.fpir == fpir:
                return point
        rates = ", ".join(f"{point.fpir:g}" for point in self.points)
        raise ValueError(f"fpir is {fpir}; evaluated: {rates}. Evaluate with fpirs=({fpir},).")


def evaluate_open_set(
    query_features: Features,
    gallery_features: Features,
    query_pids: Labels,
    gallery_pids: Labels,
    query_camids: Labels,
    gallery_camids: Labels,
    *,
    background_features: Features | None = None,
    background_camids: Labels | None = None,
    background_pids: Sequence[int] = (0,),
    listed_fraction: float = 0.5,
    fpirs: Sequence[float] = (0.01, 0.1),
    seed: int = 1,
    exclude_same_camera: bool = True,
    max_background_probes: int = 10_000,
) -> OpenSetResult:
    """Find how many listed people are identified at the rates of false alarms in ``fpirs``.

    The gallery's n people in ascending order of pid are permuted by the seed: the first ``int(listed_fraction * n)``
    (at least one) are listed, of the others the first half, rounded up, is for calibration and the rest for the test.
    Background is permuted next and halved in the same way. Mated probes are the queries of listed people that have a
    template for their camera; non-mated ones are the queries of unlisted people and background. For each rate the
    threshold is the smallest calibration score above which at most that share of the calibration probes lies.
    It holds for all cameras. Fewer than 1 / fpir calibration probes cannot show so low a rate: the figures are None
    then, and ``reason`` says so.

    Ties for the head of the list go to the lower pid. A probe for whose camera nobody has a template is dropped.

    Args:
        query_features: numpy array or torch tensor of any float type, normalized here.
        gallery_features: the same for the gallery; only rows of listed people are used.
        query_pids: whole numbers, one a query. Queries of people who are not in the gallery are dropped.
        gallery_pids: whole numbers, one a gallery row.
        query_camids: whole numbers, one a query.
        gallery_camids: whole numbers, one a gallery row.
        background_features: images of strangers, made as the *queries* are: a protected gallery's background rows
            are protected, so take their features from before the protection. None or no row: no background. They
            carry no pid, so images of one stranger may fall into both parts.
        background_camids: whole numbers, one a background row; None only if ``exclude_same_camera`` is False.
        background_pids: pids that are nobody: neither listed nor unlisted, and queries of them are dropped.
        listed_fraction: share of the people to list, in (0, 1]; 1 leaves background as the only strangers.
        fpirs: rates in (0, 1).
        seed: whole number >= 0; decides the split and nothing else.
        exclude_same_camera: leave rows of the probe's camera out of all templates. False: one list for all probes
            (prototypes of the person unit have no camera).
        max_background_probes: at most so many background rows are used, chosen by the seed.
    Shape:
        features: (num_query, d), (num_gallery, d) and (num_background, d). Labels: one a row. One chunk of queries
        times the list is held at a time.

    Raises:
        ValueError: wrong shapes, lengths, types or options; NaN or infinity (rows are named).
        NoMatchError: no query with a template, whoever is listed.

    Source:
        The rates are those of ISO/IEC 19795-1 (biometric performance testing), for a list of one candidate.

    Example:
        >>> people, pids, strangers = np.eye(6), range(1, 7), -np.random.default_rng(0).random((40, 6))
        >>> background = {"background_features": strangers, "background_camids": [0] * 40}
        >>> result = evaluate_open_set(people, people, pids, pids, [0] * 6, [1] * 6, **background)
        >>> result.num_listed, result.num_mated, result.num_calibration, result.at(0.1).tpir
        (3, 3, 22, 1.0)
        >>> result.at(0.01).reason
        '22 calibration probes cannot show an FPIR of 0.01: 100 are needed. Pass more background or people.'
    """
    _check_options(fpirs, listed_fraction, seed, max_background_probes)
    query, gallery = as_feature_pair(query_features, gallery_features)
    q_pids = as_labels("query_pids", query_pids, len(query))
    g_pids = as_labels("gallery_pids", gallery_pids, len(gallery))
    q_camids = as_labels("query_camids", query_camids, len(query))
    g_camids = as_labels("gallery_camids", gallery_camids, len(gallery))
    background, b_camids = _background(background_features, background_camids, query, exclude_same_camera)

    people = np.setdiff1d(g_pids, as_pids("background_pids", background_pids))
    known = np.flatnonzero(np.isin(q_pids, people))
    by_list = by_camera(known, q_camids, g_camids, exclude_same_camera)
    matched = np.concatenate([known[:0], *(part[np.isin(q_pids[part], g_pids[used])] for part, used in by_list)])
    if not len(matched):
        used_words = f"exclude_same_camera={exclude_same_camera}"
        raise NoMatchError(no_match_message(len(known) > 0, used_words, "exclude_same_camera=False"))

    generator = np.random.default_rng(seed)
    order = generator.permutation(people)
    listed, unlisted = np.split(order, [max(1, int(listed_fraction * len(people)))])
    background_rows = generator.permutation(len(background))[:max_background_probes]
    on_list = np.isin(g_pids, listed)
    unit_rows = normalize_rows(gallery[torch.from_numpy(on_list).to(gallery.device)])
    watch_list = unit_rows, g_pids[on_list], g_camids[on_list], exclude_same_camera

    mated = matched[np.isin(q_pids[matched], listed)]
    heads, scores = _heads(query, mated, q_camids, *watch_list)
    halves = zip(np.array_split(unlisted, 2), np.array_split(background_rows, 2), strict=True)  # the first is larger
    strangers = []
    for group, rows in halves:
        _, people_scores = _heads(query, known[np.isin(q_pids[known], group)], q_camids, *watch_list)
        _, background_scores = _heads(background, rows, b_camids, *watch_list)
        strangers.append([part[np.isfinite(part)] for part in (people_scores, background_scores)])
    calibration, test = (np.concatenate(parts) for parts in strangers)
    own_scores = np.where(heads == q_pids[mated], scores, -np.inf)
    return OpenSetResult(
        points=tuple(_point(float(fpir), own_scores, calibration, test) for fpir in fpirs),
        num_listed=len(listed),
        num_mated=len(mated),
        num_calibration=len(calibration),
        num_test=len(test),
        num_background_calibration=len(strangers[0][1]),
        num_background_test=len(strangers[1][1]),
    )


def _heads(
    features: torch.Tensor,
    rows: IntArray,
    camids: IntArray,
    unit_rows: torch.Tensor,
    g_pids: IntArray,
    g_camids: IntArray,
    exclude: bool,
) -> tuple[IntArray, _Scores]:
    """Return who heads the list of each of ``rows``, and with which score; -1 and -inf where the list is empty."""
    pids, best = np.full(len(features), -1), np.full(len(features), -np.inf)
    for probes, used in by_camera(rows, camids, g_camids, exclude):
        if used.any():
            people, templates = templates_of(unit_rows[torch.from_numpy(used).to(unit_rows.device)], g_pids[used])
            for span, scores in template_scores(features, probes, templates):
                pids[probes[span]] = people[scores.argmax(axis=1)]  # the first of equals: ascending pids
                best[probes[span]] = scores.max(axis=1)
    return pids[rows], best[rows]


def _point(fpir: float, own_scores: _Scores, calibration: _Scores, test: _Scores) -> OpenSetPoint:
    """Return the figures at one rate; ``own_scores`` are -inf where another person heads the list."""
    shares = np.arange(1, len(calibration) + 1) / len(calibration)
    allowed = int(np.searchsorted(shares, fpir, side="right"))
    if not allowed:
        reason = (
            f"{len(calibration)} calibration probes cannot show an FPIR of {fpir:g}: {math.ceil(1 / fpir)} are needed. "
            "Pass more background or people."
        )
        return OpenSetPoint(fpir, None, None, None, None, None, None, reason)
    threshold = float(np.partition(calibration, -1 - allowed)[-1 - allowed])
    identified, alarms, test_alarms = (int((part > threshold).sum()) for part in (own_scores, calibration, test))
    return OpenSetPoint(
        fpir=fpir,
        threshold=threshold,
        tpir=identified / len(own_scores) if len(own_scores) else None,
        test_fpir=test_alarms / len(test) if len(test) else None,
        identified=identified,
        calibration_alarms=alarms,
        test_alarms=test_alarms,
        reason=None if len(own_scores) else "No listed person has a query with a template. Pass another seed.",
    )


def _background(
    features: Features | None, camids: Labels | None, query: torch.Tensor, exclude: bool
) -> tuple[torch.Tensor, IntArray]:
    """Return background features and camids, checked; without any, none."""
    background = query[:0]
    if features is not None and not _empty(features):
        background = as_matrix("background_features", features)
        if background.shape[1] != query.shape[1]:
            raise ValueError(
                f"background_features have {background.shape[1]} columns and query_features {query.shape[1]}, must be "
                "equal. Make background features in the same way as those of the queries."
            )
        require_finite("background_features", background)
        if camids is None and exclude:
            raise ValueError(
                "background_camids is None, must be one camid a background row under exclude_same_camera=True. "
                "Pass background_camids, or exclude_same_camera=False for one list for all."
            )
    camids = np.zeros(len(background), dtype=np.int64) if camids is None else camids
    return background, as_labels("background_camids", camids, len(background))


def _empty(features: Features) -> bool:
    rows = (len(features),) if isinstance(features, (list, tuple)) else getattr(features, "shape", ())[:1]
    return rows == (0,)


def _check_options(fpirs: Sequence[float], listed_fraction: float, seed: int, max_background_probes: int) -> None:
    several = isinstance(fpirs, (Sequence, np.ndarray)) and len(fpirs) > 0
    if not several or not all(is_number(fpir) and 0 < fpir < 1 for fpir in fpirs):
        raise ValueError(f"fpirs is {fpirs!r}, must be rates in (0, 1). Pass for example fpirs=(0.01, 0.1).")
    if not (is_number(listed_fraction) and 0 < listed_fraction <= 1):
        raise ValueError(f"listed_fraction is {listed_fraction!r}, must lie in (0, 1]. 0.5 lists half of the people.")
    require_whole("seed", seed, least=0)
    require_whole("max_background_probes", max_background_probes)
