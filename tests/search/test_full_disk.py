"""A disk that fills up while an index is built: one error that says what to do, and the earlier index as it was."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from search_cases import gallery, release

from ppreid_plugin import cli
from ppreid_plugin.search import build_index, delete_rows, open_index
from ppreid_plugin.search.columns import create_columns, open_columns, write_columns
from ppreid_plugin.search.command import serve_command
from ppreid_plugin.search.room import NoRoomError

SHAPES = {"rows": ("<f4", (4,)), "row_ids": ("|S3", ())}


def refused(number):
    def posix_fallocate(descriptor, offset, size):
        raise OSError(number, os.strerror(number))

    return posix_fallocate


def searched(folder):
    with open_index(folder) as index:
        return [(hits.row_ids, hits.scores.tolist()) for hits in index.search(np.eye(2, 12), 4)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_told_before_the_first_row_and_the_earlier_index_stays(tmp_path, monkeypatch, capsys, number):
    build_index(release(tmp_path).folder, tmp_path / "i")
    before = searched(tmp_path / "i")
    later = release(tmp_path, gallery(seed=3), out="later", name="b").folder
    monkeypatch.setattr(os, "posix_fallocate", refused(number))
    with pytest.raises(
        NoRoomError, match=r"rows-0002/row_ids.npy' needs 96 bytes: .* \(\d+ bytes are free\)"
    ) as raised:
        build_index(later, tmp_path / "i")
    assert raised.value.errno == number
    assert os.strerror(number) in str(raised.value)
    assert not list((tmp_path / "i/rows-0002").glob("*.npy"))  # what was reserved is free again
    assert searched(tmp_path / "i") == before
    assert cli.run(serve_command, ["build", "--release", str(later), "--index", str(tmp_path / "i")]) == 2
    assert "Make room and run this again" in capsys.readouterr().err
    with pytest.raises(NoRoomError):
        delete_rows(tmp_path / "i", pids=[3])
    assert searched(tmp_path / "i") == before
    monkeypatch.undo()
    assert delete_rows(tmp_path / "i", pids=[3]) == 4
    assert build_index(later, tmp_path / "i").rows == 20


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_that_reserves_nothing_is_no_error(tmp_path, monkeypatch, number):
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused(number))
    stored = release(tmp_path)
    build_index(stored.folder, tmp_path / "i")
    assert len(searched(tmp_path / "i")) == 2


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves nothing")
def test_room_is_really_reserved(tmp_path):
    create_columns(tmp_path, SHAPES, 100_000)
    for path in tmp_path.iterdir():
        if path.stat().st_blocks * 512 < path.stat().st_size:
            pytest.skip("this file system reserves nothing")
    assert (tmp_path / "rows.npy").stat().st_size == 128 + 16 * 100_000


def test_a_disk_that_fills_up_at_a_write_is_told(tmp_path, monkeypatch):
    """Where nothing could be reserved: an error, not a signal."""
    create_columns(tmp_path, SHAPES, 5)

    def write(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(NoRoomError, match=r"rows.npy': No space left on device"):
        write_columns(tmp_path, 0, {"rows": np.ones((2, 4), dtype=np.float32)})


def test_columns_are_written_as_they_are_read(tmp_path):
    create_columns(tmp_path, SHAPES, 5)
    rows = np.arange(40, dtype=np.float64).reshape(4, 5, 2)[:, ::2].transpose(0, 2, 1)[:, :2, :2].reshape(4, 4)
    write_columns(tmp_path, 1, {"rows": rows, "row_ids": np.array([b"a", b"bc", b"def", b""])})
    write_columns(tmp_path, 5, {"rows": rows[:0]})
    opened = open_columns(tmp_path, SHAPES, 5)
    np.testing.assert_array_equal(opened["rows"], np.concatenate([np.zeros((1, 4)), rows]))
    assert opened["row_ids"].tolist() == [b"", b"a", b"bc", b"def", b""]


CHILD = """
import resource, sys
import numpy as np
sys.path[:0] = sys.argv[3:]
from search_cases import ArraySource
from array_index import index_of
from ppreid_plugin.search.room import NoRoomError
source = ArraySource(np.random.default_rng(0).normal(size=(2000, 16)))
index_of(sys.argv[1] + "/whole", source, sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    index_of(sys.argv[1] + "/i", source, sys.argv[2])
except NoRoomError as error:
    print(error)
"""


def test_a_real_limit_on_files_is_told_and_kills_nothing(tmp_path):
    pytest.importorskip("faiss")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "exact", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rows.npy' needs 128000 bytes: File too large" in done.stdout


def test_a_graph_that_cannot_be_written_is_told(tmp_path):
    faiss = pytest.importorskip("faiss")
    from ppreid_plugin.search.faiss_index import _write
    from ppreid_plugin.search.room import room_for

    graph = faiss.IndexFlatIP(8)
    graph.add(np.ones((9, 8), dtype=np.float32))
    _write(graph, tmp_path / "g", 0)
    faiss.write_index(graph, str(tmp_path / "h"))
    assert (tmp_path / "g").read_bytes() == (tmp_path / "h").read_bytes()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(NoRoomError, match="No space left on device"), room_for(tmp_path / "g"):
        _write(graph, Path("/dev/full"), 0)  # FAISS itself writes so few bytes as it closes the file, and says nothing


def test_a_tiny_disk(tmp_path):
    """The real thing, where this may mount one."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path / "disk")]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    try:
        stored = release(tmp_path)
        build_index(stored.folder, tmp_path / "disk/i")
        before = searched(tmp_path / "disk/i")
        (tmp_path / "disk/filler").write_bytes(bytes(os.statvfs(tmp_path / "disk").f_bavail * 4096 - 16 * 1024))
        with pytest.raises(NoRoomError, match="No space left on device"):
            build_index(stored.folder, tmp_path / "disk/i", options={"storage": "float16"})
        assert searched(tmp_path / "disk/i") == before
        (tmp_path / "disk/filler").unlink()
        assert build_index(stored.folder, tmp_path / "disk/i", options={"storage": "float16"}).rows == 24
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=False)
