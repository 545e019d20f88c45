"""The command line as users meet it: every mistake is one line, exit code 2, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppreid_plugin import cli
from ppreid_plugin.config import ConfigError
from ppreid_plugin.demo import demo

REPOSITORY = Path(__file__).parent.parent
SMALL = (
    *("model.name", "osnet_x0_25", "model.pretrained", "False", "data.height", "64", "data.width", "32"),
    *("data.workers", "0", "train.batch_size", "16", "train.max_epoch", "1", "use_gpu", "False"),
)
DATA = ("-s", "synthetic_pedestrians", "-t", "synthetic_pedestrians")


@pytest.fixture
def train(pedestrians, tmp_path, capsys):
    """Run the training command; return (exit code, what it printed, its error text)."""

    def call(*argv, root=pedestrians, save_dir=tmp_path / "log"):
        flags = ("--root", str(root), *DATA)
        code = cli.run(cli.train, [*flags, *SMALL, "data.save_dir", str(save_dir), *map(str, argv)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_figures_are_of_the_checkpoint_that_was_chosen(train, tmp_path):
    options = ("privacy.validation.ids_fraction", "0.4", "test.eval_freq", "1", "train.max_epoch", "3")
    code, out, err = train(*options, "train.lr", "0.3", "data.save_dir", tmp_path / "log")
    assert code == 0, err
    record = json.loads((tmp_path / "log/metrics.json").read_text())
    assert record["chosen_on"] == "validation people"
    assert record["targets"]["validation_people"]["clean"]["mAP"] == pytest.approx(record["best"]["mAP"], abs=1e-6)
    assert ("the best on validation people" in out) == (record["best"]["epoch"] < 3)


def test_train_then_test_end_to_end(train, tmp_path):
    privacy = ("privacy.deid.enabled", "True", "privacy.adversary.enabled", "True")
    code, out, err = train(*privacy)
    assert code == 0, err
    assert "choose nothing" in out
    record = json.loads((tmp_path / "log/metrics.json").read_text())
    assert record["seed"] == 1
    assert record["chosen_on"].startswith("nothing")
    clean = record["targets"]["synthetic_pedestrians"]["clean"]

    written = (tmp_path / "log/metrics.json").read_bytes()
    assert train("test.evaluate", "True", "model.load_weights", tmp_path / "log/model/model-last.pth.tar")[0] == 0
    assert (tmp_path / "log/metrics.json").read_bytes() == written  # a test does not take the training's place
    tested = json.loads((tmp_path / "log/metrics-test.json").read_text())
    assert tested["chosen_on"] == "nothing: these weights were given"
    weights = tmp_path / "log/model/model-last.pth.tar"
    gallery = ("privacy.gallery.enabled", "True", "privacy.gallery.epsilon", "8")
    code, out, err = train("model.load_weights", weights, "test.evaluate", "True", *gallery, save_dir=tmp_path / "t")
    assert code == 0, err
    again = json.loads((tmp_path / "t/metrics.json").read_text())["targets"]["synthetic_pedestrians"]
    assert again["clean"]["mAP"] == pytest.approx(clean["mAP"], abs=1e-6)
    (protected,) = again["protected"]
    assert (protected["epsilon"], protected["delta"], protected["unit"]) == (8.0, 1e-5, "image")
    assert protected["sigma"] == pytest.approx(1.2, abs=0.01)
    assert protected["enrolled"]["rank1"] is not None
    log = next((tmp_path / "t").glob("test.log-*")).read_text()
    assert "Protected gallery: gaussian" in log


def test_what_was_trained_is_kept_when_the_evaluation_fails_and_the_way_on_is_named(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ppreid_plugin.testing.extract", lambda *_, **__: (_ for _ in ()).throw(OSError("image gone")))
        code, out, err = train()
    assert (code, err) == (2, "Error: image gone\n")
    last = tmp_path / "log/model/model-last.pth.tar"
    assert f"To go on, append: model.resume {last}" in out
    code, out, err = train("model.resume", last)
    assert code == 0, err
    assert json.loads((tmp_path / "log/metrics.json").read_text())["targets"]
    code, out, err = train("train.batch_size", "1000")  # stopped before anything was trained
    assert code == 2
    assert "To go on" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("privacy.deid.taget", "blur"), "unknown key 'privacy.deid.taget'"),
        (("privacy.gallery.enabled", "True", "privacy.gallery.epsilon", "-1"), "privacy.gallery.epsilon is -1.0"),
        (("privacy.gallery.enabled", "True", "privacy.gallery.delta", "0"), "privacy.gallery.delta is 0.0"),
        (("privacy.gallery.enabled", "True", "privacy.gallery.epsilons", "[4, 0]"), "privacy.gallery.epsilons is 0"),
        (("privacy.deid.enabled", "True", "privacy.deid.target", "pixelize"), "Did you mean 'pixelate'?"),
        (("--transforms", "random_flipp"), "data.transforms is 'random_flipp'"),
        (("-s", "market"), "data.sources is 'market'; image data sets: "),
        (("model.name", "osnet"), "model.name is 'osnet'; torchreid has: "),
        (("model.load_weights", "nowhere.pth"), "model.load_weights is 'nowhere.pth', which does not exist"),
        (("model.load_weights", "zoo:osnet_x25"), "model.load_weights is 'zoo:osnet_x25'; the zoo has: "),
        (("model.resume", "nowhere.pth"), "model.resume is 'nowhere.pth', which does not exist"),
        (("train.batch_size", "5000"), "fewer than a batch of 5000"),
        (("--config-file", "nowhere.yaml"), "--config-file is 'nowhere.yaml'"),
        (("--dataset", "mine"), "--dataset is 'mine', must be NAME=FILE.csv"),
        (("--dataset", "mine=nowhere.csv"), "nowhere.csv' does not exist"),
        (("privacy.gallery.epsilon", "8"), "privacy.gallery.epsilon is given, but privacy.gallery.enabled is False"),
        (
            ("privacy.gallery.enabled", "True", "privacy.gallery.truth", "[no.json]"),
            "privacy.gallery.truth names the rows of privacy.gallery.release, which is not given",
        ),
        (
            ("privacy.gallery.enabled", "True", "privacy.gallery.enroll_cameras", "[9]"),
            "privacy.gallery.enroll_cameras is given with privacy.gallery.unit 'image'",
        ),
        (
            ("privacy.gallery.enabled", "True", "privacy.gallery.prototype", "False"),
            "privacy.gallery.prototype is given with privacy.gallery.unit 'image'",
        ),
        (("privacy.validation.seed", "7"), "privacy.validation.seed is given with privacy.validation.ids_fraction 0"),
        (("privacy.gallery.release", "releases/x"), "Append: privacy.gallery.enabled True, or leave the key out"),
        (("privacy.deid.kwargs.levels", "3"), "privacy.deid.kwargs.levels is given, but privacy.deid.enabled is False"),
        (
            ("privacy.gallery.enabled", "True", "privacy.gallery.release", "r", "privacy.gallery.epsilon", "8"),
            "privacy.gallery.epsilon is given beside privacy.gallery.release 'r', which was drawn with its own",
        ),
        (
            ("privacy.gallery.enabled", "True", "privacy.gallery.epsilons", "[4, 8]", "privacy.gallery.epsilon", "8"),
            "but privacy.gallery.epsilons [4, 8] are what is evaluated",
        ),
        (
            ("privacy.deid.enabled", "True", "privacy.deid.sigma", "0.1"),
            "privacy.deid.sigma is given, and privacy.deid.target 'pixelate' takes no sigma: it would do nothing",
        ),
        (
            ("privacy.deid.enabled", "True", "privacy.deid.target", "blur", "privacy.deid.blocks", "4"),
            "privacy.deid.blocks is given, and privacy.deid.target 'blur' takes no blocks: it would do nothing",
        ),
        (
            (
                *("privacy.deid.enabled", "True", "privacy.adversary.enabled", "True"),
                *("privacy.adversary.labels", "l.csv", "privacy.adversary.names", "['identity','camera']"),
            ),
            "of privacy.adversary.names ['identity', 'camera'] none takes labels: it would do nothing",
        ),
        (("--whatever",), "'--whatever' is neither a flag nor a configuration key"),
        (("privacy.deid.enabled", "True", "model.name", "hacnn"), "model.name is 'hacnn', whose feature"),
        (
            ("train.fixbase_epoch", "1", "train.open_layers", "head"),
            "train.open_layers has 'head'; layers of osnet_x0_25: ",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(train, argv, message):
    code, _, err = train(*argv)
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err


def test_debug_shows_the_traceback(train):
    code, _, err = train("--debug", "loss.name", "x")
    assert code == 2
    assert "Traceback" in err


def test_a_missing_root_makes_no_folder(train, tmp_path):
    code, _, err = train(root=tmp_path / "nothing")
    assert code == 2
    assert "is no folder" in err
    assert not (tmp_path / "nothing").exists()
    assert not (tmp_path / "log").exists()


def test_a_missing_data_set_is_named_and_not_downloaded(train, pedestrians):
    for name, word in (("market1501", "market1501"), ("dukemtmcreid", "withdrawn by its authors")):
        code, _, err = train("-t", name)
        assert code == 2
        assert word in err
        assert not list(pedestrians.glob("market1501*"))


def test_a_folder_that_breaks_torchreids_pattern_is_named(train, tmp_path):
    root = tmp_path / "run-1_c2"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / "market1501/Market-1501-v15.09.15" / folder).mkdir(parents=True)
    code, _, err = train("-s", "market1501", "-t", "market1501", root=root)
    assert code == 2
    assert "contains '-1_c2'" in err


@pytest.fixture
def own_data(pedestrians, tmp_path):
    """Return a function that writes a CSV of the generated images and returns the file; ``change`` edits its rows."""
    folder = pedestrians / "synthetic_pedestrians"

    def write(change=lambda rows: rows):
        rows = []
        for sub, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
            for path in sorted((folder / sub).glob("*.jpg")):
                pid, camid = path.name.split("_")[0], path.name.split("_c")[1][0]
                rows.append([str(path), pid, camid, split])
        file = tmp_path / "own.csv"
        file.write_text("path,pid,camid,split\n" + "".join(",".join(row) + "\n" for row in change(rows)))
        return file

    return write


@pytest.fixture
def num_queries(pedestrians):
    return len(list((pedestrians / "synthetic_pedestrians/query").glob("*.jpg")))


@pytest.fixture
def dataset_name(request):
    """A name of its own for each test: torchreid keeps registered data sets for the life of the process."""
    import re

    return re.sub(r"\W+", "_", request.node.name)


def test_own_data_from_a_csv_gives_the_same_figures(train, own_data, dataset_name, tmp_path):
    code, _, err = train()
    assert code == 0, err
    wanted = json.loads((tmp_path / "log/metrics.json").read_text())["targets"]["synthetic_pedestrians"]["clean"]
    name = dataset_name
    code, _, err = train("--dataset", f"{name}={own_data()}", "-s", name, "-t", name, save_dir=tmp_path / "own")
    assert code == 0, err
    got = json.loads((tmp_path / "own/metrics.json").read_text())["targets"][name]["clean"]
    assert got["mAP"] == pytest.approx(wanted["mAP"], abs=1e-6)


def test_one_camera_is_possible_and_the_error_says_how(train, own_data, dataset_name, num_queries):
    def one_camera(rows):
        return [[path, pid, "1", split] for path, pid, camid, split in rows]

    name = dataset_name
    argv = ("--dataset", f"{name}={own_data(one_camera)}", "-s", name, "-t", name)
    code, _, err = train(*argv)
    assert code == 2
    assert "test.exclude_same_camera False" in err
    code, out, err = train(*argv, "test.exclude_same_camera", "False", "privacy.gallery.enabled", "True")
    assert code == 0, err
    assert f"{num_queries} queries with a match" in out


def test_people_that_do_not_overlap_are_named_as_the_reason(train, own_data, dataset_name):
    def strangers(rows):
        return [[path, f"1{pid}" if split == "query" else pid, c, split] for path, pid, c, split in rows]

    name = dataset_name
    code, _, err = train("--dataset", f"{name}={own_data(strangers)}", "-s", name, "-t", name)
    assert code == 2
    assert "do not overlap" in err


def test_a_query_without_a_match_is_a_warning_with_its_file(train, own_data, dataset_name, num_queries, caplog):
    def one_stranger(rows):
        first = next(row for row in rows if row[3] == "query")
        first[1] = "12345"
        return rows

    name = dataset_name
    code, out, err = train("--dataset", f"{name}={own_data(one_stranger)}", "-s", name, "-t", name)
    assert code == 0, err
    assert f"{num_queries - 1} queries with a match" in out
    assert "1 of" in caplog.text
    assert "because their person is not in it" in caplog.text


def test_training_images_in_the_gallery_void_the_guarantee(train, own_data, dataset_name):
    def leak(rows):
        extra = [
            [path, pid, camid, "train"] for path, pid, camid, split in rows if split == "gallery" and pid != "0000"
        ]
        return rows + extra[:3]

    name = dataset_name
    argv = ("--dataset", f"{name}={own_data(leak)}", "-s", name, "-t", name, "privacy.gallery.enabled", "True")
    code, _, err = train(*argv)
    assert code == 2
    assert "3 images are in the training split and in query or gallery" in err
    code, _, err = train(*argv, "privacy.gallery.transform", "none")
    assert code == 0, err


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("content", "message"), [(b"", "is empty (0 bytes)"), (b"no image", "cannot be decoded")])
def test_a_bad_image_is_named_at_once(train, own_data, dataset_name, tmp_path, workers, content, message):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(content)

    def with_bad(rows):
        next(row for row in rows if row[3] == "gallery")[0] = str(bad)
        return rows

    name = dataset_name
    argv = ("--dataset", f"{name}={own_data(with_bad)}", "-s", name, "-t", name, "test.evaluate", "True")
    code, _, err = train(*argv, "data.workers", workers)
    line = next(line for line in err.splitlines() if line.startswith("Error: "))
    assert code == 2
    assert "bad.jpg" in line
    assert message in line


def test_a_truncated_jpeg_is_named_at_once(train, own_data, dataset_name, tmp_path):
    def truncate(rows):
        row = next(row for row in rows if row[3] == "gallery")
        whole = Path(row[0]).read_bytes()
        row[0] = str(tmp_path / "short.jpg")
        Path(row[0]).write_bytes(whole[: len(whole) // 2])
        return rows

    name = dataset_name
    code, _, err = train("--dataset", f"{name}={own_data(truncate)}", "-s", name, "-t", name, "test.evaluate", "True")
    assert code == 2
    assert "short.jpg" in err


def test_a_checkpoint_of_another_model_is_refused(train, tmp_path):
    from ppreid_plugin.toolbox import models

    path = tmp_path / "other.pth"
    torch.save(models.build_model("osnet_x0_5", 8, pretrained=False).state_dict(), path)
    code, _, err = train("model.load_weights", path)
    assert code == 2
    assert "weights of another model than osnet_x0_25" in err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_output_is_an_error(train, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code, _, err = train(save_dir=closed / "log")
    assert code == 2
    assert "cannot be written" in err


def test_an_output_below_a_file_is_an_error(train, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = train(save_dir=tmp_path / "file" / "log")
    assert code == 2
    assert "cannot be written" in err


def test_help_explains_every_privacy_key():
    from ppreid_plugin.options import PRIVACY_OPTIONS

    shown = subprocess.run(
        [sys.executable, "tools/train.py", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ).stdout
    for key, (_, comment) in PRIVACY_OPTIONS.items():
        assert key in shown
        assert comment in shown


def test_the_tee_keeps_what_is_printed_and_restores_the_console(tmp_path, capsys):
    console = sys.stdout
    with pytest.raises(ZeroDivisionError), cli.tee(tmp_path / "a/log"):
        print("hello")
        print(1 / 0)
    assert sys.stdout is console
    assert (tmp_path / "a/log").read_text() == "hello\n"
    assert capsys.readouterr().out == "hello\n"


def test_one_line_of_a_workers_error_is_the_workers_own():
    text = "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = ValueError(text + "ppreid_plugin.data.images.ImageError: image 'a.jpg' is\nempty\n")
    assert cli.one_line(error) == "image 'a.jpg' is empty"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--epochs", "0"), "--epochs is 0, must be a whole number >= 1"),
        (("--epsilon", "-1"), "--epsilon is -1.0, must be a finite number > 0"),
        (("--seed", "-1"), "--seed is -1, must be a whole number from 0 to 4294967295"),
        (("--num-test-ids", "0"), "--num-test-ids is 0, must be a whole number >= 1"),
        (
            ("--num-train-ids", "2", "--num-test-ids", "2"),
            "--num-train-ids is 2; a batch of the recipe takes 32 images, of 3 people or more. Give --num-train-ids 3",
        ),
        (
            ("--config-file", str(REPOSITORY / "configs/im_osnet_x0_25_softmax_256x128_amsgrad.yaml")),
            "the demonstration shows a De-ID decoder and a gallery at one budget",
        ),
    ],
)
def test_the_demonstration_refuses_what_it_cannot_show_before_it_writes(tmp_path, capsys, argv, message):
    recipe = ("--config-file", str(REPOSITORY / "configs/im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml"))
    assert cli.run(demo, [*recipe, "--out", str(tmp_path / "out"), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ("train: {batch_size: 32}\nprivacy: {validation: {ids_fraction: 0.5}}", 5),
        ("sampler: {train_sampler: RandomIdentitySampler, num_instances: 4}", 8),
        ("sampler: {train_sampler: RandomIdentitySampler, num_instances: 7}", 5),  # 7 images of a person who has 12
        ("train: {batch_size: 64}", 6),
    ],
)
def test_the_demonstration_counts_the_people_that_a_batch_of_the_recipe_takes(tmp_path, monkeypatch, options, least):
    monkeypatch.setattr("ppreid_plugin.demo.make_pedestrians", lambda *args: 1 / 0)
    base = REPOSITORY / "configs/im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml"
    (tmp_path / "own.yaml").write_text(f"_base_: {base}\n{options}\n")
    argv = ["--config-file", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out"), "--num-train-ids"]
    with pytest.raises(ConfigError, match=f"Give --num-train-ids {least} or more"):
        demo([*argv, str(least - 1)])
    with pytest.raises(ZeroDivisionError):
        demo([*argv, str(least)])


def test_the_demonstration_leaves_other_data_as_they_are_and_says_what_it_takes(pedestrians, tmp_path, capsys):
    recipe = ("--config-file", str(REPOSITORY / "configs/im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/data").symlink_to(pedestrians)
    before = {path: path.stat().st_mtime_ns for path in pedestrians.rglob("*")}
    assert cli.run(demo, [*recipe, "--out", str(tmp_path / "out"), "--num-train-ids", "9"]) == 2
    message = capsys.readouterr().err
    assert "was not made with --num-train-ids 9 --num-test-ids 100 --seed 1, and is left as it is" in message
    assert "Name another --out." in message
    assert "overwrite" not in message
    assert {path: path.stat().st_mtime_ns for path in pedestrians.rglob("*")} == before


def test_what_was_asked_for_and_not_done_is_said(train, caplog, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train("train.max_epoch", "0")[0] == 0
    assert "train.max_epoch is 0: nothing was trained or tested" in caplog.text
    assert "no CUDA device" not in caplog.text
    assert train("train.max_epoch", "0", "use_gpu", "True")[0] == 0
    assert "use_gpu is True, and torch sees no CUDA device: the CPU does the work" in caplog.text


def test_the_words_are_split_once(train, monkeypatch):
    """Both for the configuration and for keys that would do nothing: a second look could read them otherwise."""
    split, seen = cli.split_options, []
    monkeypatch.setattr(cli, "split_options", lambda argv, parser=None: seen.append(argv) or split(argv, parser))
    code, _, err = train("privacy.deid.target", "blur")
    assert code == 2
    assert "privacy.deid.target is given, but privacy.deid.enabled is False" in err
    assert len(seen) == 1
