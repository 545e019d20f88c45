"""Several ranks: one process's extraction bit for bit, its training step by step, one set of files, and no hang."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from ppreid_plugin import arguments, build, cli, config, engine, feature_shards, ranks
from ppreid_plugin.aware import release_aware
from ppreid_plugin.aware.noise import draw_epsilon
from ppreid_plugin.checkpoint import resume
from ppreid_plugin.components import Batch, Context
from ppreid_plugin.data.validation import VALIDATION
from ppreid_plugin.distributed import average_buffers, average_gradients, in_turn
from ppreid_plugin.suppression.adversary_members import Member
from ppreid_plugin.suppression.adversary_steps import learn
from ppreid_plugin.toolbox import models, utils
from rank_cases import run_ranks

TARGET = "synthetic_pedestrians"


def joined(timeout_s=60.0):
    torch.set_num_threads(1)
    return ranks.joined(use_gpu=False, timeout_s=timeout_s)


def make(root, save_dir, options):
    """The configuration of a small training; ``options`` is KEY, VALUE, ..."""
    cfg = config.get_default_config()
    defaults = (
        *("use_gpu", False, "model.name", "osnet_x0_25", "model.pretrained", False, "data.root", str(root)),
        *("data.sources", [TARGET], "data.targets", [TARGET], "data.height", 64, "data.width", 32, "data.workers", 0),
        *("data.save_dir", str(save_dir), "train.max_epoch", 1, "train.batch_size", 16),
    )
    for values in (defaults, options):
        for key, value in zip(values[::2], values[1::2], strict=True):
            config.set_option(cfg, key, value)
    return cfg


# what the ranks do


def extract_in_ranks(rank, argv, fail=""):
    feature_shards._LEAST_ROWS = 8
    torch.set_num_threads(1)
    if fail and rank == 1:

        def broken(self, features):
            if fail == "raises":
                raise ValueError("the disk is full")
            if fail == "dies":
                os._exit(9)
            time.sleep(600)

        feature_shards.FeatureShards.add = broken
    return cli.run(cli.extract_features, argv)


def train_with_a_best_epoch(rank, argv):
    """The command, where validation people find the first of its two epochs the best."""
    torch.set_num_threads(1)
    save = engine.PrivacyMixin.save_model

    def first_is_best(self, epoch, *args, **kwargs):
        if VALIDATION in self.results:
            object.__setattr__(self.results[VALIDATION].clean, "mAP", 0.9 - epoch)
        return save(self, epoch, *args, **kwargs)

    engine.PrivacyMixin.save_model = first_is_best
    return cli.run(cli.train, argv)


def check_the_few_things(rank):
    with joined():
        assert ranks.world_size() == 2
        assert ranks.rank() == rank
        assert ranks.anywhere(rank == 1)
        assert not ranks.anywhere(False)
        assert ranks.from_first(rank + 0.1) == 0.1
        shared = torch.full((3,), float(rank))
        ranks.share_from_first([shared])
        assert shared.tolist() == [0.0] * 3
        flags = torch.tensor(rank == 0), torch.tensor([rank, 7])
        ranks.share_from_first(list(flags))
        assert (flags[0].item(), flags[1].tolist()) == (True, [0, 7])

        both, one, nobody = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
        optimizer = torch.optim.SGD([{"params": [both, one]}, {"params": [nobody]}], lr=1.0)
        average_gradients(optimizer)
        both.grad = torch.full((2, 2), 1.0 + rank)
        one.grad = torch.full((2, 2), 4.0) if rank == 1 else None
        optimizer.step()
        assert both.tolist() == [[-1.5] * 2] * 2
        assert one.tolist() == [[-2.0] * 2] * 2
        assert nobody.grad is None

        norm = nn.BatchNorm1d(2)
        norm.running_mean.fill_(float(2 * rank))
        average_buffers(norm)
        assert norm.running_mean.tolist() == [1.0, 1.0]
        assert int(norm.num_batches_tracked) == 0


def learn_where_one_rank_has_nobody(rank, out):
    """Person 0 is learned, person 1 is not; rank 1 sees only the second, then nobody sees the first."""
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    with joined():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        average_gradients(optimizer)
        adversary = SimpleNamespace(
            members=[Member("m", module, optimizer, None, torch.tensor([True, False]), None)],
            steps=2,
            name="m",
            sample_weights=lambda part: None,
            observe=lambda module, part: None,
            sample_losses=lambda outputs, part: outputs.squeeze(1),
            bounds=lambda module, part: 1.0,
            figures=lambda outputs, part: {},
        )
        read = torch.ones(2, 2)
        for turn, pids in enumerate(([0, 1] if rank == 0 else [1, 1], [1, 1])):
            batch = Batch(images=read, pids=torch.tensor(pids), features=read, feature_map=None, progress=0.0)
            figures = learn(adversary, read, batch)
            assert bool(figures) == (rank == 0 and turn == 0)
            torch.save(module.state_dict(), Path(out, f"{rank}-{turn}.pth"))


def in_turns(rank, out):
    with joined(), in_turn():
        if rank == 0:
            time.sleep(0.5)
            Path(out, "downloaded").touch()
        assert Path(out, "downloaded").exists()


def train_with_a_codebook(rank, root, save_dir, out, options):
    """Train, and record what the component saw of each batch, its figures, and its state before each and at the end."""
    release_aware._LEAST_START_ROWS, release_aware._ROWS_A_VECTOR = 24, 1  # three shares of a batch
    torch.set_default_dtype(torch.float64)
    cfg = make(root, save_dir, options)
    with joined():
        engine = build.build_engine(cfg)
        (part,) = engine.components
        steps = []
        terms, finish = part.loss_terms, part.finish_step

        def recording(batch):
            before = {name: value.clone() for name, value in part.state.state_dict().items()}
            steps.append({"features": batch.features.detach().clone(), "pids": batch.pids, "before": before})
            return terms(batch)

        def finishing(batch):
            steps[-1]["figures"] = finish(batch)
            return steps[-1]["figures"]

        part.loss_terms, part.finish_step = recording, finishing
        engine.run(**arguments.engine_run_arguments(cfg))
        torch.save({"steps": steps, "after": part.state.state_dict()}, Path(out, f"{rank}.pth"))


def train_in_ranks(rank, root, save_dir, out, options, dtype=torch.float32):
    torch.set_default_dtype(dtype)
    cfg = make(root, save_dir, options)
    with joined():
        engine = build.build_engine(cfg)
        losses = []
        step = engine.forward_backward

        def recording(data):
            summary = step(data)
            losses.append({"paths": data["impath"], **summary})
            return summary

        engine.forward_backward = recording
        engine.run(**arguments.engine_run_arguments(cfg))
        seed = torch.initial_seed()
        learned = {name: module.state_dict() for name, module in engine._models.items()}
        Path(out).mkdir(exist_ok=True)
        about = {"losses": losses, "results": len(engine.results), "seed": seed}
        torch.save({"state": learned, **about}, Path(out, f"{rank}.pth"))


# the tests


def test_the_few_things_that_ranks_do_together(tmp_path):
    assert run_ranks(check_the_few_things) == [0, 0]
    assert run_ranks(in_turns, str(tmp_path)) == [0, 0]


def test_alone_nothing_is_done_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with joined():
        assert ranks.world_size() == 1
        assert ranks.is_first()
        assert ranks.anywhere(True)
        assert ranks.from_first(3.0) == 3.0
        ranks.barrier()
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        average_gradients(optimizer)
        assert not optimizer._optimizer_step_pre_hooks


def test_a_command_that_works_alone_is_not_run_twice(monkeypatch, capsys):
    ran = []
    assert cli.run(ran.append, ["now"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.run(ran.append, ["never"]) == 2
    assert ran == [["now"]]
    assert "torchrun started 2 processes of a command that works in one" in capsys.readouterr().err


@pytest.fixture
def argv(pedestrians, tmp_path):
    return [
        *("--root", str(pedestrians), "-s", TARGET, "-t", TARGET, "--splits", "query", "gallery"),
        *("model.name", "osnet_x0_25", "model.pretrained", "False", "data.height", "64", "data.width", "32"),
        *("data.workers", "0", "test.batch_size", "4", "use_gpu", "False", "data.save_dir", str(tmp_path / "log")),
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_extraction_in_ranks_is_that_of_one_process(argv, tmp_path, cached):
    if cached:
        argv = [*argv, "test.feature_cache", str(tmp_path / "cache")]
    assert run_ranks(extract_in_ranks, ["--out", str(tmp_path / "ranks"), *argv]) == [0, 0]
    folders = list((tmp_path / "cache").iterdir()) if cached else []
    assert len(folders) == (2 if cached else 0)
    for folder in folders:
        assert len(list(folder.glob("rows-*"))) > 1
    alone = [word for word in argv if not word.startswith("test.feature_cache") and word != str(tmp_path / "cache")]
    assert run_ranks(extract_in_ranks, ["--out", str(tmp_path / "one"), *alone], size=1) == [0]
    for split in ("query", "gallery"):
        made, wanted = (np.load(tmp_path / who / f"{split}.npz") for who in ("ranks", "one"))
        assert sorted(made.files) == sorted(wanted.files)
        for name in wanted.files:
            np.testing.assert_array_equal(made[name], wanted[name])
    assert sorted(path.name for path in (tmp_path / "ranks").iterdir()) == ["gallery.npz", "query.npz"]


@pytest.mark.parametrize("fail", ["raises", "dies", "hangs"])
def test_a_rank_that_fails_ends_the_others_with_an_error(argv, tmp_path, fail):
    limits = ["train.rank_timeout_s", "4"] if fail == "hangs" else []
    codes = run_ranks(extract_in_ranks, ["--out", str(tmp_path / "ranks"), *argv, *limits], fail)
    assert codes[0] not in (0, None)
    assert codes[1] == {"raises": 2, "dies": 9, "hangs": None}[fail]
    assert not list((tmp_path / "ranks").glob("*.npz"))


def test_ranks_test_the_best_epoch_together(argv, tmp_path):
    """Only the first keeps checkpoints; alone it would wait for the others' share of the extraction."""
    flags = [word for word in argv if word not in ("--splits", "query", "gallery")]
    more = ["train.max_epoch", "2", "test.eval_freq", "1", "privacy.validation.ids_fraction", "0.4"]
    more += ["train.batch_size", "8", "train.rank_timeout_s", "60"]
    assert run_ranks(train_with_a_best_epoch, [*flags, *more]) == [0, 0]
    record = json.loads((tmp_path / "log/metrics.json").read_text())
    assert (record["best"]["epoch"], record["chosen_on"]) == (1, "validation people")
    assert (
        "=> Test of epoch 1, the best on validation people" in next((tmp_path / "log").glob("train.log*")).read_text()
    )
    assert record["targets"][VALIDATION]["clean"]["mAP"] < 0.9  # tested again


def test_two_ranks_train_as_one_process_with_the_same_batch(pedestrians, tmp_path):
    # no batch norm and no augmentation: then the mean of the ranks' gradients is the gradient
    options = (
        *("model.name", "squeezenet1_1", "sampler.train_sampler", "SequentialSampler", "data.transforms", []),
        *("train.optim", "sgd", "train.lr", 0.001),
    )
    for size, name in ((2, "two"), (1, "one")):
        folders = (str(tmp_path / name), str(tmp_path / f"out-{name}"))
        # in float64, where rounding does not grow into a difference that an error could hide in
        assert run_ranks(train_in_ranks, str(pedestrians), *folders, options, torch.float64, size=size) == [0] * size
    first, second, alone = (torch.load(tmp_path / f"out-{n}.pth") for n in ("two/0", "two/1", "one/0"))
    assert len(alone["losses"]) == len(first["losses"]) >= 4
    for whole, *halves in zip(alone["losses"], first["losses"], second["losses"], strict=True):
        assert halves[0]["paths"] + halves[1]["paths"] == whole["paths"]
        assert whole["loss"] == pytest.approx((halves[0]["loss"] + halves[1]["loss"]) / 2, rel=1e-10)
    assert alone["losses"][0]["loss"] != pytest.approx(alone["losses"][-1]["loss"], rel=1e-3)
    for key, value in alone["state"]["model"].items():
        assert torch.equal(first["state"]["model"][key], second["state"]["model"][key])
        assert torch.allclose(first["state"]["model"][key], value, rtol=1e-9, atol=1e-12), key


PRIVATE = (
    *("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4, "train.optim", "amsgrad"),
    *("privacy.deid.enabled", True, "privacy.adversary.enabled", True, "privacy.distillation.enabled", True),
    *(
        "privacy.adversary.names",
        ["identity", "attributes"],
        "privacy.erasure.enabled",
        True,
        "privacy.erasure.bank",
        8,
    ),
    *("privacy.image_erasure.enabled", True, "privacy.image_erasure.bank", 8),
    *("privacy.aware.enabled", True, "privacy.aware.mechanism", "gaussian", "privacy.gallery.enabled", True),
)


def test_privacy_components_train_in_ranks_and_write_once(pedestrians, tmp_path, make_engine):
    options = (*PRIVATE, "privacy.adversary.labels", str(pedestrians / TARGET / "attributes.csv"))
    folder = tmp_path / "run"
    assert run_ranks(train_in_ranks, str(pedestrians), str(folder), str(tmp_path / "out"), options) == [0, 0]
    first, second = (torch.load(tmp_path / "out" / f"{rank}.pth") for rank in (0, 1))
    assert (first["results"], second["results"]) == (1, 0)
    assert (first["seed"], second["seed"]) == (1, 1_000_004)  # other augmentation, other dropout
    assert len(first["losses"]) == len(second["losses"]) > 1
    assert {path for step in first["losses"] for path in step["paths"]}.isdisjoint(
        path for step in second["losses"][:1] for path in step["paths"]
    )
    learned = {"model", "deid_decoder", "adversary_identity", "adversary_attributes", "adversary_attributes-2"}
    assert learned <= first["state"].keys() == second["state"].keys()
    for name in learned:
        for key, value in first["state"][name].items():
            assert torch.isfinite(value).all()
            assert torch.equal(second["state"][name][key], value), (name, key)
    assert len(list(folder.glob("events*"))) == 1
    line = json.loads((folder / "training.jsonl").read_text())
    assert {
        "loss_deid",
        "loss_distillation",
        "loss_aware",
        "erasure_distance",
        "image_erasure_covariance",
    } <= line.keys()

    path = folder / "model" / "model.pth.tar-1"
    fresh = models.build_model("osnet_x0_25", 8, pretrained=False)
    assert utils.resume_from_checkpoint(str(path), fresh, torch.optim.Adam(fresh.parameters(), amsgrad=True)) == 1
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, first["state"]["model"][key])
    assert resume(make_engine(*options), path) == 1


CODEBOOK = (
    *("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4, "train.max_epoch", 2),
    *("privacy.aware.enabled", True, "privacy.aware.codewords", 16, "privacy.aware.set_size", 2),
    *("privacy.aware.weight", 0.5, "privacy.aware.epsilon_min", 2.0, "privacy.aware.epsilon_max", 12.0),
)


def test_a_codebook_learns_in_ranks_from_the_mean_of_their_gradients(pedestrians, tmp_path):
    """As docs/scaling.md says it: one codebook, from the first rank's rows; centers and draws each rank's own."""
    assert run_ranks(train_with_a_codebook, str(pedestrians), str(tmp_path / "run"), str(tmp_path), CODEBOOK) == [0, 0]
    both = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    steps = list(zip(*(one["steps"] for one in both), strict=True))
    states = [[step["before"] for step in one["steps"][1:]] + [one["after"]] for one in both]  # after each step
    part = release_aware.ReleaseAware(codewords=16, set_size=2, weight=0.5)
    part.build(Context(512, None, 8, 64, 32, (0,) * 3, (1,) * 3, torch.device("cpu"), (part,)))
    codebook = part.state.double().codebook
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.001)
    gathered, learned = [], 0
    means = torch.zeros(2, 512, dtype=torch.float64)
    for number, (shares, after) in enumerate(zip(steps, zip(*states, strict=True), strict=True)):
        unit = [normalize(share["features"], dim=1) for share in shares]
        means += (torch.stack([rows.mean(0) for rows in unit]) - means) / (number + 1)  # of up to 100 batches
        rows = [normalize(one - mean, dim=1) for one, mean in zip(unit, means, strict=True)]
        gathered.append(rows[0])
        if number == 2:
            codebook.start(torch.cat(gathered), seed=1)
        losses = []
        for rank, (share, mine) in enumerate(zip(shares, rows, strict=True)):
            assert torch.allclose(after[rank]["center.mean"], means[rank], rtol=0, atol=1e-12)
            assert int(after[rank]["steps"]) == number + 1
            assert bool(share["figures"]) == (number >= 2)
            if number >= 2:
                epsilon = draw_epsilon(2.0, 12.0, np.random.default_rng([1, number, 1] if rank else [1, number]))
                losses.append(0.5 * part._loss(mine, share["pids"], epsilon, None))
                assert share["figures"]["loss_aware"] == pytest.approx(part._figures["loss_aware"], rel=1e-9)
        if losses:
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            learned += 1
        for level, values in enumerate(codebook.levels):
            key = f"codebook.levels.{level}"
            assert torch.equal(after[0][key], after[1][key])
            assert torch.allclose(after[0][key], values, rtol=0, atol=1e-9)
    assert learned >= 4
    assert not torch.allclose(states[0][-1]["center.mean"], states[1][-1]["center.mean"], atol=1e-4)
    saved = torch.load(tmp_path / "run/release_aware/model.pth.tar-2")["state_dict"]
    assert saved.keys() == both[0]["after"].keys()
    assert all(torch.equal(saved[name], value) for name, value in both[0]["after"].items())


@pytest.mark.parametrize(
    "options",
    [
        ("loss.name", "triplet", "sampler.train_sampler", "RandomIdentitySampler"),
        ("train.fixbase_epoch", 1, "train.max_epoch", 2, "train.staged_lr", True),
    ],
    ids=["triplet alone", "frozen first"],
)
def test_layers_without_gradient_are_not_waited_for(pedestrians, tmp_path, options):
    folders = (str(tmp_path / "run"), str(tmp_path / "out"))
    assert run_ranks(train_in_ranks, str(pedestrians), *folders, options) == [0, 0]
    first, second = (torch.load(tmp_path / "out" / f"{rank}.pth") for rank in (0, 1))
    for key, value in first["state"]["model"].items():
        assert torch.equal(second["state"]["model"][key], value), key
    steps = [step["paths"] for step in first["losses"]]
    if "train.max_epoch" in options:
        epochs = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        assert epochs[0] != epochs[1]


def test_a_rank_without_people_to_learn_from_takes_the_step_of_the_others(tmp_path):
    assert run_ranks(learn_where_one_rank_has_nobody, str(tmp_path)) == [0, 0]
    torch.manual_seed(0)
    start = nn.Linear(2, 1).state_dict()
    for turn in (0, 1):
        one, other = (torch.load(tmp_path / f"{rank}-{turn}.pth") for rank in (0, 1))
        for key, value in start.items():
            assert torch.equal(one[key], other[key])
            # two steps against a gradient of 1 on one rank of two; none where nobody has people
            assert torch.allclose(one[key], value - 2 * 0.1 * 0.5)
