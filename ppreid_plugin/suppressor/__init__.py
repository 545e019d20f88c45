"""Stage 1 on the features of a model as it is: a small network after it that suppresses attributes."""

from .fitting import SuppressorFit
from .front import Front, FrontPoint, suppressor_front
from .transform import Suppressor

__all__ = ["Front", "FrontPoint", "Suppressor", "SuppressorFit", "suppressor_front"]
