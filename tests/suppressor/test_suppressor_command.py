"""The command that fits a suppressor, the front on people held out, and the defense of the comparison."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from test_suppressor import FAST, people

from ppreid_plugin import cli
from ppreid_plugin.ablation.defense import build_defense
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.leakage import ArrayImages, LeakageSet, image_components, measure_leakage
from ppreid_plugin.suppressor import Suppressor, front, suppressor_front
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


@pytest.fixture
def with_one_value(train):
    """The file with an attribute more, which is the same for everybody."""
    arrays = dict(np.load(train))
    np.savez(train, **arrays, attr_one=np.full(len(arrays["pids"]), 3))
    return train


def test_the_file_is_what_the_library_fits(train, tmp_path):
    out = tmp_path / "suppressor.safetensors"
    suppressor_command(["--train", str(train), "--only", "gender", "--erasure", "7", "--out", str(out), *FLAGS])
    some = rows()
    wanted = Suppressor(erasure=7.0, **FAST).fit_people(some.features, some.pids, some.attributes["gender"][:, None])
    np.testing.assert_array_equal(build_transform(f"suppressor:{out}").transform(some.features),
                                  wanted.transform(some.features))  # fmt: skip


def test_the_front_falls_with_the_weight_and_is_of_people_held_out(train, tmp_path):
    out = tmp_path / "front.json"
    made = suppressor_command(["--train", str(train), "--only", "gender", "--erasure", "0", "30", "--hold-out", "20",
                                "--out", str(out), *FLAGS])  # fmt: skip
    none, weak, strong = made.points
    assert none.erasure is None
    assert none.leakage == {"gender": 1.0, "bag": 1.0}
    assert strong.leakage["gender"] < weak.leakage["gender"] - 0.3
    assert strong.mAP > weak.mAP - 0.1
    assert made.held_out_people == 20
    record = json.loads(out.read_text())
    assert record["points"][2]["leakage"] == strong.leakage
    assert len(made.table().splitlines()) == 5
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
        (["--erasure", "-1"], "--erasure is -1.0"),
        (["--seed", "-1"], "--seed is -1, must be a whole number >= 0"),
        (["--lr", "1e9", "--epochs", "20"], "--lr is 1e+09: the fit diverged in epoch"),
        (["--only", "gender", "one"], "attribute 'one' has the one value 3 among the rows of --train: nothing to"),
        (["--attack-seeds", "7"], "--attack-seeds is 7, and nobody is held out to attack: it would do nothing"),
        (["--hold-out", "9", "--attack-seeds", "0", "--out", "f.json"], "--attack-seeds is 0, must be a whole number"),
        (["--image-erasure", "5"], "--image-erasure is 5, and no components of images are suppressed: it would do"),
        (
            ["--image-components", "2", "--erasure", "5", "6", "--hold-out", "9", "--out", "f.json"],
            "--erasure is 5 6, and with components of images only the attributes that --only names",
        ),
        (["--hold-out", "20"], "must end in .json"),
        (["--image-components", "4"], "4 image components are asked for, and"),
        (["--image-erasure", "1", "2"], "--image-erasure has 2 weights"),
        (["--image-components", "1", "--image-erasure", "-1"], "--image-erasure is -1.0"),
    ],
)
def test_errors_write_nothing(train, request, tmp_path, monkeypatch, capsys, flags, message):
    if "one" in flags:
        request.getfixturevalue("with_one_value")
    monkeypatch.chdir(tmp_path)
    assert cli.run(suppressor_command, ["--train", str(train), *flags]) != 0
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.npz"]


def test_a_fit_that_diverges_leaves_the_file_that_was_there(train, tmp_path, capsys):
    out = tmp_path / "suppressor.safetensors"
    out.write_bytes(b"good")
    assert cli.run(suppressor_command, ["--train", str(train), "--lr", "1e9", "--out", str(out)]) == 2
    assert "the fit diverged" in capsys.readouterr().err
    assert out.read_bytes() == b"good"


def shown(tmp_path):
    """Rows with images whose color says the gender."""
    some, rng = rows(), np.random.default_rng(5)
    color = np.where(some.attributes["gender"][:, None] == 1, [200, 60, 60], [60, 60, 200])
    images = color[:, None, None, :] + rng.integers(-40, 40, (len(some), 16, 8, 3))
    return dataclasses.replace(some, images=ArrayImages(images.astype(np.uint8))), images.astype(np.uint8)


def test_image_components_and_only_the_attributes_that_are_named(tmp_path, capsys):
    some, images = shown(tmp_path)
    path, out = tmp_path / "train.npz", tmp_path / "suppressor.safetensors"
    named = {f"attr_{name}": values for name, values in some.attributes.items()}
    np.savez(path, features=some.features, pids=some.pids, camids=some.camids, images=images, **named)
    suppressor_command(["--train", str(path), "--image-components", "3", "--image-erasure", "50", "--out", str(out),
                        *FLAGS])  # fmt: skip
    assert "Suppressed 3 image components" in capsys.readouterr().out
    wanted = Suppressor(image_erasure=50.0, **FAST).fit_people(
        some.features, some.pids, numbers=image_components(some.pictures, 3)
    )
    made = build_transform(f"suppressor:{out}").transform(some.features)
    np.testing.assert_array_equal(made, wanted.transform(some.features))
    defense = build_defense("suppressor:image_components=3,image_erasure=50,hidden=32,epochs=40,batch=360,lr=0.003")
    np.testing.assert_allclose(defense.fit(some).apply(some.features), made, atol=1e-6)
    both = build_defense("suppressor:image_components=3,attributes=bag,epochs=1").fit(some)
    assert set(both._suppressor.losses[-1]) >= {"erasure", "image_erasure"}


def test_the_front_of_image_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(front, "measure_leakage", partial(measure_leakage, options={"reconstruction": {"steps": 5}}))
    some = dataclasses.replace(shown(tmp_path)[0], attributes={})
    train, held = hold_out(some, 20, 1)
    made = suppressor_front(train, held, [], [30.0], image_components=3, image_weights=[0.0, 300.0], **FAST)
    assert [(one.erasure, one.image_erasure) for one in made.points] == [(None, None), (30.0, 0.0), (30.0, 300.0)]
    assert made.points[0].reconstruction == 1.0
    assert made.points[2].reconstruction < made.points[1].reconstruction - 0.3
    assert made.points[1].leakage == {}
    assert [line.split()[:3] for line in made.table().splitlines()[2:]] == [
        ["none", "none", f"{100 * made.points[0].rank1:.1f}"],
        ["30", "0", f"{100 * made.points[1].rank1:.1f}"],
        ["30", "300", f"{100 * made.points[2].rank1:.1f}"],
    ]


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


def test_people_of_one_camera_cannot_be_held_out_to_judge_matching(train, tmp_path, monkeypatch):
    arrays = dict(np.load(train))
    np.savez(train, **{**arrays, "camids": 0 * arrays["camids"]})
    monkeypatch.setattr(Suppressor, "fit_people", pytest.fail)  # it is told before anything is fitted
    argv = ["--train", str(train), "--hold-out", "20", "--out", str(tmp_path / "front.json"), *FLAGS]
    with pytest.raises(ValueError, match="people held out of --train nobody has rows of two cameras.* their camids"):
        suppressor_command(argv)


def test_what_the_people_held_out_share_is_no_figure_of_the_front(tmp_path):
    some, path = rows(), tmp_path / "train.npz"
    pids = np.unique(some.pids)
    _, held = hold_out(some, 20, 0)
    alone = np.setdiff1d(pids, held.pids)[0]  # hats are told apart by one person, who is not held out
    named = {f"attr_{name}": values for name, values in some.attributes.items()} | {
        "attr_hat": (some.pids == alone) * 1
    }
    np.savez(path, features=some.features, pids=some.pids, camids=some.camids, **named)
    out = tmp_path / "front.json"
    argv = ["--train", str(path), "--only", "gender", "--hold-out", "20", "--seed", "0", "--out", str(out), *FLAGS]
    made = suppressor_command(argv)
    assert sorted(made.points[1].leakage) == ["bag", "gender"]
