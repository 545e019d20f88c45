"""Configuration files: YAML mappings, and what a file takes over from others by ``_base_``.

``_base_`` names one file or several, relative to the file it stands in. They are merged in order, then the file's own
keys; a base may have bases itself. The recipes that presets build on are stock torchreid YAML without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_base_"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value, what is allowed and the fix."""


def read_config(path: str | Path, *, flag: str = "--config-file") -> list[tuple[Path, dict[str, Any]]]:
    """Return the mappings of a file and its bases with the files they are from, in the order to merge them.

    Args:
        path: of the file.
        flag: that named it, in errors.

    Raises:
        FileNotFoundError: no such file; for a base, the file that names it is named.
        ConfigError: not a YAML mapping, ``_base_`` that is no name of a file, files that are each other's base.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{flag} is '{path}', which is no file. Give the path of a YAML file.")
    return list(_with_bases(path, ()))


def _with_bases(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    chain = (*above, path.resolve())
    mapping = _read(path)
    bases = mapping.pop(BASE_KEY, [])
    for name in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{path} has {BASE_KEY} {bases!r}, must be the name of a YAML file or a list of names.")
        base = path.parent / name
        if not base.is_file():
            raise FileNotFoundError(
                f"{path} has {BASE_KEY} '{name}', but '{base}' is no file. Names are relative to the file."
            )
        if base.resolve() in chain:
            circle = " -> ".join(one.name for one in (*chain[chain.index(base.resolve()) :], base))
            raise ConfigError(f"{path} has {BASE_KEY} '{name}', which is based on it: {circle}. Remove one of these.")
        yield from _with_bases(base, chain)
    yield path, mapping


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, must be a mapping of keys as in torchreid's YAML.")
    return loaded
