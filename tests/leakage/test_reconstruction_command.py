"""The command line of reconstruction: images from arrays, folders and releases, the judge, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictured import pictured
from PIL import Image

from ppreid_plugin import cli
from ppreid_plugin.dp.feature_files import model_fingerprint
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.leakage import ReconstructionAttack
from ppreid_plugin.leakage.command import leakage_command
from ppreid_plugin.toolbox import models

TRAIN, TEST = pictured(12, seed=1, first_pid=0), pictured(8, seed=2)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setitem(ReconstructionAttack.__init__.__kwdefaults__, "steps", 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "weights.pth"
    torch.save(models.build_model("osnet_x0_25", 7, pretrained=False).state_dict(), path)
    return path


def write(path, rows, **changes):
    arrays = {"features": rows.features, "pids": rows.pids, "camids": rows.camids, "row_ids": np.array(rows.row_ids)}
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


@pytest.fixture
def files(tmp_path):
    """Feature files without images, and a folder with these."""
    for rows in (TRAIN, TEST):
        for name, pixels in zip(rows.row_ids, rows.images.load(), strict=True):
            Image.fromarray(pixels).save(tmp_path / name, quality=95)
    return {"train": write(tmp_path / "train.npz", TRAIN), "test": write(tmp_path / "test.npz", TEST)}


def run(capsys, tmp_path, *argv):
    words = [*argv, "--attacks", "reconstruction", "--seeds", 1, "--out", tmp_path / "leakage.json"]
    code = cli.run(leakage_command, [str(word) for word in words])
    printed = capsys.readouterr()
    found = json.loads((tmp_path / "leakage.json").read_text()) if code == 0 else None
    return code, printed.out + printed.err, found


def test_a_mechanism_with_a_folder_of_images_and_a_judge(files, tmp_path, capsys, weights):
    code, printed, found = run(
        capsys, tmp_path, "--train", files["train"], "--test", files["test"], "--images-root", tmp_path,
        "--mechanism", "gaussian", "--epsilon", 30, "--judge-model", "osnet_x0_25", "--judge-weights", weights,
        "--test-rows", 20, "--deid-target", "blur",
    )  # fmt: skip
    assert code == 0, printed
    figure = found["channels"]["reconstruction"]
    assert figure["floor"] < figure["score"] < figure["clean"]
    assert 0 < figure["leakage"] < 1
    assert figure["others"]["rows"] == 20
    for side in ("others", "clean_others"):
        assert set(figure[side]) >= {
            "psnr", "mean_image_ssim", "mean_image_psnr", "target_ssim", "rank1", "rank1_originals", "rank1_target"
        }  # fmt: skip
    stated = found["meta"]["reconstruction"]
    assert (stated["deid_target"], stated["test_rows"]) == ("blur", 20)
    assert stated["judge"].startswith("Judge('osnet_x0_25', 'sha256:")
    assert figure["clean_others"]["rank1_originals"] == figure["others"]["rank1_originals"]
    assert list(tmp_path.glob("*finished*")) == []


def test_images_in_the_files(tmp_path, capsys):
    train = write(tmp_path / "train.npz", TRAIN, images=TRAIN.images.load(), row_ids=None)
    test = write(tmp_path / "test.npz", TEST, images=TEST.images.load(), row_ids=None)
    code, printed, found = run(capsys, tmp_path, "--train", train, "--test", test)
    assert code == 0, printed
    assert "No judge was named" in printed
    assert found["channels"]["reconstruction"]["score"] > found["channels"]["reconstruction"]["floor"] + 0.2


def test_a_release_finds_its_images_by_the_map_to_row_ids(files, tmp_path, capsys, monkeypatch):
    release_gallery(
        GalleryRows(TEST.features, list(TEST.row_ids), TEST.pids, TEST.camids),
        tmp_path / "release",
        ledger=Ledger(tmp_path / "ledger", "all", epsilon=10_000.0, delta=1e-4),
        mechanism=build_mechanism("gaussian", epsilon=2000.0),
        transform=build_transform("center").fit(TRAIN.features),
        terms=ReleaseTerms(name="a", model="m"),
        truth_out=tmp_path / "truth.json",
    )
    parsed, read = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: parsed.append(path.name) or read(path, **how))
    code, printed, found = run(
        capsys, tmp_path, "--release", tmp_path / "release", "--truth", tmp_path / "truth.json", "--train",
        files["train"], "--clean", files["test"], "--images-root", tmp_path,
    )  # fmt: skip
    assert code == 0, printed
    assert found["channels"]["reconstruction"]["leakage"] > 0.8  # rows of others would be at the floor
    assert parsed.count("truth.json") == 1


def test_reconstruction_runs_unasked_where_there_are_images(files, tmp_path, capsys, monkeypatch):
    from ppreid_plugin.leakage import command

    monkeypatch.setattr(command, "USUAL", ("attributes", "camera", "reconstruction"))
    for root, channels in (((), {"camera"}), (("--images-root", tmp_path), {"camera", "reconstruction"})):
        argv = ["--train", files["train"], "--test", files["test"], *root, "--seeds", 1, "--out", tmp_path / "x.json"]
        assert cli.run(leakage_command, [str(word) for word in argv]) == 0
        assert set(json.loads((tmp_path / "x.json").read_text())["channels"]) == channels
        assert ("Reconstruction is left out" in capsys.readouterr().out) == (len(channels) == 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "training rows have no images"),
        (("--images-root", "nowhere"), "--images-root is 'nowhere'"),
        (("--images-root", "empty"), "_c1s1_000000_00.jpg': No such file"),
        (("--images-root", ".", "--mechanism", "gaussian", "--epsilon", "8", "--unit", "person"), "A prototype"),
        (("--images-root", ".", "--deid-target", "pixelize"), "--deid-target is 'pixelize'"),
        (("--images-root", ".", "--deid-target", "mean_image"), "--deid-target is 'mean_image', which learns"),
        (("--images-root", ".", "--judge-model", "osnet_x0_25"), "--judge-model and --judge-weights belong together"),
        (("--images-root", ".", "--judge-model", "osnet", "--judge-weights", "w"), "the judge's model is 'osnet'"),
        (("--images-root", ".", "--judge-model", "osnet_x0_25", "--judge-weights", "w"), "'w', which does not exist"),
        (("--images-root", ".", "--test-rows", "-1"), "--test-rows is -1"),
    ],
)
def test_errors(files, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, printed, _ = run(capsys, tmp_path, "--train", files["train"], "--test", files["test"], *flags)
    assert code == 2
    assert message in printed
    assert not list(tmp_path.glob("leakage*"))


def test_no_model_judges_itself(files, tmp_path, capsys, weights):
    train = write(tmp_path / "train.npz", TRAIN, model=np.array(model_fingerprint(str(weights))))
    code, printed, _ = run(
        capsys, tmp_path, "--train", train, "--test", files["test"], "--images-root", tmp_path, "--judge-model",
        "osnet_x0_25", "--judge-weights", weights,
    )  # fmt: skip
    assert code == 2
    assert "no independent judge of itself" in printed
