"""Adversaries in an engine: by configuration, with labels of people, over epochs, stopped and continued."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from adversary_cases import make_context

from ppreid_plugin import build
from ppreid_plugin.checkpoint import CheckpointError
from ppreid_plugin.components import Batch
from ppreid_plugin.config import ConfigError, check_config
from ppreid_plugin.data.checks import DataError
from ppreid_plugin.data.pedestrians import NAME
from ppreid_plugin.data.pedestrians import load_attributes as words_by_pid
from ppreid_plugin.suppression import AttributesAdversary
from ppreid_plugin.suppression.adversary_settings import AdversarySpec
from ppreid_plugin.training_log import read_training_log


def table_of(adversary):
    """Labels (people, attributes) by torchreid's numbering of the people."""
    batch = Batch(None, torch.arange(len(adversary._people._table)), None, None, 0.0)
    return adversary.labels_of(batch)


FEATURE = ("privacy.adversary.enabled", True, "privacy.adversary.input", "feature")


def names(*entries):
    return ("privacy.adversary.names", str(list(entries)))


def labels(pedestrians):
    return ("privacy.adversary.labels", str(pedestrians / NAME / "attributes.csv"))


def test_several_adversaries_each_with_settings_of_its_own(make_cfg, pedestrians):
    cfg = make_cfg(
        *("privacy.deid.enabled", True, *FEATURE, *labels(pedestrians), "privacy.adversary.weight", 0.3),
        *("privacy.adversary.attributes", "['gender']", "privacy.adversary.kwargs.height", 32),
        *names(
            "identity",
            "identity:weight=0.1+input=reconstruction+ramp=False",
            "image:schedule=alternating+width=16",
            "attributes:attributes=gender|hat+people=held_out",
            "camera:ensemble=2+dropout=0.5",
        ),
    )
    check_config(cfg)
    _, identity, second, image, attributes, camera = build.build_components(cfg)
    assert (identity.name, identity.weight, identity.input) == ("adversary_identity", 0.3, "feature")
    assert (second.name, second.weight, second.input) == ("adversary_identity_2", 0.1, "reconstruction")
    assert (identity.ramp, second.ramp) == (True, False)
    assert (image.schedule, image.height, image.width, image.people) == ("alternating", 32, 16, "all")
    assert (attributes.attributes, attributes.people) == (["gender", "hat"], "held_out")
    assert (camera.ensemble, camera.dropout, camera.people) == (2, 0.5, "cross_fit")
    assert len({part.seed for part in (identity, second, image, attributes, camera)}) == 5


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["identity:wieght=1"], "gives 'identity' the option 'wieght'; allowed: .*Did you mean 'weight'?"),
        (["identity:weight"], "'weight' must be NAME=VALUE, such as identity:weight=0.1"),
        (["identity:weight=-1"], "adversary weight is -1, must be a finite number >= 0"),
        (["identity:weight=a"], "adversary weight is 'a', must be a finite number >= 0"),
        (["identity:schedule=alternate"], "schedule is 'alternate'; allowed: .*Did you mean 'alternating'?"),
        (["identity:steps=0"], "steps is 0, must be a whole number >= 1"),
        (["identity:people=cross_fit"], "its labels are the people"),
        (["identity:lr=1+lr=2"], "gives 'lr' twice"),
        (["identity", "identity"], "'identity' stands twice"),
        (["identity:seed=3"], "the option 'seed'"),
        (["cameras"], "privacy.adversary.names is 'cameras'; registered: .*Did you mean 'camera'?"),
        (["attributes"], "has no labels of people. Set privacy.adversary.labels"),
        (["identity:input=reconstruction"], "of 'identity' is 'reconstruction' but there is no decoder"),
        ([], r"privacy.adversary.names is \[\]"),
    ],
)
def test_errors_of_names_come_before_any_data_are_read(make_cfg, entries, message):
    with pytest.raises(ValueError, match=message):
        build.check(make_cfg(*FEATURE, *names(*entries)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("privacy.adversary.dropout", 1.0), r"privacy.adversary.dropout is 1.0, must be a number in \[0, 1\)"),
        (("privacy.adversary.ensemble", 0), "privacy.adversary.ensemble is 0, must be a whole number >= 1"),
        (("privacy.adversary.held_out_people", 1.0), "privacy.adversary.held_out_people is 1.0"),
        (("privacy.adversary.people", "half"), "privacy.adversary.people is 'half'; allowed: auto, all, held_out"),
        (("privacy.adversary.kwargs.hight", 3), "kwargs has 'hight'; allowed"),
        (("privacy.adversary.labels", "nowhere.mat", *names("attributes")), "labels is 'nowhere.mat', which does not"),
    ],
)
def test_errors_of_keys_name_the_key(make_cfg, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build.check(make_cfg(*FEATURE, *options))


def test_a_config_error_is_a_config_error(make_cfg):
    with pytest.raises(ConfigError):
        check_config(make_cfg(*FEATURE, *names("identity", "identity")))


def test_options_are_written_as_transforms_are():
    specs = AdversarySpec.parse_all(["camera:weight=1+input=feature", "camera"])
    assert [(spec.kind, spec.place, dict(spec.options)) for spec in specs] == [
        ("camera", 1, {"weight": 1, "input": "feature"}),
        ("camera", 2, {}),
    ]


def test_attributes_of_training_people_reach_their_images(make_engine, pedestrians):
    options = (*FEATURE, *labels(pedestrians), *names("attributes"))
    engine = make_engine(*options, "privacy.adversary.attributes", "['age','hair_length']")
    (adversary,) = engine.components
    batch = next(iter(engine.train_loader))
    engine.forward_backward(batch)
    words = words_by_pid(pedestrians)
    seen = adversary.labels_of(Batch(batch["img"], batch["pid"], torch.zeros(len(batch["pid"]), 1), None, 0.0))
    # the file name tells the person, independently of torchreid's numbering
    people = [int(path.rsplit("/", 1)[-1].split("_")[0]) for path in batch["impath"]]
    train = sorted({int(item[0].rsplit("/", 1)[-1].split("_")[0]) for item in engine.train_loader.dataset.train})
    for column, name in enumerate(("age", "hair_length")):
        classes = sorted({words[pid][name] for pid in train})
        assert seen[:, column].tolist() == [classes.index(words[pid][name]) for pid in people]


def test_without_a_choice_attributes_that_name_the_person_are_left_out(make_engine, pedestrians):
    (adversary,) = make_engine(*FEATURE, *labels(pedestrians), *names("attributes")).components
    assert "logo" not in adversary.attributes  # a code of its own for each person
    assert "hair_length" in adversary.attributes
    assert (table_of(adversary).max(0).values >= 1).all()


def test_labels_stay_with_their_people_when_validation_people_are_taken_out(make_engine, pedestrians):
    options = (*FEATURE, *labels(pedestrians), *names("attributes"), "privacy.validation.ids_fraction", 0.3)
    (adversary,) = (engine := make_engine(*options, "privacy.adversary.attributes", "['upper_color']")).components
    words = words_by_pid(pedestrians)
    items = engine.train_loader.dataset.train
    pids = {item[1]: int(item[0].rsplit("/", 1)[-1].split("_")[0]) for item in items}
    classes = sorted({words[pid]["upper_color"] for pid in pids.values()})
    assert len(pids) == 6
    assert table_of(adversary)[:, 0].tolist() == [classes.index(words[pids[k]]["upper_color"]) for k in range(6)]


@pytest.mark.parametrize(
    ("text", "chosen", "error", "message"),
    [
        ("pid,hat\n9001,a\n9002,b\n", [], DataError, "none of the 8 training people has labels"),
        (None, ["hatt"], ValueError, "privacy.adversary.attributes has 'hatt'; .*Did you mean 'hat'?"),
        ("same", ["hat"], ValueError, "hat, in which all training people with labels are alike"),
    ],
)
def test_labels_that_cannot_be_used_are_an_error_before_training(
    make_engine, pedestrians, tmp_path, text, chosen, error, message
):
    path = tmp_path / "people.csv"
    people = words_by_pid(pedestrians)
    if text is None:
        text = (pedestrians / NAME / "attributes.csv").read_text()
    elif text == "same":
        text = "pid,hat\n" + "".join(f"{pid},yes\n" for pid in people)
    path.write_text(text)
    with pytest.raises(error, match=message):
        make_engine(
            *(*FEATURE, *names("attributes"), "privacy.adversary.labels", str(path)),
            *("privacy.adversary.attributes", str(chosen)),
        )


def test_of_several_sources_only_the_named_one_has_labels(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("pid,hat\n10,yes\n11,no\n12,yes\n13,yes\n14,no\n15,no\n")
    items = [(f"{pid:04d}_c1_1.jpg", place, 0, place % 2) for place, pid in enumerate(range(10, 16))]
    context = dataclasses.replace(make_context(()), train_items=items, sources=("market1501", NAME))
    with pytest.raises(DataError, match="Write whose labels they are: market1501=FILE"):
        AttributesAdversary(labels=str(path)).prepare(context)
    with pytest.raises(DataError, match="names 'market', and there are the sources market1501"):
        AttributesAdversary(labels=f"market={path}").prepare(context)
    adversary = AttributesAdversary(labels=f"{NAME}={path}", attributes="hat")
    assert adversary.prepare(context)[:, 0].tolist() == [-1, 0, -1, 1, -1, 0]
    assert table_of(adversary)[:, 0].tolist() == [-1, 0, -1, 1, -1, 0]


EVERYTHING = names(
    "identity:input=reconstruction",
    "image:schedule=alternating+height=16+width=16",
    "attributes:ensemble=2",
    "camera:restart_epochs=2",
)


def test_training_continues_as_if_it_had_not_stopped(make_engine, run_engine, pedestrians, tmp_path):
    """Ensembles, folds, restarts and running means: the second half of a run is the same after a stop."""
    options = ("privacy.deid.enabled", True, *FEATURE, *labels(pedestrians), *EVERYTHING, "train.batch_size", 32)
    options = (*options, "sampler.train_sampler", "SequentialSampler", "data.transforms", "[]", "test.eval_freq", 2)
    whole = make_engine(*options, "train.max_epoch", 3)
    run_engine(whole)
    folder = whole.cfg.data.save_dir
    members = [f"adversary_attributes{end}" for end in ("", "-2", "-3", "-4")]
    assert set(members) < set(whole.get_model_names())
    log = copy.deepcopy(read_training_log(f"{folder}/training.jsonl"))
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert {"loss", "acc", "loss_deid", "acc_adversary_camera", "held_out_loss_adversary_attributes"} <= log[0].keys()
    again = make_engine(*options, "train.max_epoch", 3, "model.resume", f"{folder}/model/model.pth.tar-2")
    run_engine(again)
    for name in whole.get_model_names():
        for key, value in whole._models[name].state_dict().items():
            assert torch.allclose(again._models[name].state_dict()[key], value, atol=1e-6), (name, key)
    assert [line["epoch"] for line in read_training_log(f"{folder}/training.jsonl")] == [1, 2, 3]
    resumed = read_training_log(f"{folder}/training.jsonl")
    assert resumed[:2] == log[:2]
    np.testing.assert_allclose([line["loss"] for line in resumed], [line["loss"] for line in log], rtol=1e-4)


def test_the_guard_counts_on_after_a_stop(make_engine, run_engine):
    """An adversary that learns nothing is at chance; checkpoints of earlier versions say nothing of epochs before."""
    options = (*FEATURE, "privacy.adversary.lr", 1e-12, "train.max_epoch", 2, "test.eval_freq", 1, "train.lr", 1e-12)
    whole = make_engine(*options)
    guard = whole.components[0].guard
    finish, counts = guard.finish_epoch, []

    def at_chance(epoch):
        guard._seen.clear()
        guard.watch(loss=2.0, chance=2.0, spread=0.5)
        finish(epoch)
        counts.append(guard.state()["epochs_at_chance"])

    guard.finish_epoch = at_chance
    run_engine(whole)
    assert counts == [1, 2]
    folder = Path(whole.cfg.data.save_dir)

    def resumed(epoch):
        engine = make_engine(*options, "model.resume", str(folder / f"model/model.pth.tar-{epoch}"))
        return engine.components[0].guard.state()["epochs_at_chance"]

    assert (resumed(1), resumed(2)) == (1, 2)
    (folder / "components.json").write_text('{"2": {"adversary_identity": {}}}')
    assert resumed(1) == 0
    with pytest.raises(CheckpointError, match="components.json' cannot be used .*Delete it"):
        resumed(2)
    (folder / "components.json").unlink()
    assert resumed(2) == 0


def test_erasure_and_distillation_continue_as_if_they_had_not_stopped(make_engine, run_engine, pedestrians):
    """The bank is that of the stopped run, and the teacher the encoder as it was before the first step."""
    options = ("privacy.erasure.enabled", True, "privacy.distillation.enabled", True, *labels(pedestrians))
    options = (*options, "privacy.erasure.bank", 48, "privacy.erasure.attributes", "['hat', 'bag']")
    options = (*options, "privacy.image_erasure.enabled", True, "privacy.image_erasure.bank", 48)
    options = (*options, "train.batch_size", 32, "train.lr", 0.001, "sampler.train_sampler", "SequentialSampler")
    options = (*options, "data.transforms", "[]", "test.eval_freq", 2, "train.max_epoch", 3)
    whole = make_engine(*options)
    start = copy.deepcopy(whole.model.state_dict())
    run_engine(whole)
    folder = whole.cfg.data.save_dir
    teacher = whole._models["distillation"].teacher.state_dict()
    assert teacher.keys() == start.keys()  # and no hook came along: the teacher's features are not the encoder's
    assert all(torch.equal(teacher[name], value) for name, value in start.items())
    last = read_training_log(f"{folder}/training.jsonl")[-1]
    assert {"erasure_distance", "image_erasure_covariance", "loss_distillation"} <= last.keys()
    assert whole._models["erasure"].full
    assert whole._models["image_erasure"].full
    assert 0 < whole._models["image_erasure"].beside.mean() < 1  # RGB, normalization undone
    again = make_engine(*options, "model.resume", f"{folder}/model/model.pth.tar-2")
    run_engine(again)
    for name in whole.get_model_names():
        for key, value in whole._models[name].state_dict().items():
            assert torch.allclose(again._models[name].state_dict()[key].float(), value.float(), atol=1e-5), (name, key)
