"""The command that fits concept erasure: what it writes is what the library of the transform fits, and errors."""

import numpy as np
import pytest

from ppreid_plugin import cli
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.leakage import Leace
from ppreid_plugin.leakage.erasure_command import erase_command


@pytest.fixture
def train(tmp_path):
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(40), 5)
    labels = {"gender": pids % 2, "bag": pids // 2 % 2}
    features = rng.normal(size=(200, 6))
    features[:, 0] += 3 * labels["gender"]
    features[:, 1] += 3 * labels["bag"]
    path = tmp_path / "train.npz"
    named = {f"attr_{name}": values for name, values in labels.items()}
    np.savez(path, features=features, pids=pids, camids=np.tile(np.arange(5), 40), **named)
    return path, features.astype(np.float32), labels


def between_classes(rows, labels):
    return np.abs(rows[labels == 0].mean(axis=0) - rows[labels == 1].mean(axis=0)).max()


def test_the_file_erases_what_was_named_and_nothing_else(train, tmp_path):
    path, features, labels = train
    out = tmp_path / "leace.safetensors"
    erase_command(["--train", str(path), "--only", "gender", "--out", str(out)])
    rows = build_transform(f"leace:{out}").transform(features)
    wanted = Leace(center=True).fit_concepts(features, labels["gender"][:, None]).transform(features)
    np.testing.assert_allclose(rows, wanted, atol=1e-6)
    assert between_classes(rows, labels["gender"]) < 1e-5
    assert between_classes(rows, labels["bag"]) > 0.1
    assert np.abs(rows.mean(axis=0)).max() < 1e-5


def test_all_attributes_and_the_mean_kept(train, tmp_path):
    path, features, labels = train
    out = tmp_path / "leace.safetensors"
    erase_command(["--train", str(path), "--no-center", "--out", str(out)])
    rows = Leace.load(out).transform(features)
    assert max(between_classes(rows, values) for values in labels.values()) < 1e-5
    assert np.abs(rows.mean(axis=0)).max() > 0.05


def test_errors_write_nothing(train, tmp_path, capsys):
    path, features, _ = train
    bare = tmp_path / "bare.npz"
    np.savez(bare, features=features, pids=np.arange(200), camids=np.zeros(200, dtype=int))
    out = tmp_path / "leace.safetensors"
    for flags, message in (
        (["--train", str(bare), "--out", str(out)], "has no attributes to erase"),
        (["--train", str(path), "--only", "gendr", "--out", str(out)], "Did you mean 'gender'"),
        (["--train", str(path), "--out", str(tmp_path / "no" / "leace.safetensors")], "is no folder. Make it first"),
    ):
        assert cli.run(erase_command, flags) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
