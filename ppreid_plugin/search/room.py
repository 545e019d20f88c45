"""Room on the disk: reserved before the first row is written, and told by name where there is none.

A file that is only as long as it will be (sparse) takes its blocks as it is written, and a disk that is full then ends
a write in the middle, or kills the process where the file is memory-mapped (SIGBUS).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of one file
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # file systems that reserve nothing


class NoRoomError(OSError):
    """The disk, a quota or a limit on files leaves no room for the rows of an index; what was searched still is."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


def reserve(path: Path, size: int) -> None:
    """Reserve the first ``size`` bytes of a file, where the file system can.

    Raises:
        OSError: there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def room_for(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the error of a full disk into one that says what to do.

    Args:
        path: what is written inside the block, if the error does not name it.
        size: bytes that it takes; None: not known.

    Raises:
        NoRoomError: there is no room.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        needed = "" if size is None else f" needs {size} bytes"
        free = shutil.disk_usage(path.parent).free
        raise NoRoomError(
            f"'{error.filename or path}'{needed}: {os.strerror(error.errno)} ({free} bytes are free). What was "
            "searched so far still is. Make room and run this again, name an --index on another disk, or store less "
            "a row (--backend exact:storage=int8).",
            error.errno,
        ) from None
