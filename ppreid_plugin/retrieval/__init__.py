"""Matching: exact ranking figures in bounded memory, for unlabelled rows, enrolled people and an open set."""

from ppreid_plugin.retrieval.acceleration import Acceleration, accelerate_torchreid
from ppreid_plugin.retrieval.enrolled import EnrolledResult, evaluate_enrolled
from ppreid_plugin.retrieval.open_set import OpenSetPoint, OpenSetResult, evaluate_open_set
from ppreid_plugin.retrieval.ranking import NoMatchError, RankingResult, evaluate, evaluate_distances

__all__ = [
    "Acceleration",
    "EnrolledResult",
    "NoMatchError",
    "OpenSetPoint",
    "OpenSetResult",
    "RankingResult",
    "accelerate_torchreid",
    "evaluate",
    "evaluate_distances",
    "evaluate_enrolled",
    "evaluate_open_set",
]
