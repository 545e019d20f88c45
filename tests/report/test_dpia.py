"""The page for an impact assessment: what the manifest and the measured leakage say, and nothing made up."""

import datetime
import math

import pytest
from report_cases import leakage_record, people, read_html, read_markdown_tables, release, write

from ppreid_plugin import cli
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.report.report_command import report_command
from ppreid_plugin.report.words import budget_in_words, factor


@pytest.fixture
def page(tmp_path, capsys):
    """Return a function that makes a release and returns the page's reader and the manifest."""

    def make(leakage=("museum-0001",), of=None, **terms):
        folder = release(tmp_path, people(), **terms)
        sha256 = load_release(folder).manifest["file"]["sha256"] if of is None else of
        for number, name in enumerate(leakage):
            write(tmp_path / f"runs/leakage{number}.json", leakage_record(release=name, sha256=sha256))
        argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--dpia"]
        assert cli.run(report_command, argv) == 0, capsys.readouterr().err
        return read_html(tmp_path / "out/dpia.html"), load_release(folder).manifest

    return make


def stated(reader):
    (table,) = [one for one in reader.tables if one[0] == ["what", "stated"]]
    return dict(table[1:])


def test_it_says_what_the_manifest_says(page, tmp_path):
    reader, manifest = page()
    told = stated(reader)
    assert told["controller"] == "Museum of Trains"
    assert told["purpose"] == "finding lost children"
    assert told["retention"].startswith("until 2999-12-31; then delete the release")
    assert told["ε, δ"] == "8, 1e-05"
    assert told["rows, people"] == "48, 8"
    assert told["published beside the rows"] == "row ids, pids, camera labels"
    assert told["budget of the scope"].startswith("default: ε 8, δ 1e-05 for each image")
    assert f"changes the odds between any two candidates by a factor of at most e^8 = {math.exp(8):,.0f}" in reader.text
    person = manifest["person_level"]
    assert f"6 rows (the median) has a total of ε {person['epsilon_at_median']:.4g}" in reader.text
    assert f"with a probability above {100 * manifest['bounds']['row_to_person']:.1f} %." in reader.text
    for line in manifest["not_covered"]:
        assert line in reader.text
    shown = [[[" ".join(cell.split()) for cell in row] for row in table] for table in reader.tables]
    assert read_markdown_tables(tmp_path / "out/dpia.md") == shown
    assert all(value.startswith("#") for value in reader.loads)


def test_it_says_what_remains_what_is_revealed_and_how_to_erase(page):
    reader, _ = page()
    for words in (
        "pseudonymized (Article 4(5)), not anonymous",
        "pids, row ids and, where they are published, camera labels of the enrolled protocol: in the clear",
        "A clean query reveals as much as its image",
        "A pid ties a person's rows together",
        "Camera labels, row ids and the order of file names tell where",
        "Copies of a release that were already given out cannot be recalled",
        "Legal basis",
    ):
        assert words in reader.text
    (erasure,) = [dict(table[1:]) for table in reader.tables if table[0] == ["what", "how"]]
    assert "tools/ledger.py purge" in erasure["a row of a release"]
    assert "--opt-out" in erasure["a row of a release"]
    assert {"a search index", "caches and copies of one's own"} <= set(erasure)


def test_measured_leakage_stands_beside_its_own_release_only(page):
    reader, _ = page(leakage=("museum-0001",))
    assert "the most that leaks is 19.8 % of what unprotected features give away" in reader.text
    assert "camera: 30.6 % (95 %: 29.6 to 32.6); without looking 25.0 %; on clean features 81.2 %." in reader.text
    assert "No measured leakage of this release was found" not in reader.text
    assert "Figures are there of identification, linkage, attributes: hair, camera; n/a: attributes: hat" in reader.text


@pytest.mark.parametrize("given", [{"leakage": ("other-0001",)}, {"of": "another ledger's museum-0001"}])
def test_leakage_of_another_release_is_not_taken_for_its_own(page, given):
    reader, _ = page(**given)
    assert "No measured leakage of this release was found" in reader.text
    assert not [table for table in reader.tables if "leakage" in table[0]]


def test_two_releases_of_one_name_are_told_apart_and_the_largest_budget_is_said(page, tmp_path):
    """Ledgers number theirs alike; a person's own budget is the promise that he has."""
    release(tmp_path / "second", people(), budgets={1: 16.0}, epsilon=16.0)
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "second/runs/museum").rename(tmp_path / "runs/other")
    reader, _ = page()
    assert "Release museum-0001, runs/museum" in reader.text
    assert "Release museum-0001, runs/other" in reader.text
    assert reader.text.count("the most that leaks is 19.8 %") == 1
    assert reader.text.count("No measured leakage of this release was found") == 1
    assert "ε is up to 16 for one image" in reader.text
    told = [dict(one[1:])["ε, δ"] for one in reader.tables if one[0] == ["what", "stated"]]
    assert sorted(told) == ["16 at most (8 by default), 1e-05", "8, 1e-05"]


def test_what_the_manifest_does_not_say_is_left_to_the_controller(page):
    told = stated(page(leakage=(), protocol="anonymous", controller="", purpose="", expires="")[0])
    for name in ("controller", "purpose", "retention"):
        assert "to be written by the controller" in told[name]
    assert told["published beside the rows"] == "row ids"


class Then(datetime.date):
    """Dates as they were at the end of the last century."""

    @classmethod
    def today(cls):
        return cls(2000, 12, 31)


def test_names_in_a_manifest_are_escaped_and_a_past_date_is_told(page, monkeypatch):
    monkeypatch.setattr("ppreid_plugin.dp.plan.date", Then)  # it was drawn before its date
    reader, _ = page(controller="<script>alert(1)</script>", expires="2001-01-01")
    assert "script" not in reader.tags
    assert stated(reader)["controller"] == "<script>alert(1)</script>"
    assert "Past its retention date, and still here: museum-0001." in reader.text


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 6.9, 7.0, 13.9, 14.0, 64.0, 300.0])
def test_the_factor_is_e_to_the_epsilon(epsilon):
    assert float(factor(epsilon).replace(",", "")) == pytest.approx(math.exp(epsilon), rel=0.06)


def test_budgets_in_words_of_a_person_unit_and_of_budgets_of_ones_own():
    manifest = {"epsilon": 2.0, "delta": 0.0, "unit": "person", "people": 100, "bounds": {"query_to_row": 0.0721}}
    first, second = budget_in_words(manifest)
    assert "one person (all of his rows together)" in first
    assert "δ" not in first
    assert "finds that person's row first with a probability of at most 7.2 %." in second
    assert (
        "at most 100.0 %, which rules out next to nothing" in budget_in_words(manifest | {"bounds": {"auc": 0.9999}})[1]
    )
    levels = [{"epsilon": 1.0, "rows": 3}, {"epsilon": 2.0, "rows": 9}]
    assert "ε 1 for 3 rows, ε 2 for 9 rows" in budget_in_words(manifest | {"individual_budgets": levels})[1]


def test_a_page_of_an_earlier_report_is_told_and_left(page, tmp_path, caplog):
    page()
    written = (tmp_path / "out/dpia.html").read_bytes()
    assert "earlier" not in caplog.text
    assert cli.run(report_command, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "dpia.html' is of an earlier report: it stays as it is. --dpia writes it anew." in caplog.text
    assert (tmp_path / "out/dpia.html").read_bytes() == written
