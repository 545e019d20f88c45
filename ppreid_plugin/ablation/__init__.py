"""The ablation: rows of a plan are trained, protected, judged by the leakage battery and set beside a reference row."""

from . import defenses, gallery_defenses  # noqa: F401  (they register theirs)
from .defense import DEFENSES, Defense, RowDefense, register_defense
from .plan import Measures, Plan, Row, load_plan

__all__ = ["DEFENSES", "Defense", "Measures", "Plan", "Row", "RowDefense", "load_plan", "register_defense"]
