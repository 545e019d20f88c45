"""Freed memory stays: page faults of repeated large blocks, counted by the system."""

import shutil
import subprocess
import sys

import pytest

from ppreid_plugin import memory

PROGRAM = """
import resource, sys
sys.path.insert(0, {path!r})
from ppreid_plugin_memory import keep_freed_memory
import numpy as np
took = keep_freed_memory() if {keep} else None
np.ones(30_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(30_000_000)  # 240 MB each
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(tmp_path, keep):
    shutil.copy(memory.__file__, tmp_path / "ppreid_plugin_memory.py")
    program = PROGRAM.format(path=str(tmp_path), keep=keep)
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    return out[0], int(out[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_repeated_large_blocks_are_not_faulted_in_again(tmp_path):
    _, plain = faults(tmp_path, False)
    took, kept = faults(tmp_path, True)
    if took != "True":
        pytest.skip("this C library has no mallopt")
    assert kept < plain / 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
