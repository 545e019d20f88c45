"""The log of training and its curves: what was logged is what is drawn, and the report shows it."""

import json

import pytest
from PIL import Image
from report_cases import read_html, train_record, write

from ppreid_plugin import cli
from ppreid_plugin.report.collect import collect
from ppreid_plugin.report.report_command import report_command
from ppreid_plugin.report.training_curves import training_curves, write_training_curves
from ppreid_plugin.training_log import EpochLog, TrainingLogError, read_training_log

LINES = [
    {"epoch": 1, "loss": 6.0, "acc": 1.0, "loss_adversary_identity": 6.5, "acc_adversary_identity": 0.5},
    {"epoch": 2, "loss": 4.0, "acc": 40.0, "loss_adversary_identity": 3.5, "acc_adversary_identity": 30.0},
    {"epoch": 3, "loss": 2.0, "acc": 90.0, "held_out_loss_adversary_camera": 1.5, "feature_spread": 0.4},
]


def log_file(folder, lines=LINES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_epoch(folder, epoch, *steps):
    log = EpochLog(folder, epoch)
    for step in steps:
        log.add(step)
    log.write()


def test_a_line_is_the_mean_of_an_epochs_steps(tmp_path):
    write_epoch(tmp_path, 1, {"loss": 1.0, "acc": 10.0}, {"loss": 4.0}, {"loss": float("nan"), "acc": 30.0})
    assert read_training_log(tmp_path / "training.jsonl") == [{"epoch": 1, "loss": 2.5, "acc": 20.0}]


def test_a_run_that_continues_replaces_what_it_trains_again_and_a_new_one_everything(tmp_path):
    for epoch in (1, 2, 3):
        write_epoch(tmp_path, epoch, {"loss": float(epoch)})
    write_epoch(tmp_path, 2, {"loss": 7.0})
    assert [(x["epoch"], x["loss"]) for x in read_training_log(tmp_path / "training.jsonl")] == [(1, 1.0), (2, 7.0)]
    write_epoch(tmp_path, 1, {"loss": 9.0})
    assert [(x["epoch"], x["loss"]) for x in read_training_log(tmp_path / "training.jsonl")] == [(1, 9.0)]
    write_epoch(None, 1, {"loss": 9.0})  # no folder, no file


def curves(lines):
    axes = training_curves(lines).axes
    return {line.get_label(): line for axis in axes for line in axis.get_lines()}, axes


def test_curves_hold_the_logged_points():
    accuracies, axes = curves([{"epoch": 1, "acc": 1.0, "loss": 2.0, "acc_adversary_identity": 0.5}])
    assert {label: line.get_xydata().tolist() for label, line in accuracies.items()} == {
        "Re-ID loss": [[1, 2.0]],
        "Re-ID acc": [[1, 1.0]],
        "identity": [[1, 0.5]],
    }
    assert accuracies["identity"].axes is accuracies["Re-ID acc"].axes is axes[1]
    _, axes = curves(LINES)
    left, right = axes[0], axes[2]  # the right scale of the left panel is made last
    assert [line.get_xydata().tolist() for line in left.get_lines()] == [[[1, 6.0], [2, 4.0], [3, 2.0]]]
    own, held_out = right.get_lines()
    assert own.get_xydata().tolist() == [[1, 6.5], [2, 3.5]]
    assert held_out.get_xydata().tolist() == [[3, 1.5]]
    assert held_out.get_label() == "camera (people it does not learn)"
    assert (own.get_linestyle(), held_out.get_linestyle()) == ("--", ":")
    identity = next(line for line in axes[1].get_lines() if line.get_label() == "identity")
    assert identity.get_color() == own.get_color() != held_out.get_color()


def test_curves_without_an_adversary_and_of_triplet_losses():
    drawn, _ = curves([{"epoch": 1, "loss_t": 0.3, "loss_x": 5.0}])
    assert set(drawn) == {"Re-ID loss t", "Re-ID loss x"}
    with pytest.raises(ValueError, match="holds no loss"):
        training_curves([{"epoch": 1, "acc": 3.0}])


def test_the_picture_is_written_beside_the_log(tmp_path):
    assert write_training_curves(tmp_path) is None
    path = write_training_curves(log_file(tmp_path))
    assert path == tmp_path / "training.png"
    with Image.open(path) as image:
        assert image.width > 2 * image.height


@pytest.mark.parametrize("text", ['{"epoch": 1}\n{"epoch": 2, "lo', "[1]\n", '{"loss": 1}\n'])
def test_a_log_that_is_cut_off_is_named(tmp_path, text):
    (tmp_path / "training.jsonl").write_text(text)
    with pytest.raises(TrainingLogError, match=r"training.jsonl' line \d is no epoch"):
        write_training_curves(tmp_path)


def test_the_report_has_a_section_where_a_run_has_a_log(tmp_path, capsys):
    write(tmp_path / "runs" / "metrics.json", train_record())
    assert cli.run(report_command, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "bare")]) == 0
    assert ">Training<" not in (tmp_path / "bare" / "report.html").read_text()
    write_training_curves(log_file(tmp_path / "runs" / "a"))
    found = collect([tmp_path / "runs"])
    assert [source.record["epochs"] for source in found.training] == [LINES]
    assert found.unknown == []  # training.png is drawn again from the log
    assert cli.run(report_command, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = read_html(tmp_path / "out" / "report.html")
    assert "Training: runs/a/training.jsonl" in page.text
    assert (tmp_path / "out" / "report_files" / "runs-a-training-jsonl.svg").is_file()
