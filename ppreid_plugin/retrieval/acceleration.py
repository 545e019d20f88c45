"""Stock torchreid with our ranking inside, for people who want nothing else of this package.

torchreid's ``evaluate_rank`` hands the work to ``evaluate_py``, or to ``evaluate_cy`` where upstream's Cython was
built, and looks both up in its module when it is called. Replacing these two reaches every place that has
``evaluate_rank`` by whatever name, in torchreid and in scripts. ``re_ranking`` looks nothing up, so it is replaced
in every module that has imported it.
"""

from __future__ import annotations

import sys
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ppreid_plugin import toolbox
from ppreid_plugin.retrieval.ranking import evaluate_distances
from ppreid_plugin.retrieval.reranking import re_rank_distances

_active: list[Acceleration] = []
_replaced: list[tuple[ModuleType, str, Any, Any]] = []  # module, name, torchreid's own, ours


class Acceleration:
    """What :func:`accelerate_torchreid` returns: undoes it, once, by :meth:`undo` or at the end of a ``with`` block."""

    def undo(self) -> None:
        """Give torchreid its own functions back, unless another acceleration is still on. A second call does nothing.

        A name that somebody else has replaced in the meantime is left as it is.
        """
        if self not in _active:
            return
        _active.remove(self)
        if not _active:
            _restore()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def accelerate_torchreid() -> Acceleration:
    """Put our exact ranking and re-ranking into the torchreid that is installed, upstream's or the package index's.

    Every ``evaluate_rank`` of torchreid, its engines' included, then computes the same ``(cmc, mAP)`` without a full
    sort and in bounded memory, whether asked to use Cython or not: ``cmc`` in float32, of the smaller of ``max_rank``
    and ``num_gallery`` values, and ``mAP`` in float64. What differs: equal distances go by gallery index, where
    torchreid's order depends on numpy's sort; a query that keeps fewer than ``max_rank`` gallery rows is no error; NaN
    among the distances, or no query with a match, is a ``ValueError`` that says what to do. CUHK03's curve is the
    expectation over all draws of gallery images, where torchreid takes the mean of ten.

    ``re_ranking`` returns the same distances to rounding, with little memory beside the three matrices that it is
    given. A module that imports it while ours is in place keeps ours.

    Calls may be nested, in any order: torchreid is itself again when the last one is undone.

    Returns:
        The object that undoes it. Keeping it is not needed for the acceleration to last.

    Example:
        >>> from ppreid_plugin.toolbox import metrics
        >>> labels = np.array([1]), np.array([2, 1]), np.array([0]), np.array([1, 1])
        >>> with accelerate_torchreid():
        ...     cmc, mAP = metrics.evaluate_rank(np.array([[0.1, 0.2]]), *labels, max_rank=2)
        >>> cmc.tolist(), float(mAP)
        ([0.0, 1.0], 0.5)
    """
    acceleration = Acceleration()
    _active.append(acceleration)
    if len(_active) == 1:
        rank = toolbox.submodule("metrics.rank")
        for name in ("evaluate_py", "evaluate_cy"):  # the second one only where Cython was built
            if hasattr(rank, name):
                _replace(rank, name, evaluate_torchreid)
        stock = toolbox.submodule("utils.rerank").re_ranking
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("re_ranking") is stock:
                _replace(module, "re_ranking", re_ranking)
    return acceleration


def _replace(module: ModuleType, name: str, ours: Any) -> None:
    _replaced.append((module, name, getattr(module, name), ours))
    setattr(module, name, ours)


def _restore() -> None:
    while _replaced:
        module, name, stock, ours = _replaced.pop()
        if getattr(module, name, None) is ours:
            setattr(module, name, stock)


def re_ranking(
    q_g_dist: npt.NDArray[np.floating],
    q_q_dist: npt.NDArray[np.floating],
    g_g_dist: npt.NDArray[np.floating],
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> npt.NDArray[np.float32]:
    """Return what torchreid's function of this name returns; see :func:`.re_rank_distances`."""
    return re_rank_distances(q_g_dist, q_q_dist, g_g_dist, k1, k2, lambda_value)


def evaluate_torchreid(
    distmat: npt.NDArray[np.floating],
    q_pids: npt.NDArray[np.integer],
    g_pids: npt.NDArray[np.integer],
    q_camids: npt.NDArray[np.integer],
    g_camids: npt.NDArray[np.integer],
    max_rank: int,
    use_metric_cuhk03: bool = False,
) -> tuple[npt.NDArray[np.float32], np.float64]:
    """Return what torchreid's ``evaluate_py`` and ``evaluate_cy`` return; see :func:`.evaluate_distances`."""
    distances = np.asarray(distmat)
    if distances.dtype.kind in "iub":  # no feature gives these, but torchreid ranks them too
        distances = distances.astype(np.float64)
    protocol = "cuhk03" if use_metric_cuhk03 else "market1501"
    labels = q_pids, g_pids, q_camids, g_camids
    result = evaluate_distances(distances, *labels, protocol=protocol, max_rank=max_rank)
    return result.cmc[: distances.shape[1]].astype(np.float32), np.float64(result.mAP)
