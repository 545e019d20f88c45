"""Queries of every odd kind, in every backend: a clear error, or the answer of the ordinary array."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from search_cases import release

from ppreid_plugin import cli
from ppreid_plugin.dp.protected import unit_rows
from ppreid_plugin.search import build_index, open_index, search_people
from ppreid_plugin.search.command import serve_command

FEATURES = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
EYE = np.eye(4, 12, dtype=bool)
BACKENDS = {"exact": ("exact", {}), "int8": ("exact", {"storage": "int8"}), "hnsw": ("faiss", {"kind": "hnsw"}),
            "flat": ("faiss", {}), "milvus": ("milvus", {})}  # fmt: skip

REFUSED = {
    "0-d": (np.array(3.0), r"has shape \(\)"),
    "a number": (3.0, r"has shape \(\)"),
    "0-d tensor": (torch.tensor(3.0), r"has shape \(\)"),
    "1-d": (FEATURES[0], r"has shape \(12,\)"),
    "3-d": (FEATURES[None], r"has shape \(1, 4, 12\)"),
    "no rows": (FEATURES[:0], r"has shape \(0, 12\)"),
    "no columns": (FEATURES[:, :0], r"has shape \(4, 0\)"),
    "NaN": (np.where(EYE, np.nan, FEATURES), r"rows 0, 1, 2, 3 \(4 of 4\) hold NaN or infinity"),
    "infinity": (np.where(EYE, -np.inf, FEATURES), "hold NaN or infinity"),
    "13 columns": (np.ones((4, 13), dtype=np.float32), "13 columns"),
    "int": (FEATURES.astype(int), "is of type int64, must be floating point"),
    "bool": (FEATURES > 0, "is of type bool, must be floating point"),
    "object": (FEATURES.astype(object), "is of type object, must be floating point"),
    "complex": (FEATURES.astype(complex), "is of type complex128, must be floating point"),
    "text": (FEATURES.astype(str), "must be floating point"),
    "None": (None, "is of type object, must be floating point"),
    "int tensor": (torch.ones(4, 12, dtype=torch.int32), "is of type torch.int32, must be floating point"),
    "ragged": ([[1.0, 2.0], [1.0]], "cannot be made an array"),
    "list of tensors with grad": (list(torch.ones(4, 12, requires_grad=True)), "cannot be made an array"),
    "sparse": (torch.from_numpy(FEATURES).to_sparse(), "no dense tensor"),
    "meta": (torch.ones(4, 12, device="meta"), "no dense tensor"),
    "masked": (np.ma.masked_array(FEATURES, mask=EYE), "has masked entries"),
}
TAKEN = {
    "float64": FEATURES.astype(np.float64),
    "longdouble": FEATURES.astype(np.longdouble),
    "big-endian": FEATURES.astype(">f4"),
    "column order": np.asfortranarray(FEATURES),
    "every second": np.repeat(FEATURES, 2, axis=1)[:, ::2],
    "backwards": FEATURES[::-1].copy()[::-1],
    "list": FEATURES.tolist(),
    "tensor": torch.from_numpy(FEATURES),
    "tensor with grad": torch.from_numpy(FEATURES.copy()).requires_grad_(),
    "parameter": torch.nn.Parameter(torch.from_numpy(FEATURES.copy())),
    "transposed tensor": torch.from_numpy(FEATURES.T.copy()).T,
    "unmasked": np.ma.masked_array(FEATURES),
    "huge": FEATURES.astype(np.float64) * 2.0**600,  # squares leave float64
    "tiny": FEATURES.astype(np.float64) * 2.0**-700,
}
NEARLY = {"float16": FEATURES.astype(np.float16), "bfloat16": torch.from_numpy(FEATURES).bfloat16()}


@pytest.fixture(scope="module", params=BACKENDS)
def index(request, tmp_path_factory):
    backend, options = BACKENDS[request.param]
    pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}.get(backend, "numpy"))
    folder = tmp_path_factory.mktemp(request.param)
    build_index(release(folder).folder, folder / "i", backend=backend, options=options)
    with open_index(folder / "i") as opened:
        yield opened


@pytest.mark.parametrize("kind", REFUSED)
def test_what_are_no_queries_is_refused_by_name(index, kind):
    queries, message = REFUSED[kind]
    for call in (index.search, index.transform_queries, lambda rows: search_people(index, rows)):
        with pytest.raises(ValueError, match=rf"^quer.*{message}"):
            call(queries)


@pytest.mark.parametrize("kind", TAKEN)
def test_how_queries_lie_in_memory_changes_nothing(index, kind):
    queries = TAKEN[kind]
    for found, expected in zip(index.search(queries, 5), index.search(FEATURES, 5), strict=True):
        assert found.row_ids == expected.row_ids
        np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(index.transform_queries(queries), index.transform_queries(FEATURES))
    for found, expected in zip(search_people(index, queries, 3), search_people(index, FEATURES, 3), strict=True):
        assert found.pids.tolist() == expected.pids.tolist()


def test_queries_that_may_not_be_written_are_not(index):
    queries = FEATURES.copy()
    queries.flags.writeable = False
    index.search(queries, 3)
    np.testing.assert_array_equal(queries, FEATURES)


@pytest.mark.parametrize("kind", NEARLY)
def test_fewer_digits_are_widened(index, kind):
    for found, expected in zip(index.search(NEARLY[kind], 3), index.search(FEATURES, 3), strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.01)


@pytest.mark.parametrize("top", [np.int64(3), np.uint8(3), np.int8(3), 3])
def test_top_may_be_a_number_of_numpy(index, top):
    expected = [hits.row_ids for hits in index.search(FEATURES, 3)]
    assert [hits.row_ids for hits in index.search(FEATURES, top)] == expected
    for fuse in ("template", "best"):
        people = search_people(index, FEATURES, top, fuse=fuse)
        assert [len(hits) for hits in people] == [3, 3, 3, 3]


@pytest.mark.parametrize("top", [0, -1, 3.0, True, None, "3"])
def test_top_that_is_no_number_of_rows_is_refused(index, top):
    for call in (index.search, lambda rows, top: search_people(index, rows, top)):
        with pytest.raises(ValueError, match=r"^top is .*, must be a whole number >= 1"):
            call(FEATURES, top)


def test_more_than_there_are_is_all_of_them(index):
    assert [len(hits) for hits in index.search(FEATURES, 10**9)] == [24] * 4
    assert [len(hits) for hits in search_people(index, FEATURES, 10**9)] == [5] * 4


@pytest.mark.parametrize("camera", ["1", 1.0, True])
def test_a_camera_that_is_no_number_is_refused(index, camera):
    """Text is equal to no camid: nothing would be left out."""
    with pytest.raises(ValueError, match="exclude_camera is .*, must be a whole number"):
        search_people(index, FEATURES, 3, exclude_camera=camera)


def test_unit_rows_of_any_length_depend_on_no_other_row():
    rows = torch.from_numpy(np.concatenate([FEATURES.astype(np.float64), np.zeros((1, 12))]))
    rows[:, 3] = 0
    scaled = rows * torch.tensor([1.0, 2.0**600, 2.0**-700, 2.0**1000, 1.0], dtype=torch.float64)[:, None]
    np.testing.assert_array_equal(unit_rows(scaled).numpy(), unit_rows(rows).numpy())
    np.testing.assert_allclose(unit_rows(scaled)[:4].norm(dim=1), np.ones(4))
    assert not unit_rows(scaled)[4].any()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release(tmp_path)
    assert cli.run(serve_command, ["build", "--release", "release", "--index", "i"]) == 0
    np.savez("q.npz", features=FEATURES)
    Path("file").write_text("x")
    return tmp_path


ODD_FILES = {
    "0-d": ({"features": np.array(3.0)}, r"odd.npz': features have shape \(\) and type float64, must be \(q, d\)"),
    "int": ({"features": FEATURES.astype(int)}, "odd.npz': features have shape .* and type int64"),
    "empty": ({"features": FEATURES[:0]}, r"odd.npz': features have shape \(0, 12\)"),
    "3-d names": ({"features": FEATURES, "row_ids": np.zeros((4, 2, 2), np.uint8)}, r"row_ids has shape \(4, 2, 2\)"),
    "0-d names": ({"features": FEATURES, "row_ids": np.array("a")}, r"row_ids has shape \(\)"),
    "no UTF-8": ({"features": FEATURES, "row_ids": np.full((4, 2), 255, np.uint8)}, "row_ids are bytes that are no"),
    "objects": ({"features": FEATURES.astype(object)}, "odd.npz' cannot be read as .npz: Object arrays"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_files_of_queries_are_one_line(here, capsys, kind):
    arrays, message = ODD_FILES[kind]
    np.savez("odd.npz", **arrays)
    assert cli.run(serve_command, ["search", "--index", "i", "--query", "odd.npz"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--index", "file", "--query", "q.npz"], "'file' is a file. Name the folder of an index"),
        (["info", "--index", "file"], "'file' is a file. Name the folder of an index"),
        (["build", "--release", "release", "--index", "file"], "'file' is a file. Name the folder of an index"),
        (["delete", "--index", "i", "--pid", str(2**70)], f"pid {2**70} has no row in this index"),
        (["search", "--index", "i", "--query", "q.npz", "--top", "0"], "top is 0, must be a whole number >= 1"),
        (["search", "--index", "i", "--query", "q.npz", "--out", "i"], "--out is 'i', which is a folder. Name a file"),
        (["search", "--index", "i", "--query", "missing.npz"], "'missing.npz' is not there"),
        (["search", "--index", "i", "--query", "file"], "'file' ends in ''; features are read from"),
    ],
)
def test_odd_words_are_one_line(here, capsys, words, message):
    assert cli.run(serve_command, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_folder_that_cannot_be_written_is_told_before_the_search(here, capsys, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    assert cli.run(serve_command, ["search", "--index", "i", "--query", "q.npz", "--out", "hits.json"]) == 2
    assert "--out is 'hits.json', but nothing can be written into '.'" in capsys.readouterr().err
