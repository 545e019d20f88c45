"""Public transforms that a file keeps: fitted once with labels, named as ``NAME:FILE.safetensors`` afterwards."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Self

from .journal import write_file
from .transforms import PublicTransform


class FileTransform(PublicTransform):
    """A public transform with :meth:`save` and :meth:`load`; its state is all that the file holds."""

    def save(self, path: str | Path) -> Path:
        """Write what was fitted to ``path`` (``.safetensors``), complete or not at all; an existing file is replaced.

        Raises:
            RuntimeError: not fitted.
            ValueError: another suffix.
        """
        from safetensors.numpy import save

        path = self._checked(path)
        write_file(path, save(self.state()))
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
        return cls.from_state(arrays)

    @classmethod
    def _checked(cls, path: str | Path) -> Path:
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"'{path}' ends in {path.suffix!r}; {cls.name} is kept in a .safetensors file.")
        return path
