"""The command that fits a suppressor, the front on people held out, and the defense of the comparison."""

import json

import numpy as np
import pytest
from test_suppressor import FAST, people

from ppreid_plugin import cli
from ppreid_plugin.ablation.defense import build_defense
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.leakage import LeakageSet
from ppreid_plugin.suppressor import Suppressor, suppressor_front
from ppreid_plugin.suppressor.command import suppressor_command
from ppreid_plugin.suppressor.front import hold_out

FLAGS = [part for name, value in FAST.items() for part in (f"--{name}", str(value))]


def rows(seed=0, count=60):
    features, pids, labels = people(count, seed=seed)
    return LeakageSet(features, pids, np.arange(len(pids)) % 3, {"gender": labels[:, 0], "bag": labels[:, 1]})


@pytest.fixture
def train(tmp_path):
    some, path = rows(), tmp_path / "train.npz"
    named = {f"attr_{name}": values for name, values in some.attributes.items()}
    np.savez(path, features=some.features, pids=some.pids, camids=some.camids, **named)
    return path


def test_the_file_is_what_the_library_fits(train, tmp_path):
    out = tmp_path / "suppressor.safetensors"
    suppressor_command(["--train", str(train), "--only", "gender", "--erasure", "7", "--out", str(out), *FLAGS])
    some = rows()
    wanted = Suppressor(erasure=7.0, **FAST).fit_people(some.features, some.pids, some.attributes["gender"][:, None])
    np.testing.assert_array_equal(build_transform(f"suppressor:{out}").transform(some.features),
                                  wanted.transform(some.features))  # fmt: skip


def test_the_front_falls_with_the_weight_and_is_of_people_held_out(train, tmp_path):
    out = tmp_path / "front.json"
    front = suppressor_command(["--train", str(train), "--only", "gender", "--erasure", "0", "30", "--hold-out", "20",
                                "--out", str(out), *FLAGS])  # fmt: skip
    none, weak, strong = front.points
    assert none.erasure is None
    assert none.leakage == {"gender": 1.0, "bag": 1.0}
    assert strong.leakage["gender"] < weak.leakage["gender"] - 0.3
    assert strong.mAP > weak.mAP - 0.1
    assert front.held_out_people == 20
    record = json.loads(out.read_text())
    assert record["points"][2]["leakage"] == strong.leakage
    assert len(front.table().splitlines()) == 5
    assert not list(tmp_path.glob("*.safetensors"))


def test_holding_out_splits_people():
    some = rows()
    kept, held = hold_out(some, 20, 3)
    assert len(np.unique(held.pids)) == 20
    assert not set(kept.pids) & set(held.pids)
    assert len(kept) + len(held) == len(some)
    with pytest.raises(ValueError, match="59 people to hold out of 60; must be 2 to 58"):
        hold_out(some, 59, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--erasure", "1", "2"], "--hold-out"),
        (["--only", "hat"], "--only has 'hat'; --train has: bag, gender"),
        (["--out", "one.json"], "must end in .safetensors"),
        (["--out", "none/one.safetensors"], "--out is 'none/one.safetensors', but 'none' is no folder"),
        (["--erasure", "-1"], "erasure is -1.0"),
        (["--hold-out", "20"], "must end in .json"),
    ],
)
def test_errors_write_nothing(train, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert cli.run(suppressor_command, ["--train", str(train), *flags]) != 0
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.npz"]


def test_the_defense_is_the_suppressor():
    some, other = rows(), rows(seed=1)
    made = build_defense("suppressor:attributes=gender,hidden=4,epochs=2,batch=100").fit(some).apply(other.features)
    fitted = Suppressor(hidden=4, epochs=2, batch=100).fit_people(
        some.features, some.pids, some.attributes["gender"][:, None]
    )
    np.testing.assert_array_equal(made, fitted.transform(other.features))
    with pytest.raises(ValueError, match="suppressor has the attribute 'hat'; the labels have: bag, gender"):
        build_defense("suppressor:attributes=hat").fit(some)
    with pytest.raises(ValueError, match="has 'epoch'"):
        build_defense("suppressor:epoch=3")


def test_the_front_names_an_attribute_that_is_not_there():
    some = rows()
    with pytest.raises(ValueError, match="no attribute hat"):
        suppressor_front(some, some, ["hat"], [1.0])
