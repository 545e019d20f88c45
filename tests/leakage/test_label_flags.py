"""Labels of people from files: the flags of three commands, and what becomes of the rows."""

import numpy as np
import pytest
from test_leakage_command import market_file

from ppreid_plugin import cli
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.leakage import Leace, command, erasure_command
from ppreid_plugin.leakage.inputs import Labeler, load_set
from ppreid_plugin.suppressor import command as suppressor_command

LABELS = {3: (0, 1), 5: (1, 1), 8: (1, 0), 9: (0, 0)}  # bag and hat by pid
PIDS = np.repeat([8, 3, 5, 7, 9], 6)  # 7 has no labels
FEATURES = np.random.default_rng(0).normal(size=(len(PIDS), 4))


@pytest.fixture
def files(tmp_path):
    train, labels = tmp_path / "train.npz", tmp_path / "labels.npz"
    np.savez(train, features=FEATURES, pids=PIDS, camids=np.arange(len(PIDS)) % 3)
    bag, hat = np.array(list(LABELS.values())).T
    np.savez(labels, pids=list(LABELS), attr_bag=bag, attr_hat=hat)
    return str(train), str(labels)


@pytest.mark.parametrize("made_by", [command, erasure_command, suppressor_command])
def test_the_commands_take_the_same_flags(made_by):
    parser = made_by.parser()
    none = parser.parse_args(["--train", "t.npz"])
    assert (none.attributes, none.market_attributes, none.only) == (None, None, None)
    given = ["--attributes", "a.npz", "--market-attributes", "m.mat", "--only", "bag", "hat"]
    some = parser.parse_args(["--train", "t.npz", *given])
    assert (some.attributes, some.market_attributes, some.only) == ("a.npz", "m.mat", ["bag", "hat"])


def test_labels_go_to_every_row_of_a_person(files):
    train, labels = files
    rows = Labeler(labels, None, None)(load_set(train, ()), "--train")
    assert sorted(rows.attributes) == ["bag", "hat"]
    for pid, bag, hat in zip(rows.pids, rows.attributes["bag"], rows.attributes["hat"], strict=True):
        assert (bag, hat) == LABELS.get(int(pid), (-1, -1))
    assert list(Labeler(labels, None, ["hat"])(load_set(train, ()), "--train").attributes) == ["hat"]


def test_the_file_of_attributes_is_what_is_erased(files, tmp_path):
    train, labels = files
    out = tmp_path / "leace.safetensors"
    erasure_command.erase_command(["--train", train, "--attributes", labels, "--only", "bag", "--out", str(out)])
    bag = np.array([LABELS.get(pid, (-1, -1))[0] for pid in PIDS.tolist()])
    wanted = Leace(center=True).fit_concepts(FEATURES.astype(np.float32), bag[:, None])
    np.testing.assert_allclose(build_transform(f"leace:{out}").transform(FEATURES), wanted.transform(FEATURES))


def test_people_of_market_are_not_told_by_numbers(files, tmp_path, capsys):
    market = str(market_file(tmp_path / "market_attribute.mat"))
    argv = ["--train", files[0], "--market-attributes", market, "--out", str(tmp_path / "leace.safetensors")]
    assert cli.run(erasure_command.erase_command, argv) == 2
    assert "--train has no row_ids" in capsys.readouterr().err
    assert not (tmp_path / "leace.safetensors").exists()


def test_people_of_market_are_told_by_file_names(tmp_path):
    market = str(market_file(tmp_path / "market_attribute.mat"))
    named = np.array([f"{pid:04d}_c1s1_{place:06d}_00.jpg" for place, pid in enumerate(np.repeat([2, 7, 3], 10))])
    train = tmp_path / "named.npz"  # torchreid's labels, which are not Market-1501's
    np.savez(train, features=FEATURES, pids=np.repeat([0, 1, 2], 10), camids=PIDS * 0, row_ids=named)
    rows = Labeler(None, market, ["gender", "age"])(load_set(train, ()), "--train")
    assert rows.attributes["gender"].tolist() == [0] * 10 + [1] * 10 + [0] * 10
    assert rows.attributes["age"].tolist() == [1] * 10 + [3] * 10 + [0] * 10


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_training_people_that_torchreid_numbered_anew_get_their_own_labels(tmp_path, suffix):
    labels = tmp_path / f"labels.{suffix}"
    words = {1: "no", 2: "yes", 3: "no", 5: "yes"}  # torchreid numbers the people 2, 3, 5 as 0, 1, 2
    labels.write_text("pid,bag\n" + "".join(f"{pid},{word}\n" for pid, word in words.items()))
    if suffix == "npz":
        np.savez(labels, pids=list(words), attr_bag=[int(word == "yes") for word in words.values()])
    train = tmp_path / "named.npz"
    named = np.array([f"train/{pid:04d}_c1s1_{place:06d}_00.jpg" for place, pid in enumerate(np.repeat([2, 3, 5], 10))])
    np.savez(train, features=FEATURES, pids=np.repeat([0, 1, 2], 10), camids=PIDS * 0, row_ids=named)
    rows = Labeler(str(labels), None, None)(load_set(train, ()), "--train")
    assert rows.attributes["bag"].tolist() == [1] * 10 + [0] * 10 + [1] * 10
