"""The report: its figures are those of the records, it loads nothing, escapes everything, and names what is missing."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from report_cases import (
    audit_record,
    figure,
    leakage_record,
    people,
    read_html,
    read_markdown_tables,
    release,
    sweep_record,
    train_record,
    write,
)

from ppreid_plugin import cli
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.leakage.scores import combine
from ppreid_plugin.report.blocks import Provenance
from ppreid_plugin.report.collect import Source, collect
from ppreid_plugin.report.curves import leakage_over_budgets
from ppreid_plugin.report.feature_inputs import load_inputs
from ppreid_plugin.report.figures import budget_panel, pyplot
from ppreid_plugin.report.pictures import is_generated, picture_mark
from ppreid_plugin.report.report_command import parser, report_command

TOOL = Path(__file__).parents[2] / "tools" / "report.py"
HOSTILE = '<script>alert(1)</script>|x`y`_z_ $a$ & "q" ![i](http://evil.example/p.png)'


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    write(folder / "a" / "metrics.json", train_record())
    write(folder / "whatever.json", leakage_record())
    write(folder / "b" / "sweep.json", sweep_record())
    write(folder / "b" / "audit.json", audit_record())
    return folder


@pytest.fixture
def bare(tmp_path):
    """A folder with one record: for tests of what features add, whose curves are quickly drawn."""
    write(tmp_path / "runs" / "metrics.json", train_record())
    return tmp_path / "runs"


def run(capsys, *argv):
    code = cli.run(report_command, [str(word) for word in argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def report(tmp_path, capsys, *argv):
    code, _, err = run(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", *argv)
    assert code == 0, err
    return read_html(tmp_path / "out/report.html")


def table(reader, column, first):
    """Rows of the table that has this column, by their first cell and whole."""
    (found,) = [one for one in reader.tables if column in one[0]]
    name = "data" if "data" in found[0] else found[0][0]
    rows = [dict(zip(found[0], row, strict=True)) for row in found[1:]]
    return [row for row in rows if row[name].startswith(first)]


def test_figures_are_those_of_the_records(tmp_path, runs, capsys):
    reader = report(tmp_path, capsys)
    clean, anonymous, clean_enrolled, protected = table(reader, "mINP", "synthetic_pedestrians")
    assert [clean[name] for name in ("rank-1", "mAP", "mINP", "TPIR at 10 %", "ε")] == [
        "50.0",
        "25.0",
        "12.5",
        "-",
        "-",
    ]
    assert [anonymous[name] for name in ("rank-1", "mAP", "ε")] == ["25.0", "12.5", "16 an image"]
    assert [clean_enrolled["rank-1"], clean_enrolled["mAP"]] == ["78.9", "79.9"]
    assert [protected[name] for name in ("rank-1", "mAP", "TPIR at 10 %")] == ["67.8", "68.8", "11.1"]
    assert protected["ε of a person, median / largest"] == "33.25 / 44.5"  # no enrolled figure without it

    found = table(reader, "leakage", "")
    assert [row["channel"] for row in found] == [
        "identification",
        "linkage",
        "attributes: hair",
        "attributes: hat",
        "camera",
    ]
    assert found[0]["reached"] == "12.5 (11.5 to 14.5)"
    assert [found[0][name] for name in ("floor", "on clean features", "leakage")] == [
        "5.0",
        "90.0",
        "8.8 (5.8 to 12.8)",
    ]
    assert found[3]["leakage"].startswith("n/a: clean features reach")
    assert table(reader, "figure", "linkage")[0]["reached"] == "0.4321"

    swept = table(reader, "bound on rank-1", "privunit_g")
    wanted = combine([0.041, 0.042, 0.043], [0.0] * 3)
    assert swept[0]["rank-1"] == f"{100 * wanted.value:.1f} ({100 * wanted.low:.1f} to {100 * wanted.high:.1f})"
    assert [row["bound on rank-1"] for row in swept] == ["-", "-", "47.1", "47.1"]
    assert [row["ε"] for row in swept] == ["4 an image", "8 an image", "4 a person", "8 a person"]
    assert swept[0]["ε of a person, median / largest"] == "12 / 20"
    (audited,) = table(reader, "claimed ε", "gaussian")
    assert [audited[name] for name in ("claimed ε", "shown, at least", "at least, 95 %", "passed")] == [
        "4",
        "3.751",
        "3.852",
        "yes",
    ]
    assert (
        "the most that leaks is 13.1 % of what unprotected features give away (95 %: 10.1 to 17.1), channel linkage"
        in reader.text
    )
    assert "rank-1 50.0 %, mAP 25.0 % unprotected; 25.0 % and 12.5 % protected by gaussian at ε 16" in reader.text
    assert "nothing has been published under a budget" in reader.text  # there is no release


def test_an_interval_holds_its_figure_wherever_that_is(tmp_path, runs, capsys):
    """Explained variance has no lower end, and Student's t knows none of a share."""
    worse = figure(-2.672, 0.0, 0.3, -8.907, low=-2.76, high=-2.584)
    write(
        runs / "whatever.json",
        leakage_record(channels={"patches": {"face": worse}, "camera": figure(0.99, 0.5, 1, 0.98)}),
    )
    found = table(report(tmp_path, capsys), "leakage", "")
    assert [row["reached"] for row in found] == ["-267.2 (-276.0 to -258.4)", "99.0 (98.0 to 101.0)"]


def test_every_figure_names_file_command_commit_seed_and_machine(tmp_path, runs, capsys):
    report(tmp_path, capsys)
    page = (tmp_path / "out/report.html").read_text()
    for seed, file, command in (
        ("1", "runs/a/metrics.json", "python tools/train.py --root data train.seed 1 data.save_dir log/1"),
        ("1, 2, 3", "runs/whatever.json", "python tools/measure_leakage.py --seeds 3"),
        ("1, 2, 3", "runs/b/sweep.json", "python tools/sweep.py --seeds 3"),
        ("none: fresh draws", "runs/b/audit.json", "python tools/audit.py"),
    ):
        line = f"<summary>{file}; commit abc1234; seed {seed}; CPU, 9 cores</summary><code>{command}</code>"
        assert line in page
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 4  # two units of the sweep, leakage, ROC of linkage
    assert all("<summary>runs/" in one for one in figures)


def test_runs_that_differ_by_their_seed_are_one_line_with_an_interval(tmp_path, capsys):
    for seed, rank1 in ((1, 0.4), (2, 0.5), (3, 0.6)):
        write(tmp_path / f"runs/{seed}/metrics.json", train_record(rank1, seed))
    write(tmp_path / "runs/copy/metrics.json", train_record(0.4, 1))  # the same draw again is no second one
    write(tmp_path / "runs/other/metrics.json", train_record(0.9, 1, command=["tools/train.py", "--root", "elsewhere"]))
    lines = [row for row in table(report(tmp_path, capsys), "mINP", "synthetic") if row["gallery"] == "clean"]
    wanted = combine([0.4, 0.5, 0.6], [0.0] * 3)
    assert lines[0]["rank-1"] == f"50.0 ({100 * wanted.low:.1f} to {100 * wanted.high:.1f})"
    assert lines[0]["runs"] == "3"
    assert [(row["runs"], row["rank-1"]) for row in lines[1:]] == [("1", "90.0")]
    assert [row["run"] for row in lines] == ["runs/1 and 3 more", "runs/other"]


@pytest.mark.parametrize("change", [{"commit": "other"}, {"torch": "9.9"}])
def test_runs_of_another_version_are_another_recipe(tmp_path, capsys, change):
    for seed, more in ((1, {}), (2, change)):
        record = train_record(0.4, seed)
        write(tmp_path / f"runs/{seed}/metrics.json", {**record, "environment": {**record["environment"], **more}})
    lines = [row for row in table(report(tmp_path, capsys), "mINP", "synthetic") if row["gallery"] == "clean"]
    assert [(row["run"], row["runs"]) for row in lines] == [("runs/1", "1"), ("runs/2", "1")]


def test_prototypes_stand_beside_clean_prototypes(tmp_path, capsys):
    record = train_record(0.5)
    (one,) = record["targets"]["synthetic_pedestrians"]["protected"]
    one["clean_anonymous"] = {**one["anonymous"], "rank1": 0.777}
    write(tmp_path / "runs/metrics.json", record)
    lines = table(report(tmp_path, capsys), "mINP", "synthetic")
    found = [
        row["rank-1"] for row in lines if (row["gallery"], row["protocol"]) == ("clean, beside gaussian", "anonymous")
    ]
    assert found == ["77.7"]


def test_a_sweep_with_no_mechanism_is_drawn_as_a_line_without_a_budget(tmp_path, capsys):
    record = sweep_record()
    record["rows"] += [{**row, "mechanism": "none", "params": {}, "epsilon": None} for row in record["rows"]]
    write(tmp_path / "runs/sweep.json", record)
    lines = table(report(tmp_path, capsys), "bound on rank-1", "none")
    assert {row["ε"] for row in lines} == {"-"}
    axis = pyplot().subplots()[1]
    budget_panel(axis, [row for row in record["rows"] if row["protocol"] == record["rows"][0]["protocol"]])
    assert "no noise: not protected" in [text.get_text() for text in axis.get_legend().get_texts()]
    pyplot().close("all")


def test_markdown_holds_the_same_tables_and_its_figures(tmp_path, runs, capsys):
    write(runs / "hostile.json", leakage_record(channels={HOSTILE: figure(0.3, 0.2, 0.4, 0.5)}))
    reader = report(tmp_path, capsys)
    shown = [[[" ".join(cell.split()) for cell in row] for row in one] for one in reader.tables]
    assert read_markdown_tables(tmp_path / "out/report.md") == shown
    linked = re.findall(r"^!\[.*\]\((report_files/[\w.-]+)\)$", (tmp_path / "out/report.md").read_text(), re.MULTILINE)
    assert len(linked) == reader.tags.count("img") == len(set(linked)) > 4
    assert all((tmp_path / "out" / path).stat().st_size > 0 for path in linked)


def test_the_page_loads_nothing_and_escapes_every_name(tmp_path, runs, capsys):
    write(runs / "hostile.json", leakage_record(release=HOSTILE, channels={HOSTILE: figure(0.3, 0.2, 0.4, 0.5)}))
    write(runs / "x" / "metrics.json", train_record(target=HOSTILE))
    reader = report(tmp_path, capsys, "--title", HOSTILE)
    page = (tmp_path / "out/report.html").read_text()
    assert "script" not in reader.tags
    assert {"iframe", "link", "object", "form"}.isdisjoint(reader.tags)
    assert all(value.startswith(("#", "data:image/")) for value in reader.loads)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert "<script>alert(1)</script>|x" in reader.text  # shown as text
    text = (tmp_path / "out/report.md").read_text()
    assert "<script" not in text.replace("\\<script", "")
    assert "![i](" not in text
    for picture in (tmp_path / "out/report_files").glob("*.svg"):
        content = picture.read_text()
        assert "<script" not in content
        assert set(re.findall(r"https?://[^\"' <]+", content)) <= {
            "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
            "http://purl.org/dc/elements/1.1/", "http://creativecommons.org/ns#",
            "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd",
        }  # fmt: skip


def test_what_is_missing_is_named_with_its_command(tmp_path, capsys):
    write(tmp_path / "runs/metrics.json", train_record())
    reader = report(tmp_path, capsys)
    for tool in ("measure_leakage.py", "sweep.py", "audit.py", "release_gallery.py"):
        assert f"python tools/{tool}" in reader.text
    for part in ("--query query.npz --gallery gallery.npz", "--gallery gallery.npz --release", "make demo"):
        assert part in reader.text
    assert "img" not in reader.tags


def picture(path, **mark):
    path.parent.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    for name, text in mark.items():
        told.add_text(name, text)
    Image.new("RGB", (4, 8), (200, 10, 10)).save(path, pnginfo=told)
    return path.read_bytes()


def test_pictures_of_real_people_are_shown_only_on_demand(tmp_path, runs, capsys, caplog):
    generated = picture(runs / "g ](http:x) $.png", **picture_mark("generated", kind="reconstructions", seed="7"))
    real = picture(runs / "r.png", **picture_mark("real", kind="faces"))
    odd = picture(runs / "odd.png", ppreid_people="Generated ")
    other = picture(runs / "holiday.png")
    reader = report(tmp_path, capsys)
    files = [path.read_bytes() for path in (tmp_path / "out/report_files").glob("*.png")]
    assert files == [generated]
    assert "](report_files/g-http-x.png)" in (tmp_path / "out/report.md").read_text()
    assert "Left out, not marked as generated people: runs/odd.png, runs/r.png." in reader.text
    assert "runs/g ](http:x) $.png; commit not recorded; seed 7" in reader.text
    assert "Not used, as they are no records or marked pictures of ours: 1 in runs." in reader.text
    reader = report(tmp_path, capsys, "--show-real-people")
    files = [path.read_bytes() for path in (tmp_path / "out/report_files").glob("*.png")]
    assert sorted(files) == sorted([generated, real, odd])
    assert other not in files
    assert "Pictures of real people are off by default" in caplog.text
    assert "This page may show real people" in reader.text
    report(tmp_path, capsys)
    assert [path.read_bytes() for path in (tmp_path / "out/report_files").glob("*.png")] == [generated]
    with pytest.raises(ValueError, match="people is 'none'; allowed: generated, real"):
        picture_mark("none")


@pytest.fixture
def features(tmp_path):
    """Clean features as files: queries are noised rows of the gallery, and train other people."""
    gallery = people()
    rng = np.random.default_rng(5)
    query = dict(gallery, features=gallery["features"] + 0.05 * rng.normal(size=gallery["features"].shape).astype("f4"))
    train = people(seed=9)
    train["row_ids"] = np.char.add("train/", train["row_ids"])
    for name, arrays in {"gallery": gallery, "query": query, "train": train}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return {name: tmp_path / f"{name}.npz" for name in ("gallery", "query", "train")}, gallery


def test_maps_and_retrieval_of_a_release(tmp_path, bare, features, capsys):
    files, gallery = features
    folder = release(tmp_path, gallery)
    attributes = tmp_path / "attributes.csv"
    hats = {pid: "none" if pid % 2 else "red" for pid in range(1, 8)} | {8: "nan"}
    attributes.write_text("pid,hat\n" + "".join(f"{pid},{hat}\n" for pid, hat in hats.items()))
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--release", folder, "--attributes", attributes]
    reader = report(tmp_path, capsys, *argv, "--queries", 2)
    for name in ("tsne-person.svg", "tsne-camera.svg", "tsne-attribute.svg", "retrieval-1-clean.png",
                 "retrieval-2-protected.png"):  # fmt: skip
        assert (tmp_path / "out/report_files" / name).is_file()
    assert "t-SNE by hat. 48 rows, seed 1" in reader.text
    drawn = (tmp_path / "out/report_files/tsne-attribute.svg").read_text()
    assert ("<!-- red -->" in drawn, "<!-- nan -->" in drawn) == (True, False)  # what is not known is no class
    assert "Tiles are blank: it was not said where the images are. --images DIR" in reader.text
    clean, protected = (row for row in table(reader, "queries", ""))
    assert clean["rank-1"] == "100.0 (100.0 to 100.0)"
    assert protected["gallery"] == "release museum-0001, ε 8 of one image"

    stored = load_release(folder)
    rows = stored.features / np.linalg.norm(stored.features, axis=1, keepdims=True)
    queries = np.load(files["query"])["features"]
    queries = stored.transform().transform(queries / np.linalg.norm(queries, axis=1, keepdims=True))
    pids, camids = gallery["pids"], gallery["camids"]
    hits = []
    for place, query in enumerate(queries):  # the naive way
        scores = rows @ query
        scores[(stored.pids == pids[place]) & (stored.camids == camids[place])] = -np.inf
        hits.append(stored.pids[scores.argmax()] == pids[place])
    assert protected["rank-1"].startswith(f"{100 * np.mean(hits):.1f} (")
    assert np.mean(hits) < 1  # not what the clean gallery gives; the draw has the system's entropy, so no more is sure


def test_an_anonymous_release_needs_its_truth(tmp_path, bare, features, capsys):
    files, gallery = features
    folder = release(tmp_path, gallery, protocol="anonymous", truth_out=tmp_path / "truth.json")
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--release", folder, "--queries", 1]
    code, _, err = run(capsys, "--runs", bare, "--out", tmp_path / "out", *argv)
    assert code == 2
    assert "is anonymous: its rows carry no pids. Name the files that --truth-out wrote" in err
    strange = json.loads((tmp_path / "truth.json").read_text()) | {"ledger_head": "0" * 64}
    (tmp_path / "strange.json").write_text(json.dumps(strange))
    code, _, err = run(capsys, "--runs", bare, "--out", tmp_path / "out", *argv, "--truth", tmp_path / "strange.json")
    assert code == 2
    assert "strange.json' is the map of museum-0001, 48 rows, which is no part of this release" in err
    reader = report(tmp_path, capsys, *argv, "--truth", tmp_path / "truth.json")
    assert len(table(reader, "queries", "")) == 2


def test_research_noise_of_any_mechanism(tmp_path, bare, features, capsys):
    files, _ = features
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--train", files["train"], "--queries", 1]
    reader = report(tmp_path, capsys, *argv, "--mechanism", "privunit_g", "--epsilon", 500)
    clean, protected = table(reader, "queries", "")
    assert protected["gallery"] == "privunit_g, ε 500 of one image, research noise"
    assert protected["rank-1"] == clean["rank-1"] == "100.0 (100.0 to 100.0)"
    assert (
        table(report(tmp_path, capsys, *argv, "--mechanism", "privunit_g", "--epsilon", 0.1), "queries", "privunit")[0][
            "rank-1"
        ]
        < "6"
    )


def test_retrieval_shows_images_of_generated_people_only(tmp_path, bare, features, capsys, pedestrians):
    assert is_generated(next((pedestrians / "synthetic_pedestrians/query").glob("*.jpg")))
    files, gallery = features
    images = tmp_path / "images"
    for name in gallery["row_ids"]:
        images.mkdir(exist_ok=True)
        Image.new("RGB", (8, 16), (255, 0, 255)).save(images / name)
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--images", images, "--queries", 1]

    def magenta():
        pixels = np.asarray(Image.open(tmp_path / "out/report_files/retrieval-1-clean.png").convert("RGB")).astype(int)
        return (abs(pixels - [255, 0, 255]).sum(axis=2) < 30).mean()

    reader = report(tmp_path, capsys, *argv)
    assert magenta() == 0
    assert "8 images are left out. Pictures of real people are off by default" in reader.text
    report(tmp_path, capsys, *argv, "--show-real-people")
    assert magenta() > 0.3
    write(images / "meta.json", {"generator_version": 1, "num_train_ids": 1, "num_test_ids": 1, "seed": 1})
    assert "images are left out" not in report(tmp_path, capsys, *argv).text
    assert magenta() > 0.3


def test_row_ids_cannot_leave_the_folder_of_images(tmp_path, bare, features, capsys):
    files, _ = features
    Image.new("RGB", (8, 16)).save(tmp_path / "secret.jpg")
    (tmp_path / "images").mkdir()
    for name in ("gallery", "query"):
        arrays = dict(np.load(files[name]))
        np.savez(files[name], **(arrays | {"row_ids": np.full(48, "../secret.jpg")}))
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--images", tmp_path / "images", "--queries", 1]
    assert "1 images were not found below --images" in report(tmp_path, capsys, *argv, "--show-real-people").text


def test_a_damaged_release_is_told_and_left_out(tmp_path, runs, capsys):
    folder = release(tmp_path, people())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": 47}))
    reader = report(tmp_path, capsys)
    assert "A release is not whole, and is left out. runs/museum: manifest.json: rows is 47" in reader.text
    assert collect([runs]).releases == []


def test_folders_that_overlap_count_once(tmp_path, runs):
    found = collect([runs, runs / "b", tmp_path])
    assert (len(found.train), len(found.leakage), len(found.sweeps), len(found.audits)) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runs", "nowhere"], "--runs has 'nowhere', which is no folder"),
        (["--runs", "empty"], "--runs empty holds nothing to report"),
        (["--dpia"], "--dpia is made from the manifest of a release, and --runs holds none"),
        (["--queries", "0"], "--queries is 0, must be >= 1"),
        (["--query", "q.npz"], "--query is given without --gallery FILE"),
        (["--gallery", "g.npz", "--epsilon", "8"], "--mechanism and --epsilon belong together"),
        (["--gallery", "g.npz", "--mechanism", "gaussian", "--epsilon", "8"], "--mechanism needs --train FILE"),
        (["--gallery", "g.npz", "--transform", "leace:l.safetensors"], "without --mechanism: it would do nothing"),
        (["--gallery", "g.npz", "--train", "t.npz"], "--train is what --mechanism is fitted on"),
        (["--gallery", "g.npz", "--truth", "t.json"], "--truth names the rows of a release"),
        (["--gallery", "g.npz"], "'g.npz' is not there"),
        (["--color-by", "hat"], "--color-by names an attribute of --gallery FILE"),
    ],
)
def test_errors_name_value_and_fix(tmp_path, runs, capsys, monkeypatch, argv, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    given = argv if "--runs" in argv else ["--runs", str(runs), *argv]
    code, _, err = run(capsys, *given)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("broken", [{"channels": {"camera": {"score": 1.0}}}, {"channels": {"camera": 3}}])
def test_a_malformed_record_is_named(tmp_path, runs, capsys, broken):
    write(runs / "bad.json", leakage_record(**broken))
    code, _, err = run(capsys, "--runs", runs, "--out", tmp_path / "out")
    assert code == 2
    assert "'runs/bad.json' is not as attacks (tools/measure_leakage.py) writes it" in err
    (runs / "bad.json").write_text('{"channels": ')
    code, _, err = run(capsys, "--runs", runs, "--out", tmp_path / "out")
    assert code == 2
    assert "bad.json' is not JSON" in err


def test_the_tool_runs(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "--runs", str(runs), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0
    assert f"Written to '{tmp_path / 'out/report.md'}'" in capsys.readouterr().out


def test_prototypes_are_not_passed_off_as_images(tmp_path, bare, features, capsys):
    files, gallery = features
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--train", files["train"], "--queries", 1]
    reader = report(tmp_path, capsys, *argv, "--mechanism", "privunit_g", "--unit", "person", "--epsilon", 500)
    clean, protected = table(reader, "queries", "")
    assert clean["queries"] == "48"
    assert int(protected["queries"]) == (gallery["camids"] > 0).sum()  # camera 0 is the first half of three, enrolled
    assert protected["rank-1"] == "100.0 (100.0 to 100.0)"
    assert "the two are not to be compared one to one" in reader.text
    assert "Protected rows are prototypes; the clean map has an image of each person." in reader.text
    # background rows keep their camera, and are no prototypes
    arrays = dict(np.load(files["gallery"]))
    arrays["pids"][arrays["pids"] == arrays["pids"].max()] = 0
    np.savez(files["gallery"], **arrays)
    reader = report(tmp_path, capsys, *argv, "--mechanism", "privunit_g", "--unit", "person", "--epsilon", 500)
    assert "Protected rows are prototypes, one a person" in reader.text


@pytest.mark.parametrize("cameras", [(), (0,)])
def test_of_prototypes_it_is_said_whether_queries_of_their_cameras_count(
    tmp_path, bare, features, capsys, cameras, caplog
):
    files, gallery = features
    folder = release(tmp_path, gallery, unit="person", cameras=cameras)
    argv = ["--gallery", files["gallery"], "--query", files["query"], "--release", folder, "--queries", 1]
    reader = report(tmp_path, capsys, *argv)
    protected = table(reader, "queries", "")[1]
    assert int(protected["queries"]) == (48 if not cameras else (gallery["camids"] > 0).sum())
    flattered, left_out = "which flatters the protected row", "do not count for the protected row"
    assert (flattered in reader.text, left_out in reader.text) == (not cameras, bool(cameras))
    assert ("does not say which cameras its prototypes are from" in caplog.text) == (not cameras)
    people = len(np.unique(gallery["pids"]))
    assert f"{people} rows, seed 1" in reader.text  # the clean map shows an image of each, and no others
    assert "the clean map has an image of each person" in reader.text


def test_files_of_other_models_are_told_and_what_cannot_be_one_gallery_is_refused(
    tmp_path, bare, features, capsys, caplog
):
    files, gallery = features
    folder = release(tmp_path, gallery)
    argv = ["--runs", bare, "--out", tmp_path / "out", "--gallery", files["gallery"]]
    arrays = dict(np.load(files["gallery"]))
    np.savez(files["gallery"], **arrays, model="sha256:a")
    np.savez(files["query"], **dict(np.load(files["query"])), model="sha256:b")
    assert run(capsys, *argv, "--query", files["query"])[0] == 0
    assert f"--query '{files['query']}' is of sha256:b: these are of different models" in caplog.text

    code, _, err = run(capsys, *argv, "--mechanism", "gaussian", "--epsilon", 8, "--train", files["gallery"])
    assert (code, "--train" in err, "rows of --gallery" in err) == (2, True, True)
    for change, message in (
        ({"features": arrays["features"][:, :5]}, "features have 5 columns, the transform was fitted on"),
        ({"row_ids": np.repeat(arrays["row_ids"][::2], 2)}, f"names row '{arrays['row_ids'][0]}' twice"),
    ):
        np.savez(files["gallery"], **(arrays | change))
        code, _, err = run(capsys, *argv, "--release", folder)
        assert (code, message in err) == (2, True), err


def test_a_release_is_projected_without_the_clean_gallery(tmp_path, bare, features, capsys):
    _, gallery = features
    folder = release(tmp_path, gallery)
    board = tmp_path / "board"
    argv = ["--runs", bare, "--out", tmp_path / "out", "--release", folder, "--projector", board]
    assert run(capsys, *argv)[0] == 0
    assert list(board.rglob("*.tsv"))


@pytest.mark.parametrize("flag", ["--out", "--projector"])
def test_a_file_in_the_place_of_a_folder_is_named_before_anything_is_drawn(tmp_path, bare, features, capsys, flag):
    files, gallery = features
    (tmp_path / "file").touch()
    argv = ["--gallery", files["gallery"], "--release", release(tmp_path, gallery), flag, tmp_path / "file" / "deep"]
    code, _, err = run(capsys, "--runs", bare, *(["--out", tmp_path / "out"] if flag == "--projector" else []), *argv)
    assert code == 2
    assert f"{flag} is '{tmp_path / 'file' / 'deep'}', but '{tmp_path / 'file'}' is a file" in err
    assert not (tmp_path / "out").exists()


def test_leakage_of_each_mechanism_is_a_line_of_its_own_and_no_record_is_dropped(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar",
        lambda self, x, y, *_, label, **__: drawn.update({label: list(zip(x, y, strict=True))}),
    )
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda *_, **__: None)

    def source(mechanism, epsilon, leakage):
        record = leakage_record(task_max={"leakage": leakage, "low": leakage, "high": leakage}, non_task_max=None)
        record["meta"]["protection"] |= {"mechanism": mechanism, "epsilon": epsilon}
        return Source(record, Provenance(f"{mechanism} {epsilon} {leakage}", ""))

    records = [("gaussian", 8.0, 0.03), ("privunit_g", 16.0, 0.9), ("privunit_g", 8.0, 0.6), ("privunit_g", 8.0, 0.5)]
    assert leakage_over_budgets([source(*record) for record in records]) is not None
    assert drawn == {"task, privunit_g, ε of one image": [(8.0, 50.0), (8.0, 60.0), (16.0, 90.0)]}
    assert leakage_over_budgets([source(*record) for record in records[:2]]) is None


def test_leakage_over_budgets_and_choices(tmp_path, runs, capsys):
    reader = report(tmp_path, capsys)
    assert "Leakage over budgets" not in reader.text  # one budget is no curve
    second = leakage_record()
    second["meta"]["protection"]["epsilon"] = 4.0
    write(runs / "leakage4.json", second)
    choice = {"unit": "image", "protocol": "enrolled", "epsilon": 4.0, "mechanism": "gaussian", "params": {}}
    choice |= {"metric": "rank1", "validation": 0.321, "chosen": 0.234, "optimum": 0.345, "gap": 0.111}
    write(runs / "b" / "sweep.json", sweep_record(choices=[choice]))
    reader = report(tmp_path, capsys)
    (line,) = table(reader, "gap", "image")
    assert [line[name] for name in ("there", "on the gallery", "best on the gallery", "gap")] == [
        "32.1",
        "23.4",
        "34.5",
        "11.1",
    ]
    assert "Leakage over budgets" in reader.text
    assert (tmp_path / "out/report_files/leakage-over-budgets.svg").is_file()


def test_a_sweep_that_only_chose_is_reported(tmp_path, capsys):
    choice = {
        "unit": "image",
        "protocol": "anonymous",
        "epsilon": 4.0,
        "mechanism": "gaussian",
        "params": {},
        "value": 0.25,
    }
    record = sweep_record(choices=[choice], validation=sweep_record()["rows"]) | {"rows": []}
    write(tmp_path / "runs/sweep.json", record)
    reader = report(tmp_path, capsys)
    assert table(reader, "gap", "image")[0]["there"] == "25.0"
    assert "No sweep over budgets was found" in reader.text


def test_errors_come_before_anything_is_written(tmp_path, bare, features, capsys):
    files, gallery = features
    folder = release(tmp_path, gallery)
    (tmp_path / "board").mkdir()
    (tmp_path / "board/old").touch()
    argv = ["--gallery", files["gallery"], "--release", folder, "--projector", tmp_path / "board"]
    code, _, err = run(capsys, "--runs", bare, "--out", tmp_path / "out", *argv)
    assert code == 2
    assert "which holds something" in err
    assert not (tmp_path / "out").exists()


def test_the_seed_is_that_of_the_noise(features):
    files, gallery = features
    argv = ["--runs", ".", "--gallery", files["gallery"], "--train", files["train"], "--mechanism", "gaussian"]

    def drawn(seed):
        args = parser().parse_args([str(word) for word in [*argv, "--epsilon", 8, "--seed", seed]])
        return load_inputs(args).protected.gallery

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert np.abs(drawn(1) - drawn(2)).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(drawn(1), axis=1), np.ones(len(gallery["pids"])), rtol=1e-5)
