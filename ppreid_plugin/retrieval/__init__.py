"""Matching: exact ranking figures in bounded memory, for unlabelled rows and for enrolled people."""

from ppreid_plugin.retrieval.enrolled import EnrolledResult, evaluate_enrolled
from ppreid_plugin.retrieval.ranking import RankingResult, evaluate, evaluate_distances

__all__ = ["EnrolledResult", "RankingResult", "evaluate", "evaluate_distances", "evaluate_enrolled"]
