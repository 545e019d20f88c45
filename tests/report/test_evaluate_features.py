"""tools/evaluate_features.py: its figures are those of naive loops, its files of every kind, its errors one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import oracles
from ppreid_plugin import cli
from ppreid_plugin.report.evaluate_command import evaluate_command
from ppreid_plugin.retrieval import evaluate, evaluate_open_set, re_rank

TOOL = Path(__file__).parents[2] / "tools/evaluate_features.py"


def random_rows(seed, count, people=10, cameras=3, first_pid=0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(people + first_pid, 12))
    pids = rng.integers(first_pid, people + first_pid, count)
    features = (centers[pids] + 0.8 * rng.normal(size=(count, 12))).astype(np.float32)
    return {"features": features, "pids": pids, "camids": rng.integers(0, cameras, count)}


QUERY, GALLERY = random_rows(0, 20, first_pid=1), random_rows(1, 120, people=11)


def unit_distances(query, gallery):
    query, gallery = (
        rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in (query, gallery)
    )
    return 1 - query @ gallery.T


def expected(query, gallery, distances=None, **options):
    distances = unit_distances(query["features"], gallery["features"]) if distances is None else distances
    labels = query["pids"], gallery["pids"], query["camids"], gallery["camids"]
    return oracles.rank_metrics(distances, *labels, **options)


def assert_ranking(figures, wanted):
    cmc, mAP, mINP, valid = wanted
    np.testing.assert_allclose(figures["cmc"], cmc, atol=1e-12)
    assert (figures["mAP"], figures["mINP"]) == pytest.approx((mAP, mINP), abs=1e-12)
    assert figures["num_valid_queries"] == valid


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "query.npz", **QUERY)
    np.savez(tmp_path / "gallery.npz", **GALLERY)
    return ["--query", str(tmp_path / "query.npz"), "--gallery", str(tmp_path / "gallery.npz")]


def labels_file(path, rows):
    lines = [
        f"img{i}.jpg,{pid}, {camid}" for i, (pid, camid) in enumerate(zip(rows["pids"], rows["camids"], strict=True))
    ]
    path.write_text("\n".join(["path,pid, camid", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize(("protocol", "dropped"), [("market1501", True), ("all", False)])
def test_figures_are_those_of_naive_loops(files, tmp_path, capsys, protocol, dropped):
    out = tmp_path / "figures.json"
    evaluate_command([*files, "--protocol", protocol, "--out", str(out), "--max-rank", "20", "--per-camera"])
    record = json.loads(out.read_text())
    assert_ranking(record["anonymous"], expected(QUERY, GALLERY, same_camera_dropped=dropped, max_rank=20))
    rows = QUERY["features"], GALLERY["features"], QUERY["pids"], GALLERY["pids"], QUERY["camids"], GALLERY["camids"]
    ranks = oracles.enrolled_ranks(*rows, same_camera_dropped=dropped)
    assert record["enrolled"]["cmc"][0] == pytest.approx(np.mean(np.array(ranks) == 1))
    assert record["enrolled"]["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    nobody = GALLERY["pids"] == 0
    strangers = {
        "background_features": GALLERY["features"][nobody],
        "background_camids": GALLERY["camids"][nobody],
    }
    open_set = evaluate_open_set(*rows, **strangers, exclude_same_camera=dropped)
    assert [point["tpir"] for point in record["open_set"]["points"]] == [point.tpir for point in open_set.points]
    assert record["open_set"]["num_background_test"] == open_set.num_background_test > 0
    for camid in range(3):
        mine = {name: values[QUERY["camids"] == camid] for name, values in QUERY.items()}
        wanted = expected(mine, GALLERY, same_camera_dropped=dropped, max_rank=20)
        assert_ranking(record["cameras"][str(camid)], wanted)
    printed = capsys.readouterr().out
    assert f"20 queries, {len(GALLERY['pids'])} gallery rows of 12 columns" in printed
    line = next(line for line in printed.splitlines() if line.startswith("images ")).split()
    figures = record["anonymous"]
    shown = [figures["cmc"][k - 1] for k in (1, 5, 10, 20)] + [figures["mAP"], figures["mINP"]]
    assert line[1:7] == [f"{value:.1%}" for value in shown]
    assert line[-1] == str(figures["num_valid_queries"])
    assert printed.count("images, camera") == 3


def test_the_euclidean_metric_is_of_images_only(files):
    record = evaluate_command([*files, "--metric", "euclidean"])
    squares = ((QUERY["features"][:, None].astype(np.float64) - GALLERY["features"][None]) ** 2).sum(2)
    assert_ranking(record["anonymous"], expected(QUERY, GALLERY, squares))
    assert record["enrolled"] == evaluate_command(files)["enrolled"]
    assert record["anonymous"]["mAP"] != evaluate_command(files)["anonymous"]["mAP"]


def test_cuhk03_is_of_images_only(files):
    plain, record = evaluate_command(files), evaluate_command([*files, "--protocol", "cuhk03"])
    rows = QUERY["features"], GALLERY["features"], QUERY["pids"], GALLERY["pids"], QUERY["camids"], GALLERY["camids"]
    assert record["anonymous"]["cmc"] == evaluate(*rows, protocol="cuhk03").cmc.tolist()
    assert record["anonymous"]["cmc"][0] != plain["anonymous"]["cmc"][0]
    assert record["anonymous"]["mAP"] == plain["anonymous"]["mAP"]
    assert (record["enrolled"], record["open_set"]) == (plain["enrolled"], plain["open_set"])


def test_re_ranking_is_of_images_only_and_sees_all_queries_in_every_camera(files):
    options = ["--rerank", "--k1", "6", "--k2", "3", "--lambda-value", "0.4"]
    record = evaluate_command([*files, *options, "--per-camera"])
    distances = re_rank(QUERY["features"], GALLERY["features"], k1=6, k2=3, lambda_value=0.4)
    assert_ranking(record["anonymous"], expected(QUERY, GALLERY, distances))
    for camid in range(3):
        mine = QUERY["camids"] == camid
        query = {name: values[mine] for name, values in QUERY.items()}
        assert_ranking(record["cameras"][str(camid)], expected(query, GALLERY, distances[mine]))
    plain = evaluate_command(files)
    assert record["enrolled"] == plain["enrolled"]
    assert record["anonymous"]["mAP"] != plain["anonymous"]["mAP"]
    assert (record["rerank"], plain["rerank"]) == ({"k1": 6, "k2": 3, "lambda_value": 0.4}, None)


@pytest.mark.parametrize("more", [["--per-camera", "--rerank"], ["--distractors"]])
def test_pids_at_the_ends_of_their_range_are_pids_like_others(tmp_path, more):
    if more == ["--distractors"]:
        np.save(tmp_path / "nobody.npy", random_rows(2, 30)["features"])
        more = ["--distractors", str(tmp_path / "nobody.npy")]
    records = []
    for name, people in (("usual", {}), ("ends", {1: 2**63 - 1, 2: -(2**63)})):
        flags = []
        for split, rows in (("query", QUERY), ("gallery", GALLERY)):
            path = tmp_path / f"{name}-{split}.npz"
            np.savez(path, **{**rows, "pids": np.array([people.get(pid, pid) for pid in rows["pids"].tolist()])})
            flags += [f"--{split}", str(path)]
        records.append(evaluate_command([*flags, *more]))
    usual, ends = records
    assert {key for key in usual if usual[key] != ends[key]} <= {"command", "seconds", "open_set"}  # split by pid


def test_every_kind_of_file_gives_the_same_figures(files, tmp_path):
    wanted = evaluate_command(files)
    kinds = {}
    for name, rows in (("query", QUERY), ("gallery", GALLERY)):
        save_file(rows, tmp_path / f"{name}.safetensors")
        np.save(tmp_path / f"{name}.npy", rows["features"].astype(np.float64))
        kinds[name] = [f"--{name}-labels", labels_file(tmp_path / f"{name}.csv", rows)]
    for kind in ("safetensors", "npy"):
        argv = [word for name in kinds for word in (f"--{name}", str(tmp_path / f"{name}.{kind}"))]
        record = evaluate_command([*argv, *([] if kind == "safetensors" else kinds["query"] + kinds["gallery"])])
        for part, figure in (("anonymous", "mAP"), ("anonymous", "mINP"), ("enrolled", "mrr")):
            assert record[part][figure] == pytest.approx(wanted[part][figure])
        assert [p["identified"] for p in record["open_set"]["points"]] == [
            p["identified"] for p in wanted["open_set"]["points"]
        ]


def test_distractors_are_ranked_and_belong_to_nobody(files, tmp_path):
    more, others = random_rows(2, 60), random_rows(3, 30)["features"]
    np.savez(tmp_path / "more.npz", **more)  # with pids of the queries: they are not read
    np.save(tmp_path / "others.npy", others)
    record = evaluate_command([*files, "--distractors", str(tmp_path / "more.npz"), str(tmp_path / "others.npy")])
    whole = {
        "features": np.concatenate([GALLERY["features"], more["features"], others]),
        "pids": np.concatenate([GALLERY["pids"], np.full(90, -7)]),
        "camids": np.concatenate([GALLERY["camids"], np.full(90, -7)]),
    }
    assert_ranking(record["anonymous"], expected(QUERY, whole))
    assert (record["num_gallery"], record["num_distractors"]) == (210, 90)
    plain = evaluate_command(files)
    assert record["anonymous"]["mAP"] < plain["anonymous"]["mAP"]
    assert (record["enrolled"], record["open_set"]) == (plain["enrolled"], plain["open_set"])


def test_distractors_are_nobody_where_pid_0_is_a_person_too(tmp_path):
    query = {**QUERY, "pids": QUERY["pids"] - 1}
    gallery = {**GALLERY, "pids": np.where(GALLERY["pids"] > 0, GALLERY["pids"] - 1, 10)}
    more = random_rows(5, 40)
    for name, rows in (("query", query), ("gallery", gallery), ("more", more)):
        np.savez(tmp_path / f"{name}.npz", **rows)
    paths = [str(tmp_path / f"{name}.npz") for name in ("query", "gallery", "more")]
    record = evaluate_command(
        ["--query", paths[0], "--gallery", paths[1], "--distractors", paths[2], "--background-pids"]
    )
    whole = {
        "features": np.concatenate([gallery["features"], more["features"]]),
        **{name: np.concatenate([gallery[name], np.full(40, -7)]) for name in ("pids", "camids")},
    }
    assert 0 in query["pids"]
    assert_ranking(record["anonymous"], expected(query, whole))


def test_junk_is_left_out(tmp_path, files):
    wanted = evaluate_command(files)
    for name, rows in (("query", QUERY), ("gallery", GALLERY)):
        junk = random_rows(4, 9)
        arrays = {key: np.concatenate([junk[key], rows[key]]) for key in rows}
        arrays["pids"][:9] = -1
        np.savez(tmp_path / f"{name}.npz", **arrays)
    record = evaluate_command(files)
    assert record["num_gallery"] == 120
    assert record["anonymous"] == wanted["anonymous"]


def test_a_camera_and_people_without_a_match_are_shown_as_such(tmp_path, capsys):
    query = {"features": np.eye(3, dtype=np.float32), "pids": np.array([0, 0, 7]), "camids": np.array([0, 0, 1])}
    gallery = {**query, "pids": np.array([0, 0, 0]), "camids": np.array([2, 2, 2])}
    for name, rows in (("query", query), ("gallery", gallery)):
        np.savez(tmp_path / f"{name}.npz", **rows)
    argv = ["--query", str(tmp_path / "query.npz"), "--gallery", str(tmp_path / "gallery.npz"), "--per-camera"]
    record = evaluate_command(argv)
    assert (record["enrolled"], record["open_set"], record["cameras"]["1"]) == (None, None, None)
    assert record["anonymous"]["num_valid_queries"] == 2
    last = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("images, camera 1"))
    assert last.split()[3:] == ["-"] * 8 + ["0"]
    few = evaluate_command([*argv, "--background-pids"])  # pid 0 is one person: no open set
    assert (few["enrolled"]["num_people"], few["open_set"]) == (1, None)


def test_the_program_runs(files, tmp_path):
    words = [*files, "--ranks", "1", "3", "--out", "out.json"]
    command = [sys.executable, str(TOOL), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rank-3" in done.stdout
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["command"] == ["tools/evaluate_features.py", *words]


def test_an_error_is_one_line_and_writes_nothing(files, tmp_path, capsys):
    assert cli.run(evaluate_command, [*files, "--metric", "cosin", "--out", str(tmp_path / "other.json")]) == 2
    assert capsys.readouterr().err == (
        "Error: --metric is 'cosin'; allowed: cosine, euclidean. Did you mean 'cosine'?\n"
    )
    assert not (tmp_path / "other.json").exists()


def broken(tmp_path, name, **changes):
    arrays = {**GALLERY, **changes}
    np.savez(tmp_path / name, **{key: value for key, value in arrays.items() if value is not None})
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "1", "51"], "--ranks has 51, must be 1 to --max-rank, 50. Give --max-rank 51"),
        (["--ranks", "0"], "--ranks has 0, must be"),
        (["--max-rank", "0"], "--max-rank is 0, must be a whole number >= 1"),
        (["--protocol", "market"], "--protocol is 'market'; allowed: market1501"),
        (["--memory-mb", "0"], "--memory-mb is 0.0, must be a finite number > 0"),
        (["--k1", "6"], "--k1 goes with --rerank, which is not given"),
        (["--rerank", "--lambda-value", "2"], r"lambda_value is 2.0, must lie in \[0, 1\]"),
        (["--out", "no/such/folder.json"], "--out is 'no/such/folder.json', but 'no/such' is no folder"),
        (["--gallery", "{tmp}/none.npz"], "none.npz' is not there"),
        (["--gallery", "{tmp}/none.npy", "--gallery-labels", "{tmp}/l.csv"], "none.npy' is not there"),
        (["--gallery", "{tmp}/text.npy", "--gallery-labels", "{tmp}/l.csv"], "text.npy' cannot be read as .npy"),
        (
            ["--gallery", "{tmp}/many.npy", "--gallery-labels", "{tmp}/l.csv"],
            "many.npy' holds several arrays.* it .npz",
        ),
        (["--gallery", "{tmp}/g.npy"], "has no labels in it. Add --gallery-labels FILE.csv with columns pid, camid"),
        (["--gallery-labels", "{tmp}/l.csv"], "gallery.npz' brings its labels. Leave --gallery-labels out"),
        (["--gallery", "{tmp}/g.npy", "--gallery-labels", "{tmp}/none.csv"], "Name a CSV file with columns pid, camid"),
        (
            ["--gallery", "{tmp}/g.npy", "--gallery-labels", "{tmp}/l.csv"],
            r"gallery_pids of '.*l.csv' has shape \(2,\)",
        ),
        (["--gallery", "{tmp}/g.npy", "--gallery-labels", "{tmp}/w.csv"], "has the columns pid, cam; needs pid, camid"),
        (["--gallery", "{tmp}/g.npy", "--gallery-labels", "{tmp}/x.csv"], "x.csv' line 3: pid 'a', camid '1'; must be"),
        (["--gallery", "{nopids}"], "lacks pids; it holds camids, features"),
        (["--gallery", "{flat}"], r"flat.npz': features have shape \(120,\) and type float32, must be \(n, d\)"),
        (["--gallery", "{whole}"], "whole.npz': features have shape .* and type int64, must be"),
        (["--gallery", "{junk}"], "junk.npz' has no row of a person: all 120 have pid -1"),
        (["--gallery", "{nan}"], r"gallery_features rows 3 \(1 of 120\) hold NaN or infinity"),
        (["--gallery", "{wide}"], "query_features have 12 columns and gallery_features 5, must be equal"),
        (["--distractors", "{wide}"], "--distractors '.*wide.npz' has 5 columns and the gallery 12, must be equal"),
        (
            ["--distractors", "{wide}", "--protocol", "cuhk03"],
            "whom distractors show is not known. Leave one of them out",
        ),
        (["--distractors", "{tmp}/l.csv"], "features are read from .npz and .safetensors files"),
        (["--distractors", "{tmp}/empty.npz"], "empty.npz' lacks features; it holds pids"),
        (["--gallery", "{strangers}"], "the pids of query and gallery do not overlap"),
    ],
)
def test_errors_name_value_allowed_and_fix(files, tmp_path, words, message):
    np.save(tmp_path / "g.npy", GALLERY["features"])
    np.savez(tmp_path / "empty.npz", pids=np.ones(3))
    (tmp_path / "text.npy").write_text("no array")
    with (tmp_path / "many.npy").open("wb") as stream:
        np.savez(stream, GALLERY["features"])
    (tmp_path / "l.csv").write_text("\ufeffpid,camid\n1,2\n3,4\n", encoding="utf-8")  # as spreadsheets write it
    (tmp_path / "w.csv").write_text("pid,cam\n1,2\n")
    (tmp_path / "x.csv").write_text("pid,camid\n1,2\na,1\n")
    holed = GALLERY["features"].copy()
    holed[3, 2] = np.nan
    names = {
        "tmp": tmp_path,
        "nopids": broken(tmp_path, "nopids.npz", pids=None),
        "flat": broken(tmp_path, "flat.npz", features=GALLERY["features"][:, 0]),
        "whole": broken(tmp_path, "whole.npz", features=GALLERY["features"].astype(int)),
        "junk": broken(tmp_path, "junk.npz", pids=np.full(120, -1)),
        "nan": broken(tmp_path, "nan.npz", features=holed),
        "wide": broken(tmp_path, "wide.npz", features=GALLERY["features"][:, :5]),
        "strangers": broken(tmp_path, "strangers.npz", pids=GALLERY["pids"] + 1000),
    }
    out = [] if "--out" in words else ["--out", str(tmp_path / "out.json")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_command([*files, *(word.format(**names) for word in words), *out])
    assert not (tmp_path / "out.json").exists()


def test_features_of_different_models_are_told(tmp_path, caplog):
    def record(query, gallery, distractors):
        for name, rows, model in (
            ("query", QUERY, query),
            ("gallery", GALLERY, gallery),
            ("more", GALLERY, distractors),
        ):
            np.savez(tmp_path / f"{name}.npz", **rows, **({"model": np.array(model)} if model else {}))
        caplog.clear()
        files = {name: str(tmp_path / f"{name}.npz") for name in ("query", "gallery", "more")}
        words = ["--query", files["query"], "--gallery", files["gallery"], "--distractors", files["more"]]
        return evaluate_command(words)["models"]

    assert record("A", "A", "") == ["A"]
    assert not caplog.records
    assert record("A", "B", "") == ["A", "B"]
    assert "different models (A, B)" in caplog.text
    assert record("A", "A", "C") == ["A", "C"]
    assert "different models (A, C)" in caplog.text
