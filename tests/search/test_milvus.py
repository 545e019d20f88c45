"""The Milvus backend on milvus-lite: embedded, and as a server that is reached by its URI."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from search_cases import ArraySource, gallery, index_of, naive, release, subset

from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.search import build_index, building, delete_rows, open_index, search_people
from ppreid_plugin.search.index import INDEXES
from ppreid_plugin.search.milvus_client import MilvusConnection
from ppreid_plugin.search.milvus_index import MilvusIndex
from ppreid_plugin.search.milvus_writer import rows_a_call
from ppreid_plugin.search.record import read_record

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

RNG = np.random.default_rng(31)
ROWS = RNG.normal(size=(400, 16))
QUERIES = RNG.normal(size=(9, 16))
SOURCE = ArraySource(ROWS, pids=np.arange(400) // 4, camids=np.arange(400) % 3)
KINDS = {"flat": ({}, 1.0), "hnsw": ({"links": 16}, 0.97), "ivf_flat": ({"lists": 8, "probes": 8}, 0.97)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two releases of an enrolled gallery and one of symbols."""
    folder = tmp_path_factory.mktemp("drawn")
    release(folder, out="first")
    release(folder, out="second", name="b")
    release(folder, gallery(people=7, rows=3, seed=4), out="symbols", name="c", mechanism=subset())
    return folder


@pytest.fixture
def server(tmp_path):
    """The URI of a server in a thread of this process, over files of its own.

    MILVUS_TEST_URI names a real one in its place; all that it holds is dropped before and after each test.
    """
    if (uri := os.environ.get("MILVUS_TEST_URI")) is not None:
        drop_everything(uri)
        yield uri
        drop_everything(uri)
        return
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, files, port = start_server_in_thread(str(tmp_path / "server"), host="127.0.0.1", port=0)
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0)
    files.close()


def drop_everything(uri):
    connection = MilvusConnection(uri, 3.0)
    for name in connection.call("list_collections"):
        for alias in connection.call("list_aliases", name)["aliases"]:
            connection.call("drop_alias", alias)
        connection.call("drop_collection", name)
    connection.close()


def collections(uri):
    connection = MilvusConnection(uri, 3.0)
    found = {name: connection.call("list_aliases", name)["aliases"] for name in connection.call("list_collections")}
    connection.close()
    return found


def names(folder):
    with open_index(folder) as index:
        return [name.decode() for batch in index.batches(0, 5) for name in batch.row_ids]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_has_the_exact_score_and_order(tmp_path, kind):
    options, least = KINDS[kind]
    with index_of(tmp_path / "i", SOURCE, "milvus", kind=kind, **options) as index:
        found = index.search(QUERIES, 10)
        right = 0
        for hits, query, (order, _) in zip(found, QUERIES, naive(SOURCE.features, QUERIES, 10), strict=True):
            exact = naive(SOURCE.features[hits.numbers], query[None], 10)[0][1]
            np.testing.assert_allclose(hits.scores, exact, atol=1e-14)
            assert hits.row_ids == tuple(f"r{number}" for number in hits.numbers)
            assert hits.pids.tolist() == (hits.numbers // 4).tolist()
            assert hits.camids.tolist() == (hits.numbers % 3).tolist()
            right += len(set(order) & set(hits.numbers.tolist()))
        assert right / 90 >= least
        rows = np.concatenate([batch.features for batch in index.batches(0, 37)])
        np.testing.assert_array_equal(rows, SOURCE.features)


def test_equal_rows_come_in_row_order(tmp_path):
    source = ArraySource(ROWS[np.repeat(np.arange(20), 3)])
    with index_of(tmp_path / "i", source, "milvus") as index:
        for hits, (order, _) in zip(index.search(QUERIES, 9), naive(source.features, QUERIES, 9), strict=True):
            assert hits.numbers.tolist() == order


def test_the_order_is_ours_whatever_order_the_server_answers_in(tmp_path, monkeypatch):
    with index_of(tmp_path / "i", SOURCE, "milvus") as index:
        expected = index.search(QUERIES, 6)
        call = index._connection.call

        def reversed_hits(name, *arguments, **more):
            answer = call(name, *arguments, **more)
            return [list(hits)[::-1] for hits in answer] if name == "search" else answer

        monkeypatch.setattr(index._connection, "call", reversed_hits)
        for one, other in zip(index.search(QUERIES, 6), expected, strict=True):
            assert one.row_ids == other.row_ids
            np.testing.assert_array_equal(one.scores, other.scores)
            assert one.pids.tolist() == other.pids.tolist()


def test_reads_wait_for_what_was_written(tmp_path, drawn, server, monkeypatch):
    """milvus-lite does not lag; a server that is asked for less finds deleted people for seconds."""
    from pymilvus import MilvusClient

    asked = []
    for name in ("create_collection", "query", "search"):
        original = getattr(MilvusClient, name)

        def spy(*arguments, _name=name, _original=original, **more):
            asked.append((_name, more.get("consistency_level")))
            return _original(*arguments, **more)

        monkeypatch.setattr(MilvusClient, name, spy)
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    delete_rows(tmp_path / "i", pids=[3])
    with open_index(tmp_path / "i") as index:
        assert 3 not in index.search(np.ones((1, index.record.columns)), 20)[0].pids
    assert {name for name, _ in asked} == {"create_collection", "query", "search"}
    assert {level for _, level in asked} == {"Strong"}
    asked.clear()
    long_ago = time.time() - 100
    os.utime(tmp_path / "i" / "index.json", (long_ago, long_ago))
    with open_index(tmp_path / "i") as index:
        index.search(np.ones((1, index.record.columns)), 20)
        os.utime(tmp_path / "i" / "index.json")  # somebody deletes a person while it is open
        index.search(np.ones((1, index.record.columns)), 20)
    assert [level for name, level in asked if name == "search"] == ["Bounded", "Strong"]
    assert {level for name, level in asked if name == "query"} == {"Strong"}


@pytest.mark.parametrize(("consistency", "level"), [("strong", "Strong"), ("bounded", "Bounded")])
def test_a_consistency_that_is_asked_for_holds(tmp_path, drawn, server, monkeypatch, consistency, level):
    options = {"uri": server, "consistency": consistency}
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    with open_index(tmp_path / "i") as index:
        call, asked = index._connection.call, []

        def spy(name, *arguments, **more):
            asked.append(more.get("consistency_level"))
            return call(name, *arguments, **more)

        monkeypatch.setattr(index._connection, "call", spy)
        index.search(np.ones((1, index.record.columns)), 20)
    assert asked == [level]


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_an_index_from_before_there_were_some_options_opens_and_deletes(tmp_path, drawn, server, where):
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server} if where == "server" else {})
    path = tmp_path / "i" / "index.json"
    record = json.loads(path.read_text())
    for name in ("consistency", "shards", "replicas"):
        del record["options"][name]
    path.write_text(json.dumps(record))
    with open_index(tmp_path / "i") as index:
        assert len(index.search(np.ones((1, index.record.columns)), 20)[0]) == 20
    assert delete_rows(tmp_path / "i", pids=[3]) == 4
    with open_index(tmp_path / "i") as index:
        assert 3 not in index.search(np.ones((1, index.record.columns)), 20)[0].pids


def test_shards_and_replicas_are_the_servers(tmp_path, drawn, server, monkeypatch):
    """A real server needs two query nodes for it."""
    asked = {}
    call = MilvusConnection.call

    def spy(self, name, *arguments, **more):
        asked[name] = more
        return call(self, name, *arguments, **more)

    monkeypatch.setattr(MilvusConnection, "call", spy)
    options = {"uri": server, "shards": 3, "replicas": 2}
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    assert asked["create_collection"]["num_shards"] == 3
    asked.clear()
    with open_index(tmp_path / "i") as index:
        assert index.count() == 24
    assert "load_collection" not in asked  # an operator may hold it otherwise
    connection = MilvusConnection(server, 3.0)
    connection.call("release_collection", read_record(tmp_path / "i").options["_collection"])
    connection.close()
    with open_index(tmp_path / "i") as index:
        assert index.count() == 24
    assert asked["load_collection"]["replica_number"] == 2


def test_loading_lasts_as_long_as_it_goes_on(monkeypatch):
    states = iter([("NotLoad", 0), *(("Loading", percent) for percent in (10, 10, 60, 60)), ("Loaded", 100)])
    clock = iter(np.arange(0.0, 1000.0, 40.0))
    connection = loading(monkeypatch, lambda: next(states), lambda: next(clock))
    connection.load("c", 1)
    assert next(states, None) is None


def test_loading_that_stands_still_is_told(monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 40.0))
    connection = loading(monkeypatch, lambda: ("Loading", 30), lambda: next(clock))
    with pytest.raises(ConnectionError, match=r"has loaded 30 % of collection 'c' and no more for 60 s. Look whether"):
        connection.load("c", 1)


def loading(monkeypatch, state, clock):
    """A connection to a server that loads as ``state`` says, at times that ``clock`` says."""
    from pymilvus.client.types import LoadState

    def call(name, *arguments, **more):
        if name == "load_collection":
            return None
        kind, percent = state()
        return {"state": LoadState[kind], "progress": percent}

    connection = MilvusConnection.__new__(MilvusConnection)
    connection._place, connection._loaded, connection.call = "http://there", LoadState.Loaded, call
    monkeypatch.setattr(
        "ppreid_plugin.search.milvus_client.time", SimpleNamespace(monotonic=clock, sleep=lambda s: None)
    )
    return connection


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_build_update_delete_and_people(tmp_path, drawn, server, where):
    options = {"uri": server} if where == "server" else {}

    def build(name, **more):
        build_index(drawn / name, tmp_path / "exact", **more)
        return build_index(drawn / name, tmp_path / "i", backend="milvus", options=options, batch_rows=7, **more)

    def compare():
        with open_index(tmp_path / "i") as index, open_index(tmp_path / "exact") as exact:
            assert index.count() == len(index) == len(exact)
            queries = exact.transform_queries(np.random.default_rng(len(index)).normal(size=(5, 12)))
            pairs = [(index.search(queries, 11), exact.search(queries, 11))]
            for fuse in ("best", "template"):
                pairs.append([search_people(one, queries, 4, fuse=fuse) for one in (index, exact)])
            for found, expected in pairs:
                for one, other in zip(found, expected, strict=True):
                    assert one.row_ids == other.row_ids
                    assert one.pids.tolist() == other.pids.tolist()
                    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
            told = index.properties()
            assert (told["release"], told["epsilon"]) == (
                exact.record.release["release"],
                exact.record.release["epsilon"],
            )
            assert told["ledger"] == exact.record.release["ledger"]

    build("first")
    compare()
    assert build("first").generation == "rows-0001"  # nothing to do
    assert [delete_rows(tmp_path / one, pids=[3], row_ids=["p1_1"]) for one in ("i", "exact")] == [5, 5]
    compare()
    assert names(tmp_path / "i") == names(tmp_path / "exact")
    assert not any(name.startswith("p3_") for name in names(tmp_path / "i"))
    assert delete_rows(tmp_path / "i", pids=[3]) == 0
    build("second")
    compare()
    assert len(names(tmp_path / "i")) == 19
    build("symbols")
    compare()
    build("symbols", readmit=[3])
    compare()
    left = [path.name for path in (tmp_path / "i").iterdir() if path.is_dir()]
    assert left == [read_record(tmp_path / "i").generation]
    if where == "server":
        assert collections(server) == {read_record(tmp_path / "i").options["_collection"]: ["gallery"]}


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_embedded_file_that_lost_rows_is_named_and_built_again(tmp_path, drawn, damage):
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    files = list((tmp_path / "i").rglob("*.parquet"))
    assert files
    for path in files:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="Build the index again"):
        open_index(tmp_path / "i").search(np.eye(1, 8), 1)
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    with open_index(tmp_path / "i") as index:
        assert index.count() == len(load_release(drawn / "first").row_ids)
        assert "all 24 rows can be read" in index.verify()


def test_more_hits_than_milvus_returns_are_refused(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(MilvusIndex, "most_hits", 5)
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    with open_index(tmp_path / "i") as index:
        query = np.random.default_rng(0).normal(size=(1, index.record.columns))
        assert len(index.search(query, 5)[0]) == 5
        with pytest.raises(ValueError, match="top is 6, must be at most 5: backend 'milvus' returns no more"):
            index.search(query, 6)
        with pytest.raises(ValueError, match=r"top is 6, but the best 5 rows of query 0 settle fewer people"):
            search_people(index, query, 6, fuse="best")


def test_the_most_hits_of_a_query_are_16_368(tmp_path, drawn, monkeypatch):
    """Milvus's own limit is 16,384 a query, of which 16 make up for float32's order."""
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    with open_index(tmp_path / "i") as index:
        query, call, limits = np.ones((1, index.record.columns)), index._connection.call, []

        def counting(name, *arguments, **more):
            limits.append(more["limit"])
            return call(name, *arguments, **{**more, "limit": 24})

        monkeypatch.setattr(index._connection, "call", counting)
        index.record = replace(index.record, rows=20_000)
        assert len(index.search(query, 16_368)[0]) == 24
        with pytest.raises(ValueError, match="top is 16369, must be at most 16368: backend 'milvus' returns no more"):
            index.search(query, 16_369)
    assert limits == [16_384]


@pytest.mark.parametrize("rows", [23, 25])
def test_a_collection_with_one_row_too_few_or_too_many_is_named_and_built_again(tmp_path, drawn, server, rows):
    options = {"uri": server}
    record = build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    whole, collection = names(tmp_path / "i"), record.options["_collection"]
    connection = MilvusConnection(server, 3.0)
    (row,) = connection.call("query", collection, filter="number == 7", output_fields=["*"])
    if rows == 23:
        connection.call("delete", collection, ids=[row["row_id"]])
    else:
        connection.call("upsert", collection, [{**row, "row_id": "p9_9", "number": 24}])
    connection.close()
    with pytest.raises(ValueError, match=f"holds {rows} rows, index.json says 24: the index is damaged. Build the"):
        open_index(tmp_path / "i")
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    assert names(tmp_path / "i") == whole


@pytest.mark.parametrize("stopped", ["erase", "flush"])
def test_a_deletion_from_a_server_that_was_cut_off_opens_and_goes_on(tmp_path, drawn, server, monkeypatch, stopped):
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    call = MilvusConnection.call

    def stopping(self, name, *arguments, **more):
        if name == stopped:  # rows are gone, index.json does not know yet
            raise KeyboardInterrupt
        return call(self, name, *arguments, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MilvusConnection, "call", stopping)
        if stopped == "erase":
            patched.setattr(MilvusIndex, "erase", lambda self, row_ids: stopping(self, "erase"))
        delete_rows(tmp_path / "i", pids=[3])
    assert len(names(tmp_path / "i")) == (24 if stopped == "erase" else 20)
    delete_rows(tmp_path / "i", pids=[3])
    assert not any(name.startswith("p3_") for name in names(tmp_path / "i"))
    record = read_record(tmp_path / "i")
    assert (record.rows, record.opted_out["pids"], "_erasing" in record.options) == (20, [3], False)


def test_rows_of_any_name_are_deleted_from_a_server_and_no_others(tmp_path, server):
    rows = gallery()
    odd = ["o'neil.jpg", 'a "b".jpg', "c\\d.jpg", "é 人.jpg", "x'] or row_id != '"]
    release(tmp_path, GalleryRows(rows.features, [*odd, *rows.row_ids[len(odd) :]], rows.pids, rows.camids))
    build_index(tmp_path / "release", tmp_path / "i", backend="milvus", options={"uri": server})
    assert set(odd) < set(names(tmp_path / "i"))
    assert delete_rows(tmp_path / "i", row_ids=odd) == len(odd)
    assert sorted(names(tmp_path / "i")) == sorted(rows.row_ids[len(odd) :])


def test_deleted_rows_leave_the_disk_of_an_embedded_index(tmp_path, drawn):
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    parquet = pytest.importorskip("pyarrow.parquet")

    def on_disk():
        tables = [parquet.read_table(path) for path in sorted((tmp_path / "i").rglob("*.parquet"))]
        assert tables
        return {name for table in tables if "row_id" in table.column_names for name in table["row_id"].to_pylist()}

    assert on_disk() == set(load_release(drawn / "first").row_ids)
    delete_rows(tmp_path / "i", pids=[3])
    assert on_disk() == {name for name in load_release(drawn / "first").row_ids if not name.startswith("p3_")}
    for path in (tmp_path / "i").rglob("*"):  # what is not compressed: logs of writes
        assert path.is_dir() or b"p3_1" not in path.read_bytes()


def test_a_name_on_the_server_that_is_not_ours_is_left_alone(tmp_path, drawn, server):
    options = {"uri": server, "collection": "shared"}
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    before = collections(server)
    with pytest.raises(
        ValueError, match="the name 'shared' belongs to collection 'shared_.*' on this server, which is not"
    ):
        build_index(drawn / "first", tmp_path / "other", backend="milvus", options=options)
    assert collections(server) == before
    assert not (tmp_path / "other").exists()
    connection = MilvusConnection(server, 3.0)
    connection.client.create_collection("taken", dimension=4)
    connection.close()
    with pytest.raises(ValueError, match="the name 'taken' belongs to collection 'taken'"):
        build_index(drawn / "first", tmp_path / "o", backend="milvus", options={"uri": server, "collection": "taken"})
    assert not (tmp_path / "o").exists()
    standing = sorted((tmp_path / "i").rglob("*"))
    with pytest.raises(ValueError, match="the name 'taken' belongs to collection 'taken'"):
        build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server, "collection": "taken"})
    assert sorted((tmp_path / "i").rglob("*")) == standing
    build_index(drawn / "second", tmp_path / "i", backend="milvus", options=options)  # its own may move


@pytest.mark.parametrize("step", ["planned", "begun", "finished"])
def test_a_name_that_is_taken_while_the_rows_are_written_is_left_alone(tmp_path, drawn, server, monkeypatch, step):
    options = {"uri": server, "collection": "shared"}

    def taken(at):
        if at == step:
            connection = MilvusConnection(server, 3.0)
            connection.client.create_collection("shared", dimension=4)
            connection.close()

    monkeypatch.setattr(building, "reached", taken)
    with pytest.raises(ValueError, match="the name 'shared' belongs to collection 'shared' on this server"):
        build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    assert collections(server)["shared"] == []
    assert read_record(tmp_path / "i") is None
    monkeypatch.undo()
    connection = MilvusConnection(server, 3.0)
    connection.call("drop_collection", "shared")
    connection.close()
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    assert list(collections(server).values()) == [["shared"]]
    assert names(tmp_path / "i") == load_release(drawn / "first").row_ids


def test_a_first_build_goes_on_where_its_own_name_stands_and_the_lock_is_gone(tmp_path, drawn, server, monkeypatch):
    def stop(at):
        if at == "published":
            raise KeyboardInterrupt

    monkeypatch.setattr(building, "reached", stop)
    with pytest.raises(KeyboardInterrupt):
        build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    monkeypatch.undo()
    (tmp_path / "i/lock").unlink()
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    assert list(collections(server).values()) == [["gallery"]]


STEPS = ["planned", "begun", "written", "journaled", "finished", "published", "replaced"]


@pytest.mark.parametrize("step", STEPS)
def test_a_build_on_a_server_goes_on_after_any_step(tmp_path, drawn, server, monkeypatch, step):
    options = {"uri": server}
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    passed = []

    def stop(at):
        passed.append(at)
        if at == step and passed.count(at) == (2 if at in ("written", "journaled") else 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(building, "reached", stop)
    with pytest.raises(KeyboardInterrupt):
        build_index(drawn / "symbols", tmp_path / "i", backend="milvus", options=options, batch_rows=6)
    assert names(tmp_path / "i")[0] == "p0_0"  # it is searched meanwhile
    again = []
    monkeypatch.setattr(building, "reached", again.append)
    build_index(drawn / "symbols", tmp_path / "i", backend="milvus", options=options, batch_rows=6)
    assert again.count("written") == {"planned": 4, "begun": 4, "written": 3, "journaled": 2}.get(step, 0)
    assert names(tmp_path / "i") == load_release(drawn / "symbols").row_ids
    record = read_record(tmp_path / "i")
    assert collections(server) == {record.options["_collection"]: ["gallery"]}


def killed_build(release_folder, folder, seconds):
    """Build in a process of its own and kill it after so many seconds; whether it was done by then."""

    def work():
        building.reached = lambda step: time.sleep(0.004)
        build_index(release_folder, folder, backend="milvus", batch_rows=3)
        os._exit(0)  # no clean-up of the embedded server

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def test_killed_and_resumed_is_as_never_killed(tmp_path, drawn):
    kill_in = random.Random(5).uniform
    kills = 0
    while kills < 10:
        if not killed_build(drawn / "first", tmp_path / "i", kill_in(0.1, 0.5)):
            kills += 1
        else:
            shutil.rmtree(tmp_path / "i")
    build_index(drawn / "first", tmp_path / "i", backend="milvus", batch_rows=3)
    build_index(drawn / "first", tmp_path / "whole", backend="milvus")
    with open_index(tmp_path / "i") as one, open_index(tmp_path / "whole") as other:
        assert one.count() == 24
        for a, b in zip(one.batches(0, 24), other.batches(0, 24), strict=True):
            for name in ("row_ids", "features", "pids", "camids"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path, drawn):
    start = time.monotonic()
    options = {"uri": f"http://127.0.0.1:{closed_port()}"}
    with pytest.raises(ConnectionError, match=r"Milvus at http://127.0.0.1:\d+ does not answer within 3 s. Check uri="):
        build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
    assert time.monotonic() - start < 3.5
    assert not (tmp_path / "i/rows-0001").exists()


def test_a_server_that_accepts_and_says_nothing_is_an_error_in_time(tmp_path, drawn):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        options = {"uri": f"http://127.0.0.1:{silent.getsockname()[1]}", "timeout_s": 0.7}
        start = time.monotonic()
        with pytest.raises(ConnectionError, match="does not answer within 0.7 s"):
            build_index(drawn / "first", tmp_path / "i", backend="milvus", options=options)
        assert 0.6 < time.monotonic() - start < 2.5


def test_a_server_that_goes_away_is_named(tmp_path, drawn):
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, files, port = start_server_in_thread(str(tmp_path / "server"), host="127.0.0.1", port=0)
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": f"http://127.0.0.1:{port}"})
    running.stop(grace=0).wait()
    files.close()
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"Milvus at http://127.0.0.1:\d+ (failed|does not answer).* Check uri="):
        open_index(tmp_path / "i")
    assert time.monotonic() - start < 3.5


def test_a_collection_that_was_dropped_is_named(tmp_path, drawn, server):
    record = build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    connection = MilvusConnection(server, 3.0)
    connection.call("drop_alias", "gallery")
    connection.call("drop_collection", record.options["_collection"])
    connection.close()
    with pytest.raises(ValueError, match=r"collection 'gallery_.*' is not at 'http.*': deleted, or another server"):
        open_index(tmp_path / "i")


def test_an_embedded_index_that_is_open_elsewhere_is_named(tmp_path, drawn):
    build_index(drawn / "first", tmp_path / "i", backend="milvus")
    ready, done = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold():
        with open_index(tmp_path / "i"):
            ready.set()
            done.wait(30)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert ready.wait(30)
    with pytest.raises(ConnectionError, match=r"milvus.db' cannot be opened .* One process at a time"):
        open_index(tmp_path / "i")
    done.set()
    process.join()
    assert len(names(tmp_path / "i")) == 24


def test_the_token_is_used_and_never_written(tmp_path, drawn, server, monkeypatch):
    import pymilvus

    seen = []
    real = pymilvus.MilvusClient
    monkeypatch.setenv("MILVUS_TOKEN", "user:secret-word")
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda *a, **more: seen.append(more["token"]) or real(*a, **more))
    build_index(drawn / "first", tmp_path / "i", backend="milvus", options={"uri": server})
    assert set(seen) == {"user:secret-word"}
    assert not any(b"secret-word" in path.read_bytes() for path in (tmp_path / "i").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lsh"}, "kind is 'lsh'; allowed: flat, hnsw, ivf_flat"),
        ({"storage": "int8"}, "milvus:kind=flat has 'storage'; allowed: uri, collection, kind, timeout_s"),
        ({"kind": "hnsw", "probes": 3}, "milvus:kind=hnsw has 'probes'; allowed"),
        ({"kind": "hnsw", "links": 1}, "links is 1, must be a whole number >= 2"),
        ({"uri": "ftp://x"}, "uri is 'ftp://x', must be http://HOST:PORT or https://HOST:PORT; left out: a file"),
        ({"collection": "my gallery"}, "collection is 'my gallery', must be letters, digits and '_'"),
        ({"timeout_s": 0}, "timeout_s is 0, must be a number of seconds > 0"),
        ({"consistency": "weak"}, "consistency is 'weak'; allowed: auto, strong, bounded"),
        ({"consistency": "bounded"}, "consistency is 'bounded' without uri: an embedded file never lags"),
        ({"replicas": 2}, "replicas is 2 without uri: an embedded file has one"),
        ({"shards": 0}, "shards is 0, must be a whole number >= 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        INDEXES.get("milvus").checked_options(options, SOURCE)


@pytest.mark.parametrize("module", ["pymilvus", "milvus_lite"])
def test_without_the_libraries_the_command_to_install_them_is_named(tmp_path, drawn, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"needs pymilvus and milvus-lite .* pip install 'ppreid_plugin\[milvus\]'"):
        build_index(drawn / "first", tmp_path / "i", backend="milvus")
    assert not (tmp_path / "i/rows-0001").exists()


def test_a_call_stays_within_16_mib_and_milvus_limit():
    assert rows_a_call(2048) * 2048 * 4 <= 2**24
    assert rows_a_call(4) <= 16_384
    assert rows_a_call(2**30) == 1
