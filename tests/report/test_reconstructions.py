"""Pictures that runs write: of generated people only, marked, from a decoder that has learned."""

import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppreid_plugin import cli
from ppreid_plugin.report.collect import collect
from ppreid_plugin.report.pictures import read_mark
from ppreid_plugin.report.reconstructions import example_reconstructions, image_grid
from ppreid_plugin.suppression import DeIDDecoder

NAME = "synthetic_pedestrians"
SMALL = ["model.name", "osnet_x0_25", "model.pretrained", "False", "data.height", "64", "data.width", "32"]
SMALL += ["data.workers", "0", "train.batch_size", "16", "train.max_epoch", "1", "use_gpu", "False"]


def test_a_training_run_writes_marked_pictures_and_tensorboard_images(pedestrians, tmp_path):
    out = tmp_path / "run"
    argv = ["-s", NAME, "-t", NAME, "--root", str(pedestrians), "data.save_dir", str(out), *SMALL]
    assert cli.run(cli.train, [*argv, "privacy.deid.enabled", "True", "train.seed", "5"]) == 0
    mark = read_mark(out / f"reconstructions_{NAME}.png")
    assert (mark["ppreid_people"], mark["ppreid_seed"]) == ("generated", "5")
    assert "tools/train.py" in mark["ppreid_command"]
    (picture,) = collect([out]).pictures
    assert picture.generated
    found = {}
    for folder in {path.parent for path in out.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(folder), size_guidance={"images": 0})
        events.Reload()
        found |= {tag: events.Images(tag) for tag in events.Tags()["images"]}
    (images,) = found.values()
    assert (images[-1].width, images[-1].height) == (6 * 64, 3 * 128)  # six people; original, target, decoded


def test_what_is_drawn_is_original_target_and_decoded(make_engine, run_engine):
    engine = make_engine("privacy.deid.enabled", True, "privacy.deid.target", "pixelate")
    assert example_reconstructions(engine, NAME) is None  # the decoder has not learned yet
    run_engine(engine)
    rows = example_reconstructions(engine, NAME, people=3)
    decoder = next(part for part in engine.components if isinstance(part, DeIDDecoder))
    original, target, decoded = rows.values()
    torch.testing.assert_close(target, decoder.deidentify(original)[:, :3])
    dataset = engine.test_loader[NAME]["query"].dataset
    pids = [item["pid"] for item in dataset]
    first = pids.index(pids[0])
    with torch.no_grad():
        engine.set_model_mode("eval")
        wanted = decoder.decode(engine.extract_features(dataset[first]["img"][None]))
    torch.testing.assert_close(decoded[:1], wanted[:, :3], rtol=1e-3, atol=1e-4)
    assert image_grid(rows).shape == (3, 3 * 128, 3 * 64)


@pytest.mark.parametrize("change", ["real", "no decoder"])
def test_people_who_may_exist_are_never_drawn(make_engine, run_engine, pedestrians, tmp_path, change):
    root = tmp_path / "data"
    shutil.copytree(pedestrians, root)
    if change == "real":
        (root / NAME / "meta.json").unlink()  # nothing says any more that they were generated
    engine = make_engine("data.root", root, "privacy.deid.enabled", change == "real")
    run_engine(engine)
    assert example_reconstructions(engine, NAME) is None
