"""The FAISS backend: what it finds has the exact backend's scores and order; what it misses, bad options, bad files."""

import json
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
from search_cases import ArraySource, gallery, index_of, naive, release, subset

from ppreid_plugin.search import build_index, building, delete_rows, faiss_index, open_index, search_people
from ppreid_plugin.search.index import INDEXES
from ppreid_plugin.search.record import check_hashes, read_record

pytest.importorskip("faiss")

RNG = np.random.default_rng(21)
CENTERS = RNG.normal(size=(60, 16))
ROWS = CENTERS[RNG.integers(0, 60, 1500)] + 0.5 * RNG.normal(size=(1500, 16))
QUERIES = CENTERS[:25] + 0.5 * RNG.normal(size=(25, 16))
SOURCE = ArraySource(ROWS, pids=np.arange(1500) // 5)
KINDS = {
    "flat": ({}, 1.0),
    "hnsw": ({"links": 16}, 0.97),
    "ivfpq": ({"lists": 20, "probes": 10, "code_bytes": 4}, 0.9),
}


@pytest.fixture(scope="module", params=KINDS)
def index(request, tmp_path_factory):
    options, _ = KINDS[request.param]
    return index_of(tmp_path_factory.mktemp(request.param) / "i", SOURCE, "faiss", kind=request.param, **options)


def test_what_is_found_has_the_exact_score_and_order(index):
    kind = index.record.options["kind"]
    found = index.search(QUERIES, 10)
    right = 0
    for hits, query, (order, _) in zip(found, QUERIES, naive(SOURCE.features, QUERIES, 10), strict=True):
        exact = naive(SOURCE.features[hits.numbers], query[None], 10)[0][1]
        np.testing.assert_allclose(hits.scores, exact, atol=1e-14)  # falling, so the order is right too
        assert hits.row_ids == tuple(f"r{number}" for number in hits.numbers)
        assert hits.pids.tolist() == (hits.numbers // 5).tolist()
        right += len(set(order) & set(hits.numbers.tolist()))
    recall = right / 250
    assert recall >= KINDS[kind][1]
    if kind == "flat":
        assert [hits.numbers.tolist() for hits in found] == [o for o, _ in naive(SOURCE.features, QUERIES, 10)]


def test_it_is_the_same_after_opening_again(index):
    with open_index(index.folder) as again:
        for one, other in zip(index.search(QUERIES, 7), again.search(QUERIES, 7), strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)
            np.testing.assert_array_equal(one.scores, other.scores)
    check_hashes(index.folder, read_record(index.folder))


def test_options_matter(tmp_path):
    """Fewer lists read, less found: the dials are connected."""

    source = ArraySource(RNG.normal(size=(1500, 16)))  # no clusters: neighbors lie in many lists
    order = [set(order) for order, _ in naive(source.features, QUERIES, 10)]

    def recall(**options):
        found = index_of(tmp_path / str(options), source, "faiss", **options).search(QUERIES, 10)
        return sum(len(set(hits.numbers.tolist()) & right) for hits, right in zip(found, order, strict=True)) / 250

    lists = {"kind": "ivfpq", "lists": 40, "code_bytes": 2}
    all_lists = recall(**lists, probes=40, candidates=20)
    assert recall(**lists, probes=1, candidates=20) < all_lists - 0.2
    assert recall(**lists, probes=40, candidates=1) < all_lists - 0.05
    graph = {"kind": "hnsw", "links": 2, "ef_construction": 4}
    assert recall(**graph, ef_search=1) < recall(**graph, ef_search=400) - 0.05


def test_the_graph_holds_no_second_copy_of_the_rows(tmp_path):
    index = index_of(tmp_path / "i", SOURCE, "faiss", kind="hnsw")
    sizes = index.record.files
    assert sizes["rows.npy"]["bytes"] == 1500 * 64 + 128
    # 2 x 32 links of 4 bytes on the ground floor, a few above
    assert 1500 * 256 < sizes["graph.faiss"]["bytes"] < 1500 * 330


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_rows_may_be_stored_smaller(tmp_path, storage):
    index = index_of(tmp_path / "i", SOURCE, "faiss", kind="flat", storage=storage)
    exact = index_of(tmp_path / "e", SOURCE, storage=storage)
    for one, other in zip(index.search(QUERIES, 8), exact.search(QUERIES, 8), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_release_people_and_deletion(tmp_path, kind):
    stored = release(tmp_path, mechanism=subset())  # symbols: indexed as the rows that they stand for
    build_index(tmp_path / "release", tmp_path / "i", backend="faiss", options={"kind": kind})
    build_index(tmp_path / "release", tmp_path / "e", options={"storage": "float32"})
    for people in (None, "best", "template"):
        for deleted in (False, True):
            with open_index(tmp_path / "i") as index, open_index(tmp_path / "e") as exact:
                queries = index.transform_queries(np.random.default_rng(deleted).normal(size=(6, 12)))
                if people is None:
                    found = [one.search(queries, 30) for one in (index, exact)]
                else:
                    found = [search_people(one, queries, 5, fuse=people) for one in (index, exact)]
                for one, other in zip(*found, strict=True):
                    assert one.row_ids == other.row_ids
                    np.testing.assert_allclose(one.scores, other.scores, atol=1e-12)
            if people == "template" and not deleted:
                assert [delete_rows(tmp_path / one, pids=[2]) for one in ("i", "e")] == [4, 4]
    assert read_record(tmp_path / "i").rows == len(stored.row_ids) - 4
    assert 2 not in np.concatenate([hits.pids for hits in found[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lsh"}, "kind is 'lsh'; allowed: flat, hnsw, ivfpq"),
        ({"storage": "codes"}, "storage is 'codes'; allowed: float32, float16, int8"),
        ({"kind": "hnsw", "probes": 4}, "faiss:kind=hnsw has 'probes'; allowed: kind, storage, links"),
        ({"kind": "hnsw", "linkz": 4}, "has 'linkz'; .* Did you mean 'links'?"),
        ({"kind": "hnsw", "links": 1}, "links is 1, must be a whole number >= 2"),
        ({"kind": "hnsw", "links": "many"}, "links is 'many', must be a whole number"),
        ({"kind": "ivfpq", "code_bytes": 5}, "code_bytes is 5, must divide the 16 columns. Take 4"),
        ({"kind": "ivfpq", "lists": 2000}, "fitted on at least 2000 rows, the release has 1500. Take kind=flat"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        INDEXES.get("faiss").checked_options(options, SOURCE)


def test_too_few_rows_for_codes_are_refused_before_anything_is_written(tmp_path):
    release(tmp_path)
    with pytest.raises(ValueError, match="on at least 256 rows, the release has 24. Take kind=flat"):
        build_index(tmp_path / "release", tmp_path / "i", backend="faiss", options={"kind": "ivfpq"})
    assert not (tmp_path / "i/rows-0001").exists()


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_a_graph_that_was_cut_off_or_exchanged_is_named(tmp_path, kind):
    index_of(tmp_path / "i", SOURCE, "faiss", kind=kind)
    path = tmp_path / "i/rows-0001/graph.faiss"
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"graph.faiss' holds \d+ bytes, must be \d+: cut off"):
        open_index(tmp_path / "i")
    path.write_bytes(b"x" * len(data))
    with pytest.raises(ValueError, match=r"graph.faiss' cannot be read .* Build the index again"):
        open_index(tmp_path / "i")
    few = index_of(tmp_path / "few", ArraySource(ROWS[:700]), "faiss", kind=kind)
    path.write_bytes((few.generation / "graph.faiss").read_bytes().ljust(len(data), b"\0")[: len(data)])
    with pytest.raises(ValueError, match="holds 700 rows of 16 columns, index.json says 1500 of 16"):
        open_index(tmp_path / "i")


def test_without_the_library_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    release(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"needs faiss-cpu .* pip install 'ppreid_plugin\[faiss\]'"):
        build_index(tmp_path / "release", tmp_path / "i", backend="faiss")
    assert not (tmp_path / "i/rows-0001").exists()


def test_a_deletion_is_not_refused_where_too_few_rows_stay_for_the_lists(tmp_path, caplog):
    rows = gallery(people=20, rows=15)
    release(tmp_path, rows)
    options = {"kind": "ivfpq", "lists": 290, "probes": 4, "code_bytes": 2, "storage": "int8"}
    build_index(tmp_path / "release", tmp_path / "i", backend="faiss", options=options)
    for pids, kind in (([1, 2], {"kind": "ivfpq", "lists": 66}), ([3], {"kind": "flat"})):
        kind |= {"storage": "int8"}
        delete_rows(tmp_path / "i", pids=pids)
        told = read_record(tmp_path / "i").options
        assert {name: told[name] for name in kind} == kind
        assert "too few for ivfpq" in caplog.text
        with open_index(tmp_path / "i") as index:
            assert not set(pids) & set(np.concatenate([batch.pids for batch in index.batches(0, 99)]).tolist())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two releases: 24 rows, and 300 rows, which lists can be fitted on."""
    folder = tmp_path_factory.mktemp("drawn")
    release(folder, out="few")
    release(folder, gallery(people=75, rows=4, seed=3), out="many", name="b")
    return folder


@pytest.fixture
def one_thread():
    """One thread makes the same graph every time."""
    faiss = faiss_index.import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def content(folder):
    """Names and rows, and the graph, byte for byte."""
    with open_index(folder) as index:
        batches = list(index.batches(0, 50))
        files = {name: (index.generation / name).read_bytes() for name in index.record.files}
    names = [name.decode() for batch in batches for name in batch.row_ids.tolist()]
    assert len(set(names)) == len(names) == sum(len(batch.features) for batch in batches)
    return names, files


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work, at):
    """Do ``work`` in a process of its own, which is killed (SIGKILL) at a point of making graph or lists."""
    faiss, finish = faiss_index.import_faiss(), faiss_index.FaissWriter.finish
    decoded, write = faiss_index._decoded, faiss_index._write

    def first_part(*rows):
        yield next(decoded(*rows))
        die()

    def some_of_it(graph, path, *flags):
        write(graph, path, *flags)
        if at == "half written":
            os.truncate(path, os.path.getsize(path) // 2)
        die()

    def finish_dying(writer):
        faiss_index._ADDED = 100
        if at == "half added":
            faiss_index._decoded = first_part
        elif at == "renamed":
            building.sealed = die
        else:
            faiss_index._write = some_of_it
        return finish(writer)

    def dying():
        faiss.omp_set_num_threads(1)
        faiss_index.FaissWriter.finish = finish_dying
        work()

    process = multiprocessing.get_context("fork").Process(target=dying)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("at", ["half added", "half written", "written", "renamed"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_killed_while_graph_or_lists_are_made_nothing_is_lost_or_doubled(
    tmp_path, drawn, one_thread, monkeypatch, kind, at
):
    options = {"kind": kind, **({"lists": 16, "code_bytes": 4} if kind == "ivfpq" else {})}

    def build(folder="i"):
        build_index(drawn / "many", tmp_path / folder, backend="faiss", options=options, batch_rows=64)

    def delete(folder="i"):
        delete_rows(tmp_path / folder, pids=[7], row_ids=["p1_2"], batch_rows=64)

    for folder in ("i", "whole"):
        build_index(drawn / "few", tmp_path / folder, backend="faiss")
    for work, generation, rows in ((build, "rows-0002", 300), (delete, "rows-0003", 295)):
        before = content(tmp_path / "i")
        killed(work, at)
        assert content(tmp_path / "i") == before  # still searched
        assert json.loads((tmp_path / f"i/{generation}/journal.jsonl").read_text().splitlines()[-1]) == {"rows": rows}
        steps = []
        monkeypatch.setattr(building, "reached", steps.append)
        work()
        assert "written" not in steps  # all rows were there
        work("whole")
        assert content(tmp_path / "i") == content(tmp_path / "whole")
        assert not list((tmp_path / "i").rglob("*.tmp"))
        check_hashes(tmp_path / "i", read_record(tmp_path / "i"))
    assert len(content(tmp_path / "i")[0]) == 295
    with open_index(tmp_path / "i") as index, open_index(tmp_path / "whole") as whole:
        queries = np.random.default_rng(2).normal(size=(6, 12))
        for one, other in zip(index.search(queries, 9), whole.search(queries, 9), strict=True):
            assert one.row_ids == other.row_ids
