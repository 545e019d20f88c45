"""Memory of CPU runs: keep freed blocks instead of returning them to the system.

glibc maps every large block anew and gives it back when it is freed, so each batch faults its activations in again,
page by page. On two cores that took up to a third of the time of an evaluation. Other systems are left alone.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

# constants of glibc's mallopt (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER_TRIM = 2**31 - 1
_GROW_BY = 64 << 20  # bytes


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks of any size, in this process and those forked from it.

    The process keeps its largest memory until it ends; that maximum hardly changes.

    Returns:
        Whether it took effect: False on anything but Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_MMAP_MAX, 0), (_M_TOP_PAD, _GROW_BY))
    return all(bool(mallopt(name, value)) for name, value in settings)
