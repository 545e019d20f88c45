"""The whole ablation on tiny data: tables, reuse, and going on after it was stopped anywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ablation_cases import ROWS, preset

from ppreid_plugin import build, testing
from ppreid_plugin.ablation import measuring, runner, training
from ppreid_plugin.ablation.command import ablation_command
from ppreid_plugin.ablation.deid_probe import DeIDProbe
from ppreid_plugin.config import ConfigError, disable_privacy
from ppreid_plugin.data.validation import VALIDATION
from ppreid_plugin.dp.feature_files import model_fingerprint
from ppreid_plugin.leakage import Leakage
from ppreid_plugin.toolbox import engine as engines

MORE = [
    *ROWS,
    {"name": "two_stage", "config": preset("two_stage")},
    {"name": "coarse", "of": "baseline", "defense": "quantize:bits=1"},
    {"name": "pixelated", "of": "baseline", "options": {"data.transforms_test": ["pixelate:blocks=4"]}},
]


PER_EPOCH = 8  # batches of 16 from 135 images
QUICK = {"attacks": [], "step_pairs": 0, "deid_target": ""}


class Stop(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def train_files(out):
    return sorted(out.glob("training/*/trained.json"))


def evaluated(work, target="synthetic_pedestrians"):
    cfg = work.cfg.clone()
    cfg.model.load_weights = str(work.training / training.trained_record(work.training)["weights"])
    cfg.data.save_dir, cfg.test.evaluate = str(work.training), True
    disable_privacy(cfg)
    engine = build.build_engine(cfg)
    engine.test()
    return engine.results[target].clean


def test_a_plan_from_training_to_the_tables(write_plan, flags, work_of, tmp_path, capsys):
    out, plan = tmp_path / "out", write_plan(MORE)
    record = ablation_command(flags(plan))
    said = capsys.readouterr().out
    assert json.loads((out / "ablation.json").read_text()) == json.loads(json.dumps(record))
    assert len(train_files(out)) == 2  # two_stage is trained as one_stage, the others as baseline
    figures = {name: {c: cell["mean"] for c, cell in cells.items()} for name, cells in record["rows"].items()}
    assert list(figures) == ["baseline", "one_stage", "two_stage", "coarse", "pixelated"]
    base = figures["baseline"]
    assert base["L_deid of the reference's"] == 1
    assert base["step cost"] == 1
    assert figures["one_stage"]["step cost"] not in (None, 1)  # of one pair: the benchmark says how much
    assert figures["coarse"]["step cost"] is None
    assert figures["two_stage"]["mAP (euclidean)"] is None  # a protected gallery is matched by cosine
    ssim = {name: record["records"][name][0]["leakage"]["channels"]["reconstruction"] for name in figures}
    assert ssim["baseline"]["score"] == ssim["baseline"]["clean"] == ssim["coarse"]["clean"]
    assert len({figures[name]["mAP (cosine)"] for name in figures}) == 5
    work = work_of(plan)
    assert work["one_stage"].training == work["two_stage"].training != work["baseline"].training
    for name in ("baseline", "one_stage"):  # the engine's own evaluation is the oracle
        trained = evaluated(work[name])
        found = record["records"][name][0]["retrieval"]["euclidean"]
        assert [found[key] for key in ("rank1", "mAP", "mINP")] == pytest.approx(
            [trained.rank1, trained.mAP, trained.mINP], abs=1e-6
        )
        assert found["rank5"] == pytest.approx(trained.rank(5), abs=1e-6)
    for suffix, mark in (("md", "|:---"), ("tex", r"\toprule")):
        text = (out / f"ablation.{suffix}").read_text()
        assert mark in text
        assert all(name in text.replace("\\_", "_") for name in figures)
    shown = f"{100 * base['mAP (cosine)']:.1f}"
    assert shown in said
    assert "Minus 'baseline' of the same seed" in said
    for path in out.glob("features/*/*.npz"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_finished_rows_are_used_again_and_new_ones_added(write_plan, flags, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = ablation_command(flags(write_plan(ROWS, measures=QUICK)))
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "ablation." not in path.name}
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_engine", lambda cfg: pytest.fail("nothing is trained or extracted again"))
        patch.setattr(runner, "retrieval_figures", lambda *args, **kwargs: pytest.fail("nothing is measured again"))
        again = ablation_command(flags(write_plan(ROWS, measures=QUICK)))
    assert again["rows"] == first["rows"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    more = ablation_command(flags(write_plan(MORE, measures=QUICK), "--rows", "coarse"))
    assert list(more["rows"]) == ["baseline", "coarse"]
    assert more["rows"]["baseline"] == first["rows"]["baseline"]
    assert len(train_files(out)) == 2
    ablation_command(flags(write_plan(ROWS, measures=QUICK), "--rows", "baseline", "train.lr", "0.001"))
    assert len(train_files(out)) == 3  # another learning rate is another training


def test_a_row_stopped_in_training_ends_as_if_it_had_not_been(write_plan, flags, work_of, tmp_path, monkeypatch):
    batches = 4  # of the second of two epochs
    plan = write_plan(ROWS[1:], options={"train.max_epoch": 2}, measures=QUICK)
    whole = ablation_command([*flags(plan), "--out", str(tmp_path / "whole")])
    steps = []
    original = engines.ImageSoftmaxEngine.forward_backward

    def stopped(self, data):
        steps.append(1)
        if len(steps) == PER_EPOCH + batches:
            raise Stop
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(engines.ImageSoftmaxEngine, "forward_backward", stopped)
        with pytest.raises(Stop):
            ablation_command(flags(plan))
        assert not train_files(tmp_path / "out")
        done = (PER_EPOCH + batches - 1) // PER_EPOCH
        (folder,) = (tmp_path / "out/training").iterdir()
        assert training.kept_epoch(folder) == done
        assert folder == work_of(plan)["one_stage"].training
        ablation_command(flags(plan))
    # the stopped epoch is trained again from its beginning, and no other
    assert len(steps) == 2 * PER_EPOCH + (PER_EPOCH + batches - done * PER_EPOCH)
    for split in ("train", "query", "gallery"):
        one, other = (
            np.load(next((tmp_path / name / "features").glob(f"*/{split}.npz")))["features"]
            for name in ("whole", "out")
        )
        assert np.array_equal(one, other)
    found = json.loads((tmp_path / "out/ablation.json").read_text())["records"]["one_stage"][0]
    assert found["retrieval"] == whole["records"]["one_stage"][0]["retrieval"]
    assert not (folder / "kept").exists()


def test_a_training_that_goes_on_knows_the_best_epoch_so_far(write_plan, work_of, monkeypatch):
    options = {"train.max_epoch": 3, "test.eval_freq": 1, "privacy.validation.ids_fraction": 0.4}
    work = work_of(write_plan(ROWS[:1], options=options, measures=QUICK))["baseline"]
    figures = [0.2, 0.9, 0.5]

    def evaluate(self, *args, **kwargs):
        self.results = {VALIDATION: SimpleNamespace(clean=SimpleNamespace(mAP=figures[self.epoch]))}
        return 0.0

    monkeypatch.setattr(testing.EvaluationMixin, "test", evaluate)
    monkeypatch.setattr(training, "result_to_dict", lambda result: {})
    original = engines.ImageSoftmaxEngine.forward_backward

    def stopped(self, data):
        if self.epoch == 2:
            raise Stop
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(engines.ImageSoftmaxEngine, "forward_backward", stopped)
        with pytest.raises(Stop):
            training.train(work.cfg, work.training)
    record = training.train(work.cfg, work.training)
    assert torch.load(work.training / record["weights"])["epoch"] == 2


@pytest.mark.parametrize("place", ["between rows", "in the final test", "in extraction", "in measuring"])
def test_stopped_anywhere_it_goes_on_and_doubles_nothing(write_plan, flags, tmp_path, monkeypatch, place):
    out, plan = tmp_path / "out", write_plan(ROWS, measures=QUICK)

    def stop(*args, **kwargs):
        raise Stop

    trained = []
    original = training.train

    def counted(cfg, folder):
        if training.trained_record(folder) is None:
            trained.append(folder)
        if place == "between rows" and len(trained) == 2:
            raise Stop
        return original(cfg, folder)

    more = ("test.eval_freq", "1") if place == "in the final test" else ()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "train", counted)
        if place == "in the final test":
            patch.setattr(testing, "extract", stop)
        elif place == "in extraction":
            saved = []
            save = runner.extract.__globals__["save_features"]
            patch.setitem(
                runner.extract.__globals__,
                "save_features",
                lambda *args, **kwargs: stop() if saved else saved.append(save(*args, **kwargs)),
            )
        elif place == "in measuring":
            patch.setattr(runner, "retrieval_figures", stop)
        with pytest.raises(Stop):
            ablation_command(flags(plan, *more))
    kept = {path: path.stat().st_mtime_ns for path in [*train_files(out), *out.glob("features/*/*.npz")]}
    steps = []
    forward = engines.ImageSoftmaxEngine.forward_backward
    with monkeypatch.context() as patch:
        patch.setattr(
            engines.ImageSoftmaxEngine, "forward_backward", lambda self, data: steps.append(self) or forward(self, data)
        )
        record = ablation_command(flags(plan, *more))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len({id(one) for one in steps}) <= 2 + (0 if kept or place == "in the final test" else 1)
    assert len(train_files(out)) == 2
    assert list(record["rows"]) == ["baseline", "one_stage"]
    assert not list(out.rglob("*.tmp"))


def test_weights_are_chosen_on_people_held_out_and_the_gallery_is_not_looked_at(
    write_plan, flags, work_of, tmp_path, monkeypatch
):
    out, options = tmp_path / "out", {"privacy.validation.ids_fraction": 0.4}
    rows = [*ROWS[:1], {"name": "coarse", "of": "baseline", "defense": "quantize:bits=1"}]
    plan = write_plan(rows, options=options, measures={"scored_on": "validation", "test_rows": 0})
    extracted = []
    original = runner.extract.__globals__["extract_splits"]
    monkeypatch.setitem(
        runner.extract.__globals__,
        "extract_splits",
        lambda *args, splits, **more: extracted.extend(splits) or original(*args, splits=splits, **more),
    )
    with monkeypatch.context() as patch:  # after training nobody is evaluated, so nothing is extracted twice
        patch.setattr(testing, "extract", lambda *args, **more: pytest.fail("extracted once more"))
        record = ablation_command(flags(plan))
    assert (record["scored_on"], record["chosen_on"]) == ("validation", "nothing: the last epoch")
    assert extracted == ["train", "validation"]
    work = work_of(plan)["baseline"]
    # the figures are those of the engine's own evaluation, and the attacked rows are the held-out people's
    clean, found = evaluated(work, VALIDATION), record["records"]["baseline"][0]
    assert [found["retrieval"]["euclidean"][key] for key in ("rank1", "mAP")] == pytest.approx(
        [clean.rank1, clean.mAP], abs=1e-6
    )
    kept = {split: np.load(work.features / f"{split}.npz") for split in ("train", "validation")}
    assert not set(kept["train"]["row_ids"]) & set(kept["validation"]["row_ids"])
    assert found["leakage"]["meta"]["test"] == {
        "rows": len(kept["validation"]["pids"]),
        "people": len(np.unique(kept["validation"]["pids"])),
        "cameras": len(np.unique(kept["validation"]["camids"])),
        "columns": 512,
    }
    # the gallery is measured of the same training, apart, by attackers who know half of its people
    own = ("--scored-on", "gallery", "--learn-from", "gallery")
    gallery = ablation_command(flags(plan, *own, "--rows", "baseline"))["records"]["baseline"][0]["leakage"]
    assert len(train_files(out)) == 1
    assert gallery["meta"]["test"] != found["leakage"]["meta"]["test"]
    assert gallery["channels"]["reconstruction"]["learn_from"] == "gallery"
    again = ablation_command(flags(plan))
    assert again["rows"] == record["rows"]


def test_people_to_score_on_must_be_held_out(write_plan, flags):
    with pytest.raises(ConfigError, match="scored_on is validation, but privacy.validation.ids_fraction of row 'base"):
        ablation_command(flags(write_plan(ROWS), "--scored-on", "validation"))


@pytest.mark.slow
def test_a_killed_process_is_taken_up(write_plan, flags, work_of, tmp_path):
    plan = write_plan(ROWS[:1], options={"train.max_epoch": 400}, measures=QUICK)
    words = flags(plan)
    program = "import sys; from ppreid_plugin.ablation.command import ablation_command; ablation_command(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", program, *words], env=environment, stdout=subprocess.DEVNULL)
    try:
        start, folder = time.monotonic(), None
        while time.monotonic() - start < 60 and (folder is None or training.kept_epoch(folder) < 2):
            assert process.poll() is None
            folder = next(iter((tmp_path / "out/training").glob("*")), None)
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = training.kept_epoch(folder)
    assert done >= 2
    # the same training, told to end now: the key holds the number of epochs, so the kept part is given to the shorter
    cfg = work_of(plan)["baseline"].cfg
    cfg.train.max_epoch = done + 1
    record = training.train(cfg, folder)
    assert record["epochs"] == done + 1
    assert (folder / f"model/model.pth.tar-{done + 1}").is_file()


def test_attackers_get_rows_through_a_defense_fitted_on_training_rows_beside_the_reference(
    write_plan, flags, work_of, monkeypatch
):
    rows = [
        ROWS[0],
        {"name": "pixelated", "of": "baseline", "options": {"data.transforms_test": ["pixelate:blocks=4"]}},
        {"name": "coarse", "of": "pixelated", "defense": "quantize:bits=1"},
    ]
    plan = write_plan(rows, measures={**QUICK, "attacks": ["identification"]})
    given = []
    nothing = Leakage({}, None, None, {})
    monkeypatch.setattr(measuring, "measure_leakage", lambda *sets, **more: given.append(sets) or nothing)
    ablation_command(flags(plan))
    base, coarse = (
        [np.load(work_of(plan)[name].features / f"{split}.npz")["features"] for split in ("train", "gallery")]
        for name in ("baseline", "coarse")
    )
    learned, attacked, clean, clean_train = (one.features for one in given[2])
    low, high = np.quantile(coarse[0], [0.01, 0.99], axis=0)
    for made, own in zip((learned, attacked), coarse, strict=True):
        middles = np.where(own < (low + high) / 2, low + (high - low) / 4, high - (high - low) / 4)
        assert made == pytest.approx(middles, abs=1e-5)
    assert np.array_equal(clean_train, base[0])
    assert np.array_equal(clean, base[1])


def test_the_references_decoder_is_fitted_once_a_seed(write_plan, flags, monkeypatch):
    bits = [{"name": f"bits {n}", "of": "baseline", "defense": f"quantize:bits={n}"} for n in (1, 2)]
    plan = write_plan([ROWS[0], *bits], seeds=[1, 2], measures={**QUICK, "deid_target": "pixelate"})
    losses, original = [], DeIDProbe.loss
    monkeypatch.setattr(
        DeIDProbe, "loss", lambda self, *sets, **seed: losses.append(original(self, *sets, **seed)) or losses[-1]
    )
    records = ablation_command(flags(plan))["records"]
    found = [records[name][place]["deid"] for place in (0, 1) for name in records]
    assert losses == [one["loss"] for one in found]
    assert [one["reference"] for one in found] == [losses[0]] * 3 + [losses[3]] * 3
    assert [one["ratio"] for one in found] == [loss / losses[3 * (n // 3)] for n, loss in enumerate(losses)]


def test_one_table_is_of_one_training(write_plan, flags, work_of, tmp_path, monkeypatch):
    """A row that is added later trains deleted weights again; figures of the former ones are no longer beside it."""
    measures = {**QUICK, "attacks": []}
    first = ablation_command(flags(write_plan([ROWS[0]], measures=measures)))
    shutil.rmtree(tmp_path / "out" / "training")
    monkeypatch.setattr(training, "model_fingerprint", lambda path: "sha256:other")
    added = {"name": "permuted", "of": "baseline", "defense": "permute"}
    again = ablation_command(flags(write_plan([ROWS[0], added], measures=measures)))
    assert first["records"]["baseline"][0]["weights"]["row"] != "sha256:other"
    for name in ("baseline", "permuted"):
        assert set(again["records"][name][0]["weights"].values()) == {"sha256:other"}


def test_no_train_measures_again_and_refuses_what_is_not_trained(write_plan, flags, tmp_path, monkeypatch):
    plan = write_plan(ROWS, measures=QUICK)
    with pytest.raises(ConfigError, match="row 'baseline', seed 1, is not trained .2 such.. Run without --no-train"):
        ablation_command(flags(plan, "--no-train"))
    first = ablation_command(flags(plan, "--rows", "baseline"))
    measured = []
    original = runner.retrieval_figures
    monkeypatch.setattr(runner, "train", lambda cfg, folder: training.trained_record(folder))
    monkeypatch.setattr(
        runner, "retrieval_figures", lambda *args, **kwargs: measured.append(1) or original(*args, **kwargs)
    )
    again = ablation_command(flags(plan, "--rows", "baseline", "--no-train"))
    assert measured == [1]
    assert again["rows"] == first["rows"]


def test_measuring_again_keeps_the_former_figures_until_it_ends_and_goes_on_where_it_was_stopped(
    write_plan, flags, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    rows = [
        ROWS[0],
        *({"name": f"bits {bits}", "of": "baseline", "defense": f"quantize:bits={bits}"} for bits in (1, 2)),
    ]
    plan = write_plan(rows, measures={"deid_target": "", "step_pairs": 0})
    ablation_command(flags(plan))
    runs = json.loads((out / "attacks-1.json").read_text())["runs"]
    before = {path: path.read_bytes() for path in [*out.glob("measured/*"), out / "attacks-1.json"]}
    attacked = []
    original = runner.leakage_figures

    def stopped(*args, **kwargs):
        attacked.append(kwargs["finished"])
        if len(attacked) == 2:
            raise Stop
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "leakage_figures", stopped)
        with pytest.raises(Stop):
            ablation_command(flags(plan, "--no-train", "--rows", "bits 1"))
    assert set(attacked) == {out / "attacks-1.again.json"}
    assert all(path.is_file() for path in before)
    assert (out / "attacks-1.json").read_bytes() == before[out / "attacks-1.json"]
    half = json.loads((out / "attacks-1.again.json").read_text())["runs"]
    assert 0 < len(half) < len(runs)
    ablation_command(flags(plan, "--no-train", "--rows", "bits 1"))
    assert not (out / "attacks-1.again.json").exists()
    after = json.loads((out / "attacks-1.json").read_text())["runs"]
    assert after.keys() == runs.keys()  # those of the row that was not asked for are there still


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("measured/*.json", "{", r"measured/.*\.json' cannot be read .*Delete it to measure the row again"),
        ("measured/*.json", "{}", "has no row, seed. Delete it to measure the row again"),
        ("training/*/trained.json", "", "trained.json' cannot be read .*Delete its folder to train again"),
    ],
)
def test_a_damaged_file_is_named_and_what_to_do(write_plan, flags, tmp_path, name, content, message):
    plan = write_plan(ROWS[:1], measures=QUICK)
    ablation_command(flags(plan))
    (path,) = (tmp_path / "out").glob(name)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ablation_command(flags(plan))


def test_a_training_whose_weights_are_gone_is_none(write_plan, flags, work_of, tmp_path):
    plan = write_plan(ROWS[:1], measures=QUICK)
    ablation_command(flags(plan))
    work = work_of(plan)["baseline"]
    record = training.trained_record(work.training)
    (work.training / record["weights"]).unlink()
    assert training.trained_record(work.training) is None


@pytest.mark.parametrize("name", ["model/model.pth.tar-1", "1-random.pt", "epoch.json"])
def test_a_damaged_kept_epoch_is_named_and_what_to_do(write_plan, flags, work_of, tmp_path, monkeypatch, name):
    plan = write_plan(ROWS[:1], options={"train.max_epoch": 2}, measures=QUICK)
    engine = engines.ImageSoftmaxEngine
    steps, original = [], engine.forward_backward

    def stopped(self, data):
        steps.append(1)
        if len(steps) > PER_EPOCH:
            raise Stop
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "forward_backward", stopped)
        with pytest.raises(Stop):
            ablation_command(flags(plan))
    kept = work_of(plan)["baseline"].training / "kept"
    (kept / name).write_bytes((kept / name).read_bytes()[:-5] if name != "epoch.json" else b"{")
    with pytest.raises(ValueError, match=r"kept.*Delete the folder 'kept' to train from the first epoch on"):
        ablation_command(flags(plan))


def test_training_curves_are_drawn_and_the_choice_is_told(write_plan, flags, work_of, tmp_path):
    options = {"privacy.validation.ids_fraction": 0.4, "test.eval_freq": 1, "train.max_epoch": 2}
    plan = write_plan(ROWS[1:], options=options, measures=QUICK)
    assert ablation_command(flags(plan))["chosen_on"] == "validation people"
    assert (work_of(plan)["one_stage"].training / "training.png").is_file()
    last = write_plan(ROWS[1:], measures=QUICK)
    assert ablation_command(flags(last))["chosen_on"] == "nothing: the last epoch"


@pytest.mark.parametrize(
    ("defense", "labeled", "message"),
    [
        ("leace:attributes=slevee", True, "takes out the attribute 'slevee'; probed are: .*Did you mean"),
        ("leace", False, "takes out all attributes that are probed, and there are none. Give labels: --labels FILE"),
        ("suppressor", False, "takes out all attributes that are probed, and there are none"),
        ("leace:attributes=3", True, "takes out the attribute '3'; probed are: "),
        ("leace:image_components=2,attributes=gender", False, "takes out the attribute 'gender'; probed are: none"),
    ],
)
def test_attributes_that_a_defense_takes_out_are_looked_up_before_anything_is_trained(
    write_plan, flags, pedestrians, tmp_path, defense, labeled, message
):
    rows = [ROWS[0], {"name": "erased", "of": "baseline", "defense": defense}]
    labels = str(pedestrians / "synthetic_pedestrians/attributes.csv") if labeled else ""
    plan = write_plan(rows, measures={**QUICK, "labels": labels})
    with pytest.raises(ConfigError, match=f"row 'erased' {message}"):
        ablation_command(flags(plan))
    assert not list(tmp_path.glob("out/training/*"))


def test_a_projection_that_does_not_fit_the_model_is_refused_before_anything_is_trained(write_plan, flags, tmp_path):
    rows = [ROWS[0], {"name": "projected", "of": "baseline", "defense": "projection:dims=513"}]
    with pytest.raises(ConfigError, match="row 'projected': projection has dims 513, must be <= the 512 columns"):
        ablation_command(flags(write_plan(rows, measures=QUICK)))
    assert not list(tmp_path.glob("out/training/*"))


def test_a_model_is_built_for_a_defense_that_looks_at_its_columns_and_for_no_other(write_plan, flags, monkeypatch):
    built = []
    monkeypatch.setattr(runner, "_feature_columns", lambda *model: built.append(model) or 512)
    texts = ["quantize:bits=1", "permute", "k_same", "dp", "leace:image_components=2"]
    rows = [ROWS[0], *({"name": text[:4], "of": "baseline", "defense": text} for text in texts)]
    ablation_command(flags(write_plan(rows, measures=QUICK), "--dry-run"))
    assert not built
    rows.append({"name": "projected", "of": "baseline", "defense": "projection:dims=8"})
    ablation_command(flags(write_plan(rows, measures=QUICK), "--dry-run"))
    assert built == [("osnet_x0_25", 64, 32)]


def test_list_and_dry_run_write_nothing_and_say_how_far_rows_are(write_plan, flags, tmp_path, capsys):
    plan = write_plan(MORE, measures=QUICK)
    assert ablation_command(flags(plan, "--list", "--seeds", 4, 5)) == {}
    said = capsys.readouterr().out
    assert "seed 4" in said
    assert "quantize:bits=1" in said
    assert not (tmp_path / "out").exists()
    ablation_command(flags(plan, "--rows", "baseline"))
    capsys.readouterr()
    ablation_command(flags(plan, "--dry-run"))
    states = {line.split("  ")[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert states["baseline"] == "measured"
    assert states["coarse"] == "trained"
    assert states["one_stage"] == "-"


def test_what_was_made_with_other_weights_is_made_again(write_plan, flags, work_of, tmp_path, monkeypatch):
    """A training that was deleted and run again has other weights on a GPU, and everywhere with another version."""
    plan = write_plan([ROWS[0], MORE[3]], measures=QUICK)
    first = ablation_command(flags(plan))
    work = work_of(plan)["baseline"]
    record = training.trained_record(work.training)
    weights = work.training / record["weights"]
    stored = torch.load(weights, weights_only=False)
    stored["state_dict"] = {
        name: -value if name.endswith("fc.0.weight") else value for name, value in stored["state_dict"].items()
    }
    torch.save(stored, weights)
    record["fingerprint"] = model_fingerprint(str(weights))
    (work.training / training.TRAINED).write_text(json.dumps(record))
    assert {one.state() for one in work_of(plan).values()} == {"trained"}
    again = ablation_command(flags(plan))
    for name in ("baseline", "coarse"):
        assert again["records"][name][0]["weights"] == {name: record["fingerprint"] for name in ("row", "reference")}
        assert again["records"][name][0]["retrieval"] != first["records"][name][0]["retrieval"]
    with np.load(work.features / "gallery.npz") as arrays:
        assert str(arrays["model"]) == record["fingerprint"]
    monkeypatch.setattr(build, "build_engine", lambda cfg: pytest.fail("nothing is extracted again"))
    assert ablation_command(flags(plan))["rows"] == again["rows"]
    weights.unlink()  # figures outlive the weights that they are of
    assert {one.state() for one in work_of(plan).values()} == {"measured"}
