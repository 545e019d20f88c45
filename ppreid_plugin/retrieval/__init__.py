"""Matching: exact ranking figures in bounded memory, for unlabelled rows, enrolled people and an open set."""

from ppreid_plugin.retrieval.enrolled import EnrolledResult, evaluate_enrolled
from ppreid_plugin.retrieval.open_set import OpenSetPoint, OpenSetResult, evaluate_open_set
from ppreid_plugin.retrieval.ranking import RankingResult, evaluate, evaluate_distances

__all__ = [
    "EnrolledResult",
    "OpenSetPoint",
    "OpenSetResult",
    "RankingResult",
    "evaluate",
    "evaluate_distances",
    "evaluate_enrolled",
    "evaluate_open_set",
]
