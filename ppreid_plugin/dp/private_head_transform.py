"""A learned projection as a public transform: loaded from a file, never fitted on what it then transforms.

The file is ``head.safetensors``: ``weight`` (dim, d) and, as JSON in its metadata under ``head``, the record of the
training (budget, unit, adjacency, what the backbone saw, what is covered).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ppreid_plugin.dp.arrays import directions
from ppreid_plugin.dp.journal import write_file
from ppreid_plugin.dp.transforms import PublicTransform, column_values, frozen, normalized, register_transform

WHOLE_MODEL, HEAD_ONLY, NOTHING = "whole model", "head only", "nothing"
UNKNOWN = "unknown"
_METADATA = "head"

# data sets that share people or places: MARS extends Market-1501 (Zheng et al., ECCV 2016) and PRW annotates its video
# (Zheng et al., CVPR 2017), DukeMTMC-VideoReID is cut from DukeMTMC as DukeMTMC-reID is, the CUHK sets are from one
# campus, as are the PRID sets from one pair of cameras
_FAMILIES = {
    "market": ("market", "mars", "prw"),
    "duke": ("duke",),
    "cuhk": ("cuhk",),
    "msmt": ("msmt",),
    "prid": ("prid",),
}


@register_transform("head")
class PrivateHead(PublicTransform):
    r"""The projection of a head, :math:`y = \operatorname{normalize}(W x / |x|)`; a row that vanishes becomes e_1.

    Args:
        weight: W, (dim, d); None holds nothing until :meth:`from_state` fills it.
        record: what the training did and guarantees, ready for JSON.

    Attributes:
        weight: float64, read-only.
        record: as given.

    Raises:
        ValueError: a weight that is not (dim, d) or not finite.

    Example:
        >>> PrivateHead(np.array([[0.0, 2.0]])).transform(np.array([[3.0, 4.0]]))
        array([[1.]])
    """

    name = "head"
    needs_fit = False  # loaded, not fitted: the commands must not fit it on --train
    learned = ("weight", "record")

    def __init__(self, weight: npt.ArrayLike | None = None, record: Mapping[str, Any] | None = None) -> None:
        self.weight = None if weight is None else _checked_weight(weight)
        self.record: dict[str, Any] = dict(record or {})

    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
        """Refuse: a head comes from its training."""
        raise ValueError("transform 'head' is not fitted. Train it with tools/train_private_head.py and load the file.")

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize, project, normalize."""
        weight = column_values(np.ascontiguousarray(self._required().T), rows)
        return normalized(directions(rows)[0] @ weight)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return weight and record (UTF-8 bytes of its JSON) as arrays.

        Raises:
            RuntimeError: no weight.
        """
        return {"weight": np.array(self._required()), "record": np.frombuffer(_json(self.record), np.uint8).copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.ArrayLike]) -> Self:
        """Return the head that :meth:`state` was taken from.

        Raises:
            ValueError: an array is missing, is not one of this transform, or holds something else.
        """
        if set(state) != set(cls.learned):
            raise ValueError(
                f"state of transform 'head' holds {sorted(state)}, must hold {sorted(cls.learned)}. "
                "Take it from state() of a head."
            )
        text = bytes(np.asarray(state["record"], dtype=np.uint8))
        return cls(state["weight"], _record(text, "state of transform 'head'"))

    def describe(self) -> dict[str, Any]:
        """Return the name, the sizes and the training's record, ready for JSON."""
        columns, components = (None, None) if self.weight is None else self.weight.shape[::-1]
        return {"transform": self.name, "columns": columns, "components": components, **self.record}

    @classmethod
    def load(cls, path: str | Path) -> PrivateHead:
        """Return the head in a file: what ``head:FILE`` names in a command or configuration."""
        return load_head(path)

    def save(self, path: str | Path) -> Path:
        """Write the head to ``path`` (``.safetensors``), complete or not at all; an existing file is replaced.

        Raises:
            RuntimeError: no weight.
            ValueError: another suffix.
        """
        from safetensors.numpy import save

        path = require_suffix(path)
        write_file(path, save({"weight": self._required()}, {_METADATA: _json(self.record).decode()}))
        return path

    def _required(self) -> npt.NDArray[np.float64]:
        if self.weight is None:
            raise RuntimeError("transform 'head' holds no weight. Load one: load_head('head.safetensors').")
        return self.weight

    def _require_fitted(self) -> None:
        self._required()


def load_head(path: str | Path) -> PrivateHead:
    """Return the head in a file that :meth:`PrivateHead.save` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a head that is cut off or malformed.
    """
    from safetensors import safe_open

    path = require_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name a head that tools/train_private_head.py wrote.")
    try:
        with safe_open(path, framework="np") as stored:
            metadata = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:
        raise ValueError(f"'{path}' cannot be read ({' '.join(str(error).split())}). Train the head again.") from None
    if set(arrays) != {"weight"} or _METADATA not in metadata:
        raise ValueError(
            f"'{path}' holds {', '.join(sorted(arrays)) or 'nothing'}; a head holds weight and a record. "
            "Name a file that tools/train_private_head.py wrote."
        )
    return PrivateHead(arrays["weight"], _record(metadata[_METADATA].encode(), f"'{path}'"))


def covered(
    trained_on: str, backbone_trained_on: Sequence[str], transforms_fitted_on: Sequence[str] = (), *, noise: bool = True
) -> str:
    """Return what the guarantee covers: ``whole model``, ``head only``, or ``nothing`` (no noise).

    The whole model only if every data set that backbone or transforms saw is named and none is, contains or shares
    people with the head's. Names are compared by letters and digits alone; what is in doubt is not covered.

    Example:
        >>> covered("market1501", ["msmt17"]), covered("market1501", ["msmt17", "Market-1501"])
        ('whole model', 'head only')
    """
    if not noise:
        return NOTHING
    own = _plain(trained_on)
    others = [_plain(name) for name in (*backbone_trained_on, *transforms_fitted_on)]
    known = own and _plain(UNKNOWN) != own and backbone_trained_on and all(others) and _plain(UNKNOWN) not in others
    return WHOLE_MODEL if known and not any(_related(own, other) for other in others) else HEAD_ONLY


def require_suffix(path: str | Path) -> Path:
    """Return the path if it ends in ``.safetensors``; ValueError otherwise."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"'{path}' ends in {path.suffix!r}; a head is a .safetensors file.")
    return path


def _related(one: str, other: str) -> bool:
    families = [{key for key, words in _FAMILIES.items() if any(w in name for w in words)} for name in (one, other)]
    return one in other or other in one or bool(families[0] & families[1])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _checked_weight(weight: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.array(weight, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"weight has shape {values.shape}, must be (dim, d). Take it from a trained head.")
    if not np.isfinite(values).all():
        raise ValueError("weight holds NaN or infinity. Train the head again with a smaller lr.")
    return frozen(values)


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, sort_keys=True).encode("utf-8")


def _record(text: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text.decode("utf-8"))
    except ValueError:
        raise ValueError(f"{where}: its record is not JSON. Train the head again.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: its record is {type(record).__name__}, must be a JSON object.")
    return record
