"""TensorBoard's projector takes released rows; clean ones only if they are asked for, and then for the owner alone."""

import stat

import numpy as np
import pytest
from report_cases import people, release, train_record, write

from ppreid_plugin import cli
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.report.projector import write_projector
from ppreid_plugin.report.report_command import report_command


def rows_of(folder):
    (file,) = folder.rglob("tensors.tsv")
    return np.loadtxt(file, delimiter="\t")


@pytest.fixture
def clean(tmp_path):
    np.savez(tmp_path / "gallery.npz", **people())
    return tmp_path / "gallery.npz"


def test_it_takes_released_rows(tmp_path, clean, capsys):
    folder = release(tmp_path, people())
    write(tmp_path / "runs/metrics.json", train_record())
    argv = [
        "--runs",
        tmp_path / "runs",
        "--out",
        tmp_path / "out",
        "--gallery",
        clean,
        "--release",
        folder,
        "--projector",
    ]
    assert cli.run(report_command, [str(word) for word in [*argv, tmp_path / "board"]]) == 0, capsys.readouterr().err
    shown = rows_of(tmp_path / "board")
    np.testing.assert_allclose(shown, load_release(folder).features, atol=1e-5)
    assert np.abs(shown - people()["features"]).max() > 0.1
    (labels,) = (tmp_path / "board").rglob("metadata.tsv")
    assert labels.read_text().splitlines()[:2] == ["pid\tcamera", "1\t0"]


def test_an_anonymous_release_has_no_labels(tmp_path):
    folder = release(tmp_path, people(), protocol="anonymous")
    (labels,) = write_projector(tmp_path / "board", release=str(folder)).rglob("metadata.tsv")
    assert labels.read_text().split() == [str(number) for number in range(48)]


def test_clean_rows_are_asked_for_and_guarded(tmp_path, clean, caplog):
    write(tmp_path / "runs/metrics.json", train_record())
    argv = [
        "--runs",
        tmp_path / "runs",
        "--out",
        tmp_path / "out",
        "--gallery",
        clean,
        "--projector",
        tmp_path / "board",
    ]
    argv = [str(word) for word in argv]
    assert cli.run(report_command, argv) == 2  # there is no release, and nobody asked for clean rows
    assert not (tmp_path / "board").exists()
    assert cli.run(report_command, [*argv, "--clean-embeddings"]) == 0
    np.testing.assert_allclose(rows_of(tmp_path / "board"), people()["features"], atol=1e-5)
    assert "will hold the unprotected gallery" in caplog.text
    for path in (tmp_path / "board").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_errors(tmp_path, clean):
    for given in ({}, {"release": "r", "clean": "c"}):
        with pytest.raises(ValueError, match="either a release"):
            write_projector(tmp_path / "board", **given)
    with pytest.raises(ValueError, match="which holds something"):
        write_projector(tmp_path, clean=str(clean))
