"""What has to be on the disk when a build or a deletion says that it is done: files, and the folders that name them."""

import os
import shutil
from pathlib import Path

import pytest
from search_cases import gallery, release

from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.search import build_index, delete_rows


@pytest.fixture
def synced(monkeypatch):
    """Paths in the order in which they were synced, removals of folders (as ``gone NAME``) among them."""
    events, fsync, rmtree = [], os.fsync, shutil.rmtree

    def synced_path(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def removed(path, *more, **named):
        events.append(f"gone {Path(path).name}")
        rmtree(path, *more, **named)

    monkeypatch.setattr(os, "fsync", synced_path)
    monkeypatch.setattr(shutil, "rmtree", removed)
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only here a descriptor tells its path")
def test_new_folders_are_brought_to_the_disk_by_name(tmp_path, synced):
    stored = load_release(release(tmp_path).folder)
    synced.clear()
    build_index(stored, tmp_path / "new/deep/i")
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new/deep"):
        assert str(folder) in synced
    after = synced[len(synced) - 1 - synced[::-1].index(str(tmp_path / "new/deep/i/rows-0001/row_ids.npy")) :]
    assert str(tmp_path / "new/deep/i/rows-0001") in after  # its entries, before index.json names it
    assert after.index(str(tmp_path / "new/deep/i/rows-0001")) < after.index(str(tmp_path / "new/deep/i"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only here a descriptor tells its path")
def test_a_deletion_is_on_the_disk_when_it_says_so(tmp_path, synced):
    """The folder with the rows of who was deleted is gone for good, not only until the next power cut."""
    build_index(load_release(release(tmp_path).folder), tmp_path / "i")
    synced.clear()
    assert delete_rows(tmp_path / "i", pids=[3]) == 4
    assert str(tmp_path / "i") in synced[synced.index("gone rows-0001") :]
    synced.clear()
    build_index(load_release(release(tmp_path, gallery(seed=1), out="b", name="b").folder), tmp_path / "i")
    assert str(tmp_path / "i") in synced[synced.index("gone rows-0002") :]
