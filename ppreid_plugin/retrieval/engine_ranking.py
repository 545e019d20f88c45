"""Our ranking and re-ranking inside one call of a torchreid engine's ``test``, with a result that says all figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ppreid_plugin.retrieval.ranking import RankingResult, evaluate_distances
from ppreid_plugin.retrieval.reranking import re_rank, re_rank_distances
from ppreid_plugin.toolbox import metrics, submodule


class SelfDistances:
    """Distances of features to themselves, which are computed only if somebody looks at them.

    torchreid computes them for re-ranking alone: 1 GB for the gallery of Market-1501. Ours starts from the features.
    """

    def __init__(self, features: torch.Tensor, metric: str, compute: Callable[..., torch.Tensor]) -> None:
        self.features = features
        self.metric = metric
        self._compute = compute

    def numpy(self) -> np.ndarray:
        """Return the matrix, as a tensor's method of this name does."""
        return self._compute(self.features, self.features, self.metric).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype=dtype)


@contextmanager
def exact_ranking(
    *, exclude_same_camera: bool = True, max_rank: int = 50, rerank: bool = False
) -> Iterator[list[RankingResult]]:
    """Put our exact ranking in place of torchreid's ``evaluate_rank`` inside the block, and our re-ranking.

    Same figures; it needs no full sort, accepts galleries smaller than ``max_rank`` and also gives mINP. CUHK03's curve
    is the expectation over all draws of gallery images, where torchreid takes the mean of ten.

    Args:
        exclude_same_camera: take gallery rows of the query's pid and camera out of its list; CUHK03's metric always
            does.
        max_rank: length of the CMC curve.
        rerank: whether the engine re-ranks; distances within query and gallery are then never held.

    Yields:
        The list that each evaluation's result is appended to.
    """
    results: list[RankingResult] = []
    stock_evaluate, stock_distances = metrics.evaluate_rank, metrics.compute_distance_matrix
    engine: Any = submodule("engine.engine")
    stock_re_ranking = engine.re_ranking

    def evaluate_rank(
        distmat: np.ndarray,
        q_pids: np.ndarray,
        g_pids: np.ndarray,
        q_camids: np.ndarray,
        g_camids: np.ndarray,
        max_rank: int = max_rank,
        use_metric_cuhk03: bool = False,
        use_cython: bool = True,
    ) -> tuple[np.ndarray, float]:
        protocol = "cuhk03" if use_metric_cuhk03 else "market1501" if exclude_same_camera else "all"
        result = evaluate_distances(distmat, q_pids, g_pids, q_camids, g_camids, protocol=protocol, max_rank=max_rank)
        results.append(result)
        return result.cmc, result.mAP

    def compute_distance_matrix(input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean") -> Any:
        if input1 is input2:
            return SelfDistances(input1, metric, stock_distances)
        return stock_distances(input1, input2, metric)

    def re_ranking(
        q_g_dist: np.ndarray, q_q_dist: Any, g_g_dist: Any, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
    ) -> np.ndarray:
        if isinstance(q_q_dist, SelfDistances) and isinstance(g_g_dist, SelfDistances):
            rows = q_q_dist.features, g_g_dist.features
            return re_rank(*rows, k1, k2, lambda_value, metric=q_q_dist.metric)
        return re_rank_distances(q_g_dist, q_q_dist, g_g_dist, k1, k2, lambda_value)

    metrics.evaluate_rank = evaluate_rank
    if rerank:
        metrics.compute_distance_matrix, engine.re_ranking = compute_distance_matrix, re_ranking
    try:
        yield results
    finally:
        metrics.evaluate_rank = stock_evaluate
        metrics.compute_distance_matrix, engine.re_ranking = stock_distances, stock_re_ranking
