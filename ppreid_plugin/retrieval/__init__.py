"""Matching: exact ranking figures in bounded memory, for unlabelled rows, enrolled people and an open set."""

from ppreid_plugin.retrieval.acceleration import Acceleration, accelerate_torchreid
from ppreid_plugin.retrieval.enrolled import EnrolledResult, evaluate_enrolled
from ppreid_plugin.retrieval.open_set import OpenSetPoint, OpenSetResult, evaluate_open_set
from ppreid_plugin.retrieval.ranking import NoMatchError, RankingResult, evaluate, evaluate_distances
from ppreid_plugin.retrieval.reranking import KReciprocal, re_rank, re_rank_distances

__all__ = [
    "Acceleration",
    "EnrolledResult",
    "KReciprocal",
    "NoMatchError",
    "OpenSetPoint",
    "OpenSetResult",
    "RankingResult",
    "accelerate_torchreid",
    "evaluate",
    "evaluate_distances",
    "evaluate_enrolled",
    "evaluate_open_set",
    "re_rank",
    "re_rank_distances",
]
