"""The suppressor as a public transform: fitted on training people, strictly row by row afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ..dp.arrays import directions
from ..dp.transform_files import FileTransform
from ..dp.transforms import column_values, normalized, register_transform
from ..registry import check_arguments
from .fitting import SuppressorFit


@register_transform("suppressor")
class Suppressor(FileTransform):
    r"""Suppresses attributes, and what images show, by a linear map and a small network, on centered unit rows.

    .. math:: y = \frac{z}{|z|}, \quad z = W c + V\, \mathrm{relu}(U c + a) + b, \quad
              c = \frac{u - m}{|u - m|}, \quad u = \frac{x}{|x|}

    It is what suppression comes to when the encoder is given and only its last step may change: minutes on a CPU,
    features of any toolbox, nothing of the images needed. LEACE removes what is linear and asks nothing of matching;
    this map is trained for both (`SuppressorFit`). What it promises is what fresh attackers confirm, no more.

    Args:
        settings: keywords of `SuppressorFit`.

    Raises:
        ValueError: a keyword that it does not have, or a number out of range.

    Attributes:
        mean, linear, hidden, hidden_bias, out, out_bias: m (d,), W (d, d), U (h, d), a (h,), V (d, h), b (d,); float64,
            read-only; None before the fit. h may be 0.

    Source:
        Ours. The losses' sources stand in `SuppressorFit`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pids, rows = np.repeat(np.arange(20), 4), rng.normal(size=(80, 6))
        >>> fitted = Suppressor(epochs=2, hidden=8).fit_people(rows, pids, pids[:, None] % 2)
        >>> fitted.transform(rows).shape
        (80, 6)
    """

    name = "suppressor"
    needs_fit = False  # fitted with labels that commands do not have, or loaded: they must not fit it on --train
    learned = ("mean", "linear", "hidden", "hidden_bias", "out", "out_bias")

    mean: npt.NDArray[np.float64] | None = None
    linear: npt.NDArray[np.float64] | None = None
    hidden: npt.NDArray[np.float64] | None = None
    hidden_bias: npt.NDArray[np.float64] | None = None
    out: npt.NDArray[np.float64] | None = None
    out_bias: npt.NDArray[np.float64] | None = None

    def __init__(self, **settings: Any) -> None:
        check_arguments(settings, [SuppressorFit], key="transform 'suppressor'")
        self._fit = SuppressorFit(**settings)

    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
        """Refuse: what is to be suppressed has to be named."""
        raise ValueError(
            "transform 'suppressor' learns from people and the labels of what it suppresses, and fit() has none. Call "
            "fit_people(features, pids, concepts), or load what was fitted: suppressor:FILE.safetensors"
        )

    def fit_people(
        self,
        features: np.ndarray | torch.Tensor,
        pids: npt.ArrayLike | torch.Tensor,
        concepts: npt.ArrayLike | None = None,
        *,
        numbers: npt.ArrayLike | None = None,
    ) -> Self:
        """Learn from rows of the *training* split; a new fit replaces the old one.

        Args:
            features: training rows, (n, d).
            pids: their people, (n,), whole numbers.
            concepts: labels, (n, k) whole numbers, a column an attribute; -1 where not known (such a row is not pushed
                in that attribute, and learns in all else); None: no attribute is suppressed.
            numbers: (n, r), what else is not to be found, such as `ppreid_plugin.leakage.image_components`.

        Raises:
            ValueError: as `SuppressorFit.fit`.
        """
        learned = self._fit.fit(features, pids, concepts, numbers=numbers)
        for name in self.learned:
            setattr(self, name, learned[name])
        self.fitted, self.fitted_rows = True, len(features)
        self.note_fitted_on(features)
        return self

    @property
    def losses(self) -> list[dict[str, float]]:
        """Mean losses of every epoch of the fit, by name; empty for one that was loaded."""
        return self._fit.losses

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Center, map, normalize; a row without a direction becomes e_1, as in `Center`."""
        centered = normalized(directions(rows)[0] - column_values(self.mean, rows))
        linear, hidden, hidden_bias, out, out_bias = (
            torch.tensor(getattr(self, name), dtype=torch.float64, device=rows.device) for name in self.learned[1:]
        )
        inner = torch.relu(centered @ hidden.T + hidden_bias)
        return normalized(centered @ linear.T + inner @ out.T + out_bias)

    def describe(self) -> dict[str, Any]:
        """Return the name and what it was fitted on, in numbers of rows, columns and hidden units."""
        hidden, columns = (None, None) if self.hidden is None else self.hidden.shape
        return {
            "transform": self.name,
            "fitted_rows": self.fitted_rows,
            "columns": columns,
            "hidden": hidden,
        }

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError(
                "transform 'suppressor' is not fitted; call fit_people(features, pids, concepts) first, or name a "
                "file: suppressor:FILE.safetensors"
            )
