"""A head trained with DP-SGD: one clipped gradient a unit, the noise, the accounting, the record."""

import json
import math
import os
import runpy
import sys
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from gallery_cases import DIM, release
from safetensors.numpy import save_file
from scipy import stats

from ppreid_plugin import cli
from ppreid_plugin.dp import private_head_steps as steps
from ppreid_plugin.dp import transform_from_state
from ppreid_plugin.dp.noise import ResearchNoise
from ppreid_plugin.dp.private_head import head_budget, train_private_head, unit_members
from ppreid_plugin.dp.private_head_accounting import HeadBudget, plan_budget
from ppreid_plugin.dp.private_head_command import train_private_head_command
from ppreid_plugin.dp.private_head_steps import EntropyNoise, HeadModel, HeadTrainer, Units, unit_losses
from ppreid_plugin.dp.private_head_transform import PrivateHead, covered, load_head
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.retrieval import evaluate

PIDS = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 4])
D, K = 6, 5


def unit_rows(count, columns=D, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, columns))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def model(seed=0, dim=4, columns=D, classes=K):
    """A model in the middle of a training: the classifier is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    made = HeadModel(torch.randn(dim, columns, generator=generator, dtype=torch.float64), classes, scale=8.0)
    with torch.no_grad():
        made.classifier.weight.normal_(generator=generator)
    return made


def research(seed=0):
    return ResearchNoise(np.random.default_rng(seed), torch.device("cpu"))


def trainer(trained, *, noise_multiplier=0.0, clip_norm=1.0, batch=1.0, noise=None):
    budget = HeadBudget(1e-5, 0.5, 10, "prv", noise_multiplier)
    noise = noise or research()
    return HeadTrainer(trained, budget, clip_norm=clip_norm, batch=batch, lr=1.0, momentum=0.0, noise=noise)


def units(unit="person", pids=PIDS, rows=None, limit=100):
    rows = unit_rows(len(pids)) if rows is None else rows
    return Units(torch.from_numpy(rows), pids, unit_members(pids, unit), limit, D)


def step_taken(unit, pids=PIDS, rows=None, **arguments):
    """What one step on all units adds to the parameters, with its sign turned: the clipped sum over ``batch``."""
    trained = model()
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    made = units(unit, pids, rows)
    trainer(trained, **arguments).step(made.batches(np.arange(len(made)), research()))
    return [(b - p.detach()).numpy() for b, p in zip(before, trained.parameters(), strict=True)]


def naive_sum(unit, clip_norm, pids=PIDS, rows=None):
    """One backward pass a unit, on a plain model: mean over its rows, clip all parameters together, add up."""
    rows = unit_rows(len(pids)) if rows is None else rows
    groups = [np.flatnonzero(pids == pid) for pid in np.unique(pids)] if unit == "person" else np.arange(len(pids))
    totals = [np.zeros(tuple(parameter.shape)) for parameter in model().parameters()]
    for group in groups:
        plain = model()
        losses = []
        for row in np.atleast_1d(group):
            row_of, label = torch.from_numpy(rows[row]), int(pids[row])
            projected = plain.projection.weight @ row_of
            logits = 8.0 * plain.classifier.weight @ (projected / projected.norm())
            losses.append(torch.logsumexp(logits, 0) - logits[label])
        (sum(losses) / len(losses)).backward()
        gradients = [parameter.grad.numpy() for parameter in plain.parameters()]
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient * min(1.0, clip_norm / norm)
    return totals


def distance(one, other):
    return math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(one, other, strict=True)))


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("clip_norm", [0.5, 5.0, 1e6])  # all, some and none are clipped
@pytest.mark.parametrize("chunk", [1, 40, 2**22])
def test_the_step_is_the_sum_of_clipped_gradients_by_a_naive_loop(unit, clip_norm, chunk, monkeypatch):
    monkeypatch.setattr(steps, "_CHUNK_ELEMENTS", chunk)
    expected = naive_sum(unit, clip_norm)
    for got, wanted in zip(step_taken(unit, clip_norm=clip_norm, batch=3.0), expected, strict=True):
        np.testing.assert_allclose(got, wanted / 3.0, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_person_moves_the_sum_by_at_most_the_clip_norm_however_many_rows(count):
    pids = np.concatenate([PIDS, np.full(count, 4)])
    rows = np.concatenate([unit_rows(len(PIDS)), np.repeat(unit_rows(1, seed=7), count, axis=0)])
    without = pids != 4
    clip_norm = 0.1
    alone = step_taken("person", pids[without], rows[without], clip_norm=clip_norm)
    moved = distance(step_taken("person", pids, rows, clip_norm=clip_norm), alone)
    assert 0.99 * clip_norm < moved <= clip_norm
    alone = step_taken("image", pids[without], rows[without], clip_norm=clip_norm)
    by_row = distance(step_taken("image", pids, rows, clip_norm=clip_norm), alone)
    assert by_row > clip_norm  # what clipping by row would do: this test sees it


def test_a_person_is_the_mean_of_his_rows():
    doubled = np.repeat(np.arange(len(PIDS)), 2)
    once, twice = step_taken("person"), step_taken("person", PIDS[doubled], unit_rows(len(PIDS))[doubled])
    assert distance(once, twice) < 1e-9


def test_the_loss_of_a_unit_does_not_depend_on_the_others():
    made = units()
    (together,) = made.batches(np.arange(len(made)), research())
    losses = unit_losses(model(), together)
    for unit in range(len(made)):
        (alone,) = made.batches(np.array([unit]), research())
        assert unit_losses(model(), alone).item() == pytest.approx(losses[unit].item(), rel=1e-12)


@pytest.mark.parametrize("noise", [research(3), EntropyNoise()])
def test_an_empty_step_is_noise_of_the_right_size(noise, monkeypatch):
    monkeypatch.setattr(os, "urandom", np.random.default_rng(3).bytes)
    trained = model(columns=256, dim=128, classes=300)
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    trainer(trained, noise_multiplier=1.7, clip_norm=0.3, batch=20.0, noise=noise).step(iter(()))
    moved = [(p.detach() - b).numpy().ravel() for b, p in zip(before, trained.parameters(), strict=True)]
    drawn = np.concatenate(moved) * 20.0
    # 71,168 numbers: the standard deviation of the estimate is 0.27 percent, of the mean 0.004
    assert drawn.std() == pytest.approx(1.7 * 0.3, rel=0.01)
    assert abs(drawn.mean()) < 0.01
    assert stats.kstest(drawn / (1.7 * 0.3), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(moved[0][:30000], moved[1][:30000])[0, 1]) < 0.02


def test_noise_is_added_once_a_step_however_many_chunks(monkeypatch):
    monkeypatch.setattr(steps, "_CHUNK_ELEMENTS", 1)
    calls = []

    class Counting(EntropyNoise):
        def normal(self, shape, dtype, sigma=1.0):
            calls.append(sigma)
            return torch.zeros(shape, dtype=dtype)

    assert distance(step_taken("person", noise_multiplier=2.0, clip_norm=0.5, noise=Counting()),
                    naive_sum("person", 0.5)) < 1e-4  # fmt: skip
    assert calls == [1.0, 1.0]  # projection and classifier, once each


@pytest.mark.parametrize(("byte", "uniform", "radius"), [(b"\0", 2.0**-53, 9.4926), (b"\xff", 1.0, 0.0)])
def test_entropy_at_its_ends_is_finite(byte, uniform, radius, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: byte * count)
    assert EntropyNoise().uniform(3).tolist() == [uniform] * 3
    drawn = EntropyNoise().normal((1,), torch.float64)
    assert drawn.item() == pytest.approx(radius, abs=1e-4)


@pytest.mark.parametrize("noise", [research(1), EntropyNoise()])
def test_poisson_sampling_takes_each_unit_for_itself(noise, monkeypatch):
    monkeypatch.setattr(os, "urandom", np.random.default_rng(1).bytes)
    made = units("image", np.zeros(200, np.int64), unit_rows(200))
    sizes = [len(made.sample(0.3, noise)) for _ in range(2000)]
    # binomial(200, 0.3): mean 60, standard deviation 6.48, known here to 0.145 and 0.10
    assert np.mean(sizes) == pytest.approx(60, abs=0.6)
    assert np.std(sizes) == pytest.approx(6.48, abs=0.45)
    assert len(made.sample(1.0, noise)) == 200
    assert len(made.sample(1e-12, noise)) == 0


def test_of_many_rows_some_are_drawn_afresh():
    pids = np.repeat([0, 1], [30, 2])
    made = units("person", pids, unit_rows(32), limit=4)
    noise, seen = research(), set()
    for _ in range(120):
        (batch,) = made.batches(np.arange(2), noise)
        assert batch.rows.shape == (2, 4, D)
        assert batch.weights.tolist() == [[0.25] * 4, [0.5, 0.5, 0, 0]]
        assert len(np.unique(batch.rows[0], axis=0)) == 4
        seen |= {tuple(row) for row in batch.rows[0].tolist()}
    assert seen == {tuple(row) for row in unit_rows(32)[:30].tolist()}


@pytest.mark.parametrize(
    ("rate", "count", "noise"), [(0.01, 300, 0.7), (0.1, 100, 1.5), (0.6, 10, 1.5), (1.0, 20, 3.0)]
)
def test_accounting_agrees_with_dp_accounting_and_errs_private(rate, count, noise):
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    both = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)  # the worse of addition and removal
    exchange = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    tight, replace = (one.compose(step, count).get_epsilon(1e-5) for one in (both, exchange))
    prv, rdp = (HeadBudget(1e-5, rate, count, accountant, noise) for accountant in ("prv", "rdp"))
    if rate == 1:  # the curve itself; the other accountant rounds up
        assert prv.epsilon() == rdp.epsilon() == pytest.approx(tight, rel=1e-3)
        assert prv.replace_epsilon() == pytest.approx(replace, rel=1e-3)
        return
    assert tight <= prv.epsilon() <= 1.001 * tight + 0.02
    assert tight <= rdp.epsilon() <= 1.3 * tight
    assert rdp.replace_epsilon() == prv.replace_epsilon() >= replace


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("rate", "epsilon"), [(0.02, 2.0), (1.0, 0.5), (1.0, 8.0)])
def test_the_noise_keeps_the_budget_and_is_no_larger_than_needed(accountant, rate, epsilon):
    budget = plan_budget(epsilon, 1e-5, sample_rate=rate, steps=50, accountant=accountant)
    assert epsilon - 0.011 <= budget.epsilon() <= epsilon
    assert HeadBudget(1e-5, rate, 50, accountant, 0.98 * budget.noise_multiplier).epsilon() > epsilon


def test_replace_adjacency_by_group_privacy():
    described = HeadBudget(1e-5, 0.1, 50, "prv", 1.5).describe()
    assert described["adjacency"] == "add/remove"
    assert described["replace"]["epsilon"] == 2 * described["epsilon"]
    assert described["replace"]["delta"] == pytest.approx((1 + math.exp(described["epsilon"])) * 1e-5)
    assert described["replace"]["epsilon_at_delta"] > described["replace"]["epsilon"]


def test_without_noise_nothing_is_said():
    described = plan_budget(math.inf, 1e-5, sample_rate=0.1, steps=50).describe()
    assert described["noise_multiplier"] == 0
    assert described["epsilon"] is None
    assert described["replace"] == {"epsilon": None, "delta": 1.0, "epsilon_at_delta": None}


@pytest.mark.parametrize(
    ("trained_on", "backbone", "fitted_on", "noise", "expected"),
    [
        ("market1501", ["msmt17"], [], True, "whole model"),
        ("market1501", ["imagenet", "MSMT17_combineall"], [], True, "whole model"),
        ("market1501", ["msmt17"], ["dukemtmcreid"], True, "whole model"),
        ("market1501", ["msmt17"], [], False, "nothing"),
        ("market1501", ["msmt17"], ["market1501"], True, "head only"),
        ("market1501", ["market1501"], [], True, "head only"),
        ("market1501", ["msmt17", "Market-1501-v15.09.15"], [], True, "head only"),
        ("market1501", ["msmt17", "mars"], [], True, "head only"),  # MARS extends Market-1501
        ("dukemtmcreid", ["dukemtmc-videoreid"], [], True, "head only"),
        ("cuhk03", ["cuhk02"], [], True, "head only"),
        ("museum", ["museum,hall-2"], [], True, "head only"),
        ("market1501", [], [], True, "head only"),
        ("market1501", ["unknown"], [], True, "head only"),
        ("market1501", ["msmt17", "Unknown"], [], True, "head only"),
        ("market1501", ["msmt17", "  "], [], True, "head only"),
        ("", ["msmt17"], [], True, "head only"),
        ("unknown", ["msmt17"], [], True, "head only"),
    ],
)
def test_what_is_covered(trained_on, backbone, fitted_on, noise, expected):
    assert covered(trained_on, backbone, fitted_on, noise=noise) == expected


def generated(people, seed, rows=12, columns=16):
    """People who differ in four columns, and shake most in the others: cosines of the raw rows find little."""
    generator = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people), rows)
    features = generator.normal(size=(len(pids), columns)) * np.where(np.arange(columns) < 4, 0.15, 1.5)
    features[:, :4] += generator.normal(size=(people, 4))[pids]
    return features + 0.5, pids


def mean_precision(features, pids):
    cameras = np.arange(len(pids))  # each row its own, so that only the row itself is left out
    return evaluate(features, features, pids, pids, cameras, cameras).mAP


@pytest.mark.parametrize(("unit", "epochs", "lr"), [("image", 10, 1.0), ("person", 40, 3.0)])
@pytest.mark.parametrize("epsilon", [math.inf, 1000.0])
def test_the_head_learns_what_tells_other_people_apart(unit, epochs, lr, epsilon):
    features, pids = generated(60, seed=0)
    head = train_private_head(
        features, pids, epsilon=epsilon, delta=1e-4, unit=unit, dim=8, epochs=epochs, lr=lr, accountant="rdp",
        research=True,
    )  # fmt: skip
    others, other_pids = generated(30, seed=1)
    before, after = (mean_precision(rows, other_pids) for rows in (others, head.transform(others)))
    assert after > before + 0.15, (before, after)


def small_head(**arguments):
    features, pids = generated(20, seed=0, rows=3)
    options = {"epsilon": 4.0, "delta": 1e-4, "dim": 5, "epochs": 2, **arguments}
    return train_private_head(features, pids, **options)


@pytest.mark.parametrize("unit", ["image", "person"])
def test_the_record_says_what_was_done(unit):
    head = small_head(unit=unit, trained_on="market1501", backbone_trained_on=["msmt17"], chosen_on="other people")
    described = head.describe()
    expected = head_budget(60 if unit == "image" else 20, epsilon=4.0, delta=1e-4, unit=unit, epochs=2)
    assert {key: described[key] for key in expected.describe()} == expected.describe()
    assert described["steps"] == (20 if unit == "image" else 2)
    assert (described["columns"], described["components"], described["clip_norm"]) == (16, 5, 1.0)
    assert (described["unit"], described["covers"], described["chosen_on"]) == (unit, "whole model", "other people")
    assert described["backbone_trained_on"] == ["msmt17"]
    assert "operating system" in described["noise"]
    assert "20 classes, treated as public" in described["label_space"]
    json.dumps(described, allow_nan=False)


def test_the_seed_is_of_the_start_alone():
    private, again = small_head(seed=3, unit="person"), small_head(seed=3, unit="person")
    assert np.abs(private.weight - again.weight).max() > 1e-3  # two draws of sampling and noise
    repeated, once_more = (small_head(seed=3, unit="person", research=True) for _ in range(2))
    np.testing.assert_array_equal(repeated.weight, once_more.weight)
    assert repeated.record["covers"] == "nothing"
    assert "research" in repeated.record["noise"]


def test_a_head_of_all_columns_starts_at_the_cosines_of_the_features():
    features, pids = generated(20, seed=0, rows=3)
    start = train_private_head(features, pids, epsilon=math.inf, dim=16, lr=1e-12, epochs=1, research=True)
    rows, projected = unit_rows(5, 16), start.transform(unit_rows(5, 16))
    np.testing.assert_allclose(projected @ projected.T, rows @ rows.T, atol=1e-9)


def test_steps_of_no_unit_are_taken():
    features, pids = generated(3, seed=0, rows=2)
    head = train_private_head(features, pids, epsilon=1.0, delta=1e-3, batch=1, epochs=20, dim=2)
    assert head.record["steps"] == 120  # of 6 images at rate 1/6, a third are empty
    assert np.isfinite(head.weight).all()


def test_a_delta_too_large_for_the_units_is_warned_of(caplog):
    head_budget(100, epsilon=1.0, delta=1e-2, accountant="rdp")
    assert "delta is 0.01, above 1 / (10 n) = 0.001 for 100 units (image)" in caplog.text


def test_save_and_load(tmp_path):
    head = small_head()
    loaded = load_head(head.save(tmp_path / "head.safetensors"))
    np.testing.assert_array_equal(loaded.weight, head.weight)
    assert loaded.describe() == head.describe()
    again = transform_from_state("head", head.state())
    rows = unit_rows(4, 16)
    np.testing.assert_array_equal(again.transform(rows), loaded.transform(rows))
    assert again.describe() == head.describe()
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_a_row_is_projected_for_itself():
    head, rows = small_head(), unit_rows(6, 16)
    expected = [head.weight @ row / np.linalg.norm(head.weight @ row) for row in rows]
    np.testing.assert_allclose(head.transform(7 * rows), expected, atol=1e-12)
    np.testing.assert_array_equal(head.transform(np.zeros((1, 16))), [[1, 0, 0, 0, 0]])


def test_a_release_rebuilds_the_head_for_its_queries(tmp_path):
    head = PrivateHead(np.random.default_rng(0).normal(size=(3, DIM)), {"epsilon": 8.0, "covers": "head only"})
    release(tmp_path, center=head)
    stored = load_release(tmp_path / "release")
    assert stored.features.shape[1] == 3
    assert stored.manifest["transform"]["covers"] == "head only"
    rows = unit_rows(4, DIM)
    np.testing.assert_array_equal(stored.transform().transform(rows), head.transform(rows))
    assert stored.transform().describe() == stored.manifest["transform"]


def test_a_head_is_not_fitted():
    assert not PrivateHead(np.eye(2)).needs_fit  # the commands fit what needs it, on the training split
    with pytest.raises(ValueError, match=r"transform 'head' is not fitted. Train it with tools/train_private_head.py"):
        PrivateHead().fit(unit_rows(3))
    for call in (lambda head: head.transform(unit_rows(3)), lambda head: head.state()):
        with pytest.raises(RuntimeError, match="transform 'head' holds no weight. Load one: load_head"):
            call(PrivateHead())


def train(pids=PIDS, rows=None, **arguments):
    rows = unit_rows(len(PIDS)) if rows is None else rows
    return train_private_head(rows, pids, **{"epsilon": 1.0, "accountant": "rdp", **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(epsilon=0.0), r"epsilon is 0.0, must be a finite number > 0"),
        (lambda: train(epsilon=-math.inf), "epsilon is -inf, must be"),
        (lambda: train(epsilon=1e-7, delta=1e-9), "Opacus's rdp accountant cannot price it"),
        (lambda: train(delta=0.0), "delta is 0.0, DP-SGD needs 0 < delta < 1"),
        (lambda: train(unit="row"), "unit is 'row'; allowed: image, person"),
        (lambda: train(accountant="gdp"), "accountant is 'gdp'; allowed: prv, rdp"),
        (lambda: train(dim=0), "dim is 0, must be a whole number >= 1"),
        (lambda: train(rows_per_person=0.5), "rows_per_person is 0.5, must be a whole number >= 1"),
        (lambda: train(epochs=0), "epochs is 0, must be a finite number > 0"),
        (lambda: train(batch=13), r"batch is 13, must be a whole number from 1 to 12, the number of units \(image\)"),
        (lambda: train(batch=6, unit="person"), r"batch is 6, must be a whole number from 1 to 5.*\(person\)"),
        (lambda: train(clip_norm=0), "clip_norm is 0, must be a finite number > 0"),
        (lambda: train(lr=math.nan), "lr is nan, must be a finite number > 0"),
        (lambda: train(momentum=1.0), r"momentum is 1.0, must be in \[0, 1\)"),
        (lambda: train(scale=0), "scale is 0, must be"),
        (lambda: train(num_classes=4), "pids go from 0 to 4, but num_classes is 4: they must be 0 to 3"),
        (lambda: train(pids=PIDS - 1, num_classes=5), "pids go from -1 to 3"),
        (lambda: train(pids=PIDS[:3]), r"pids has shape \(3,\) of int64, must be \(12,\), whole numbers"),
        (lambda: train(pids=PIDS * 1.0), "of float64, must be"),
        (lambda: train(pids=PIDS * 0), "pids name 1 person, a head needs at least 2"),
        (lambda: train(rows=np.full((12, 2), np.nan)), r"features rows 0, 1, 2, 3, 4, ... \(12 of 12\) hold NaN"),
        (lambda: plan_budget(1.0, 1e-5, sample_rate=1.5, steps=2), r"sample_rate is 1.5, must be in \(0, 1\]"),
        (lambda: plan_budget(1.0, 1e-5, sample_rate=0.5, steps=0), "steps is 0, must be a whole number >= 1"),
        (lambda: PrivateHead(np.zeros(3)), r"weight has shape \(3,\), must be \(dim, d\)"),
        (lambda: PrivateHead(np.full((1, 1), np.inf)), "weight holds NaN or infinity. Train the head again"),
        (
            lambda: PrivateHead(np.eye(3)).transform(unit_rows(2)),
            "features have 6 columns, the transform was fitted on",
        ),
        (lambda: transform_from_state("head", {"weight": np.eye(2)}), r"holds \['weight'\], must hold \['record', 'w"),
        (
            lambda: transform_from_state("head", {"weight": np.eye(2), "record": [123]}),
            "state of transform 'head': its record is not JSON",
        ),
        (lambda: PrivateHead(np.eye(2)).save("head.npz"), "'head.npz' ends in '.npz'; a head is a .safetensors file"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there. Name a head"):
        load_head(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        PrivateHead(np.eye(2)).save(tmp_path / "a.safetensors").read_bytes()[:-1]
    )
    with pytest.raises(ValueError, match="cut.safetensors' cannot be read"):
        load_head(tmp_path / "cut.safetensors")
    save_file({"features": np.eye(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds features; a head holds weight and a record"):
        load_head(tmp_path / "other.safetensors")
    save_file({"weight": np.eye(2)}, tmp_path / "odd.safetensors", metadata={"head": "[]"})
    with pytest.raises(ValueError, match="its record is list, must be a JSON object"):
        load_head(tmp_path / "odd.safetensors")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Feature files of training people and of others; it is the working folder too."""
    monkeypatch.chdir(tmp_path)
    for name, people, seed in (("train", 20, 0), ("other", 10, 1)):
        features, pids = generated(people, seed)
        rows = {"features": features.astype(np.float32), "pids": pids, "camids": np.arange(len(pids))}
        np.savez(f"{name}.npz", model=np.array("sha256:00"), **rows)
    np.savez("unlabeled.npz", features=features)
    np.savez("narrow.npz", features=features[:, :3], pids=pids, camids=pids)
    return tmp_path


def run(capsys, *more, train="train.npz", backbone="msmt17", epsilon="4", trained_on="market1501"):
    argv = ["--train", train, "--epsilon", epsilon, "--delta", "1e-4", "--epochs", "2", "--dim", "5"]
    argv += [*([] if backbone is None else ["--backbone-trained-on", backbone]), *more]
    argv += [] if trained_on is None else ["--trained-on", trained_on]
    code = cli.run(train_private_head_command, argv)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_command(saved, capsys):
    figures = ["--validation", "other.npz", "--query", "other.npz", "--gallery", "other.npz", "--chosen-on", "nothing"]
    code, out, err = run(capsys, "--unit", "person", "--out", "h.safetensors", *figures)
    assert code == 0, err
    assert "delta 0.0001 for one person (add/remove, accountant gaussian)" in out
    assert "covers: whole model" in out
    assert "validation, rank-1 / mAP: no head " in out
    record = json.loads(Path("h.json").read_text())
    head = load_head("h.safetensors")
    assert record["head"] == head.describe()
    assert (head.record["backbone"], head.record["trained_on"]) == ("sha256:00", "market1501")
    others, pids = generated(10, seed=1)
    assert record["figures"]["validation"] == record["figures"]["gallery"]
    shown = record["figures"]["gallery"]
    assert shown["no head"]["mAP"] == pytest.approx(mean_precision(others.astype(np.float32), pids))
    assert shown["head"]["mAP"] == pytest.approx(mean_precision(head.transform(others), pids), abs=1e-4)
    assert "environment" in record


def test_a_dry_run_trains_and_writes_nothing(saved, capsys):
    before = sorted(saved.iterdir())
    code, out, err = run(capsys, "--dry-run")
    assert (code, err) == (0, "")
    assert "20 steps, each of 240 units (image) with probability 0.1, noise multiplier " in out
    assert "epsilon 3.9" in out
    assert "under replace: epsilon 7.9" in out
    assert sorted(saved.iterdir()) == before


def test_a_dry_run_says_what_the_run_would(saved, capsys):
    assert "covers: whole model" in run(capsys, "--dry-run")[1]
    for more in ((), ("--dry-run",)):
        assert "covers: nothing" in run(capsys, "--research", *more)[1]
    before = sorted(saved.iterdir())
    for argv, message in (
        (["--dim", "0"], "dim is 0"),
        (["--lr", "-1"], "lr is -1"),
        (["--momentum", "1"], "momentum is 1"),
        (["--num-classes", "3"], "num_classes is 3"),
        (["--seed", "-1"], "seed is -1"),
    ):
        errors = {run(capsys, *argv, *more)[2] for more in ((), ("--dry-run",))}
        assert len(errors) == 1
        assert message in errors.pop()
    assert sorted(saved.iterdir()) == before


def test_the_tool_runs_without_noise_and_says_so(saved, capsys, monkeypatch):
    tool = Path(__file__).parents[2] / "tools" / "train_private_head.py"
    argv = [
        "train_private_head.py",
        "--train",
        "train.npz",
        "--epsilon",
        "inf",
        "--epochs",
        "1",
        "--backbone-trained-on",
    ]
    monkeypatch.setattr(sys, "argv", [*argv, "market1501", "--trained-on", "market1501"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    assert ended.value.code == 0
    assert "no noise: nothing is guaranteed" in capsys.readouterr().out
    assert load_head("head.safetensors").record["covers"] == "nothing"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {"backbone": None}, "--backbone-trained-on must be given: all data sets that the backbone's weights saw"),
        ([], {"backbone": " , "}, "--backbone-trained-on must be given"),
        ([], {"trained_on": None}, "--trained-on must be given: the name of the training set of --train"),
        ([], {"trained_on": " "}, "--trained-on must be given"),
        (["--query", "other.npz"], {}, "--query and --gallery must be given together"),
        (["--out", "head.npz"], {}, "a head is a .safetensors file"),
        (["--out", "none/head.safetensors"], {}, "but 'none' is no folder"),
        ([], {"train": "none.npz"}, "'none.npz' is not there"),
        ([], {"train": "unlabeled.npz"}, "'unlabeled.npz' lacks pids; it holds features"),
        (["--validation", "unlabeled.npz"], {}, "'unlabeled.npz' lacks pids, camids"),
        (["--validation", "narrow.npz"], {}, "--train has 16 columns, --validation has 3"),
        (["--batch", "1000"], {}, "batch is 1000, must be a whole number from 1 to 240"),
    ],
)
def test_command_errors_write_nothing(arguments, options, message, saved, capsys):
    before = sorted(saved.iterdir())
    code, _, err = run(capsys, *arguments, **options)
    assert code == 2
    assert message in err
    assert sorted(saved.iterdir()) == before
