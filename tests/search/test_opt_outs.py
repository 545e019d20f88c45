"""Opt-outs: who was deleted stays out, of every later build, whatever became of ``index.json`` and the rows."""

import json
import shutil

import numpy as np
import pytest
from search_cases import gallery, release

from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.search import build_index, building, delete_everywhere, delete_rows, open_index
from ppreid_plugin.search.record import read_record


def grown():
    """The gallery and six rows more: three of pid 5, three of somebody new, pid 6."""
    first, more = gallery(), gallery(people=2, rows=3, seed=3, first_pid=5)
    return GalleryRows(
        np.concatenate([np.asarray(first.features), np.asarray(more.features)]),
        [*first.row_ids, *(f"more_{number}" for number in range(6))],
        np.concatenate([first.pids, more.pids]),
        np.concatenate([first.camids, more.camids]),
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An enrolled release; anonymous ones: with an append, and one of the same name by another ledger."""
    folder, other = tmp_path_factory.mktemp("drawn"), tmp_path_factory.mktemp("other")
    release(folder, out="enrolled", name="e")
    anonymous = {"name": "an", "protocol": "anonymous"}
    release(folder, out="short", truth_out=folder / "first.json", **anonymous)
    shutil.copytree(folder / "short", folder / "anonymous")
    release(folder, grown(), out="short", truth_out=folder / "second.json", append=True, **anonymous)
    (folder / "short").rename(folder / "long")
    release(other, gallery(seed=2), out="anonymous", truth_out=other / "first.json", **anonymous)
    (other / "anonymous").rename(folder / "namesake")
    (other / "first.json").rename(folder / "namesake.json")
    return folder


def names(folder):
    with open_index(folder) as index:
        return [name.decode() for batch in index.batches(0, 99) for name in batch.row_ids]


def rows_of(pid, *maps):
    rows = [row for one in maps for row in json.loads(one.read_text())["rows"]]
    return {row["row"] for row in rows if row["pid"] == pid}


def without_head(path, folder):
    """The map as earlier versions wrote it."""
    content = json.loads(path.read_text())
    del content["ledger_head"]
    (folder / "old.json").write_text(json.dumps(content))
    return folder / "old.json"


def test_people_stay_out_of_an_anonymous_release_by_its_maps(tmp_path, drawn):
    build_index(drawn / "enrolled", tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[2, 5])
    before = names(tmp_path / "i")
    maps = [drawn / "first.json", drawn / "second.json"]
    for truth, message in (
        ([], r"2 people were deleted .* release 'an-0001' carries no pids: they would come back.* \(--truth FILE\)"),
        (maps[:1], "names 24 of the 30 rows of release 'an-0001'; 6, such as 000024, could be of anybody"),
        ([drawn / "namesake.json", maps[1]], "namesake.json' is the map of an-0001, 24 rows, which is no part"),
    ):
        with pytest.raises(ValueError, match=message):
            build_index(drawn / "long", tmp_path / "i", truth=truth)
        assert names(tmp_path / "i") == before
    theirs = rows_of(2, *maps) | rows_of(5, *maps)
    assert len(theirs) == 11
    record = build_index(drawn / "long", tmp_path / "i", truth=maps)
    assert names(tmp_path / "i") == [f"{number:06d}" for number in range(30) if f"{number:06d}" not in theirs]
    assert record.opted_out == {"pids": [2, 5], "rows": []}  # the rows would say who they were
    assert build_index(drawn / "long", tmp_path / "i", truth=maps).generation == record.generation
    assert delete_rows(tmp_path / "i", pids=[2], truth=maps) == 0
    assert build_index(drawn / "long", tmp_path / "i", readmit=[2, 5]).rows == 30


@pytest.mark.parametrize("old", [False, True])
def test_only_the_map_of_this_release_is_taken(tmp_path, drawn, old):
    build_index(drawn / "long", tmp_path / "i")
    before = names(tmp_path / "i")
    maps = [drawn / "first.json", drawn / "second.json"]
    for truth, message in (
        (
            [drawn / "namesake.json", maps[1]],
            "which is no part of this release .an-0001 of 24 rows, an-0001.1 of 6 rows",
        ),
        (maps[:1], r"names 24 of the 30 rows of the index '.*' of release 'an-0001'; 6, such as 000024, could"),
    ):
        with pytest.raises(ValueError, match=message):
            delete_rows(tmp_path / "i", pids=[5], truth=truth)
        assert names(tmp_path / "i") == before
    namesake = without_head(drawn / "namesake.json", tmp_path)  # its name and number of rows are those of this one
    with pytest.raises(
        ValueError, match=r"old.json' and another map name row \d+ of .* differently: one was written with"
    ):
        delete_rows(tmp_path / "i", pids=[5], truth=[*maps, namesake])
    if old:
        maps[0] = without_head(maps[0], tmp_path)
    assert delete_rows(tmp_path / "i", pids=[5], truth=maps) == 7
    assert set(before) - set(names(tmp_path / "i")) == rows_of(5, *maps)
    assert read_record(tmp_path / "i").opted_out["pids"] == []  # beside the rows they would say who they were
    with pytest.raises(ValueError, match="pid 77 has no row in this index. Look at the pids that the map names"):
        delete_rows(tmp_path / "i", pids=[77], truth=maps)


@pytest.mark.parametrize("change", [{"reservation": "an-0007"}, {"rows": 3}])
def test_a_map_of_an_earlier_version_must_fit_by_name_and_number_of_rows(tmp_path, drawn, change):
    build_index(drawn / "anonymous", tmp_path / "i")
    path = without_head(drawn / "first.json", tmp_path)
    content = json.loads(path.read_text())
    content |= {name: content[name][:value] if name == "rows" else value for name, value in change.items()}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which is no part of this release"):
        delete_rows(tmp_path / "i", pids=[1], truth=[path])


def test_numbers_of_deleted_rows_go_on_in_an_append_only(tmp_path, drawn):
    build_index(drawn / "anonymous", tmp_path / "i")
    delete_rows(tmp_path / "i", row_ids=["000003"])
    for later in ("namesake", "enrolled"):
        with pytest.raises(
            ValueError, match="1 rows were deleted by name .* drawn apart from it, calls its rows other"
        ):
            build_index(drawn / later, tmp_path / "i")
    assert build_index(drawn / "long", tmp_path / "i").rows == 29
    assert "000003" not in names(tmp_path / "i")
    with pytest.raises(ValueError, match="calls its rows otherwise"):  # shorter: its next append could be another
        build_index(drawn / "anonymous", tmp_path / "i")
    assert build_index(drawn / "namesake", tmp_path / "i", readmit_rows=True).rows == 24
    assert json.loads((tmp_path / "i/opted_out.json").read_text())["rows"] == []


DAMAGE = {
    "record": lambda folder: (folder / "index.json").write_text('{"format": "ppreid'),
    "fields": lambda folder: (folder / "index.json").write_text(
        json.dumps({**json.loads((folder / "index.json").read_text()), "rows": 0})
    ),
    **{
        f"{name} edited": lambda folder, name=name, value=value: (folder / "index.json").write_text(
            json.dumps({**json.loads((folder / "index.json").read_text()), name: value})
        )
        for name, value in (("generation", "rows"), ("options", 3.5), ("id_bytes", "x"), ("release", {}), ("files", []))
    },
    "no record": lambda folder: (folder / "index.json").unlink(),
    "rows": lambda folder: cut(folder / f"{read_record(folder).generation}/rows.npy"),
    "missing": lambda folder: (folder / f"{read_record(folder).generation}/row_ids.npy").unlink(),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("damage", DAMAGE)
def test_building_again_mends_an_index_and_remembers_who_stays_out(tmp_path, drawn, damage):
    build_index(drawn / "enrolled", tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[2], row_ids=["p1_0"])
    whole = names(tmp_path / "i")
    DAMAGE[damage](tmp_path / "i")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"Build (the index|it) again|Run tools/serve_index.py build"
    ):
        delete_rows(tmp_path / "i", pids=[4])
    record = build_index(drawn / "enrolled", tmp_path / "i")
    assert names(tmp_path / "i") == whole
    assert record.opted_out == {"pids": [2], "rows": ["p1_0"]}
    assert delete_rows(tmp_path / "i", pids=[4]) == 4
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
        "index.json", "lock", "opted_out.json", read_record(tmp_path / "i").generation,
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["record", "no record"])
def test_damaged_rows_are_written_again_with_their_record(tmp_path, drawn, damage):
    """A generation that no record names is not gone on with as if it were whole."""
    build_index(drawn / "enrolled", tmp_path / "i")
    whole = names(tmp_path / "i"), (tmp_path / "i/rows-0001/rows.npy").read_bytes()
    path = tmp_path / "i/rows-0001/rows.npy"
    if damage == "record":
        path.write_bytes(path.read_bytes()[:-400] + bytes(400))  # as long as it was
    else:
        cut(path)
    DAMAGE[damage](tmp_path / "i")
    build_index(drawn / "enrolled", tmp_path / "i")
    assert (names(tmp_path / "i"), path.read_bytes()) == whole


def test_mending_that_was_cut_off_goes_on_where_it_stopped(tmp_path, drawn, monkeypatch):
    build_index(drawn / "enrolled", tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[2])
    whole = names(tmp_path / "i")
    DAMAGE["record"](tmp_path / "i")
    steps = []

    def stop(step):
        steps.append(step)
        if steps.count("journaled") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(building, "reached", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(drawn / "enrolled", tmp_path / "i", batch_rows=5)
    steps.clear()
    monkeypatch.setattr(building, "reached", steps.append)
    build_index(drawn / "enrolled", tmp_path / "i", batch_rows=5)
    assert steps.count("written") == 2  # of the 20 rows the last ten
    assert names(tmp_path / "i") == whole


def test_without_either_list_nothing_is_built(tmp_path, drawn):
    build_index(drawn / "enrolled", tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[2])
    DAMAGE["record"](tmp_path / "i")
    (tmp_path / "i/opted_out.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"who was deleted .* is not known any more. Delete the folder \(rm -r '.*i'\)"
    ):
        build_index(drawn / "enrolled", tmp_path / "i")
    assert (tmp_path / "i/rows-0002").is_dir()


def test_an_index_of_an_earlier_version_opens_is_updated_and_keeps_its_list(tmp_path, drawn):
    build_index(drawn / "enrolled", tmp_path / "i")
    delete_rows(tmp_path / "i", pids=[2])
    (tmp_path / "i/opted_out.json").unlink()
    assert len(names(tmp_path / "i")) == 20
    assert build_index(drawn / "enrolled", tmp_path / "i").generation == "rows-0002"
    assert json.loads((tmp_path / "i/opted_out.json").read_text())["pids"] == [2]
    (tmp_path / "i/opted_out.json").write_text("{")  # damaged: index.json has the list too
    assert delete_rows(tmp_path / "i", pids=[3]) == 4
    assert json.loads((tmp_path / "i/opted_out.json").read_text())["pids"] == [2, 3]


def test_a_deletion_that_was_cut_off_is_heeded_by_builds_and_finished_by_the_next(tmp_path, drawn, monkeypatch):
    def stop(step):
        raise KeyboardInterrupt

    for finish in (
        lambda: build_index(drawn / "enrolled", tmp_path / "i"),
        lambda: delete_rows(tmp_path / "i", pids=[4]),
    ):
        shutil.rmtree(tmp_path / "i", ignore_errors=True)
        build_index(drawn / "enrolled", tmp_path / "i")
        with monkeypatch.context() as patched:
            patched.setattr(building, "reached", stop)
            with pytest.raises(KeyboardInterrupt):
                delete_rows(tmp_path / "i", pids=[2])
        assert len(names(tmp_path / "i")) == 24
        finish()
        assert not any(name.startswith("p2_") for name in names(tmp_path / "i"))


def test_people_are_deleted_from_every_index_that_has_them(tmp_path, drawn):
    for place in ("enrolled", "long", "namesake"):
        build_index(drawn / place, tmp_path / place)
    folders = [tmp_path / place for place in ("enrolled", "long", "namesake")]
    maps = [drawn / name for name in ("first.json", "second.json", "namesake.json")]
    before = [names(folder) for folder in folders]
    for arguments, message in (
        ({"pids": [77], "truth": maps}, "pid 77 has no row in any of these 3 indexes"),
        ({"pids": [6], "row_ids": ["x"], "truth": maps}, "row 'x' is not in any of these 3 indexes"),
        ({"pids": [6], "truth": maps[:2]}, "names 0 of the 24 rows of the index '.*namesake' of release 'an-0001'"),
        ({"pids": [6]}, "release 'an-0001' is anonymous: its rows carry no pid"),
    ):
        with pytest.raises(ValueError, match=message):
            delete_everywhere(folders, **arguments)
        assert [names(folder) for folder in folders] == before
    with pytest.raises(ValueError, match="--index names '.*enrolled' twice"):
        delete_everywhere([folders[0], folders[1], folders[0]], pids=[6], truth=maps)
    assert list(delete_everywhere(folders, pids=[6], truth=maps).values()) == [0, 3, 0]  # only the append has them
    assert list(delete_everywhere(folders, pids=[5], truth=maps).values()) == [4, 7, 4]
    assert read_record(folders[0]).opted_out == {"pids": [5, 6], "rows": []}  # 6 stays out of its appends, too
    assert set(before[2]) - set(names(folders[2])) == rows_of(5, maps[2])


def test_a_shard_that_did_not_hold_a_person_keeps_him_out_of_an_append(tmp_path, drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    release(folder, out="short", name="e")
    build_index(folder / "short", tmp_path / "a")
    build_index(drawn / "enrolled", tmp_path / "b")
    shutil.copytree(folder / "short", folder / "kept")
    release(folder, grown(), out="short", name="e", append=True)
    with pytest.raises(ValueError, match="pid 6 has no row in any"):
        delete_everywhere([tmp_path / "a", tmp_path / "b"], pids=[6])
    build_index(folder / "short", tmp_path / "c")
    named = {"pids": [4, 6], "row_ids": ["more_0"]}  # 4 is in both, 6 and the row in the longer alone
    assert list(delete_everywhere([tmp_path / "a", tmp_path / "c"], **named).values()) == [4, 8]
    assert read_record(tmp_path / "a").opted_out == {"pids": [4, 6], "rows": ["more_0"]}
    build_index(folder / "short", tmp_path / "a")
    with open_index(tmp_path / "a") as index:
        pids = {int(pid) for batch in index.batches(0, 99) for pid in batch.pids}
    assert not {4, 6} & pids
    assert 5 in pids
    assert "more_0" not in names(tmp_path / "a")
    assert "more_1" in names(tmp_path / "a")
