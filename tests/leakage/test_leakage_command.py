"""The command line of the attackers: what it reads, protects, writes and refuses."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import identities
from safetensors.numpy import save_file
from scipy.io import savemat

from ppreid_plugin import DPGallery, cli
from ppreid_plugin.data.attributes import load_market_attributes
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.leakage.command import leakage_command
from ppreid_plugin.leakage.inputs import load_set
from ppreid_plugin.leakage.market_attributes import with_attributes
from ppreid_plugin.leakage.protection import protect, released

TOOL = Path(__file__).parents[2] / "tools" / "measure_leakage.py"
TRAIN, TEST = identities(24, seed=1, first_pid=0), identities(20, seed=2)


def write(path, rows, **changes):
    arrays = {"features": rows.features, "pids": rows.pids, "camids": rows.camids, "attr_a": rows.attributes["a"]}
    arrays |= {"row_ids": np.array([f"{pid:04d}_c1s1_{place:06d}_00.jpg" for place, pid in enumerate(rows.pids)])}
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def files(tmp_path):
    return {"train": write(tmp_path / "train.npz", TRAIN), "test": write(tmp_path / "test.npz", TEST)}


def run(capsys, *argv):
    code = cli.run(leakage_command, [str(word) for word in argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_json_and_table(files, tmp_path, capsys):
    out = tmp_path / "leakage.json"
    argv = ["--train", files["train"], "--test", files["test"], "--clean", files["test"], "--clean-train"]
    argv += [files["train"], "--attacks", "identification", "--seeds", 2, "--out", out]
    code, printed, err = run(capsys, *argv)
    assert code == 0, err
    record = json.loads(out.read_text())
    assert set(record) == {"channels", "task_max", "non_task_max", "meta"}
    figure = record["channels"]["identification"]
    assert set(figure) >= {"score", "low", "high", "floor", "clean", "leakage", "attacker"}
    assert figure["floor"] == 1 / 20
    assert figure["leakage"] == pytest.approx(1.0)  # nothing protects them
    assert record["task_max"]["channel"] == "identification"
    assert "roc" not in figure  # not an AUC
    assert record["non_task_max"] is None
    assert record["meta"]["command"] == ["tools/measure_leakage.py", *map(str, argv)]
    assert "Largest task leakage: 100.0%" in printed
    assert list(tmp_path.glob("*finished*")) == []


def test_kept_attacks_on_clean_features_are_shared_between_runs(files, tmp_path, capsys):
    kept = tmp_path / "kept.json"

    def attack(epsilon):
        argv = ["--train", files["train"], "--test", files["test"], "--mechanism", "gaussian", "--epsilon", epsilon]
        argv += ["--attacks", "identification", "--seeds", 1, "--finished", kept, "--out", tmp_path / f"{epsilon}.json"]
        code, _, err = run(capsys, *argv)
        assert code == 0, err
        return set(json.loads(kept.read_text())["runs"])

    first, second = attack(8), attack(400)
    assert len(first) == 2
    assert first < second
    assert len(second) == 3  # the attack on clean features is the first run's


def test_kept_attacks_are_not_dropped(files, tmp_path, capsys):
    argv = ["--train", files["train"], "--test", files["test"], "--finished", tmp_path / "kept.json", "--fresh"]
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert "--fresh would drop what other runs keep" in err


def test_the_tool_runs(files, tmp_path, monkeypatch):
    out = tmp_path / "leakage.json"
    argv = ["--train", files["train"], "--test", files["test"], "--attacks", "identification", "--seeds", 1]
    monkeypatch.setattr(sys, "argv", ["measure_leakage.py", *map(str, argv), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0
    figure = json.loads(out.read_text())["channels"]["identification"]
    assert figure["clean"] is None
    assert figure["leakage"] is None


def test_a_mechanism_protects_both_sides_and_noise_hides_people(files, tmp_path, capsys):
    shown = {}
    for epsilon in (0.5, 500):
        out = tmp_path / f"{epsilon}.json"
        argv = ["--train", files["train"], "--test", files["test"], "--mechanism", "privunit_g", "--epsilon", epsilon]
        code, _, err = run(capsys, *argv, "--attacks", "identification", "--seeds", 1, "--out", out)
        assert code == 0, err
        shown[epsilon] = json.loads(out.read_text())["channels"]["identification"]
    assert shown[0.5]["leakage"] < 0.3
    assert shown[500]["leakage"] > 0.8
    assert shown[0.5]["clean"] == pytest.approx(shown[500]["clean"])


def released_folder(tmp_path, epsilon=500.0, protocol="anonymous"):
    rows = GalleryRows(TEST.features, [f"t{place}" for place in range(len(TEST))], TEST.pids, TEST.camids)
    center = build_transform("center").fit(TRAIN.features)
    release_gallery(
        rows,
        tmp_path / "release",
        ledger=Ledger(tmp_path / "ledger", "market", epsilon=1000.0, delta=1e-4),
        mechanism=build_mechanism("gaussian", epsilon=epsilon),
        transform=center,
        terms=ReleaseTerms(name="a", model="m", protocol=protocol),
        truth_out=tmp_path / "truth.json",
    )
    return tmp_path / "release", tmp_path / "truth.json"


def test_rows_are_labeled_by_the_map_of_this_release_alone(files, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    folder, _ = released_folder(first)
    _, strange = released_folder(second)  # of the same name and size, by another ledger: it names other people
    argv = ["--release", folder, "--train", files["train"], "--attacks", "identification", "--out", tmp_path / "o.json"]
    code, _, err = run(capsys, *argv, "--truth", strange)
    assert code == 2
    assert f"--truth '{strange}' is the map of a-0001, 120 rows, which is no part of this release" in err
    assert not (tmp_path / "o.json").exists()


def test_labels_may_not_contradict_a_release_that_carries_them(tmp_path):
    folder, _ = released_folder(tmp_path, protocol="enrolled")
    release = load_release(folder)
    own = dict(zip(release.row_ids, zip(release.pids.tolist(), release.camids.tolist(), strict=True), strict=True))
    np.testing.assert_array_equal(released(release, own).pids, release.pids)
    np.testing.assert_array_equal(released(release, {}).pids, release.pids)
    name = release.row_ids[7]
    with pytest.raises(ValueError, match=f"row '{name}' shows pid 9999; the release, which carries pids itself, says"):
        released(release, {name: (9999, 0)})


def test_a_release_is_attacked_with_training_rows_protected_alike(files, tmp_path, capsys):
    folder, truth = released_folder(tmp_path)
    out = tmp_path / "leakage.json"
    argv = ["--release", folder, "--truth", truth, "--train", files["train"], "--clean", files["test"], "--out", out]
    code, _, err = run(capsys, *argv, "--attacks", "identification", "--seeds", 1)
    assert code == 0, err
    record = json.loads(out.read_text())
    assert record["channels"]["identification"]["leakage"] > 0.8
    assert record["meta"]["protection"]["epsilon"] == 500.0

    release = load_release(folder)
    mine = protect(TRAIN, release, seed=1)
    again, other = protect(TRAIN, release, seed=1), protect(TRAIN, release, seed=2)
    np.testing.assert_array_equal(mine.features, again.features)
    assert np.abs(mine.features - other.features).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(mine.features, axis=1), 1, rtol=1e-5)
    assert (mine.pids.tolist(), mine.camids.tolist()) == (TRAIN.pids.tolist(), TRAIN.camids.tolist())
    wanted = release.transform().transform(TRAIN.features)
    np.testing.assert_allclose(mine.clean, wanted, atol=1e-5)  # as it reaches the noise
    assert np.abs(mine.features - mine.clean).max() > 0

    table = tmp_path / "truth.npz"
    names = {row["row"]: row for row in json.loads(truth.read_text())["rows"]}
    order = sorted(names)
    labels = {key: np.array([names[name][key] for name in order]) for key in ("pid", "camid")}
    np.savez(table, row_ids=np.array(order), pids=labels["pid"], camids=labels["camid"], attr_b=labels["pid"] % 2)
    code, _, err = run(
        capsys, "--release", folder, "--truth", table, "--train", files["train"], "--attacks", "identification",
        "--seeds", 1, "--out", out,
    )  # fmt: skip
    assert code == 0, err
    labeled = released(release, {name: (names[name]["pid"], names[name]["camid"]) for name in order})
    np.testing.assert_allclose(labeled.features, np.asarray(release.features), rtol=1e-6)  # normalized once more
    with pytest.raises(ValueError, match="lacks 120 of the release's 120 rows"):
        released(release, {})


def test_a_component_protects_as_evaluation_does():
    gallery = DPGallery("gaussian", epsilon=4.0, seed=7).fit(TRAIN.features)
    mine = protect(TEST, gallery, seed=7)
    np.testing.assert_allclose(mine.features, gallery.protect(torch.from_numpy(TEST.features)), atol=1e-6)
    assert gallery.seed == 7
    assert np.abs(protect(TEST, gallery, seed=8).features - mine.features).max() > 0.01
    assert gallery.seed == 7
    prototypes = protect(TEST, DPGallery("gaussian", epsilon=4.0, unit="person").fit(TRAIN.features), seed=1)
    assert prototypes.pids.tolist() == list(range(1, 21))
    assert prototypes.attributes["a"].tolist() == [pid % 2 for pid in range(1, 21)]
    assert set(prototypes.camids.tolist()) == {-1}


def test_safetensors_and_rows_that_are_no_people(tmp_path):
    pids = TEST.pids.copy()
    pids[:3], pids[3:5] = -1, 0
    names = np.array([np.frombuffer(f"{place:04d}".encode(), dtype=np.uint8) for place in range(len(pids))])
    arrays = {"features": TEST.features, "pids": pids, "camids": TEST.camids, "row_ids": names}
    save_file(arrays, tmp_path / "test.safetensors")
    rows = load_set(tmp_path / "test.safetensors", (0,))
    assert len(rows) == len(pids) - 3  # without junk
    assert len(rows.people) == len(pids) - 5
    assert rows.row_ids[0] == "0003"


def market_file(path):
    def table(pids, **values):
        columns = {name: np.array(column, dtype=np.uint8) for name, column in values.items()}
        return {**columns, "image_index": np.array([f"{pid:04d}" for pid in pids], dtype=object)}

    train = table([2, 7], gender=[1, 2], age=[2, 4], upred=[2, 1], upblue=[1, 1], down=[1, 2], downblack=[1, 2])
    test = table([1, 3], downblack=[2, 1], gender=[2, 1], age=[1, 1], upblue=[2, 2], upred=[1, 2], down=[2, 2])
    savemat(path, {"market_attribute": {"train": train, "test": test}})
    return path


def test_market_attributes_by_person(tmp_path):
    people = load_market_attributes(market_file(tmp_path / "market_attribute.mat"))
    assert people == {
        2: {"gender": 0, "age": 1, "down": 0, "up_color": 1, "down_color": -1},
        7: {"gender": 1, "age": 3, "down": 1, "up_color": -1, "down_color": 0},
        1: {"gender": 1, "age": 0, "down": 1, "up_color": 0, "down_color": 0},
        3: {"gender": 0, "age": 0, "down": 1, "up_color": -1, "down_color": -1},
    }
    rows = identities(3, rows_each=2, first_pid=0)  # torchreid's labels 0, 1, 2 of people 7, 2, 9
    names = tuple(f"set/train/{pid:04d}_c{camera}s1_000001_00.jpg" for pid in (7, 2, 9) for camera in (1, 2))
    import dataclasses

    labeled = with_attributes(dataclasses.replace(rows, row_ids=names), people, named=True)
    assert labeled.attributes["gender"].tolist() == [1, 1, 0, 0, -1, -1]
    with pytest.raises(ValueError, match="no market_attribute.mat"):
        savemat(tmp_path / "other.mat", {"x": np.ones(3)})
        load_market_attributes(tmp_path / "other.mat")


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"camids": None}, (), "test.npz' lacks camids; it holds attr_a, features, pids, row_ids"),
        ({"camids": TEST.camids[:-1]}, (), "camids has shape (119,)"),
        ({"pids": TEST.pids.astype(float)}, (), "pids has shape (120,) and type float64"),
        ({"features": np.where(TEST.features > 8, np.nan, TEST.features)}, (), "hold NaN or infinity"),
        ({"features": 1e20 * TEST.features}, (), "must be 0 or lie between 1e-09 and 1e+12: their squares leave"),
        ({"features": 1e-20 * TEST.features}, (), "must be 0 or lie between 1e-09 and 1e+12: their squares leave"),
        ({"features": TEST.features[:, :5]}, (), "have 16 columns, the rows to attack 5"),
        ({"camids": 0 * TEST.camids}, (), "of one camera"),
        ({"attr_a": 0 * TEST.pids}, ("--attacks", "attributes"), "attribute 'a' has fewer than two classes"),
        ({"attr_a": None}, ("--attacks", "attributes"), "have no attributes. Add arrays attr_<name>"),
        ({"attr_a": 5 - 7 * (TEST.pids % 2)}, (), "test.npz': attributes[a] holds -2, must be at least 0, or -1 where"),
        ({}, ("--only", "b"), "--only has 'b'; --train has: a"),
        ({}, ("--attacks", "identificaton"), "Did you mean 'identification'?"),
        ({}, ("--mechanism", "gaussian"), "--mechanism and --epsilon belong together"),
        ({}, ("--release", "x"), "--release is given beside --test"),
        ({}, ("--truth", "x"), "--truth names the rows of a release"),
        ({}, ("--clean", "x.npz"), "--clean needs --clean-train"),
        ({}, ("--seeds", "0"), "--seeds is 0"),
        ({}, ("--out", "nowhere/leakage.json"), "--out is 'nowhere/leakage.json', but 'nowhere' is no folder"),
        ({}, ("--finished", "nowhere/f.json"), "--finished is 'nowhere/f.json', but 'nowhere' is no folder"),
    ],
)  # fmt: skip
def test_errors(tmp_path, capsys, monkeypatch, changes, flags, message):
    monkeypatch.chdir(tmp_path)
    argv = ["--train", write(tmp_path / "train.npz", TRAIN), "--test", write(tmp_path / "test.npz", TEST, **changes)]
    code, _, err = run(capsys, *argv, "--attacks", "identification", *flags)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("leakage*"))


def test_attacks_that_need_cameras_are_left_out_of_the_usual_ones_where_there_are_none(tmp_path, capsys):
    for name, rows in (("train", TRAIN), ("test", TEST)):
        write(tmp_path / f"{name}.npz", rows, camids=np.full(len(rows), -1 if name == "test" else 0))
    out = tmp_path / "leakage.json"
    argv = ["--train", tmp_path / "train.npz", "--test", tmp_path / "test.npz", "--seeds", 1, "--out", out]
    code, printed, err = run(capsys, *argv)
    assert code == 0, err
    assert "or of none as prototypes are: camera, identification, linkage are left out." in printed
    assert set(json.loads(out.read_text())["channels"]) == {"attributes", "membership"}
    code, _, err = run(capsys, *argv, "--attacks", "linkage")
    assert (code, "camera" in err) == (2, True)  # asked for by name, it is an error


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"test": {"attr_a": None}}, {"Attributes is left out: the rows to attack have no attributes."}),
        ({"train": {"attr_a": None}}, {"Attributes is left out: the training rows have no attributes."}),
        ({"clean": {"attr_a": None}}, {"Attributes is left out: the rows to attack have no attributes."}),
        ({"test": {"attr_a": 0 * TEST.pids}}, {"Attributes is left out: attribute 'a' has fewer than two classes"}),
        (
            {"train": {"camids": 0 * TRAIN.camids}},
            {"Camera is left out: the training rows are of one camera (0)", "Identification is left out: the training"},
        ),
    ],
)
def test_what_cannot_be_run_is_left_out_of_the_usual_attacks(tmp_path, capsys, monkeypatch, changes, left_out):
    asked = []
    monkeypatch.setattr(
        "ppreid_plugin.leakage.command.measure_leakage", lambda *_, **given: asked.append(given["attacks"])
    )
    paths = {
        name: write(tmp_path / f"{name}.npz", TEST if name in ("test", "clean") else TRAIN, **changes.get(name, {}))
        for name in ("train", "test", "clean", "clean_train")
    }
    argv = ["--train", paths["train"], "--test", paths["test"], "--out", tmp_path / "o.json"]
    if "clean" in changes:
        argv += ["--clean", paths["clean"], "--clean-train", paths["clean_train"]]
    with pytest.raises(AttributeError):  # what stands for the battery returns no record
        leakage_command([str(word) for word in argv])
    printed = capsys.readouterr().out
    assert all(message in printed for message in left_out)
    gone = {message.split()[0].lower() for message in left_out} | ({"membership"} if "clean" in changes else set())
    wanted = [name for name in ("attributes", "camera", "identification", "linkage", "membership") if name not in gone]
    assert asked == [wanted]


def test_attackers_of_the_gallery_need_nothing_of_the_training_rows(tmp_path, capsys):
    """Its labels teach them; those of --train, which has none, are not looked at."""
    train = write(tmp_path / "train.npz", TRAIN, attr_a=None, camids=0 * TRAIN.camids)
    argv = ["--train", train, "--test", write(tmp_path / "test.npz", TEST), "--learn-from", "gallery", "--seeds", 1]
    code, printed, err = run(capsys, *argv, "--out", tmp_path / "o.json")
    assert code == 0, err
    assert "Attributes is left out" not in printed
    found = json.loads((tmp_path / "o.json").read_text())["channels"]
    assert set(found) == {"attributes", "camera", "identification", "linkage"}
    write(tmp_path / "test.npz", TEST, attr_a=np.where(TEST.pids == 3, 0, -1))
    code, printed, err = run(capsys, *argv, "--out", tmp_path / "o.json")
    assert code == 0, err
    assert "Attributes is left out with --learn-from gallery: attribute 'a' has fewer than two classes" in printed


def test_rows_that_no_attack_can_be_run_on_are_an_error(tmp_path, capsys):
    few = TEST.take(np.isin(TEST.pids, (1, 2)))
    test = write(tmp_path / "test.npz", few, camids=0 * few.camids, attr_a=None)
    argv = ["--train", write(tmp_path / "train.npz", TRAIN), "--test", test, "--out", tmp_path / "o.json"]
    code, printed, err = run(capsys, *argv)
    assert code == 2
    assert "Membership is left out" in printed
    assert "no attack can be run on these rows; what each lacks is said above" in err


@pytest.mark.parametrize(
    "flags",
    [(), ("--attacks", "camera"), ("--learn-from", "gallery"), ("--learn-from", "gallery", "--attacks", "camera")],
)
@pytest.mark.parametrize("with_clean", [False, True])
def test_a_gallery_that_is_all_background_is_told(files, tmp_path, capsys, flags, with_clean):
    test = write(tmp_path / "test.npz", TEST, pids=0 * TEST.pids)
    argv = ["--train", files["train"], "--test", test, "--out", tmp_path / "o.json", *flags]
    argv += ["--clean", files["test"], "--clean-train", files["train"]] if with_clean else []
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert "are all of background pids: nobody is left. Check --background-pids" in err


def test_too_few_training_people_are_named(tmp_path, capsys):
    few = TRAIN.take(TRAIN.pids < 2)
    argv = ["--train", write(tmp_path / "train.npz", few), "--test", write(tmp_path / "test.npz", TEST)]
    code, _, err = run(capsys, *argv, "--attacks", "attributes", "--out", tmp_path / "leakage.json")
    assert code == 2
    assert "2 training people are fewer than 3 folds" in err


def test_attackers_may_learn_from_the_gallery(files, tmp_path, capsys):
    out = tmp_path / "leakage.json"
    argv = ["--train", files["train"], "--test", files["test"], "--clean", files["test"], "--clean-train"]
    argv += [files["train"], "--seeds", 1, "--out", out]
    code, printed, err = run(capsys, *argv, "--learn-from", "gallery")
    assert code == 0, err
    assert "Membership is told by training people" in printed
    alone = json.loads(out.read_text())
    assert "membership" not in alone["channels"]
    assert alone["channels"]["camera"]["learn_from"] == "gallery"
    code, _, err = run(capsys, *argv, "--learn-from", "train", "gallery", "--attacks", "camera", "linkage")
    assert code == 0, err
    both = json.loads(out.read_text())
    assert both["meta"]["learn_from"] == ["train", "gallery"]
    camera = both["channels"]["camera"]
    known = {one["learn_from"]: one["score"] for one in (camera, camera["weaker"])}
    assert known["gallery"] == alone["channels"]["camera"]["score"]
    assert set(known) == {"train", "gallery"}
    code, _, err = run(capsys, *argv, "--learn-from", "gallery", "--attacks", "membership")
    assert code == 2
    assert "membership cannot learn from half of the gallery's people" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--transform", "center"), "--transform is 'center' without --mechanism: it would do nothing"),
        (("--transform", "leace:l.safetensors"), "(--mechanism none --epsilon 1: no noise), or leave it out"),
        (("--unit", "person"), "--unit is 'person' without --mechanism"),
        (("--delta", "1e-6"), "--delta is 1e-06 without --mechanism"),
        (("--mechanism", "gausian", "--epsilon", "8"), "--mechanism is 'gausian'; registered"),
        (("--mechanism", "gaussian:sigma=1", "--epsilon", "8"), "--mechanism has 'sigma'; allowed: clip_norm, max"),
        (("--mechanism", "gaussian:epsilon=3", "--epsilon", "8"), "--mechanism has 'epsilon'; allowed: clip_norm"),
        (("--mechanism", "codebook", "--epsilon", "8"), "Give for example: --mechanism codebook:codewords=1024"),
        (
            ("--mechanism", "gaussian:max_rows_per_person=x", "--epsilon", "8"),
            "max_rows_per_person of --mechanism is 'x', must be a whole number >= 0",
        ),
        (("--mechanism", "gaussian", "--epsilon", "-1"), "--epsilon is -1.0, must be a finite number > 0"),
        (("--mechanism", "privunit_g", "--epsilon", "5e-324"), "--epsilon is 5e-324, privunit_g is computed from"),
        (("--mechanism", "gaussian", "--epsilon", "8", "--delta", "0"), "--delta is 0.0, gaussian needs 0 < delta"),
        (("--mechanism", "gaussian", "--epsilon", "8", "--transform", "pcs"), "--transform is 'pcs'; registered"),
        (
            ("--mechanism", "codebook:codewords=1", "--epsilon", "8"),
            "codewords of --mechanism is 1, must be a whole number >= 2",
        ),
        (("--mechanism", "codebook:codewords=4,seed=x", "--epsilon", "8"), "seed of --mechanism is 'x', must be"),
        (
            ("--mechanism", "gaussian", "--epsilon", "8", "--transform", "pca:components=999"),
            "components of --transform is 999, but",
        ),
        (
            ("--attacks", "linkage", "--judge-model", "osnet_x0_25", "--judge-weights", "w"),
            "--judge-model looks at reconstructions: add reconstruction to --attacks",
        ),
    ],
)
def test_flags_that_would_do_nothing_are_refused(files, tmp_path, capsys, flags, message):
    argv = ["--train", files["train"], "--test", files["test"], "--out", tmp_path / "leakage.json", *flags]
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert message in err
    assert "privacy." not in err
    assert not (tmp_path / "leakage.json").exists()


def test_attackers_do_not_learn_from_the_rows_that_they_attack(files, tmp_path, capsys):
    argv = ["--train", files["test"], "--test", files["test"], "--out", tmp_path / "leakage.json"]
    code, _, err = run(capsys, *argv, "--attacks", "identification")
    assert code == 2
    assert f"holds {len(TEST)} rows of --test, such as 0001_c1s1_000000_00.jpg: attackers learn from other" in err
    assert not (tmp_path / "leakage.json").exists()


def test_numbers_are_no_names_that_two_files_could_share(files, tmp_path, capsys):
    """An extractor of one's own may number the rows of each file from 0."""
    paths = []
    for name in ("train", "test"):
        with np.load(files[name]) as arrays:
            numbered = {**arrays, "row_ids": np.arange(len(arrays["pids"]))}
        paths.append(tmp_path / f"{name}.npz")
        np.savez(paths[-1], **numbered)
    argv = ["--train", paths[0], "--test", paths[1], "--out", tmp_path / "leakage.json", "--seeds", 1]
    assert run(capsys, *argv, "--attacks", "identification")[0] == 0


def test_a_released_gallery_and_the_same_file_twice_are_no_training_rows(files, tmp_path, capsys):
    folder, truth = released_folder(tmp_path)
    argv = ["--attacks", "linkage", "--seeds", 1, "--out", tmp_path / "leakage.json"]
    names = np.array([f"t{place}" for place in range(len(TEST))])  # as the gallery that was released calls its rows
    own = write(tmp_path / "own.npz", TEST, row_ids=names)
    code, _, err = run(capsys, "--train", own, "--release", folder, "--truth", truth, *argv)
    assert (code, "--train" in err) == (2, True)
    assert "holds 120 rows of --release, such as t0: attackers learn from other people" in err
    unnamed = write(tmp_path / "unnamed.npz", TEST, row_ids=None)
    code, _, err = run(capsys, "--train", unnamed, "--test", unnamed, *argv)
    assert code == 2
    assert "holds the rows of --test: attackers learn from other people" in err
    code, _, err = run(capsys, "--train", unnamed, "--release", folder, "--truth", truth, "--clean", unnamed, *argv)
    assert (code, "holds the rows of --clean" in err) == (2, True)
    assert not (tmp_path / "leakage.json").exists()


def test_clean_rows_of_others_than_are_attacked_are_left_out(files, tmp_path, capsys):
    """Whoever opted out of a release is in the gallery that it was drawn from."""
    out = tmp_path / "leakage.json"
    few = TEST.take(TEST.pids <= 6)
    some = few.take(np.arange(len(few)) % 2 == 0)

    def attack(rows, **changes):
        test = write(tmp_path / "few.npz", rows, **changes)
        argv = ["--train", files["train"], "--test", test, "--clean", files["test"], "--clean-train", files["train"]]
        code, printed, err = run(capsys, *argv, "--attacks", "identification", "--seeds", 1, "--out", out)
        assert code == 0, err
        figure = json.loads(out.read_text())["channels"]["identification"]
        assert figure["floor"] == 1 / 6
        assert figure["leakage"] == pytest.approx(1.0)  # the same rows; of 20 people it would be more
        return printed

    assert "84 rows of --clean are left out: their people are not attacked" in attack(few, row_ids=None)
    names = np.load(files["test"])["row_ids"][: len(few)]
    assert "102 rows of --clean are left out: their rows are not attacked" in attack(some, row_ids=names[::2])


def test_clean_rows_are_of_the_people_who_are_attacked(files, tmp_path, capsys):
    folder, truth = released_folder(tmp_path)
    others = write(tmp_path / "others.npz", identities(20, seed=5, first_pid=400))
    argv = ["--train", files["train"], "--release", folder, "--truth", truth, "--clean", others]
    code, _, err = run(capsys, *argv, "--attacks", "linkage", "--out", tmp_path / "leakage.json")
    assert code == 2
    assert "--clean lacks 20 of the 20 people who are attacked, such as pid 1: it must hold the same gallery" in err


def test_background_of_a_release_is_background_on_the_clean_side_too(files, tmp_path, capsys, monkeypatch):
    rows = GalleryRows(TEST.features, [f"t{place}" for place in range(len(TEST))], TEST.pids, TEST.camids)
    release_gallery(
        rows, tmp_path / "release", ledger=Ledger(tmp_path / "l", "m", epsilon=1000.0, delta=1e-4),
        mechanism=build_mechanism("gaussian", epsilon=500.0), transform=build_transform("none"),
        terms=ReleaseTerms(name="a", model="m", background_pids=[0, 7]), truth_out=tmp_path / "t.json",
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(
        "ppreid_plugin.leakage.command.measure_leakage", lambda *sets, **_: seen.append(sets) or pytest.exit
    )
    argv = ["--train", files["train"], "--release", tmp_path / "release", "--truth", tmp_path / "t.json"]
    with pytest.raises(AttributeError):  # what stands for the battery returns no record
        leakage_command([str(word) for word in [*argv, "--clean", files["test"], "--attacks", "linkage"]])
    _, attacked, clean, _ = seen[0]
    assert set(attacked.people.pids) == set(clean.people.pids) == set(range(1, 21)) - {7}


def test_membership_is_left_out_of_the_usual_attacks_where_no_game_can_be_played(files, tmp_path, capsys):
    rows = GalleryRows(TEST.features, [f"t{place}" for place in range(len(TEST))], TEST.pids, TEST.camids)
    release_gallery(
        rows, tmp_path / "release", ledger=Ledger(tmp_path / "l", "m", unit="person", epsilon=1000.0, delta=1e-4),
        mechanism=build_mechanism("gaussian", epsilon=500.0), transform=build_transform("none"),
        terms=ReleaseTerms(name="a", model="m", unit="person", protocol="enrolled"),
    )  # fmt: skip
    labels = tmp_path / "labels.npz"
    people = np.unique(np.concatenate([TRAIN.pids, TEST.pids]))
    np.savez(labels, pids=people, attr_a=people % 2)
    out = tmp_path / "leakage.json"
    argv = ["--train", write(tmp_path / "bare.npz", TRAIN, attr_a=None), "--release", tmp_path / "release"]
    code, printed, err = run(capsys, *argv, "--attributes", labels, "--seeds", 1, "--out", out)
    assert code == 0, err
    assert "Membership is left out: membership can play none of its games." in printed
    assert set(json.loads(out.read_text())["channels"]) == {"attributes"}
    argv = ["--train", files["train"], "--test", files["test"], "--clean", files["test"], "--clean-train"]
    code, printed, err = run(capsys, *argv, files["train"], "--seeds", 1, "--out", out)
    assert code == 0, err
    assert "so membership is left out" in printed
    assert "membership" not in json.loads(out.read_text())["channels"]


def test_training_person_0_is_a_person_in_the_person_unit_too():
    """Training people are numbered from 0; in a gallery 0 is background."""
    rows = dataclasses.replace(TRAIN, background_pids=())
    gallery = DPGallery("gaussian", epsilon=4.0, unit="person").fit(torch.from_numpy(TRAIN.features))
    made = protect(rows, gallery, seed=1)
    assert sorted(made.pids.tolist()) == list(range(24))
