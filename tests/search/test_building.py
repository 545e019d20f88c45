"""Building, updating and deleting: what an index holds afterwards, and after being killed in the middle."""

import json
import logging
import multiprocessing
import random
import shutil
import signal
import time

import numpy as np
import pytest
from filelock import FileLock
from search_cases import gallery, naive, release, subset, unit

from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.search import build_index, building, delete_rows, open_index
from ppreid_plugin.search.record import read_record

# terms of the release, options of the index
KINDS = {"rows": ({}, {}), "half": ({}, {"storage": "float16"}), "codes": ({"mechanism": subset()}, {})}
LATER = {"name": "b"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a function that draws a release, once for the same terms; tests that change one copy its folder."""
    kept = {}

    def draw(rows=None, **terms):
        key = repr(rows and rows.row_ids) + repr(sorted((name, str(value)) for name, value in terms.items()))
        if key not in kept:
            kept[key] = release(tmp_path_factory.mktemp("drawn"), rows, **terms)
        return kept[key]

    return draw


def content(folder):
    """Row id -> (pid, camid, row) of all rows, in order."""
    with open_index(folder) as index:
        found = {}
        for batch in index.batches(0, 5):
            for place, name in enumerate(batch.row_ids.tolist()):
                assert name.decode() not in found  # nothing is there twice
                labels = [None if of is None else int(of[place]) for of in (batch.pids, batch.camids)]
                found[name.decode()] = (*labels, batch.features[place])
        assert len(found) == len(index)
        return found


def files(folder):
    """Bytes of every file of an index, but for the time of its building, locks and the journal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("lock", "journal.jsonl"):
            data = path.read_bytes()
            if path.name == "index.json":
                data = json.dumps(json.loads(data) | {"created": ""}).encode()
            found[str(path.relative_to(folder))] = data
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_holds_the_release_and_says_its_budget(tmp_path, drawn, kind):
    terms, options = KINDS[kind]
    stored = drawn(controller="The museum", purpose="a test", **terms)
    record = build_index(stored.folder, tmp_path / "i", options=options, batch_rows=7)
    held = content(tmp_path / "i")
    assert list(held) == stored.row_ids
    for name, row, pid, camid in zip(stored.row_ids, unit(stored.features), stored.pids, stored.camids, strict=True):
        assert held[name][:2] == (pid, camid)
        np.testing.assert_allclose(held[name][2], row, atol=1e-3 if kind == "half" else 1e-6)
    manifest = stored.manifest
    for key in ("epsilon", "delta", "unit", "adjacency", "protocol", "mechanism", "controller", "purpose", "model"):
        assert record.release[key] == manifest[key], key
    last = manifest["parts"][-1]
    assert record.release["ledger"] == {
        "scope": "site", "budget": 1000.0, "reservation": "a-0001",
        "ledger_seq": last["ledger_seq"], "ledger_head": last["ledger_head"],
    }  # fmt: skip
    assert (tmp_path / "i/rows-0001/manifest.json").read_bytes() == (stored.folder / "manifest.json").read_bytes()


def test_hits_are_those_of_the_protected_evaluation(tmp_path, drawn):
    """Queries through the release's transform, as StoredGallery matches them."""
    import torch

    from ppreid_plugin.dp.stored_gallery import StoredGallery

    stored = drawn()
    build_index(stored.folder, tmp_path / "i")
    clean = np.random.default_rng(8).normal(size=(9, 12)).astype(np.float32)
    evaluated = StoredGallery(stored.folder)
    queries = evaluated.transform_query(torch.from_numpy(clean)).numpy()
    rows = evaluated.protect_rows(torch.zeros(0), np.empty(0), np.empty(0))
    with open_index(tmp_path / "i") as index:
        np.testing.assert_array_equal(index.transform_queries(clean), queries)
        expected = naive(rows.features.numpy(), queries, 8)
        for hits, (order, scores) in zip(index.search(index.transform_queries(clean), 8), expected, strict=True):
            assert hits.row_ids == tuple(stored.row_ids[row] for row in order)
            assert hits.pids.tolist() == rows.pids[order].tolist()
            assert hits.camids.tolist() == rows.camids[order].tolist()
            np.testing.assert_allclose(hits.scores, scores, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_release_replaces_adds_and_removes(tmp_path, drawn, kind):
    terms, options = KINDS[kind]
    build_index(drawn(**terms).folder, tmp_path / "i", options=options)
    before = content(tmp_path / "i")
    rows = gallery()
    kept = np.arange(len(rows.row_ids)) >= 6  # the first six go, three come
    more = gallery(people=1, rows=3, seed=5, first_pid=50)
    later = GalleryRows(
        np.concatenate([np.asarray(rows.features)[kept], np.asarray(more.features)]),
        [name for name, stays in zip(rows.row_ids, kept, strict=True) if stays] + list(more.row_ids),
        np.concatenate([rows.pids[kept], more.pids]),
        np.concatenate([rows.camids[kept], more.camids]),
    )
    second = drawn(later, **LATER, **terms)
    record = build_index(second.folder, tmp_path / "i", options=options)
    after = content(tmp_path / "i")
    assert list(after) == second.row_ids
    assert "p0_0" not in after
    assert "p50_2" in after
    changed = [name for name in set(before) & set(after) if not np.array_equal(before[name][2], after[name][2])]
    assert changed  # drawn anew
    assert (record.release["release"], record.generation) == ("b-0001", "rows-0002")
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
        "index.json",
        "lock",
        "opted_out.json",
        "rows-0002",
    ]


def test_the_same_again_does_nothing(tmp_path, drawn):
    first = build_index(drawn().folder, tmp_path / "i")
    before = files(tmp_path / "i")
    assert build_index(drawn().folder, tmp_path / "i") == first
    assert files(tmp_path / "i") == before
    assert build_index(drawn().folder, tmp_path / "i", options={"storage": "int8"}).generation == "rows-0002"


def test_another_draw_of_the_same_rows_is_not_the_same(tmp_path, drawn):
    build_index(drawn().folder, tmp_path / "i")
    before = content(tmp_path / "i")
    assert build_index(drawn(**LATER).folder, tmp_path / "i").release["release"] == "b-0001"
    after = content(tmp_path / "i")
    assert list(after) == list(before)
    assert not any(np.array_equal(after[name][2], before[name][2]) for name in before)


def test_deleted_people_are_gone_from_the_disk_and_stay_out(tmp_path, drawn, caplog):
    caplog.set_level(logging.WARNING)
    stored = drawn()
    build_index(stored.folder, tmp_path / "i")
    theirs = [row for row, pid in zip(unit(stored.features).astype(np.float32), stored.pids, strict=True) if pid == 3]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "i").rglob("*") if path.is_file())
    assert all(row.tobytes() in everything for row in theirs)
    assert delete_rows(tmp_path / "i", pids=[3], row_ids=["p1_2"]) == 5
    left = b"".join(path.read_bytes() for path in (tmp_path / "i").rglob("*.npy"))
    assert not any(row.tobytes() in left for row in theirs)
    assert b"p3_" not in left
    held = content(tmp_path / "i")
    assert list(held) == [name for name in stored.row_ids if not name.startswith("p3_") and name != "p1_2"]
    assert build_index(stored.folder, tmp_path / "i").rows == 19  # not brought back by the same release
    assert "5 rows of people who were deleted from this index are left out" in caplog.text
    record = build_index(drawn(**LATER).folder, tmp_path / "i")  # nor by a later one
    assert record.opted_out == {"pids": [3], "rows": ["p1_2"]}
    assert "p3_0" not in content(tmp_path / "i")
    assert build_index(drawn(**LATER).folder, tmp_path / "i", readmit=[3]).rows == 23


def test_deleting_what_was_deleted_is_done_already(tmp_path, drawn):
    build_index(drawn().folder, tmp_path / "i")
    assert delete_rows(tmp_path / "i", pids=[2]) == 4
    before = files(tmp_path / "i")
    assert delete_rows(tmp_path / "i", pids=[2]) == 0
    assert files(tmp_path / "i") == before


def test_rows_of_an_anonymous_release_are_deleted_by_name(tmp_path, drawn):
    stored = drawn(protocol="anonymous")
    build_index(stored.folder, tmp_path / "i")
    with pytest.raises(ValueError, match="is anonymous: its rows carry no pid. Give --row, or"):
        delete_rows(tmp_path / "i", pids=[1])
    assert delete_rows(tmp_path / "i", row_ids=["000003"]) == 1
    assert list(content(tmp_path / "i")) == [name for name in stored.row_ids if name != "000003"]
    later = drawn(protocol="anonymous", **LATER).folder  # there 000003 is somebody else
    with pytest.raises(
        ValueError, match=r"release 'b-0001' \(anonymous\), drawn apart from it, calls its rows otherwise"
    ):
        build_index(later, tmp_path / "i")
    assert "000003" not in content(tmp_path / "i")
    assert build_index(later, tmp_path / "i", readmit_rows=True).rows == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing is named to delete. Give --pid or --row"),
        ({"pids": [99]}, "pid 99 has no row in this index"),
        ({"pids": [1, 99]}, "pid 99 has no row in this index"),
        ({"pids": [0]}, "pid 0 is background, which is no person"),
        ({"row_ids": ["p9_9"]}, "row 'p9_9' is not in this index"),
        ({"pids": [1, 2, 3, 4, 5], "row_ids": [f"p0_{n}" for n in range(4)]}, "these are all 24 rows of the index"),
    ],
)
def test_what_cannot_be_deleted_is_named_and_nothing_changes(tmp_path, drawn, arguments, message):
    build_index(drawn().folder, tmp_path / "i")
    before = files(tmp_path / "i")
    with pytest.raises(ValueError, match=message):
        delete_rows(tmp_path / "i", **arguments)
    assert files(tmp_path / "i") == before


def clean_features(folder):
    np.savez(folder / "gallery.npz", features=np.eye(4, dtype=np.float32))
    return folder / "gallery.npz"


def folder_of_features(folder):
    (folder / "bare").mkdir()
    clean_features(folder / "bare")
    return folder / "bare"


def without_manifest(folder):
    (folder / "release/manifest.json").unlink()
    return folder / "release"


def changed_arrays(folder):
    path = folder / "release/gallery.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return folder / "release"


def edited_manifest(folder):
    path = folder / "release/manifest.json"
    path.write_text(path.read_text().replace('"epsilon": 16.0', '"epsilon": -1.0'))
    return folder / "release"


def other_metric(folder):
    path = folder / "release/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": "euclidean"}))
    return folder / "release"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (clean_features, ValueError, "is a file. An index is built from the folder of a release"),
        (folder_of_features, FileNotFoundError, "holds no manifest.json: it is not a release"),
        (without_manifest, FileNotFoundError, "holds no manifest.json: it is not a release"),
        (changed_arrays, ValueError, r"is not the file that manifest.json names \(SHA-256 differs\)"),
        (edited_manifest, ValueError, "manifest.json: epsilon is -1.0, must be a finite number > 0"),
        (other_metric, ValueError, "asks for metric 'euclidean'; there is: cosine"),
        (lambda folder: folder / "nowhere", FileNotFoundError, "holds no manifest.json"),
    ],
)
def test_only_a_whole_release_is_indexed(tmp_path, drawn, make, error, message):
    shutil.copytree(drawn().folder, tmp_path / "release")
    with pytest.raises(error, match=message):
        build_index(make(tmp_path), tmp_path / "i")
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "exakt"}, "--backend is 'exakt'; registered: .*exact.* Did you mean 'exact'?"),
        ({"options": {"storage": "float8"}}, "storage is 'float8'; registered: codes, float16, float32, int8"),
        ({"options": {"store": "int8"}}, "--backend exact has 'store'; allowed: storage"),
        ({"batch_rows": 0}, "batch_rows is 0, must be a whole number >= 1"),
    ],
)
def test_options_are_checked_before_anything_is_written(tmp_path, drawn, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_index(drawn().folder, tmp_path / "i", **arguments)
    assert not (tmp_path / "i").exists()


def test_a_build_that_is_refused_leaves_a_folder_or_an_index_as_it_was(tmp_path, drawn):
    (tmp_path / "i").mkdir()
    for arguments in ({"options": {"storage": "float8"}}, {"truth": [tmp_path / "none.json"]}):
        with pytest.raises((ValueError, FileNotFoundError)):
            build_index(drawn().folder, tmp_path / "i", **arguments)
        assert not any((tmp_path / "i").iterdir())
    build_index(drawn().folder, tmp_path / "i")
    before = files(tmp_path / "i")
    with pytest.raises(ValueError, match="storage is 'float8'"):
        build_index(drawn().folder, tmp_path / "i", options={"storage": "float8"})
    assert files(tmp_path / "i") == before


def test_a_folder_of_something_else_is_left_alone(drawn):
    folder = drawn().folder
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=r"holds gallery.safetensors, which is no part of an index"):
        build_index(folder, folder)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "ppreid_plugin search index", "version"', "is not JSON: cut off or edited"),
        ('{"format": "x"}', "is not the record of an index"),
        ('{"format": "ppreid_plugin search index", "version": 9}', "has version 9; this program reads 1"),
        ('{"format": "ppreid_plugin search index", "version": 1, "rows": 3}', "lacks fields"),
    ],
)
def test_an_edited_record_is_named(tmp_path, text, message):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_index(tmp_path)


def test_a_generation_outside_the_index_is_not_followed(tmp_path, drawn):
    build_index(drawn().folder, tmp_path / "i")
    path = tmp_path / "i/index.json"
    path.write_text(path.read_text().replace('"rows-0001"', '"../elsewhere"'))
    with pytest.raises(ValueError, match="lacks fields or holds impossible ones"):
        open_index(tmp_path / "i")


def test_the_second_writer_is_told_at_once(tmp_path, drawn):
    build_index(drawn().folder, tmp_path / "i")
    before = files(tmp_path / "i")
    with FileLock(str(tmp_path / "i/lock")):
        start = time.monotonic()
        for write in (
            lambda: build_index(drawn().folder, tmp_path / "i", options={"storage": "int8"}),
            lambda: delete_rows(tmp_path / "i", pids=[1]),
        ):
            with pytest.raises(BlockingIOError, match=r"another process is building or deleting in '.*i'. Wait"):
                write()
        assert time.monotonic() - start < 1
        assert len(content(tmp_path / "i")) == 24  # it can be searched meanwhile
    assert files(tmp_path / "i") == before


STEPS = ["planned", "begun", "written", "journaled", "finished", "published", "replaced"]


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that makes a build stop when it reaches a step for the n-th time, and the steps it passed."""
    passed = []

    def arm(step, times=1):
        passed.clear()

        def reached(at):
            passed.append(at)
            if at == step and passed.count(at) == times:
                raise KeyboardInterrupt

        monkeypatch.setattr(building, "reached", reached)
        return passed

    return arm


@pytest.mark.parametrize("step", STEPS)
def test_stopped_at_any_step_the_earlier_rows_are_searched_and_the_same_command_goes_on(tmp_path, drawn, stop_at, step):
    later = drawn(mechanism=subset(), **LATER).folder
    build_index(drawn().folder, tmp_path / "i")
    build_index(later, tmp_path / "whole", batch_rows=5)
    before = content(tmp_path / "i")
    passed = stop_at(step, 3 if step in ("written", "journaled") else 1)
    with pytest.raises(KeyboardInterrupt):
        build_index(later, tmp_path / "i", batch_rows=5)
    searched, expected = content(tmp_path / "i"), before if step != "replaced" else content(tmp_path / "whole")
    assert list(searched) == list(expected)
    assert all(np.array_equal(searched[name][2], row) for name, (_, _, row) in expected.items())
    assert read_record(tmp_path / "i").release["release"] == ("a-0001" if step != "replaced" else "b-0001")
    # a step is passed before the stop: the third batch was not recorded yet when it was "written"
    recorded = {"written": 2, "journaled": 3}.get(step, 0 if step in ("planned", "begun") else 5)
    passed = stop_at("never")
    build_index(later, tmp_path / "i", batch_rows=5)
    assert passed.count("written") == 5 - recorded
    made, whole = ({name.split("/")[-1]: data for name, data in files(tmp_path / folder).items()
                    if name != "index.json"} for folder in ("i", "whole"))  # fmt: skip
    assert made == whole
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
        "index.json",
        "lock",
        "opted_out.json",
        "rows-0002",
    ]


def test_a_batch_that_was_written_but_not_recorded_is_written_again(tmp_path, drawn, stop_at):
    """The rows after the last record may be anything."""
    build_index(drawn().folder, tmp_path / "whole")
    stop_at("journaled")
    with pytest.raises(KeyboardInterrupt):
        build_index(drawn().folder, tmp_path / "i", batch_rows=10)
    stop_at("never")
    rows = np.lib.format.open_memmap(tmp_path / "i/rows-0001/rows.npy", mode="r+")
    rows[10:] = 7.0
    rows.flush()
    with (tmp_path / "i/rows-0001/journal.jsonl").open("ab") as stream:
        stream.write(b'{"rows": 2')  # cut off
    stop_at("journaled")
    with pytest.raises(KeyboardInterrupt):
        build_index(drawn().folder, tmp_path / "i", batch_rows=5)
    passed = stop_at("never")
    build_index(drawn().folder, tmp_path / "i", batch_rows=5)
    assert passed.count("written") == 2  # of the 24 rows the last nine
    assert files(tmp_path / "i") == files(tmp_path / "whole")


def test_a_build_that_was_given_up_leaves_nothing(tmp_path, drawn, stop_at):
    stop_at("journaled")
    with pytest.raises(KeyboardInterrupt):
        build_index(drawn().folder, tmp_path / "i", batch_rows=10)
    stop_at("never")
    with pytest.raises(FileNotFoundError, match="its first build was not finished"):
        open_index(tmp_path / "i")
    build_index(drawn(**LATER).folder, tmp_path / "i")
    build_index(drawn(**LATER).folder, tmp_path / "whole")
    assert files(tmp_path / "i") == files(tmp_path / "whole")


def run_killed(work, seconds):
    """Do ``work`` in a process of its own and kill it after so many seconds; return whether it was done by then."""

    def slowly():
        building.reached = lambda step: time.sleep(0.002)  # so that kills fall between all steps
        work()

    process = multiprocessing.get_context("fork").Process(target=slowly)
    process.start()
    process.join(seconds)
    process.kill()  # SIGKILL
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.mark.parametrize("kind", ["rows", "codes"])
def test_killed_ten_times_and_resumed_is_as_never_killed(tmp_path, drawn, kind):
    """SIGKILL at random points of a build, then of a deletion; nothing lost, nothing doubled."""
    terms, _ = KINDS[kind]
    stored = drawn(gallery(people=8, rows=4), **terms)
    kill_in = random.Random(kind).uniform
    start = time.monotonic()
    build_index(stored.folder, tmp_path / "whole", batch_rows=2)
    whole = time.monotonic() - start

    def build():
        build_index(stored.folder, tmp_path / "i", batch_rows=2)

    def delete():
        delete_rows(tmp_path / "i", pids=[4], batch_rows=2)

    kills = 0
    while kills < 10:
        if not run_killed(build, kill_in(0, whole / 3)):
            kills += 1
        else:  # done before the kill: from the beginning
            assert files(tmp_path / "i") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "i")
    assert run_killed(build, 60)
    assert files(tmp_path / "i") == files(tmp_path / "whole")
    delete_rows(tmp_path / "whole", pids=[4], batch_rows=2)
    for _ in range(5):
        run_killed(delete, kill_in(0, whole / 3))
        assert len(content(tmp_path / "i")) in (28, 32)
    assert run_killed(delete, 60)
    assert files(tmp_path / "i") == files(tmp_path / "whole")
    kept = [name for name, pid in zip(stored.row_ids, stored.pids, strict=True) if pid != 4]
    assert list(content(tmp_path / "i")) == kept
    record = read_record(tmp_path / "i")
    assert (record.rows, record.opted_out["pids"]) == (28, [4])
