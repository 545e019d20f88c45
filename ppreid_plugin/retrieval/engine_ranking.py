"""Our ranking and re-ranking inside one call of a torchreid engine's ``test``, with a result that says all figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ppreid_plugin.retrieval.distances import METRICS
from ppreid_plugin.retrieval.ranking import RankingResult, evaluate, evaluate_distances
from ppreid_plugin.retrieval.reranking import re_rank, re_rank_distances
from ppreid_plugin.toolbox import metrics, submodule

_log = logging.getLogger(__name__)


class LazyDistances(np.lib.mixins.NDArrayOperatorsMixin):
    """Distances between features, which are computed only if somebody looks at them, and then are like an array.

    torchreid computes all of them before it ranks: 7 GB for Market-1501 with 500,000 distractors, and several times
    that while they are made; for re-ranking those within the gallery too. Ours starts from the features.
    """

    def __init__(
        self, features: torch.Tensor, others: torch.Tensor, metric: str, compute: Callable[..., torch.Tensor]
    ) -> None:
        self.features, self.others = features, others
        self.metric = metric
        self.shape = (len(features), len(others))
        self._compute = compute

    def numpy(self) -> LazyDistances:
        """Return itself, where a tensor's method of this name returns the matrix."""
        return self

    @cached_property
    def _matrix(self) -> np.ndarray:
        return np.asarray(self._compute(self.features, self.others, self.metric).numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._matrix, dtype=dtype) if copy else np.asarray(self._matrix, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(one) if isinstance(one, LazyDistances) else one for one in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, place: Any) -> Any:
        return self._matrix[place]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._matrix, name)


@contextmanager
def exact_ranking(
    *, exclude_same_camera: bool = True, max_rank: int = 50, use_gpu: bool = False
) -> Iterator[list[RankingResult]]:
    """Put our exact ranking in place of torchreid's ``evaluate_rank`` inside the block, and our re-ranking.

    Same figures; it needs no full sort and no matrix of distances, accepts galleries smaller than ``max_rank`` and also
    gives mINP. CUHK03's curve is the expectation over all draws of gallery images, where torchreid takes the mean of
    ten.

    Args:
        exclude_same_camera: take gallery rows of the query's pid and camera out of its list; CUHK03's metric always
            does.
        max_rank: length of the CMC curve.
        use_gpu: rank features on the current CUDA device, unless it has no room for them.

    Yields:
        The list that each evaluation's result is appended to.
    """
    results: list[RankingResult] = []
    stock_evaluate, stock_distances = metrics.evaluate_rank, metrics.compute_distance_matrix
    engine: Any = submodule("engine.engine")
    stock_re_ranking = engine.re_ranking

    def evaluate_rank(
        distmat: Any,
        q_pids: np.ndarray,
        g_pids: np.ndarray,
        q_camids: np.ndarray,
        g_camids: np.ndarray,
        max_rank: int = max_rank,
        use_metric_cuhk03: bool = False,
        use_cython: bool = True,
    ) -> tuple[np.ndarray, float]:
        protocol = "cuhk03" if use_metric_cuhk03 else "market1501" if exclude_same_camera else "all"
        labels = q_pids, g_pids, q_camids, g_camids
        if isinstance(distmat, LazyDistances):
            rows = (distmat.features, distmat.others)
            result = _evaluate(rows, labels, distmat.metric, protocol, max_rank, use_gpu=use_gpu)
        else:
            result = evaluate_distances(distmat, *labels, protocol=protocol, max_rank=max_rank)
        results.append(result)
        return result.cmc, result.mAP

    def compute_distance_matrix(input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean") -> Any:
        if metric not in METRICS:
            return stock_distances(input1, input2, metric)  # says what it has
        return LazyDistances(input1, input2, metric, stock_distances)

    def re_ranking(
        q_g_dist: Any, q_q_dist: Any, g_g_dist: Any, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
    ) -> np.ndarray:
        if isinstance(q_g_dist, LazyDistances):
            return re_rank(q_g_dist.features, q_g_dist.others, k1, k2, lambda_value, metric=q_g_dist.metric)
        return re_rank_distances(q_g_dist, q_q_dist, g_g_dist, k1, k2, lambda_value)

    metrics.evaluate_rank = evaluate_rank
    metrics.compute_distance_matrix, engine.re_ranking = compute_distance_matrix, re_ranking
    try:
        yield results
    finally:
        metrics.evaluate_rank = stock_evaluate
        metrics.compute_distance_matrix, engine.re_ranking = stock_distances, stock_re_ranking


def _evaluate(
    rows: tuple[torch.Tensor, torch.Tensor],
    labels: tuple[np.ndarray, ...],
    metric: str,
    protocol: str,
    max_rank: int,
    *,
    use_gpu: bool,
) -> RankingResult:
    if use_gpu:
        try:
            there = [one.cuda() for one in rows]
            return evaluate(*there, *labels, metric=metric, protocol=protocol, max_rank=max_rank)
        except torch.OutOfMemoryError:
            _log.info("no room on the GPU for features and scores: they are ranked on the CPU.")
            torch.cuda.empty_cache()
    return evaluate(*rows, *labels, metric=metric, protocol=protocol, max_rank=max_rank)
