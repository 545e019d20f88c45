"""The engine against torchreid's own: same losses and figures without components, exact terms with them."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ppreid_plugin import Component, DeIDDecoder, DPGallery, IdentityAdversary, arguments, build, with_privacy
from ppreid_plugin.checkpoint import LAST_FILE, CheckpointError, load_best
from ppreid_plugin.components import Trainable
from ppreid_plugin.config import ConfigError
from ppreid_plugin.data.validation import VALIDATION
from ppreid_plugin.dp import gaussian_delta
from ppreid_plugin.extracting import extract
from ppreid_plugin.features import FeatureTap, unwrap
from ppreid_plugin.retrieval import evaluate
from ppreid_plugin.toolbox import data as torchreid_data
from ppreid_plugin.toolbox import engine as torchreid_engine
from ppreid_plugin.toolbox import metrics, models, optim, utils

TRIPLET = ("loss.name", "triplet", "sampler.train_sampler", "RandomIdentitySampler", "loss.triplet.weight_x", "0.5")


def record_losses(engine):
    """Keep every summary that forward_backward returns, first in the list that is returned."""
    seen = []
    step = engine.forward_backward

    def recording(data):
        summary = step(data)
        seen.append(dict(summary))
        return summary

    engine.forward_backward = recording
    return seen


def stock_engine(cfg, engine_class, **extra):
    """What torchreid's own main script builds for this configuration, in its order."""
    utils.set_random_seed(cfg.train.seed)
    manager = torchreid_data.ImageDataManager(**arguments.image_data_arguments(cfg))
    model = models.build_model(
        cfg.model.name, num_classes=manager.num_train_pids, loss=cfg.loss.name, pretrained=False, use_gpu=False
    )
    utils.compute_model_complexity(model, (1, 3, cfg.data.height, cfg.data.width))
    optimizer = optim.build_optimizer(model, **arguments.optimizer_arguments(cfg))
    scheduler = optim.build_lr_scheduler(optimizer, **arguments.scheduler_arguments(cfg))
    return engine_class(manager, model, optimizer, scheduler=scheduler, use_gpu=False, **extra)


STAGED = ("train.staged_lr", True, "train.lr_scheduler", "cosine", "train.optim", "sgd")


@pytest.mark.parametrize("options", [STAGED, TRIPLET], ids=["softmax, staged lr", "triplet"])
def test_without_components_it_is_torchreid(make_cfg, make_engine, run_engine, monkeypatch, options):
    options = (*options, "train.max_epoch", 2, "test.eval_freq", 1, "train.fixbase_epoch", 1)
    cfg = make_cfg(*options)
    extra = {"label_smooth": True}
    engine_class = torchreid_engine.ImageSoftmaxEngine
    if cfg.loss.name == "triplet":
        extra |= {"margin": 0.3, "weight_t": 1.0, "weight_x": 0.5}
        engine_class = torchreid_engine.ImageTripletEngine
    stock = stock_engine(cfg, engine_class, **extra)
    stock_losses, figures = record_losses(stock), []
    own_evaluate_rank = metrics.evaluate_rank

    def keep(*args, **kwargs):
        cmc, mAP = own_evaluate_rank(*args, **kwargs)
        figures.append((cmc[0], mAP))
        return cmc, mAP

    monkeypatch.setattr(metrics, "evaluate_rank", keep)
    monkeypatch.setattr(stock, "save_model", lambda *args, **kwargs: None)
    stock.run(**arguments.engine_run_arguments(cfg))
    monkeypatch.undo()

    engine = make_engine(*options)
    losses = record_losses(engine)
    run_engine(engine)

    assert len(losses) == len(stock_losses) > 2
    assert losses == stock_losses
    clean = engine.results["synthetic_pedestrians"].clean
    assert clean.rank1 == pytest.approx(float(figures[-1][0]), abs=1e-6)
    assert clean.mAP == pytest.approx(float(figures[-1][1]), abs=1e-6)
    for name, tensor in stock.model.state_dict().items():
        assert torch.equal(tensor, engine.model.state_dict()[name]), name


@pytest.mark.parametrize("replicated", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.staged_lr", True, "train.new_layers", "clasifier"), "train.new_layers has 'clasifier'.*'classifier'"),
        (
            ("train.staged_lr", True, "train.new_layers", "[fc,hed]"),
            "train.new_layers has 'hed'; layers of osnet_x0_25",
        ),
        (("train.fixbase_epoch", 1, "train.open_layers", "forward"), "train.open_layers has 'forward'; layers"),
        (("train.fixbase_epoch", 1, "train.open_layers", "fc.0"), "train.open_layers has 'fc.0'.*mean 'fc'"),
    ],
)
def test_layers_that_the_model_has_not_are_refused(make_cfg, monkeypatch, options, message, replicated):
    build_model = build.build_model
    if replicated:  # as on several GPUs
        monkeypatch.setattr(build, "build_model", lambda *args: nn.DataParallel(build_model(*args)))
    with pytest.raises(ConfigError, match=message):
        build.build_engine(make_cfg(*options))


@pytest.mark.parametrize(
    "options",
    [
        ("train.new_layers", "clasifier", "train.open_layers", "clasifier"),  # neither is used
        ("train.staged_lr", True, "train.new_layers", "clasifier", "test.evaluate", True),
        ("train.staged_lr", True, "train.new_layers", "[fc,classifier]"),
        ("train.staged_lr", True, "train.fixbase_epoch", 1),
    ],
)
def test_layers_that_are_the_models_or_do_not_count_pass(make_engine, caplog, options):
    make_engine(*options)
    assert "train.staged_lr" not in caplog.text


def test_staged_learning_rates_without_new_layers_are_warned_of(make_engine, caplog):
    engine = make_engine("train.staged_lr", True, "train.new_layers", "", "train.lr", 0.01)
    assert "all layers learn at train.base_lr_mult x train.lr" in caplog.text
    assert engine.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    assert engine.optimizer.param_groups[1]["params"] == []


@pytest.mark.parametrize("name", ["osnet_x0_25", "mobilenetv2_x1_0", "resnet18", "squeezenet1_0", "shufflenet"])
def test_the_tap_sees_exactly_the_triplet_feature(name):
    model = models.build_model(name, num_classes=5, loss="triplet", pretrained=False).train()
    tap = FeatureTap(model)
    with tap.armed():
        _, features = model(torch.randn(4, 3, 128, 64))
        assert torch.equal(tap.feature(), features)
        assert tap.feature().grad_fn is not None
    with pytest.raises(ValueError, match="no feature passed"):
        tap.feature()


def test_the_tap_joins_replicas_in_batch_order_with_their_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(3, 2)

        def forward(self, x):
            return self.classifier(x)

    net = Net()
    tap = FeatureTap(net)
    cpu, other = torch.device("cpu"), torch.device("meta")
    tap._devices = [cpu, other]
    first, second = torch.ones(2, 3, requires_grad=True), torch.full((1, 3), 2.0, requires_grad=True)
    with tap.armed():
        # the second replica finishes first, as it may under DataParallel
        tap._stored["feature"][other] = second
        net(first)
        joined = tap.feature()
    assert joined.tolist() == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    joined.sum().backward()
    assert first.grad is not None
    assert second.grad is not None


@pytest.mark.parametrize("name", ["hacnn", "pcb_p6"])
def test_models_without_a_single_classifier_are_refused_by_name(make_cfg, name):
    with pytest.raises(ValueError, match=f"model.name is '{name}'.*Choose another model"):
        build.check(make_cfg("model.name", name, "privacy.deid.enabled", True))
    build.check(make_cfg("model.name", name))  # without suppression it is torchreid's own business


class Quadratic(Component):
    """A component whose term has a known gradient: weight * mean of the squared features."""

    def __init__(self, weight=1.0):
        self.weight = weight
        self.batches = []

    def loss_terms(self, batch):
        self.batches.append(batch)
        return {"loss_quadratic": self.weight * batch.features.square().mean()}


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("weight_t", "weight_x"), [(0.5, 1.0), (0.25, 2.0), (0.0, 2.0), (0.3, 0.0)])
def test_torchreids_loss_weights_never_scale_the_privacy_term(make_cfg, monkeypatch, weight_t, weight_x):
    options = (*TRIPLET, "loss.triplet.weight_t", weight_t, "loss.triplet.weight_x", weight_x)
    grads = []
    for components in ([], [Quadratic(3.0)]):
        monkeypatch.setattr(build, "build_components", lambda cfg, parts=components: parts)
        engine = build.build_engine(make_cfg(*options))
        monkeypatch.setattr(engine.optimizer, "step", lambda: None)
        engine.max_epoch = 1
        engine.set_model_mode("train")
        batch = next(iter(engine.train_loader))
        summary = engine.forward_backward(batch)
        grads.append((gradients_of(engine.model), summary))
    (plain, plain_summary), (private, private_summary) = grads

    reference = build.build_engine(make_cfg(*options)).model
    reference.train()
    tap = FeatureTap(reference)
    with tap.armed():
        reference(batch["img"])
        (3.0 * tap.feature().square().mean()).backward()
    wanted = gradients_of(reference)

    assert plain_summary == private_summary  # the term is not in torchreid's own logged losses
    difference = torch.cat([(private[n] - plain.get(n, torch.zeros_like(private[n]))).flatten() for n in wanted])
    gradient = torch.cat([gradient.flatten() for gradient in wanted.values()])
    assert (difference - gradient).norm() <= 1e-4 * gradient.norm()


def test_components_see_the_image_in_0_1_and_their_pids(make_cfg, monkeypatch):
    part = Quadratic()
    monkeypatch.setattr(build, "build_components", lambda cfg: [part])
    engine = build.build_engine(make_cfg())
    engine.max_epoch = 4
    engine.epoch = 1
    data = next(iter(engine.train_loader))
    engine.batch_idx = 0
    engine.set_model_mode("train")
    engine.forward_backward(data)
    batch = part.batches[0]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    assert torch.allclose(batch.images, (data["img"] * std + mean).clamp(0, 1))
    assert torch.equal(batch.pids, data["pid"])
    assert batch.progress == pytest.approx(0.25)
    assert batch.data is data


def test_an_engine_that_bypasses_compute_loss_is_an_error(make_cfg):
    class Silent(torchreid_engine.ImageSoftmaxEngine):
        def forward_backward(self, data):
            imgs, pids = self.parse_data_for_train(data)
            return {"loss": self.criterion(self.model(imgs), pids).item()}

    plain = build.build_engine(make_cfg())
    engine = with_privacy(Silent)(
        plain.datamanager, plain.model, plain.optimizer, use_gpu=False, components=[Quadratic()]
    )
    with pytest.raises(RuntimeError, match="never called compute_loss"):
        engine.forward_backward(next(iter(engine.train_loader)))


def test_a_model_built_for_another_loss_is_refused(make_cfg):
    plain = build.build_engine(make_cfg())
    model = models.build_model("osnet_x0_25", num_classes=8, loss="triplet", pretrained=False)
    with pytest.raises(ValueError, match="loss='softmax', got one built with loss='triplet'"):
        with_privacy(torchreid_engine.ImageSoftmaxEngine)(plain.datamanager, model, plain.optimizer, use_gpu=False)


def test_one_line_integration_trains_with_scheduler_none_and_saves(make_cfg, tmp_path):
    cfg = make_cfg()
    manager = torchreid_data.ImageDataManager(**arguments.image_data_arguments(cfg))
    model = models.build_model("osnet_x0_25", manager.num_train_pids, pretrained=False)
    optimizer = optim.build_optimizer(model)
    Engine = with_privacy(torchreid_engine.ImageSoftmaxEngine)
    engine = Engine(
        manager,
        model,
        optimizer=optimizer,
        use_gpu=False,
        components=[DeIDDecoder("pixelate"), IdentityAdversary(), DPGallery("gaussian", epsilon=8.0)],
    )
    engine.run(save_dir=str(tmp_path / "run"), max_epoch=1)
    folders = {path.parent.name for path in (tmp_path / "run").glob("*/model.pth.tar-1")}
    assert folders == {"model", "deid_decoder", "adversary_identity"}
    result = engine.results["synthetic_pedestrians"]
    assert result.protected[0].description["epsilon"] == 8.0
    assert 0 <= result.protected[0].anonymous.rank1 <= 1


def test_checkpoints_load_in_stock_torchreid_with_no_missing_or_unexpected_key(make_engine, run_engine, capsys):
    engine = make_engine("privacy.deid.enabled", True, "privacy.adversary.enabled", True)
    run_engine(engine)
    path = f"{engine.cfg.data.save_dir}/model/model.pth.tar-1"
    fresh = models.build_model("osnet_x0_25", engine.datamanager.num_train_pids, pretrained=False)
    state = utils.load_checkpoint(path)["state_dict"]
    missing, unexpected = fresh.load_state_dict(state, strict=True)
    assert not missing
    assert not unexpected
    capsys.readouterr()
    utils.load_pretrained_weights(fresh, path)
    assert "discarded" not in capsys.readouterr().out
    assert utils.resume_from_checkpoint(path, fresh, engine.optimizer, engine.scheduler) == 1


def test_channels_last_trains_the_same_to_rounding_and_its_checkpoint_loads(make_engine, run_engine):
    options = ("privacy.deid.enabled", True, "privacy.adversary.enabled", True)
    losses, starts = {}, {}
    for layout in (False, True):
        engine = make_engine(*options, "train.channels_last", layout)
        assert engine.model.training
        starts[layout] = {name: value.clone() for name, value in engine.model.state_dict().items()}
        seen, inputs = record_losses(engine), []
        convolutions = [one for one in engine.model.modules() if isinstance(one, nn.Conv2d)]
        for one in convolutions:  # of one channel or one pixel every layout is channels last
            one.register_forward_hook(lambda _, __, made, kept=inputs: kept.append(made))
        engine.set_model_mode("train")
        engine.max_epoch = 1
        for _, data in zip(range(2), engine.train_loader, strict=False):
            engine.forward_backward(data)
        wide = [made for made in inputs if made.shape[1] > 1 and made.shape[2] > 1]
        assert wide
        assert all(made.is_contiguous(memory_format=torch.channels_last) == layout for made in wide)
        losses[layout] = seen
    assert all(torch.equal(value, starts[True][name]) for name, value in starts[False].items())  # batch norms, too
    for key, value in losses[False][0].items():
        assert losses[True][0][key] == pytest.approx(value, rel=1e-4), key
    path = f"{engine.cfg.data.save_dir}/model/model.pth.tar-1"
    engine.save_model(0, 0.5, engine.cfg.data.save_dir)
    fresh = models.build_model("osnet_x0_25", engine.datamanager.num_train_pids, pretrained=False)
    fresh.load_state_dict(utils.load_checkpoint(path)["state_dict"], strict=True)
    assert all(one.weight.is_contiguous() for one in fresh.modules() if isinstance(one, nn.Conv2d))


def test_a_model_that_needs_the_other_layout_is_named(make_engine):
    with pytest.raises(ConfigError, match="train.channels_last is True, but the forward of pcb_p6 needs the other"):
        make_engine("model.name", "pcb_p6", "data.height", 96, "train.channels_last", True)


def test_training_continues_as_if_it_had_not_stopped(make_engine, run_engine, tmp_path):
    options = ("privacy.deid.enabled", True, "privacy.adversary.enabled", True, "train.stepsize", "[1]")
    whole = make_engine(*options, "train.max_epoch", 1)
    run_engine(whole)
    folder = whole.cfg.data.save_dir
    again = make_engine(*options, "train.max_epoch", 2, "model.resume", f"{folder}/model/model.pth.tar-1")
    assert again.cfg.train.start_epoch == 1
    for name in whole.get_model_names():
        for key, value in whole._models[name].state_dict().items():
            assert torch.equal(again._models[name].state_dict()[key], value), (name, key)
        old, new = whole._optims[name].state_dict(), again._optims[name].state_dict()
        assert old["param_groups"][0]["lr"] == new["param_groups"][0]["lr"]
        first = next(iter(old["state"]))
        assert torch.equal(old["state"][first]["exp_avg"], new["state"][first]["exp_avg"])
        assert again._scheds[name].last_epoch == whole._scheds[name].last_epoch == 1
    before = copy.deepcopy(again.components[0].network.state_dict())
    run_engine(again)
    assert any(not torch.equal(before[k], v) for k, v in again.components[0].network.state_dict().items())


def test_a_run_that_is_stopped_goes_on_from_its_last_epoch(make_engine, run_engine, tmp_path):
    options = ("privacy.deid.enabled", True, "train.max_epoch", 2)

    def stopped(where, **patches):
        torch.manual_seed(0)
        engine = make_engine(*options, "data.save_dir", tmp_path / where)
        for name, patch in patches.items():
            setattr(engine, name, patch(engine, getattr(engine, name)))
        with pytest.raises(KeyboardInterrupt):
            run_engine(engine)
        return engine, str(tmp_path / where / "model" / LAST_FILE)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    def in_epoch_2(engine, train):
        return lambda *args, **kwargs: interrupted() if engine.epoch == 1 else train(*args, **kwargs)

    engine, last = stopped("final test", test=lambda *_: interrupted)
    assert utils.resume_from_checkpoint(last, copy.deepcopy(engine.model)) == 2  # stock torchreid reads it
    again = make_engine(*options, "model.resume", last, "data.save_dir", tmp_path / "final test")
    run_engine(again)  # only the test is left
    saved = torch.load(tmp_path / "final test" / "model" / "model.pth.tar-2", weights_only=True)
    for key, value in engine.model.state_dict().items():
        assert torch.equal(saved["state_dict"][key], value), key
    assert again.results["synthetic_pedestrians"].clean.mAP > 0

    _, last = stopped("epoch", train=in_epoch_2)
    again = make_engine(*options, "model.resume", last)
    assert again.cfg.train.start_epoch == 1
    assert not list(Path(last).parent.glob(".*"))

    other = Path(last).parent.parent / "deid_decoder" / LAST_FILE
    shutil.copyfile(tmp_path / "final test" / "deid_decoder" / LAST_FILE, other)
    with pytest.raises(CheckpointError, match=r"deid_decoder.*is of epoch 2, '.*model-last.*' of epoch 1"):
        make_engine(*options, "model.resume", last)


def test_resume_without_the_privacy_modules_names_the_missing_one(make_engine, run_engine):
    engine = make_engine()
    run_engine(engine)
    path = f"{engine.cfg.data.save_dir}/model/model.pth.tar-1"
    with pytest.raises(FileNotFoundError, match="'deid_decoder' has no checkpoint"):
        make_engine("privacy.deid.enabled", True, "model.resume", path)


def test_the_best_checkpoint_is_chosen_on_validation_people(make_engine, run_engine, monkeypatch):
    engine = make_engine("privacy.validation.ids_fraction", 0.4, "train.max_epoch", 3, "test.eval_freq", 1)
    assert list(engine.test_loader) == [VALIDATION, "synthetic_pedestrians"]
    assert engine.datamanager.num_train_pids == engine.model.classifier.out_features == 5
    wanted = iter([0.3, 0.9, 0.5])
    own_test = engine.test

    def test(*args, **kwargs):
        rank1 = own_test(*args, **kwargs)
        result = engine.results[VALIDATION].clean
        object.__setattr__(result, "mAP", next(wanted))
        object.__setattr__(engine.results["synthetic_pedestrians"].clean, "mAP", rank1)
        return rank1

    monkeypatch.setattr(engine, "test", test)
    run_engine(engine)
    folder = engine.cfg.data.save_dir
    best = torch.load(f"{folder}/model/model-best.pth.tar", weights_only=True)
    last = torch.load(f"{folder}/model/model-last.pth.tar", weights_only=True)
    assert (best["epoch"], last["epoch"]) == (2, 3)
    with open(f"{folder}/best.json") as stream:
        assert json.load(stream) == {"epoch": 2, "mAP": 0.9}
    monkeypatch.setattr(engine, "test", own_test)
    engine.results.clear()
    engine.test_best(folder)  # figures are of the result, which the last epoch is not
    assert set(engine.results) == {VALIDATION, "synthetic_pedestrians"}
    held = engine.model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in best["state_dict"].items())
    assert any(not torch.equal(held[name], value) for name, value in last["state_dict"].items())
    engine.results.clear()
    engine.best["epoch"] = 3
    engine.test_best(folder)  # the last: tested already
    assert not engine.results


def test_a_new_training_does_not_pass_an_earlier_ones_best_for_its_own(make_engine, run_engine, caplog):
    options = ("privacy.deid.enabled", True, "test.eval_freq", 1)
    first = make_engine(*options, "privacy.validation.ids_fraction", 0.4, "train.max_epoch", 2)
    run_engine(first)
    folder = Path(first.cfg.data.save_dir)
    best, kept = (folder / "best.json").read_bytes(), (folder / "model" / "model-best.pth.tar").read_bytes()
    (folder / "reconstructions_x.png").write_bytes(b"png")
    (folder / "metrics.json").write_text("{}")
    second = make_engine("train.max_epoch", 1)
    run_engine(second)
    assert (
        f"holds an earlier training: moved to '{folder / 'earlier-1'}' (deid_decoder, model, best.json" in caplog.text
    )
    assert not list(folder.glob("*/model-best.pth.tar"))
    assert not (folder / "deid_decoder").exists()
    assert not (folder / "training.jsonl").exists()
    assert not (folder / "reconstructions_x.png").exists()
    assert (folder / "earlier-1" / "metrics.json").is_file()
    aside = folder / "earlier-1"
    assert (aside / "best.json").read_bytes() == best
    assert (aside / "model" / "model-best.pth.tar").read_bytes() == kept
    again = make_engine("train.max_epoch", 2, "model.resume", folder / "model" / LAST_FILE)
    assert again.best is None
    assert "also trained" not in caplog.text  # the decoder is the earlier training's
    went_on = make_engine(
        *options,
        *("privacy.validation.ids_fraction", 0.4, "train.max_epoch", 3, "model.resume", aside / "model" / LAST_FILE),
    )
    assert went_on.cfg.train.start_epoch == 2
    assert (folder / "earlier-2" / "model").is_dir()  # of the second


def test_what_the_record_says_is_the_best_epoch_counts(make_engine, run_engine, monkeypatch, caplog):
    """A run that is stopped while it writes the best weights leaves those of another epoch, or a record before them."""
    options = ("privacy.deid.enabled", True, "privacy.validation.ids_fraction", 0.4, "test.eval_freq", 1)
    engine = make_engine(*options, "train.max_epoch", 3)
    run_engine(engine)
    folder = Path(engine.cfg.data.save_dir)
    kept = {name: torch.load(folder / name / "model.pth.tar-1", weights_only=True) for name in engine.get_model_names()}
    (folder / "best.json").write_text('{"epoch": 1, "mAP": 0.99}')
    shutil.copyfile(folder / "model" / "model.pth.tar-3", folder / "model" / "model-best.pth.tar")
    again = make_engine(*options, "train.max_epoch", 4, "model.resume", folder / "model" / LAST_FILE)
    assert again.best == {"epoch": 1, "mAP": 0.99}
    load_best(again, folder, 1)
    for name, checkpoint in kept.items():
        state = again._models[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in checkpoint["state_dict"].items())
    (folder / "model" / "model.pth.tar-1").unlink()
    later = make_engine(*options, "train.max_epoch", 4, "model.resume", folder / "model" / LAST_FILE)
    assert later.best is None
    assert "epoch 1 is the best on validation people, and there are no weights of it of model" in caplog.text
    with pytest.raises(CheckpointError, match="holds no weights of 'model' after epoch 1, the best on validation"):
        load_best(later, folder, 1)


def test_the_record_of_the_best_epoch_is_written_after_its_weights(make_engine, run_engine, monkeypatch):
    engine = make_engine("train.max_epoch", 1, "privacy.validation.ids_fraction", 0.4)

    def stopped(path, data, **more):
        assert torch.load(path.parent / "model" / "model-best.pth.tar", weights_only=True)["epoch"] == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("ppreid_plugin.checkpoint.write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_engine(engine)


def test_a_stop_while_the_latest_state_is_written_leaves_the_one_before(make_engine, run_engine, monkeypatch):
    engine = make_engine("train.max_epoch", 2, "test.eval_freq", 1, "privacy.deid.enabled", True)
    real = torch.save

    def save(state, path):
        real(state, path)
        if state["epoch"] == 2 and LAST_FILE in str(path) and "deid_decoder" in str(path):
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run_engine(engine)
    last = Path(engine.cfg.data.save_dir) / "model" / LAST_FILE
    assert (
        make_engine("train.max_epoch", 2, "privacy.deid.enabled", True, "model.resume", last).cfg.train.start_epoch == 1
    )


def test_a_run_that_goes_on_in_another_folder_sets_aside_what_is_there(make_engine, run_engine, tmp_path):
    options = ("privacy.deid.enabled", True, "train.max_epoch", 2, "test.eval_freq", 1)
    first = make_engine(*options)
    run_engine(first)
    other = make_engine(*options, "train.seed", 9, "data.save_dir", tmp_path / "other")
    run_engine(other)
    mine, theirs = (Path(engine.cfg.data.save_dir) for engine in (first, other))
    lines, others = ((folder / "training.jsonl").read_text().splitlines() for folder in (mine, theirs))
    resumed = make_engine(
        *options, "model.resume", mine / "model" / "model.pth.tar-1", "data.save_dir", theirs, "train.max_epoch", 3
    )
    assert (theirs / "training.jsonl").read_text().splitlines() == lines[:1]
    assert (theirs / "earlier-1" / "training.jsonl").read_text().splitlines() == others
    assert (theirs / "earlier-1" / "deid_decoder" / "model.pth.tar-2").is_file()
    assert not (theirs / "model").exists()
    run_engine(resumed)
    (mine / "training.jsonl").write_text("no JSON\n")
    held = sorted(path.name for path in theirs.iterdir())
    with pytest.raises(ValueError, match="training.jsonl' line 1 is no epoch of a training log"):
        make_engine(*options, "model.resume", mine / "model" / "model.pth.tar-1", "data.save_dir", theirs)
    assert sorted(path.name for path in theirs.iterdir()) == held
    (mine / "training.jsonl").write_text("\n".join(lines) + "\n")
    assert [json.loads(line)["epoch"] for line in (theirs / "training.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert len((mine / "training.jsonl").read_text().splitlines()) == 2


def test_components_of_one_name_are_refused(make_engine):
    plain = make_engine()

    def build_with(*components):
        parts = {"optimizer": plain.optimizer, "scheduler": plain.scheduler, "use_gpu": False}
        return with_privacy(torchreid_engine.ImageSoftmaxEngine)(
            plain.datamanager, plain.model, components=components, **parts
        )

    with pytest.raises(ValueError, match="two components are called 'deid_decoder'; one would take the other's place"):
        build_with(DeIDDecoder("pixelate"), DeIDDecoder("blur"))
    with pytest.raises(ValueError, match="two components are called 'adversary_identity'"):
        build_with(IdentityAdversary(input="feature"), IdentityAdversary(input="feature", seed=2))

    class Plain(Component):
        name, in_training = "plain", True

    with pytest.raises(ValueError, match="two components are called 'plain'"):  # which own no module
        build_with(Plain(), Plain())
    with pytest.raises(ValueError, match="two components are called 'model'"):
        build_with(IdentityAdversary(input="feature", name="model"))
    other = IdentityAdversary(input="feature", seed=2, name="adversary_other")
    engine = build_with(IdentityAdversary(input="feature"), other)
    assert list(engine.get_model_names()) == ["model", "adversary_identity", "adversary_other"]


def test_one_evaluation_chooses_nothing(make_engine, run_engine, caplog):
    held_out = ("privacy.validation.ids_fraction", 0.4, "train.max_epoch", 2)
    engine = make_engine(*held_out)
    assert "test.eval_freq -1 evaluates no epoch before the last: none is chosen on these people" in caplog.text
    run_engine(engine)
    assert engine.best["epoch"] == 2
    assert engine.chosen_on == "nothing: the last epoch, the only one that was evaluated"
    caplog.clear()
    engine = make_engine(*held_out, "test.eval_freq", 1)
    assert "is chosen on these" not in caplog.text
    run_engine(engine)
    assert engine.chosen_on == "validation people"


def test_research_noise_is_the_same_draw_each_time_and_never_moves_the_training(make_engine, run_engine):
    gallery = ("privacy.gallery.enabled", True, "privacy.gallery.epsilon", 4)
    engine = make_engine(*gallery, "train.max_epoch", 2, "test.eval_freq", 1)
    losses = record_losses(engine)
    run_engine(engine)
    first = engine.results["synthetic_pedestrians"].protected[0].anonymous.mAP
    engine.test()
    assert engine.results["synthetic_pedestrians"].protected[0].anonymous.mAP == first

    plain = make_engine("train.max_epoch", 2, "test.eval_freq", 1)
    plain_losses = record_losses(plain)
    run_engine(plain)
    assert losses == plain_losses


def test_with_next_to_no_noise_the_protected_figures_are_those_of_centered_rows(make_engine):
    engine = make_engine("privacy.gallery.enabled", True, "privacy.gallery.epsilon", 1e7)
    engine.test()
    result = engine.results["synthetic_pedestrians"]
    with torch.no_grad():
        roles = {r: extract(engine, loader, r) for r, loader in engine.test_loader["synthetic_pedestrians"].items()}
    query, gallery = (
        roles[r].with_features(engine.galleries[0].transform(roles[r].features)) for r in ("query", "gallery")
    )
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    wanted = evaluate(query.features, gallery.features, *labels, metric="cosine")
    assert result.protected[0].anonymous.mAP == pytest.approx(wanted.mAP, abs=0.01)
    assert result.protected[0].anonymous.mAP != result.clean.mAP  # euclidean on raw features


def test_person_level_epsilon_composes_over_the_rows_of_a_person(make_engine):
    engine = make_engine("privacy.gallery.enabled", True, "privacy.gallery.epsilon", 4)
    engine.test()
    (protected,) = engine.results["synthetic_pedestrians"].protected
    mechanism = engine.galleries[0].mechanism
    for rows, epsilon in zip(
        (protected.enrolled.rows_median, protected.enrolled.rows_largest), protected.person_epsilon, strict=True
    ):
        # k rows of sensitivity D under noise sigma are one release of sensitivity sqrt(k) D
        delta = gaussian_delta(mechanism.sigma, epsilon, math.sqrt(math.ceil(rows)) * mechanism.sensitivity)
        assert delta == pytest.approx(mechanism.delta, rel=1e-6)
    assert 4 < protected.person_epsilon[0] <= protected.person_epsilon[1]


def test_several_budgets_are_evaluated_in_one_pass(make_engine, monkeypatch):
    options = ("privacy.gallery.enabled", True, "privacy.gallery.epsilons", [2, 8.0])
    engine = make_engine(*options)
    seen = []
    own = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda images: seen.append(len(images)) or own(images))
    engine.test()
    manager = engine.datamanager
    items = manager.test_dataset["synthetic_pedestrians"]
    assert sum(seen) == len(items["query"]) + len(items["gallery"]) + len(manager.train_loader.dataset.train)
    results = engine.results["synthetic_pedestrians"].protected
    assert [result.description["epsilon"] for result in results] == [2.0, 8.0]
    alone = make_engine("privacy.gallery.enabled", True, "privacy.gallery.epsilon", 8)
    alone.test()
    assert alone.results["synthetic_pedestrians"].protected[0].anonymous.mAP == results[1].anonymous.mAP


def test_nothing_of_the_gallery_reaches_the_public_transform(make_engine):
    engine = make_engine("privacy.gallery.enabled", True)
    (gallery,) = engine.galleries
    seen = []
    own_fit = gallery.public_transform.fit
    gallery.public_transform.fit = lambda features, pids: seen.append(features.clone()) or own_fit(features, pids)
    engine.test()
    assert len(seen) == 1
    assert len(seen[0]) == len(engine.datamanager.train_loader.dataset.train)


def test_the_printed_table_states_epsilon_a_person_beside_enrolled_figures(make_engine, capsys):
    engine = make_engine("privacy.gallery.enabled", True, "privacy.gallery.epsilon", 8)
    engine.test()
    printed = capsys.readouterr().out
    assert "sigma 1.2" in printed
    assert "Research noise" in printed
    enrolled = [line for line in printed.splitlines() if line.startswith("enrolled") and "protected" in line]
    assert len(enrolled) == 1
    assert "(median)" in enrolled[0]
    assert "(largest)" in enrolled[0]


def test_nan_features_are_named_by_image(make_engine):
    engine = make_engine()
    model = engine.model

    class Broken(nn.Module):
        def forward(self, images):
            features = model(images)
            features[1] = float("nan")
            return features

    engine.model = Broken()
    engine.set_model_mode("eval")
    with pytest.raises(ValueError, match=r"hold NaN or infinity, such as those of .*\.jpg"):
        engine.test()


def test_the_test_loaders_are_restored_after_a_failure(make_engine, monkeypatch):
    engine = make_engine()
    loaders, own = engine.test_loader, metrics.evaluate_rank

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppreid_plugin.retrieval.engine_ranking.evaluate", fail)
    with pytest.raises(KeyboardInterrupt):
        engine.test()
    assert engine.test_loader is loaders
    assert metrics.evaluate_rank is own
    assert not engine._replaying


@pytest.mark.parametrize("option", [("test.rerank", True), ("test.visrank", True, "test.visrank_topk", 2)])
def test_rerank_and_visrank_work_on_clean_and_protected_features(make_engine, run_engine, option):
    engine = make_engine("test.evaluate", True, "privacy.gallery.enabled", True, *option)
    run_engine(engine)
    assert len(engine.results["synthetic_pedestrians"].protected) == 1
    if option[0] == "test.visrank":
        folder = engine.cfg.data.save_dir
        from pathlib import Path

        pictures = {p.parent.relative_to(folder).as_posix() for p in Path(folder).rglob("*.jpg")}
        assert pictures == {
            "visrank_synthetic_pedestrians",
            "protected/gaussian_epsilon_16/visrank_synthetic_pedestrians",
        }


def test_amp_trains_in_bfloat16_and_evaluates_close_to_float32(make_engine, run_engine):
    exact = make_engine("privacy.deid.enabled", True)
    exact.test()
    engine = make_engine("train.amp", True, "privacy.deid.enabled", True)
    engine.test()
    wanted = exact.results["synthetic_pedestrians"].clean.mAP
    assert engine.results["synthetic_pedestrians"].clean.mAP == pytest.approx(wanted, abs=0.1)
    kinds = []
    handle = unwrap(engine.model).classifier.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    run_engine(engine)
    handle.remove()
    assert set(kinds) == {torch.bfloat16}
    assert next(engine.model.parameters()).dtype == torch.float32


def test_figures_are_in_tensorboard_under_names_of_their_own(make_engine, run_engine):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine = make_engine(
        "privacy.deid.enabled", True, "privacy.adversary.enabled", True, "privacy.gallery.enabled", True
    )
    run_engine(engine)
    events = EventAccumulator(engine.cfg.data.save_dir).Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"Train/loss", "Train/loss_deid", "Train/loss_adversary_identity", "Train/acc_adversary_identity"}
    target = "Test/synthetic_pedestrians"
    assert wanted | {f"{target}/rank1", f"{target}/gaussian_epsilon_16/rank1"} <= tags
    result = engine.results["synthetic_pedestrians"]
    (rank1,) = [event.value for event in events.Scalars(f"{target}/rank1")]
    assert rank1 == pytest.approx(result.clean.rank1, abs=1e-6)


class Tracklets(torchreid_data.VideoDataset):
    """The generated pedestrians as tracklets: all images of a person in a camera."""

    source = None

    def __init__(self, root="", **kwargs):
        kwargs.pop("split_id", None)

        def group(items):
            tracks = {}
            for path, pid, camid, *_ in items:
                tracks.setdefault((pid, camid), []).append(path)
            return [(tuple(paths), pid, camid) for (pid, camid), paths in tracks.items()]

        source = Tracklets.source
        super().__init__(group(source.train), group(source.query), group(source.gallery), **kwargs)


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_video_engines_train_and_protect_tracklets(make_engine, run_engine, pedestrians, loss):
    from ppreid_plugin.data.pedestrians import SyntheticPedestrians
    from ppreid_plugin.toolbox import video_datasets

    Tracklets.source = SyntheticPedestrians(root=str(pedestrians), verbose=False)
    if "tiny_tracklets" not in video_datasets():
        torchreid_data.register_video_dataset("tiny_tracklets", Tracklets)
    options = (*TRIPLET[:4], "sampler.num_instances", 2) if loss == "triplet" else ()
    (pedestrians / "tiny_tracklets").mkdir(exist_ok=True)
    engine = make_engine(
        *options,
        *("data.type", "video", "data.sources", ["tiny_tracklets"], "data.targets", ["tiny_tracklets"]),
        *("video.seq_len", 2, "train.batch_size", 4, "privacy.deid.enabled", True),
        *("privacy.adversary.enabled", True, "privacy.gallery.enabled", True),
    )
    losses = record_losses(engine)
    run_engine(engine)
    assert all(np.isfinite(value) for summary in losses for value in summary.values())
    assert {"loss_deid", "acc_adversary_identity"} <= losses[0].keys()
    assert engine.results["tiny_tracklets"].protected[0].anonymous.num_valid_queries > 0


def test_an_extra_module_without_optimizer_is_saved_too(make_engine, run_engine, tmp_path):
    engine = make_engine("train.max_epoch", 1)
    engine.register_model("extra", *Trainable(nn.Linear(2, 2), None))
    run_engine(engine)
    saved = torch.load(f"{engine.cfg.data.save_dir}/extra/model.pth.tar-1", weights_only=True)
    assert saved["state_dict"].keys() == {"weight", "bias"}


def test_a_run_goes_on_with_its_own_optimizer_and_says_what_does_not_count(make_engine, run_engine, caplog):
    first = make_engine("train.max_epoch", 1)
    run_engine(first)
    last = Path(first.cfg.data.save_dir) / "model" / LAST_FILE
    make_engine("train.max_epoch", 2, "model.resume", last)
    assert "model.resume goes on" not in caplog.text
    with pytest.raises(
        CheckpointError, match=r"is of another optimizer \(.*momentum.*\). Continue with the train.optim"
    ):
        make_engine("train.max_epoch", 2, "model.resume", last, "train.optim", "sgd")
    make_engine("train.max_epoch", 2, "model.resume", last, "train.lr", 0.5)
    assert "that the run was started with: base_lrs [" in caplog.text
    assert "(now [0.5])" in caplog.text


def test_the_best_epoch_comes_along_or_is_forgotten_with_its_weights(make_engine, run_engine, tmp_path):
    options = ("privacy.validation.ids_fraction", 0.4, "test.eval_freq", 1, "privacy.deid.enabled", True)
    first = make_engine(*options, "train.max_epoch", 2)
    run_engine(first)
    folder = Path(first.cfg.data.save_dir)
    best = json.loads((folder / "best.json").read_text())
    last = folder / "model" / LAST_FILE

    again = make_engine(*options, "train.max_epoch", 3, "model.resume", last, "data.save_dir", tmp_path / "other")
    assert again.best == best
    assert json.loads((tmp_path / "other" / "best.json").read_text()) == best
    for name in again.get_model_names():
        copied = tmp_path / "other" / name / "model-best.pth.tar"
        assert copied.read_bytes() == (folder / name / "model-best.pth.tar").read_bytes()
    tested = make_engine(*options, "model.resume", last, "test.evaluate", True, "data.save_dir", tmp_path / "tested")
    assert tested.best == best
    assert not (tmp_path / "tested" / "best.json").exists()

    (folder / "best.json").write_text(json.dumps({"epoch": 2, "mAP": 0.9}))
    early = make_engine(*options, "train.max_epoch", 3, "model.resume", folder / "model" / "model.pth.tar-1")
    assert early.best is None  # of an epoch that is trained again
    (folder / "best.json").write_text('{"epoch": 2')
    with pytest.raises(CheckpointError, match="best.json' cannot be read .*Remove it"):
        make_engine(*options, "train.max_epoch", 3, "model.resume", last)
