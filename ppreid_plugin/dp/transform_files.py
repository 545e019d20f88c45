"""Public transforms that a file keeps: fitted once with labels, named as ``NAME:FILE.safetensors`` afterwards.

What was fitted elsewhere may have been fitted on the very gallery that it is then put before, which voids the
guarantee. So such a file also holds digests of the rows that it was fitted on, and galleries that share one are
refused. A release holds no digest: only the transform's state goes into it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from .arrays import directions, row_chunks, to_rows
from .journal import write_file
from .transforms import PublicTransform, unit_mean

_FITTED_ON, _CENTER = "fitted_on", "fitted_on_center"
_SIGNS = 256

_log = logging.getLogger(__name__)


class FileTransform(PublicTransform):
    """A public transform with :meth:`save` and :meth:`load`.

    Attributes:
        fitted_on: digests of the rows that it was fitted on, (n,) uint64; None where they are not known. They are in
            the file and not in the state.
        fitted_on_center: the mean direction of these rows, (d,) float32, from which digests are taken.
    """

    fitted_on: npt.NDArray[np.uint64] | None = None
    fitted_on_center: npt.NDArray[np.float32] | None = None

    def note_fitted_on(self, features: np.ndarray | torch.Tensor) -> None:
        """Note which rows (n, d) it is fitted on, so that a gallery which holds one of them can be refused."""
        center = unit_mean(to_rows(features)[0]).cpu().numpy().astype(np.float32)
        self.fitted_on, self.fitted_on_center = row_digests(features, center), center

    def save(self, path: str | Path) -> Path:
        """Write what was fitted to ``path`` (``.safetensors``), complete or not at all; an existing file is replaced.

        Raises:
            RuntimeError: not fitted.
            ValueError: another suffix.
        """
        from safetensors.numpy import save

        path = self._checked(path)
        known: dict[str, np.ndarray] = {}
        if self.fitted_on is not None and self.fitted_on_center is not None:
            known = {_FITTED_ON: self.fitted_on, _CENTER: self.fitted_on_center}
        write_file(path, save({**self.state(), **known}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the transform that :meth:`save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file.
        """
        from safetensors.numpy import load

        path = cls._checked(path)
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' is not there. Name a file that {cls.__name__}.save wrote.")
        try:
            arrays = load(path.read_bytes())
        except Exception as error:
            raise ValueError(f"'{path}' cannot be read ({' '.join(str(error).split())}). Fit and save again.") from None
        fitted_on, center = arrays.pop(_FITTED_ON, None), arrays.pop(_CENTER, None)
        transform = cls.from_state(arrays)
        if fitted_on is not None and center is not None:
            transform.fitted_on = np.asarray(fitted_on, dtype=np.uint64).ravel()
            transform.fitted_on_center = np.asarray(center, dtype=np.float32).ravel()
        return transform

    @classmethod
    def _checked(cls, path: str | Path) -> Path:
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"'{path}' ends in {path.suffix!r}; {cls.name} is kept in a .safetensors file.")
        return path


def row_digests(features: np.ndarray | torch.Tensor, center: npt.NDArray[np.floating]) -> npt.NDArray[np.uint64]:
    """Return a digest of each row's direction, (n, d) -> (n,), which length and rounding do not change.

    It is a hash of the signs of 256 random projections of what the direction has beyond ``center``: rows that differ by
    rounding (of float32, of another batch size) have the same one, rows of two people have not. Without a center they
    could: all features of an encoder may lie close together.

    Args:
        features: rows; their length does not matter.
        center: the mean direction of the rows that something was fitted on, (d,).

    Example:
        >>> rows, center = np.array([[3.0, 4.0], [0.6, 0.8]]), np.array([0.6, 0.6])
        >>> row_digests(rows, center).tolist() == 2 * row_digests(rows[:1], center).tolist()
        True
    """
    rows, _ = to_rows(features)
    planes = torch.from_numpy(np.random.default_rng(0).standard_normal((rows.shape[1], _SIGNS)))
    middle = torch.from_numpy(np.asarray(center, dtype=np.float64))
    digests = []
    for span in row_chunks(rows):
        signs = np.packbits(((directions(rows[span].double())[0].cpu() - middle) @ planes > 0).numpy(), axis=1)
        digests += [hashlib.blake2b(one.tobytes(), digest_size=8).digest() for one in signs]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def require_not_fitted_on(transform: PublicTransform, gallery: np.ndarray | torch.Tensor) -> None:
    """Raise ValueError if a transform from a file was fitted on rows of this gallery; warn where that is not known."""
    if getattr(transform, "record", {}).get("covers") == "nothing":
        _log.warning(
            "transform '%s' was trained without a budget: its record says that nothing is covered. If this gallery was "
            "among its training rows, the guarantee is void.",
            transform.name,
        )
    if not isinstance(transform, FileTransform) or not transform.fitted:
        return
    if transform.fitted_on is None or transform.fitted_on_center is None:
        _log.warning(
            "transform '%s' does not say what it was fitted on. If that was this gallery, the guarantee is void.",
            transform.name,
        )
        return
    if gallery.shape[1] != len(transform.fitted_on_center):
        return  # features of another model, which the transform itself refuses
    shared = int(np.isin(row_digests(gallery, transform.fitted_on_center), transform.fitted_on).sum())
    if shared:
        raise ValueError(
            f"public transform is '{transform.name}', fitted on {shared} rows of the gallery: what is fitted on the "
            "gallery voids the guarantee. Fit it on features of other people."
        )
