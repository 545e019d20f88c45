"""``index.json``, ``opted_out.json`` and the journal after any one field was taken out or changed."""

import copy
import itertools
import json
import shutil

import numpy as np
import pytest
from search_cases import release, subset

from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.search import build_index, building, delete_rows, open_index
from ppreid_plugin.search.command import record_text
from ppreid_plugin.search.record import read_record

GONE = object()
OTHERS = [GONE, None, "x", -1]  # of these a build is tried; of the others what a reader sees
MORE = ["", True, {}, [None], 2**70]
BACKENDS = {
    "exact": ({}, {}),
    "codes": ({"mechanism": subset()}, {}),
    "faiss": ({}, {"kind": "hnsw"}),
}
QUERIES = np.random.default_rng(1).normal(size=(2, 12))


def paths_of(content, at=()):
    """Every place in a JSON value, from the outside in."""
    if at:
        yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from paths_of(value, (*at, key))


def changed(content, path, value):
    edited = copy.deepcopy(content)
    inside = edited
    for key in path[:-1]:
        inside = inside[key]
    if value is GONE:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return edited


def used(folder):
    """Do all that reads the record: open, search, print, and look for somebody to delete."""
    with open_index(folder) as index:
        found = [hits.row_ids for hits in index.search(index.transform_queries(QUERIES), 3)]
        record_text(folder, index.record)
        assert sum(len(batch) for batch in index.batches(0, 100)) == len(index)
    with pytest.raises(ValueError, match="pid 99 has no row in this index|is anonymous|is background"):
        delete_rows(folder, pids=[99])
    return found


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Thousands of small builds: none of them has to outlive a power cut."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module", params=BACKENDS)
def built(request, tmp_path_factory):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp(request.param)
    terms, options = BACKENDS[request.param]
    stored = load_release(release(folder, **terms).folder)
    backend = "faiss" if request.param == "faiss" else "exact"

    def build(at):
        return build_index(stored, at, backend=backend, options=options)

    build(folder / "i")
    delete_rows(folder / "i", pids=[4], row_ids=["p1_2"])
    return request.param, folder / "i", build


@pytest.mark.slow
def test_any_edit_of_the_record_is_told_or_harmless_and_a_build_mends_it(tmp_path, built):
    kind, whole, build = built
    content = json.loads((whole / "index.json").read_text())
    expected = used(whole)
    told = 0
    shutil.copytree(whole, tmp_path / "i")
    for path in paths_of(content):
        if path[0] in ("format", "version", "created") or (
            kind != "exact" and path[0] in ("release", "files", "opted_out")  # the same for all backends
        ):
            continue
        for value in OTHERS + MORE:
            edited = changed(content, path, value)
            (tmp_path / "i/index.json").write_text(json.dumps(edited))
            try:
                found = used(tmp_path / "i")
            except ValueError as error:
                told += 1
                found = str(error)
            known = ("uild", "state of transform", "registered: exact, faiss, milvus", "registered: center, ")
            assert found == expected or any(words in found for words in known), (path, value, found)
            if value in MORE:
                continue
            try:
                build(tmp_path / "i")
            except ValueError as error:
                raise AssertionError((path, value)) from error
            found = used(tmp_path / "i")
            mended = read_record(tmp_path / "i")
            for key in ("release", "opted_out", "rows", "labels", "columns", "id_bytes"):
                wanted = content[key] if key != "labels" else tuple(content[key])
                more = path[:2] in (("opted_out", "pids"), ("opted_out", "rows")) and key in ("opted_out", "rows")
                assert getattr(mended, key) == wanted or more, (path, value, key)
            assert set(content["opted_out"]["pids"]) <= set(mended.opted_out["pids"]), (path, value)
            assert found == expected or mended.rows < content["rows"], (path, value)
            shutil.rmtree(tmp_path / "i")
            shutil.copytree(whole, tmp_path / "i")
    assert told > 50


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("options",), {}, "options of backend 'exact'"),
        (("release", "manifest_sha256"), GONE, "release.manifest_sha256"),
        (("release", "manifest_sha256"), "12ab", "release.manifest_sha256"),
        (("release", "ledger", "scope"), 3, "release.ledger.scope"),
        (("release", "person_level", "delta"), GONE, "release.person_level"),
        (("release", "rows_a_person"), None, "release.rows_a_person"),
        (("release", "epsilon"), float("nan"), "release.epsilon"),
        (("opted_out", "pids"), ["4"], "opted_out.pids"),
        (("files", "rows.npy", "bytes"), "9", "files"),
        (("files",), {"../elsewhere": {"bytes": 1}}, "files"),
        (("files", "rows.npy", "sha256"), GONE, r"files.rows.npy.sha256\)"),
        (("files", "rows.npy", "sha256"), None, "files"),
        (("files", "rows.npy"), GONE, r"files.rows.npy.sha256\)"),
        (("files", "pids.npy"), GONE, r"files.pids.npy.sha256\)"),
        (("files", "manifest.json", "sha256"), GONE, r"files.manifest.json.sha256\)"),
        (("files", "public.safetensors"), GONE, r"files.public.safetensors.sha256\)"),
        (("files",), {}, r"files.manifest.json.sha256\)"),
        (("rows",), True, "rows"),
        (("labels",), ["pids", "rows"], "labels"),
        (("metric",), "euclidean", "metric"),
        (("surplus",), 1, "surplus"),
    ],
)
def test_the_field_that_was_edited_is_named(tmp_path, path, value, named):
    stored = release(tmp_path)
    build_index(stored.folder, tmp_path / "i")
    file = tmp_path / "i/index.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(ValueError, match=r"index.json' lacks fields or holds impossible ones \(" + named):
        open_index(tmp_path / "i")


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_hash_that_was_dropped_is_told_for_every_file_and_a_build_brings_it_back(tmp_path, kind):
    """Without it nobody would compare the file, and a verification would say that all are as they were built."""
    if kind == "faiss":
        pytest.importorskip("faiss")
    terms, options = BACKENDS[kind]
    stored = load_release(release(tmp_path, **terms).folder)
    backend = "faiss" if kind == "faiss" else "exact"
    whole = build_index(stored, tmp_path / "i", backend=backend, options=options)
    file = tmp_path / "i/index.json"
    content = json.loads(file.read_text())
    for name, path in itertools.product(whole.files, ((), ("sha256",))):
        file.write_text(json.dumps(changed(content, ("files", name, *path), GONE)))
        with pytest.raises(ValueError, match=rf"impossible ones \(files.{name}.sha256\): edited"):
            open_index(tmp_path / "i")
        assert set(build_index(stored, tmp_path / "i", backend=backend, options=options).files) == set(whole.files)
        with open_index(tmp_path / "i") as index:
            assert index.verify() == "all files are as they were built"
        content = json.loads(file.read_text())


def test_a_release_entry_that_was_edited_to_another_budget_is_written_again(tmp_path):
    stored = release(tmp_path)
    whole = build_index(stored.folder, tmp_path / "i")
    file = tmp_path / "i/index.json"
    file.write_text(file.read_text().replace('"epsilon": 16.0', '"epsilon": 0.5'))
    assert read_record(tmp_path / "i").release["epsilon"] == 0.5
    assert build_index(stored.folder, tmp_path / "i") == whole == read_record(tmp_path / "i")


def test_any_edit_of_the_opt_outs_keeps_people_out(tmp_path):
    stored = release(tmp_path)
    build_index(stored.folder, tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[4], row_ids=["p1_2"])
    file = tmp_path / "i/opted_out.json"
    content = json.loads(file.read_text())
    for path in paths_of(content):
        for value in OTHERS + MORE:
            file.write_text(json.dumps(changed(content, path, value)))
            out = build_index(stored.folder, tmp_path / "i").opted_out
            assert 4 in out["pids"], (path, value)
            assert "p1_2" in out["rows"], (path, value)
            file.write_text(json.dumps(content))
            if out != {"pids": [4], "rows": ["p1_2"]}:  # somebody was added: that is an opt-out too
                build_index(stored.folder, tmp_path / "i", readmit=set(out["pids"]) - {4}, readmit_rows=False)


def test_any_edit_of_the_journal_starts_the_build_anew(tmp_path, monkeypatch):
    stored = load_release(release(tmp_path).folder)
    whole = build_index(stored, tmp_path / "whole", batch_rows=10)

    def stop(step):
        if step == "finished":
            raise KeyboardInterrupt

    monkeypatch.setattr(building, "reached", stop)
    with pytest.raises(KeyboardInterrupt):
        build_index(stored, tmp_path / "stopped", batch_rows=10)
    monkeypatch.undo()
    lines = (tmp_path / "stopped/rows-0001/journal.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        content = json.loads(line)
        for path in paths_of(content):
            for value in OTHERS:
                if path == ("plan", "backend") and value == "x":
                    continue  # refused: rows of a backend that is not installed may lie anywhere
                edited = [*lines[:number], json.dumps(changed(content, path, value)), *lines[number + 1 :]]
                shutil.rmtree(tmp_path / "i", ignore_errors=True)
                shutil.copytree(tmp_path / "stopped", tmp_path / "i")
                (tmp_path / "i/rows-0001/journal.jsonl").write_text("\n".join(edited) + "\n")
                record = build_index(stored, tmp_path / "i", batch_rows=10)
                assert record.files == whole.files, (path, value)


def test_a_manifest_that_was_edited_in_place_is_named(tmp_path):
    """It is read to tell whose names opt-outs are; an edit may keep its length."""
    stored = release(tmp_path)
    build_index(stored.folder, tmp_path / "i")
    path = tmp_path / "i/rows-0001/manifest.json"
    path.write_text(path.read_text().replace('"ledger_head": "', '"ledger_heed": "'))
    with pytest.raises(ValueError, match=r"manifest.json' is not as it was built"):
        open_index(tmp_path / "i")
    build_index(stored.folder, tmp_path / "i")
    open_index(tmp_path / "i").close()


def test_pid_0_is_a_person_where_the_release_has_no_background(tmp_path):
    stored = release(tmp_path, background_pids=())
    build_index(stored.folder, tmp_path / "i")
    assert delete_rows(tmp_path / "i", pids=[0]) == 4
