"""The one place that knows which torchreid is installed.

Two are in use: upstream 1.4 (everything directly under ``torchreid``) and the package index's 0.2.5 (the same code
under ``torchreid.reid``, re-exported by attribute). Every other module imports torchreid's parts from here.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

try:
    with warnings.catch_warnings():
        # "Cython evaluation is unavailable": we bring our own exact evaluation.
        warnings.simplefilter("ignore")
        import torchreid
        from torchreid import data, engine, losses, metrics, models, optim, utils
except ImportError as error:
    raise ImportError(
        f"torchreid could not be imported ({error}). Install it with what it needs: pip install ppreid_plugin, "
        "or, for upstream torchreid, install its requirements first."
    ) from error

__all__ = [
    "IS_REPACKAGED",
    "data",
    "engine",
    "image_datasets",
    "losses",
    "metrics",
    "model_factory",
    "models",
    "optim",
    "submodule",
    "utils",
    "version",
    "video_datasets",
]

IS_REPACKAGED: bool = hasattr(torchreid, "reid")
_ROOT: str = metrics.__name__.rsplit(".", 1)[0]


def submodule(name: str) -> ModuleType:
    """Import a module of torchreid by its upstream name, such as ``"data.datasets"``."""
    return importlib.import_module(f"{_ROOT}.{name}")


def version() -> str:
    """Version of torchreid in words: ``"1.4.0"``, or ``"1.4.0 (torchreid 0.2.5 of the package index)"``."""
    if IS_REPACKAGED:
        return f"{torchreid.reid.__version__} (torchreid {torchreid.__version__} of the package index)"
    return str(torchreid.__version__)


def model_factory() -> dict[str, Any]:
    """torchreid's models by name. It has no public register; this is the dict that ``build_model`` reads."""
    return getattr(models, "__model_factory")


def image_datasets() -> dict[str, Any]:
    """torchreid's image data sets by name, those registered by users included."""
    return getattr(submodule("data.datasets"), "__image_datasets")


def video_datasets() -> dict[str, Any]:
    """torchreid's video data sets by name, those registered by users included."""
    return getattr(submodule("data.datasets"), "__video_datasets")
