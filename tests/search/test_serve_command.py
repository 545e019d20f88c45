"""The command line: build, search features and images, info, delete; one-line errors."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from search_cases import gallery, release, subset

from ppreid_plugin import cli
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.search import open_index, search_people
from ppreid_plugin.search.command import serve_command
from ppreid_plugin.search.record import read_record
from ppreid_plugin.toolbox import models

TOOL = Path(__file__).parents[2] / "tools/serve_index.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an enrolled release, an anonymous one with its map, one of symbols, and query features."""
    folder = tmp_path_factory.mktemp("serve")
    release(folder)
    release(folder, out="anonymous", name="b", protocol="anonymous", truth_out=folder / "truth.json")
    release(folder, out="symbols", name="c", mechanism=subset())
    rows = gallery()
    features = np.asarray(rows.features)[::5].astype(np.float32)
    np.savez(folder / "query.npz", features=features, row_ids=np.array(rows.row_ids)[::5], model=np.array("model-1"))
    np.savez(folder / "narrow.npz", features=features[:, :7])
    np.savez(folder / "other.npz", features=features, model=np.array("model-2"))
    np.savez(folder / "odd.npz", features=features, row_ids=np.array(["a"]))
    np.savez(folder / "empty.npz", pids=np.zeros(2))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def run(capsys):
    def call(*words):
        capsys.readouterr()
        code = cli.run(serve_command, [str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_build_search_info_delete(here, run):
    code, out, err = run("build", "--release", "release", "--index", "i")
    assert (code, err) == (0, "")
    assert "release a-0001: gaussian, epsilon 16, delta 1e-05 for one image (replace), enrolled" in out
    code, out, err = run("search", "--index", "i", "--query", "query.npz", "--top", "3", "--out", "hits.json")
    assert (code, err) == (0, "")
    written = json.loads(Path("hits.json").read_text())
    assert Path("hits.json").stat().st_mode & 0o777 == 0o600
    with open_index("i") as index, np.load("query.npz") as query:
        expected = index.search(index.transform_queries(query["features"]), 3)
    assert [one["query"] for one in written["queries"]] == ["p0_0", "p1_1", "p2_2", "p3_3", "p5_0"]
    for told, hits in zip(written["queries"], expected, strict=True):
        assert [hit["row_id"] for hit in told["hits"]] == list(hits.row_ids)
        assert [hit["pid"] for hit in told["hits"]] == hits.pids.tolist()
        assert [hit["score"] for hit in told["hits"]] == hits.scores.tolist()
        assert re.search(rf"^{told['query']} +1 +{hits.row_ids[0]} +{hits.pids[0]} +{hits.scores[0]:.6f}", out, re.M)
    assert written["releases"][0]["epsilon"] == 16.0
    code, out, err = run("info", "--index", "i", "--verify")
    assert code == 0
    for line in (
        r"person level \(delta 1e-05\): epsilon [\d.]+ at the median of 4 rows",
        r"ledger: scope 'site', a-0001, record 1, head [0-9a-f]{64}",
        r'backend exact, \{"storage": "float32"\}, metric cosine',
        r"24 rows of 12 columns, labels: pids, camids",
        r"rows.npy 1280",  # 128 + 24 * 12 * 4
        "all files are as they were built",
    ):
        assert re.search(line, out), line
    code, out, err = run("delete", "--index", "i", "--pid", "2", "--row", "p1_0")
    assert code == 0
    assert out.startswith("Deleted 5 rows from 'i'; later builds leave them out.")
    assert "tools/ledger.py purge a-0001" in out
    assert "deleted for good: 1 people, 1 rows by name" in run("info", "--index", "i")[1]
    assert json.loads(run("info", "--index", "i", "--json")[1])["opted_out"] == {"pids": [2], "rows": ["p1_0"]}
    assert "19 rows" in run("build", "--release", "release", "--index", "i")[1]
    assert "23 rows" in run("build", "--release", "release", "--index", "i", "--readmit", "2")[1]


def test_the_person_of_a_query_is_found_by_his_template(here, run):
    """Release noise has no seed. At epsilon 256 the right template leads by 17 standard deviations (at 16: 1.8)."""
    mechanism = build_mechanism("gaussian", epsilon=256.0, delta=1e-5)
    release(here, out="precise", name="e", mechanism=mechanism)
    run("build", "--release", "precise", "--index", "i")
    code, out, _ = run("search", "--index", "i", "--query", "query.npz", "--people", "template", "--top", "2")
    assert code == 0
    assert re.search(r"^p1_1 +1 +- +1 ", out, re.M)
    with open_index("i") as index, np.load("query.npz") as query:
        expected = search_people(index, index.transform_queries(query["features"]), 2, fuse="template")
    for name, hits in zip(["p0_0", "p1_1", "p2_2", "p3_3", "p5_0"], expected, strict=True):
        for rank, (pid, score) in enumerate(zip(hits.pids, hits.scores, strict=True), start=1):
            assert re.search(rf"^{name} +{rank} +- +{pid} +{score:.6f}", out, re.M)


def test_people_and_shards(here, run):
    release(here, out="second", name="d")
    run("build", "--release", "release", "--index", "i")
    run("build", "--release", "second", "--index", "j")
    code, out, _ = run(
        "search", "--index", "i", "j", "--query", "query.npz", "--people", "best", "--top", "9", "--out", "h.json"
    )
    assert code == 0
    assert "release a-0001" in out
    assert "release d-0001" in out
    for query in json.loads(Path("h.json").read_text())["queries"]:
        pids = [hit["pid"] for hit in query["hits"]]
        assert sorted(pids) == [1, 2, 3, 4, 5]  # each once, though both hold them
    run("search", "--index", "i", "j", "--query", "query.npz", "--top", "5", "--out", "rows.json")
    with open_index("i") as one, open_index("j") as other, np.load("query.npz") as query:
        both = [index.search(index.transform_queries(query["features"]), 5) for index in (one, other)]
    for told, first, second in zip(json.loads(Path("rows.json").read_text())["queries"], *both, strict=True):
        scores = sorted([*first.scores, *second.scores], reverse=True)[:5]
        assert [hit["score"] for hit in told["hits"]] == scores


@pytest.mark.parametrize(
    ("release_name", "index", "message"),
    [
        (
            "symbols",
            "j",
            "'i' has mechanism .*gaussian.*, 'j' has .*prior_subset.*: their scores mean different things",
        ),
        ("release", "j", "'i' and 'j' are indexes of one release, 'a-0001': each row would be found twice"),
        (None, "i", "--index names 'i' twice. Name each index once"),
    ],
)
def test_shards_are_alike_and_different(here, run, release_name, index, message):
    run("build", "--release", "release", "--index", "i")
    if release_name:
        run("build", "--release", release_name, "--index", index)
    code, out, err = run("search", "--index", "i", index, "--query", "query.npz")
    assert (code, out) == (2, "")
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "another"),
        ("transform", {"transform": "another"}),
        ("epsilon", 3.5),
        ("delta", 0.5),
        ("unit", "another"),
    ],
)
def test_shards_differ_in_nothing_that_scores_depend_on(here, run, name, value):
    release(here, out="second", name="d")
    for folder, index in (("release", "i"), ("second", "j")):
        run("build", "--release", folder, "--index", index)
    path = Path("j/index.json")
    content = json.loads(path.read_text())
    content["release"][name] = value
    path.write_text(json.dumps(content))
    code, _, err = run("search", "--index", "i", "j", "--query", "query.npz")
    assert code == 2
    assert f"'i' has {name} " in err
    assert f"'j' has {value}: their scores mean different things" in err


def test_a_third_shard_that_differs_is_named(here, run):
    for out, name, index in (("release", None, "i"), ("second", "d", "j"), ("third", "e", "k")):
        if name:
            release(here, out=out, name=name)
        run("build", "--release", out, "--index", index)
    assert run("search", "--index", "i", "j", "k", "--query", "query.npz")[0] == 0
    path = Path("k/index.json")
    content = json.loads(path.read_text())
    content["release"]["model"] = "another"
    path.write_text(json.dumps(content))
    code, _, err = run("search", "--index", "i", "j", "k", "--query", "query.npz")
    assert code == 2
    assert "'k' has another: their scores mean different things" in err


def test_no_release_is_in_two_of_three_shards(here, run):
    release(here, out="second", name="d")
    for folder, index in (("release", "i"), ("second", "j"), ("second", "k")):
        run("build", "--release", folder, "--index", index)
    assert run("search", "--index", "i", "j", "--query", "query.npz")[0] == 0
    code, _, err = run("search", "--index", "i", "j", "k", "--query", "query.npz")
    assert code == 2
    assert "'j' and 'k' are indexes of one release, 'd-0001'" in err


def test_the_ledger_is_asked_first(here, run):
    code, _, err = run("build", "--release", "release", "--index", "i", "--ledger", "ledger", "--scope", "site")
    assert code == 0, err
    path = Path("release/manifest.json")
    path.write_text(path.read_text().replace('"controller": ""', '"controller": "x"'))
    code, _, err = run("build", "--release", "release", "--index", "k", "--ledger", "ledger", "--scope", "site")
    assert code == 2
    assert "is not as release 'a-0001' was committed" in err
    assert not Path("k").exists()


def test_people_of_an_anonymous_release_are_deleted_by_its_map(here, run):
    run("build", "--release", "anonymous", "--index", "i")
    named = {row["row"]: row["pid"] for row in json.loads(Path("truth.json").read_text())["rows"]}
    code, out, _ = run("delete", "--index", "i", "--pid", "3", "--truth", "truth.json")
    assert (code, out[:14]) == (0, "Deleted 4 rows")
    with open_index("i") as index:
        names = [name.decode() for batch in index.batches(0, 9) for name in batch.row_ids]
    assert names == [row for row, pid in named.items() if pid != 3]


def test_verify_finds_a_changed_byte(here, run):
    run("build", "--release", "release", "--index", "i")
    path = Path("i/rows-0001/rows.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert run("info", "--index", "i")[0] == 0
    code, _, err = run("info", "--index", "i", "--verify")
    assert code == 2
    assert "rows.npy' is not as it was built (SHA-256 differs)" in err


def test_queries_from_images(here, run, pedestrians, monkeypatch):
    """The features are those of the model on the test-time transform: the nearest row of a clean copy is the image."""
    from ppreid_plugin.data.images import read_image
    from ppreid_plugin.search import queries as module
    from ppreid_plugin.toolbox import submodule

    torch.manual_seed(3)
    network = models.build_model("osnet_x0_25", 5, pretrained=False)
    torch.save(network.state_dict(), "weights.pth")
    found = []
    monkeypatch.setattr(
        "ppreid_plugin.search.command._searched",
        lambda folder, queries, args: (
            found.append(queries) or read_record(Path(folder)),
            [hits_of_nothing() for _ in queries.names],
        ),
    )
    run("build", "--release", "release", "--index", "i")
    folder = next(path for path in sorted(pedestrians.rglob("query")) if path.is_dir())
    config = Path(__file__).parents[2] / "configs/im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml"
    code, _, err = run(
        "search", "--index", "i", "--images", folder, "--config-file", config, "--top", "1",
        "model.load_weights", "weights.pth", "data.height", "64", "data.width", "32", "use_gpu", "False",
    )  # fmt: skip
    assert code == 0, err
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix in module.IMAGES)
    assert list(found[0].names) == paths
    assert found[0].model.startswith("sha256:")
    _, test = submodule("data.transforms").build_transforms(64, 32, transforms=[])
    images = torch.stack([test(read_image(path)) for path in paths])
    with torch.no_grad():
        expected = network.eval()(images).numpy()
    np.testing.assert_allclose(found[0].features, expected, rtol=1e-4, atol=1e-5)


def hits_of_nothing():
    from ppreid_plugin.search import Hits

    return Hits((), None, np.empty(0), np.empty(0, dtype=np.int64))


def test_queries_of_other_weights_are_warned_of(here, run, caplog):
    run("build", "--release", "release", "--index", "i")
    caplog.clear()
    assert run("search", "--index", "i", "--query", "query.npz")[0] == 0
    assert not caplog.records
    assert run("search", "--index", "i", "--query", "other.npz")[0] == 0
    assert "release a-0001 was made with other weights (model-1) than the queries (model-2)" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bild"], "'bild' is no action; there are: build, search, info, delete. Did you mean 'build'?"),
        (["build", "--release", "query.npz", "--index", "k"], "'query.npz' is a file. An index is built from"),
        (["build", "--release", "release", "--index", "k", "--backend", "exact:storage"], "must be NAME=VALUE"),
        (["build", "--release", "release", "--index", "k", "--backend", "exakt"], "Did you mean 'exact'?"),
        (["search", "--index", "nowhere", "--query", "query.npz"], "'nowhere' holds no index.json: it is no index"),
        (["search", "--index", "i"], "--query must be given (features), or --images"),
        (["search", "--index", "i", "--query", "no.npz"], "'no.npz' is not there. Name a .npz"),
        (["search", "--index", "i", "--query", "empty.npz"], "'empty.npz' lacks features; it holds pids"),
        (["search", "--index", "i", "--query", "odd.npz"], "holds 5 rows of features and 1 row_ids"),
        (
            ["search", "--index", "i", "--query", "narrow.npz"],
            "queries do not fit release 'a-0001' (model model-1): features have 7 columns, the transform was fitted",
        ),
        (["search", "--index", "i", "--query", "query.npz", "--top", "0"], "top is 0, must be a whole number"),
        (["search", "--index", "i", "--query", "query.npz", "--exclude-camera", "1"], "goes with --people"),
        (
            ["search", "--index", "i", "i", "--query", "query.npz", "--people", "template"],
            "--people template takes one index",
        ),
        (["search", "--index", "i", "--query", "query.npz", "--out", "no/hits.json"], "but 'no' is no folder. Make it"),
        (["search", "--index", "i", "--images", "no.jpg"], "model.load_weights is empty; image queries need"),
        (["search", "--index", "i", "--images", "no.jpg", "model.load_weights", "w"], "'no.jpg' does not exist"),
        (["search", "--index", "i", "--images", "release", "model.load_weights", "w"], "'release' holds no image"),
        (["info", "--index", "nowhere"], "'nowhere' holds no index.json"),
        (["delete", "--index", "i"], "nothing is named to delete"),
        (["delete", "--index", "i", "--pid", "1", "--truth", "no.json"], "'no.json' is not there"),
        (["delete", "--index", "i", "--pid", "77"], "pid 77 has no row in this index. Look at the pids that a search"),
        (
            ["delete", "--index", "i", "--pid", "1", "--truth", "truth.json"],
            "is the map of b-0001, 24 rows, which is no",
        ),
    ],
)
def test_errors_are_one_line_and_exit_code_2(here, run, words, message):
    run("build", "--release", "release", "--index", "i")
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("k/index.json").exists()


def test_the_tool_runs_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve_index.py", "--help"])
    with pytest.raises(SystemExit) as code:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert code.value.code == 0
    assert "build | search | info | delete" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["serve_index.py", "build", "--help"])
    with pytest.raises(SystemExit) as code:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert code.value.code == 0
    assert "--readmit" in capsys.readouterr().out
