"""A reader while another process replaces the rows: it gets the old rows or the new ones, never an error of files."""

from pathlib import Path

import numpy as np
import pytest
from search_cases import gallery, release

from ppreid_plugin import cli
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.search import build_index, command, faiss_index, index, open_index, record, stored_rows
from ppreid_plugin.search.command import serve_command

QUERIES = np.eye(2, 12)
POINTS = {
    "record read": (index, "check_sizes"),
    "file found": (Path, "is_file"),
    "sizes compared": (index, "_load_public"),
    "transform read": (stored_rows, "build_storage"),
    "columns opened": (stored_rows, "open_columns"),
}
BACKENDS = {"exact": {}, "faiss": {"kind": "hnsw"}}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    first = release(folder)
    return load_release(first.folder), load_release(release(folder, gallery(seed=2), out="later", name="b").folder)


def once_before(monkeypatch, owner, name, act):
    """Do ``act`` when ``owner.name`` is called for the first time, then what it does."""
    real, called = getattr(owner, name), []

    def wrapped(*args, **more):
        if not called:
            called.append(1)
            act()
        return real(*args, **more)

    monkeypatch.setattr(owner, name, wrapped)
    return called


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("point", [*POINTS, "graph read"])
def test_opening_follows_the_rows(tmp_path, monkeypatch, releases, backend, point):
    options = {"backend": backend, "options": BACKENDS[backend]}
    if backend == "faiss":
        pytest.importorskip("faiss")
    elif point == "graph read":
        pytest.skip("no graph")
    build_index(releases[0], tmp_path / "i", **options)
    owner, name = POINTS.get(point) or (faiss_index.import_faiss(), "read_index")
    called = once_before(
        monkeypatch, owner, name, lambda: build_index(releases[1], tmp_path / "i", **options, readmit_rows=True)
    )
    with open_index(tmp_path / "i") as opened:
        assert called
        hits = opened.search(opened.transform_queries(QUERIES), 3)
        assert [len(one) for one in hits] == [3, 3]
        assert opened.record.release["release"] in ("a-0001", "b-0001")


def test_a_file_that_vanishes_between_two_looks_at_it(tmp_path, monkeypatch, releases):
    """It was there, and has no size any more: FileNotFoundError, of a generation that is not in use."""
    build_index(releases[0], tmp_path / "i")
    real, done = Path.is_file, []

    def is_file(path):
        there = real(path)
        if path.name == "rows.npy" and not done:
            done.append(1)
            build_index(releases[1], tmp_path / "i")
        return there

    monkeypatch.setattr(Path, "is_file", is_file)
    with open_index(tmp_path / "i") as opened:
        assert opened.record.release["release"] == "b-0001"


def test_an_open_index_goes_on_with_its_rows(tmp_path, releases):
    build_index(releases[0], tmp_path / "i")
    with open_index(tmp_path / "i") as untouched:
        expected = [hits.row_ids for hits in untouched.search(untouched.transform_queries(QUERIES), 3)]
    with open_index(tmp_path / "i") as opened:
        build_index(releases[1], tmp_path / "i")
        assert [hits.row_ids for hits in opened.search(opened.transform_queries(QUERIES), 3)] == expected
        with pytest.raises(BlockingIOError, match="were replaced while they were read: another process built"):
            opened.verify()


def test_a_milvus_file_is_followed_too(tmp_path, monkeypatch, releases):
    pytest.importorskip("milvus_lite")
    build_index(releases[0], tmp_path / "i", backend="milvus")
    once_before(monkeypatch, index, "_load_public", lambda: build_index(releases[1], tmp_path / "i", backend="milvus"))
    with open_index(tmp_path / "i") as opened:
        assert opened.record.release["release"] == "b-0001"
        assert len(opened.search(opened.transform_queries(QUERIES), 3)) == 2


def test_rows_that_are_replaced_again_and_again_are_told(tmp_path, monkeypatch, releases):
    build_index(releases[0], tmp_path / "i")
    real = record.read_record
    calls = []

    def read_record(folder):
        calls.append(1)
        found = real(folder)
        return record.dataclasses.replace(found, generation=f"rows-{len(calls):04d}9")

    monkeypatch.setattr(index, "read_record", read_record)
    with pytest.raises(BlockingIOError, match="were replaced 5 times while it was opened: another process is building"):
        open_index(tmp_path / "i")


def test_a_search_prints_the_budget_of_what_it_searched(tmp_path, monkeypatch, capsys, releases):
    build_index(releases[0], tmp_path / "i")
    np.savez(tmp_path / "query.npz", features=QUERIES.astype(np.float32))
    once_before(monkeypatch, command, "merged", lambda: build_index(releases[1], tmp_path / "i"))
    words = ["search", "--index", str(tmp_path / "i"), "--query", str(tmp_path / "query.npz")]
    assert cli.run(serve_command, words) == 0
    assert "release a-0001" in capsys.readouterr().out
