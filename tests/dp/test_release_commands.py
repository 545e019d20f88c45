"""The command lines of releases and ledger: files in, one-line errors out, exit codes."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gallery_cases import gallery
from safetensors.numpy import load_file, save_file

from ppreid_plugin import cli
from ppreid_plugin.dp import commands
from ppreid_plugin.dp import release as release_module
from ppreid_plugin.dp.feature_files import load_gallery
from ppreid_plugin.dp.gallery import DPGallery
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleasePlan, ReleaseTerms
from ppreid_plugin.dp.private_head_transform import PrivateHead
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.transform_files import require_not_fitted_on
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.evaluation import Extracted, protected_sets
from ppreid_plugin.leakage.command import leakage_command
from ppreid_plugin.leakage.erasure import Leace
from ppreid_plugin.report.report_command import report_command
from ppreid_plugin.report.sweep_command import sweep_command
from ppreid_plugin.suppressor import Suppressor

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Folder with train and gallery files in both formats, and a checkpoint; it is the working folder too."""
    monkeypatch.chdir(tmp_path)
    rows = gallery()
    arrays = {"features": rows.features.astype(np.float32), "pids": rows.pids, "camids": rows.camids}
    np.savez("gallery.npz", row_ids=np.array(rows.row_ids), **arrays)
    ids = np.frombuffer("".join(f"{name:4}" for name in rows.row_ids).replace(" ", "\0").encode(), np.uint8)
    save_file({**arrays, "row_ids": ids.reshape(-1, 4)}, "gallery.safetensors")
    train = np.random.default_rng(9).normal(size=(50, 16)).astype(np.float32)
    np.savez("train.npz", features=train, pids=np.arange(50) % 5)
    save_file({"features": train}, "train.safetensors")
    np.savez("codebook.npz", codebook=np.random.default_rng(5).normal(size=(20, 16)))
    (tmp_path / "model.pth").write_bytes(b"weights")
    return tmp_path


def arguments(*more, kind="npz", out="release", name="a", epsilon="8", budget="16"):
    flags = {"train": f"train.{kind}", "gallery": f"gallery.{kind}", "model": "model.pth", "epsilon": epsilon}
    flags |= {"name": name, "out": out, "scope": "market", "budget": budget}
    return [word for flag, value in flags.items() for word in (f"--{flag}", value)] + [str(word) for word in more]


def run(command, argv, capsys):
    code = cli.run(command, argv)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_same_again_says_that_nothing_was_drawn(saved, capsys):
    assert run(commands.release_command, arguments(), capsys)[1].startswith("Release a-0001 in ")
    out = run(commands.release_command, arguments(out="elsewhere"), capsys)[1]
    place = f"'{saved / 'release'}'"
    said = f"Release a-0001 is stored in {place}: nothing was drawn or spent, and --out 'elsewhere' was not written.\n"
    assert out.startswith(said)


def test_an_interrupt_says_what_became_of_the_budget(saved, capsys, caplog, monkeypatch):
    def stop(step):
        if step == "drawn":
            raise KeyboardInterrupt

    monkeypatch.setattr(release_module, "reached", stop)
    assert run(commands.release_command, arguments(), capsys)[0] == 130
    assert "release a-0001 was stopped while it was written; what it reserved stays spent" in caplog.text
    assert "tools/ledger.py finish a-0001" in caplog.text


def test_rows_that_are_taken_for_nobodys_are_told(saved, capsys):
    """Own data may begin at pid 0, who would have the promise of a person for each of his rows."""
    out = run(commands.release_command, arguments("--unit", "person"), capsys)[1]
    assert "background: 1 rows, which are taken for nobody's: each is a unit of its own" in out
    assert load_release("release").manifest["background_rows"] == 1
    out = run(commands.release_command, arguments("--background-pids", name="b", out="b", epsilon="2"), capsys)[1]
    assert "background" not in out


def test_places_and_features_that_make_no_sense_are_told(saved, capsys, caplog):
    code, _, err = run(commands.release_command, arguments(out="ledger/release"), capsys)
    assert (code, "--out is" in err, "in the ledger's folder" in err) == (2, True, True)
    rows = dict(np.load("gallery.npz"))
    np.savez("zero.npz", **{**rows, "features": 0 * rows["features"]})
    run(commands.release_command, arguments("--gallery", "zero.npz", "--dry-run"), capsys)
    assert "9 of 9 rows are zero" in caplog.text
    run(commands.release_command, arguments(), capsys)
    run(commands.release_command, [*arguments(name="o", out="o"), "--scope", "other"], capsys)
    code, _, err = run(commands.ledger_command, ["verify", "--scope", "other", "--release", "release"], capsys)
    assert (code, "is of scope 'market', this is 'other'. Name its scope: --scope market" in err) == (2, True)


def test_images_whose_pid_moved_are_told(saved, capsys, caplog):
    run(commands.release_command, arguments(epsilon="2"), capsys)
    rows = dict(np.load("gallery.npz"))
    np.savez("moved.npz", **{**rows, "pids": np.where(rows["pids"] == 4, 5, rows["pids"])})
    argv = arguments("--gallery", "moved.npz", name="b", out="b", epsilon="2")
    assert run(commands.release_command, argv, capsys)[0] == 0
    assert "row 'r9' (and 0 more) had pid 4 in an earlier release, now 5: opt-outs, budgets" in caplog.text


def test_an_append_of_new_rows_alone_names_people_and_cameras_of_the_stored_ones(saved, capsys):
    rows = dict(np.load("gallery.npz"))
    new = rows["pids"] == 4
    for name, chosen in (("old", ~new), ("new", new)):
        np.savez(f"{name}.npz", **{key: array[chosen] for key, array in rows.items()})
    said = ["--opt-out", "3", "--budgets", "1=2.0", "--cameras", "0", "1", "2"]
    assert run(commands.release_command, arguments(*said, "--gallery", "old.npz"), capsys)[0] == 0
    assert set(rows["camids"][new]) < {0, 1, 2}
    code, _, err = run(commands.release_command, arguments(*said, "--gallery", "new.npz", "--append"), capsys)
    assert (code, err) == (0, "")
    more = ["--opt-out", "3", "77", *said[2:]]
    code, _, err = run(commands.release_command, arguments(*more, "--gallery", "new.npz", "--append"), capsys)
    assert (code, "--opt-out has pid 77, of which the gallery has no row" in err) == (2, True)


def test_a_transform_fitted_on_rows_that_are_left_out_is_refused(saved, capsys):
    """They are of the people who are released: the promise for a person would be void."""
    rows = dict(np.load("gallery.npz"))
    others = np.random.default_rng(3).normal(size=(40, 16))
    left_out = rows["features"][rows["camids"] == 2]
    saved_transform("leace", np.concatenate([others, left_out]), "t.safetensors")
    argv = arguments("--transform", "leace:t.safetensors", "--cameras", "0", "1", "--unit", "person")
    code, _, err = run(commands.release_command, argv, capsys)
    assert (code, f"fitted on {len(left_out)} rows of the gallery" in err) == (2, True)


def test_features_that_lie_close_together_are_not_taken_for_one_another(saved):
    """A weakly trained encoder's lie in a narrow cone; the same rows by rounding are still the same."""
    draw = np.random.default_rng(0)
    rows = (np.ones(16) + 0.01 * draw.normal(size=(400, 16))).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    close = unit[:200] @ unit[200:].T
    assert np.median(close) > 0.9998
    saved_transform("leace", rows[:200], "t.safetensors")
    require_not_fitted_on(build_transform("leace:t.safetensors"), rows[200:])
    with pytest.raises(ValueError, match="fitted on (19[5-9]|200) rows of the gallery"):
        rounded = rows[:200] * (1 + 1e-6 * draw.normal(size=(200, 16)).astype(np.float32))
        require_not_fitted_on(build_transform("leace:t.safetensors"), rounded)


@pytest.mark.parametrize("told", ["untrained", "sha256:0"])
def test_features_of_another_model_are_not_released_under_this_ones_name(saved, capsys, told):
    np.savez("gallery.npz", **dict(np.load("gallery.npz")), model=np.array(told))
    code, _, err = run(commands.release_command, arguments(), capsys)
    assert (code, f"was made with {told}" in err) == (2, True)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_release_show_verify_purge(saved, capsys, kind):
    more = ["--protocol", "enrolled", "--controller", "The museum", "--purpose", "a test", "--expires", "2999-01-01"]
    code, out, err = run(commands.release_command, arguments(*more, kind=kind), capsys)
    assert code == 0, err
    assert "Release a-0001 in '" in out
    assert "sigma 1.20046, mu 1.66603, sensitivity 2" in out
    assert "epsilon 12.26 at the median of 2 rows, 15.86 at the largest number, 3" in out
    stored = load_release("release")
    assert stored.row_ids[0] == "r0"
    assert stored.manifest["controller"] == "The museum"
    assert stored.manifest["model"].startswith("sha256:")
    code, out, err = run(commands.ledger_command, ["show", "--scope", "market"], capsys)
    assert "a-0001: committed, 9 rows" in out
    assert "9 accounts have spent 8 to 8; 0 more than half" in out
    code, out, err = run(commands.ledger_command, ["verify", "--scope", "market", "--release", "release"], capsys)
    assert (code, out) == (0, "Scope 'market': 3 records, the chain is whole.\n")
    code, out, err = run(commands.ledger_command, ["purge", "a-0001", "--scope", "market"], capsys)
    assert code == 0
    gone = f"Deleted a-0001 in '{Path('release').absolute()}'; what it spent stays spent. Its people are still in maps"
    assert out.startswith(gone)
    assert not Path("release").exists()


def test_a_second_purge_says_that_nothing_is_left_and_records_nothing(saved, capsys):
    run(commands.release_command, arguments(), capsys)
    shutil.copytree("release", "copy")
    purge = ["purge", "a-0001", "--scope", "market"]
    run(commands.ledger_command, purge, capsys)
    before = Path("ledger/market.jsonl").read_bytes()
    again = (0, "a-0001 was purged or voided before: nothing is left to delete.\n", "")
    assert run(commands.ledger_command, purge, capsys) == again
    code, out, _ = run(commands.ledger_command, [*purge, "--release", "copy"], capsys)
    assert code == 0
    assert out.startswith(f"Deleted a-0001 in '{Path('copy').absolute()}'; what it spent stays spent.")
    assert not Path("copy").exists()
    assert Path("ledger/market.jsonl").read_bytes() == before
    assert run(commands.release_command, arguments("--new-release", budget="16"), capsys)[0] == 0
    assert run(commands.ledger_command, purge, capsys) == again  # another release lies there now
    assert load_release("release").manifest["release"] == "a-0002"


def test_a_purge_that_was_cut_off_before_its_record_is_recorded(saved, capsys):
    run(commands.release_command, arguments(), capsys)
    shutil.rmtree("release")
    code, out, _ = run(commands.ledger_command, ["purge", "a-0001", "--scope", "market"], capsys)
    assert code == 0
    assert out.startswith("Recorded a-0001 as purged; nothing lay where it was written: delete copies by hand; what")
    _, out, _ = run(commands.ledger_command, ["show", "--scope", "market"], capsys)
    assert "a-0001: purged" in out


def test_a_dry_run_spends_and_writes_nothing(saved, capsys):
    before = sorted(saved.iterdir())
    code, out, err = run(commands.release_command, arguments("--dry-run", "--unit", "person"), capsys)
    assert (code, err) == (0, "")
    assert out.startswith("Dry run: nothing is drawn, nothing is spent.\n")
    assert "sigma 1.20046, mu 1.66603" in out
    assert "epsilon 8 at the median of 1 rows" in out
    assert sorted(saved.iterdir()) == before


def test_a_finite_mechanism_with_its_prior_from_a_file(saved, capsys):
    more = ["--mechanism", "prior_subset", "--codebook", "codebook.npz", "--set-size", "3"]
    assert run(commands.release_command, arguments(*more, "--prior-source", "generated"), capsys)[0] == 0
    assert load_release("release").manifest["prior"] == {"source": "generated"}


@pytest.mark.parametrize(("mechanism", "size"), [("prior_subset", 3), ("codebook", 1)])
def test_a_prior_fitted_on_the_training_split(saved, capsys, mechanism, size):
    more = ["--mechanism", mechanism, "--codewords", "8", "--set-size", size, "--prior-is-public"]
    code, out, err = run(commands.release_command, arguments(*more), capsys)
    assert code == 0, err
    assert "bounds for one row: row_to_person" in out
    stored = load_release("release")
    prior = stored.manifest["prior"]
    assert (prior["prior"], prior["codewords"], prior["set_size"], prior["is_public"]) == ("kmeans", 8, size, True)
    assert "smallest_cell" in prior
    assert stored.arrays["codebook"].shape == (8, 16)
    assert run(commands.release_command, arguments(*more), capsys)[0] == 0  # the same again
    assert len(Path("ledger/market.jsonl").read_bytes().splitlines()) == 3


def test_again_append_and_new_release(saved, capsys):
    np.savez("few.npz", **{name: array[:5] for name, array in np.load("gallery.npz").items()})
    base = [word.replace("gallery.npz", "few.npz") for word in arguments(epsilon="4")]
    assert run(commands.release_command, base, capsys)[0] == 0
    code, out, _ = run(commands.release_command, base, capsys)
    assert (code, load_release("release").manifest["rows"]) == (0, 5)
    code, _, _ = run(commands.release_command, arguments("--append", "--truth-out", "t.json", epsilon="4"), capsys)
    assert (code, load_release("release").manifest["rows"]) == (0, 9)
    assert len(json.loads(Path("t.json").read_text())["rows"]) == 4
    _, out, _ = run(commands.release_command, arguments("--new-release", out="second", epsilon="4"), capsys)
    assert "Release a-0002" in out


def test_finish_and_void(saved, capsys, monkeypatch):
    def stop(step):
        if step == monkeypatch.step:
            raise KeyboardInterrupt

    monkeypatch.setattr(release_module, "reached", stop)
    monkeypatch.step = "manifest written"
    assert run(commands.release_command, arguments(epsilon="4"), capsys)[0] == 130
    code, out, _ = run(commands.ledger_command, ["verify", "--scope", "market"], capsys)
    assert "a-0001: reserved" in out
    code, out, _ = run(commands.ledger_command, ["finish", "a-0001", "--scope", "market"], capsys)
    assert (code, out) == (0, f"Finished: '{saved / 'release'}'\n")
    monkeypatch.step = "drawn"
    assert run(commands.release_command, arguments(epsilon="4", name="b", out="b"), capsys)[0] == 130
    code, out, _ = run(commands.ledger_command, ["void", "b-0001", "--scope", "market"], capsys)
    assert code == 0
    assert "Voided b-0001; what it reserved stays spent. If it was to write a map (--truth-out), delete that" in out
    assert run(commands.ledger_command, ["void", "b-0001", "--scope", "market"], capsys)[0] == 2


@pytest.mark.parametrize(("what", "name"), [("mechanisms", "gaussian"), ("transforms", "center")])
def test_list(capsys, what, name):
    code, out, _ = run(commands.release_command, ["--list", what], capsys)
    assert code == 0
    assert name in out.split()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--gallery, --epsilon, --name, --out, --model must be given"),
        (arguments("--gallery", "no.npz"), "'no.npz' is not there. Name a .npz"),
        (arguments("--gallery", "train.npz"), "'train.npz' lacks camids, row_ids; it holds features, pids."),
        (arguments("--gallery", "model.pth"), "'model.pth' ends in '.pth'; features are read from"),
        (arguments("--gallery", "broken.npz"), "'broken.npz' cannot be read as .npz"),
        (arguments("--gallery", "pickled.npz"), "'pickled.npz' cannot be read as .npz"),
        (arguments("--train", "codebook.npz"), "'codebook.npz' lacks features; it holds codebook."),
        (arguments("--train", ""), "--train must be given: transform 'center' is fitted on it."),
        (arguments("--mechanism", "gausian"), "--mechanism is 'gausian'; registered"),
        (arguments("--mechanism", "gausian"), "Did you mean 'gaussian'?"),
        (
            arguments("--mechanism", "gaussian:sigma=1"),
            "--mechanism has 'sigma'; allowed: clip_norm, max_rows_per_person",
        ),
        (arguments("--mechanism", "gaussian:epsilon=1"), "--mechanism has 'epsilon'; allowed: clip_norm"),
        (arguments("--mechanism", "gaussian:transform=pcs"), "transform of --mechanism is 'pcs'; registered"),
        (arguments("--mechanism", "prior_subset:codewords=1"), "codewords of --mechanism is 1, must be 2 to"),
        (arguments("--mechanism", "prior_subset", "--codewords", "1"), "--codewords is 1, must be 2 to"),
        (arguments("--mechanism", "prior_subset:codewords=4,seed=x"), "seed of --mechanism is 'x', must be a whole"),
        (arguments("--transform", "pca:components=0"), "components of --transform is 0, must be a whole number >= 1"),
        (arguments("--transform", "pca:components=99"), "components of --transform is 99, but 50 training rows give"),
        (
            arguments("--mechanism", "gaussian:transform=pca:components=0"),
            "components of transform of --mechanism is 0, must be",
        ),
        (
            arguments("--mechanism", "prior_subset:codewords=4", "--codebook", "codebook.npz"),
            "--mechanism beside --codebook has 'codewords'; allowed: max_rows_per_person, set_size, transform.",
        ),
        (
            arguments("--mechanism", "prior_subset", "--codewords", "4", "--codebook", "codebook.npz"),
            "--codewords stands beside --codebook, with which it does nothing",
        ),
        (
            arguments("--mechanism", "prior_subset", "--prior-is-public", "--codebook", "codebook.npz"),
            "--prior-is-public stands beside --codebook, with which it does nothing",
        ),
        (
            arguments("--mechanism", "codebook", "--set-size", "3", "--codebook", "codebook.npz"),
            "--set-size stands beside --codebook, with which it does nothing",
        ),
        (
            arguments("--mechanism", "codebook:set_size=3", "--codebook", "codebook.npz"),
            "--mechanism beside --codebook has 'set_size'; allowed: max_rows_per_person, transform.",
        ),
        (arguments("--max-rows-per-person", "-1"), "--max-rows-per-person is -1, must be a whole number >= 0"),
        (arguments("--transform", "pcs"), "--transform is 'pcs'; registered"),
        (arguments("--delta", "2"), "--delta is 2.0, gaussian needs 0 < delta < 1"),
        (arguments(epsilon="0"), "--epsilon is 0.0, must be a finite number > 0"),
        (arguments(budget="-1"), "--budget is -1.0, must be a finite number > 0"),
        (arguments("--mechanism", "none"), "mechanism 'none' is research only"),
        (arguments("--mechanism", "prior_subset"), "needs a codebook: --codewords M to fit one on --train"),
        (arguments("--mechanism", "codebook", "--codewords", "20"), "prior_is_public=True if these people"),
        (arguments("--mechanism", "codebook", "--codebook", "train.npz"), "'train.npz' lacks codebook; it holds"),
        (
            arguments("--mechanism", "gaussian:prototype=False"),
            "exist for evaluation only. A release of the person unit",
        ),
        (arguments("--budgets", "1:2"), "--budgets is '1:2', must be PID=EPSILON pairs"),
        (arguments("--opt-out", "1", "77"), "--opt-out has pid 77, of which the gallery has no row. Check the number"),
        (arguments("--budgets", "1=1e-9", "--dry-run"), "is 1e-09 and delta 1e-05; a Gaussian release needs"),
        (arguments("--budgets", "77=2"), "--budgets has pid 77, of which the gallery has no row"),
        (arguments("--cameras", "0", "9"), "--cameras has camid 9, of which the gallery has no row"),
        (arguments("--codewords", "20"), "--codewords is for mechanisms with a codebook; 'gaussian' has none"),
        (arguments("--codewords", "0"), "--codewords is for mechanisms with a codebook"),
        (arguments("--prior-is-public"), "--prior-is-public is for mechanisms with a codebook"),
        (arguments("--expires", "soon"), "expires is 'soon', must be a date"),
        (arguments(epsilon="-1"), "epsilon is -1.0, must be a finite number > 0"),
        (
            arguments(epsilon="20"),
            "9 of 9 units have spent epsilon 0.00 of 16.00 (delta 1e-05); releasing at 20.00",
        ),
    ],
)
def test_errors_are_one_line_and_exit_code_2(saved, capsys, argv, message):
    Path("broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.savez("pickled.npz", features=np.array([object()], dtype=object))
    code, _, err = run(commands.release_command, argv, capsys)
    error = [line for line in err.splitlines() if line.startswith("Error:")]
    assert code == 2
    assert len(error) == 1
    assert message in error[0]
    assert "privacy." not in error[0]
    assert not Path("release").exists()


def test_ledger_errors(saved, capsys):
    for argv, message in (
        (["show"], "scope 'default' is not in the ledger 'ledger'; it has: market."),
        (["show", "--ledger", "no"], "--ledger is 'no', where no ledger is. Name its folder."),
        (["void", "--scope", "market"], "void needs a name"),
        (["purge", "x-0001", "--scope", "market"], "release 'x-0001' is not in the ledger"),
    ):
        run(commands.release_command, arguments(epsilon="4"), capsys)
        code, _, err = run(commands.ledger_command, argv, capsys)
        assert (code, message in err) == (2, True)


@pytest.mark.parametrize("tool", ["release_gallery.py", "ledger.py"])
def test_the_tools_run_their_command(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    with pytest.raises(SystemExit) as exit_code:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert exit_code.value.code == 0
    assert "--scope" in capsys.readouterr().out


def test_budgets_and_a_mechanism_with_its_parameters_come_from_one_word_each(saved, capsys, caplog):
    (saved / "budgets.csv").write_text("pid, epsilon\n1, 2.5\n3, 4\n")
    spec = "prior_subset:codewords=9,kind=residual,min_people=1,set_size=2"
    more = ["--mechanism", spec, "--budgets", "budgets.csv", "--protocol", "enrolled"]
    code, _, err = run(commands.release_command, arguments(*more), capsys)
    assert code == 0, err
    assert "2 people have a budget of their own" in caplog.text
    stored = load_release("release")
    assert {pid: float(e) for pid, e in zip(stored.pids, stored.arrays["epsilon"], strict=True)} == {
        **dict.fromkeys([0, 2, 4], 8.0), 1: 2.5, 3: 4.0
    }  # fmt: skip
    assert (stored.manifest["mechanism"]["codewords"], stored.manifest["mechanism"]["set_size"]) == (9, 2)
    assert stored.features.shape == (9, 16)


def test_what_a_sweep_chose_is_released_as_it_is_written(saved, capsys):
    """Transform and limit in the mechanism's written form go before the flags, as in a sweep."""
    chosen = "prior_subset:codewords=9,kind=residual,min_people=1,transform=lda:components=3+shrinkage=2"
    more = ["--mechanism", chosen + ",max_rows_per_person=1", "--protocol", "enrolled"]
    code, _, err = run(commands.release_command, arguments(*more), capsys)
    assert code == 0, err
    stored = load_release("release")
    stated = stored.manifest["transform"]
    assert (stated["transform"], stated["components"], stated["shrinkage"]) == ("lda", 3, 2.0)
    assert stored.features.shape[1] == 3
    assert stored.manifest["max_rows_per_person"] == 1
    assert np.unique(stored.pids[stored.pids > 0], return_counts=True)[1].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pid,budget\n1,2\n", "has the columns pid, budget; needs pid, epsilon"),
        ("pid,epsilon\n1,two\n", "line 2: pid '1', epsilon 'two'"),
        ("pid,epsilon\n1,2\n1,3\n", "line 3: pid 1 stands twice"),
        ("pid,epsilon\n1,-2\n", r"budgets\[1\] is -2.0"),
    ],
)
def test_budgets_that_cannot_be_used_are_named(saved, capsys, text, message):
    (saved / "budgets.csv").write_text(text)
    code, _, err = run(commands.release_command, arguments("--budgets", "budgets.csv"), capsys)
    assert code == 2
    assert re.search(message, err)
    assert not Path("release").exists()


def test_nothing_is_fitted_on_rows_of_the_gallery(saved, capsys):
    with np.load("train.npz") as train:
        ids = np.array(["elsewhere"] * 49 + ["r3"])
        np.savez("mixed.npz", features=train["features"], pids=train["pids"], row_ids=ids)
    argv = arguments()
    argv[argv.index("train.npz")] = "mixed.npz"
    code, _, err = run(commands.release_command, argv, capsys)
    assert code == 2
    assert "'mixed.npz' holds 1 rows of --gallery, such as r3: what is fitted on the gallery voids" in err
    assert not Path("release").exists()


def saved_transform(kind, rows, path):
    labels = np.arange(len(rows))[:, None] % 2
    if kind == "leace":
        return Leace(center=True).fit_concepts(rows, labels).save(path)
    return Suppressor(epochs=1, hidden=0).fit_people(rows, np.arange(len(rows)) // 2, labels).save(path)


@pytest.mark.parametrize("kind", ["leace", "suppressor"])
def test_a_transform_that_was_fitted_on_the_gallery_is_refused(saved, capsys, caplog, kind):
    rows = np.load("gallery.npz")["features"]
    others = np.random.default_rng(3).normal(size=(40, 16)).astype(np.float32)
    name = f"{kind}:t.safetensors"
    saved_transform(
        kind, np.concatenate([others, 3 * rows[4:5] * (1 + 1e-6)]), "t.safetensors"
    )  # one row, of another length
    code, _, err = run(commands.release_command, arguments("--transform", name), capsys)
    assert (code, f"Error: --transform is '{kind}', fitted on 1 rows of the gallery" in err) == (2, True)
    assert not Path("release").exists()
    assert not Path("ledger").exists()
    with pytest.raises(ValueError, match=f"public transform is '{kind}', fitted on 1 rows of the gallery"):
        ReleasePlan(
            load_gallery("gallery.npz"),
            build_mechanism("gaussian", epsilon=8.0),
            build_transform(name),
            ReleaseTerms(name="a", model="m"),
        )
    component = DPGallery("gaussian", epsilon=8.0, transform=name)
    split = Extracted(torch.from_numpy(rows), np.ones(len(rows), dtype=int), np.zeros(len(rows), dtype=int))
    with pytest.raises(ValueError, match=f"privacy.gallery.transform is '{kind}', fitted on 1 rows of the gallery"):
        protected_sets(component, {"query": split, "gallery": split})
    arrays = dict(np.load("train.npz"))
    np.savez("train.npz", **arrays, camids=np.arange(50) % 2, row_ids=np.char.mod("train-%d", np.arange(50)))
    for command, argv in (
        (sweep_command, ["--train", "train.npz", "--query", "gallery.npz", "--epsilons", "8", "--seeds", "1"]),
        (leakage_command, ["--train", "train.npz", "--test", "gallery.npz", "--epsilon", "8"]),
        (report_command, ["--runs", ".", "--train", "train.npz", "--epsilon", "8"]),
    ):
        where = [] if command is leakage_command else ["--gallery", "gallery.npz"]
        how = ["--mechanisms" if command is sweep_command else "--mechanism", "gaussian", "--transform", name]
        code, _, err = run(command, [*argv, *where, *how], capsys)
        assert (code, f"--transform is '{kind}', fitted on 1 rows of the gallery" in err) == (2, True), err

    saved_transform(kind, others, "t.safetensors")
    code, _, err = run(commands.release_command, arguments("--transform", name), capsys)
    assert code == 0, err
    assert not caplog.records
    stored = load_release("release")
    digests = load_file("t.safetensors").pop("fitted_on")
    assert load_file("t.safetensors")["fitted_on_center"].shape == (16,)
    assert len(digests) == len(others)
    content = Path("release/gallery.safetensors").read_bytes()
    assert not [one for one in digests if one.tobytes() in content]  # no digest is published
    assert "fitted_on" not in json.dumps(stored.manifest)

    arrays = load_file("t.safetensors")
    del arrays["fitted_on"]
    save_file(arrays, "t.safetensors")  # as earlier versions wrote it
    assert run(commands.release_command, arguments("--transform", name, name="b", out="b"), capsys)[0] == 0
    assert "does not say what it was fitted on" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "log/modle.pth.tar-60"], "--model is 'log/modle.pth.tar-60', which is not there"),
        (["--model", "weights.pth"], "--model is 'weights.pth', which is not there"),
        (["--budgets", "1=2.0", "1=8"], "--budgets has pid 1 2 times"),
        (
            ["--mechanism", "gaussian:max_rows_per_person=0", "--max-rows-per-person", "1"],
            "--max-rows-per-person is 1, and --mechanism has max_rows_per_person 0, too",
        ),
        (["--mechanism", "prior_subset:codewords=4", "--codewords", "8"], "--codewords is 8, and --mechanism has"),
        (["--mechanism", "privunit_g", "--delta", "0"], "privunit_g"),  # research noise only
    ],
)
def test_a_command_that_is_refused_opens_no_scope(saved, capsys, more, message):
    code, _, err = run(commands.release_command, [*arguments(), *more], capsys)
    assert code == 2
    assert message in err
    assert not list(Path("ledger").glob("*.jsonl")) if Path("ledger").exists() else True
    assert run(commands.release_command, arguments(budget="20"), capsys)[0] == 0


def test_other_weights_than_the_features_were_made_with_are_refused(saved, capsys):
    with np.load("gallery.npz") as arrays:
        np.savez("gallery.npz", **{**arrays, "model": np.array("sha256:" + 64 * "a")})
    code, _, err = run(commands.release_command, arguments(), capsys)
    assert code == 2
    assert f"--gallery 'gallery.npz' was made with sha256:{64 * 'a'}" in err
    assert run(commands.release_command, arguments("--model", "sha256:" + 64 * "a"), capsys)[0] == 0


def test_a_first_release_of_people_opens_a_scope_of_people(saved, capsys):
    """One of images would let two prototypes of a person, of other images, each have the whole budget."""
    argv = arguments("--unit", "person", "--protocol", "enrolled", "--cameras", "0", budget="8")
    assert run(commands.release_command, argv, capsys)[0] == 0
    again = arguments("--unit", "person", "--protocol", "enrolled", "--cameras", "1", name="b", out="b", budget="8")
    code, _, err = run(commands.release_command, again, capsys)
    assert code == 2
    assert "scope 'market', unit person" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["verify", "nonsense"], "verify takes no name, and 'nonsense' is given"),
        (["show", "nonsense"], "show takes no name"),
        (["show", "--release", "nowhere"], "--release is for verify and purge; with show it does nothing"),
        (["purge", "a-0001", "--release", "x", "y"], "--release has 2 folders; purge deletes one"),
    ],
)
def test_words_that_a_ledger_command_would_pass_over_are_refused(saved, capsys, argv, message):
    run(commands.release_command, arguments(), capsys)
    code, _, err = run(commands.ledger_command, [*argv, "--scope", "market"], capsys)
    assert code == 2
    assert message in err


def test_a_head_without_a_budget_is_warned_of(saved, capsys, caplog):
    for covers in ("nothing", "head only"):
        caplog.clear()
        PrivateHead(np.eye(16)[:4], {"covers": covers}).save("h.safetensors")
        argv = arguments("--transform", "head:h.safetensors", "--dry-run")
        assert run(commands.release_command, argv, capsys)[0] == 0
        assert ("was trained without a budget" in caplog.text) == (covers == "nothing")
