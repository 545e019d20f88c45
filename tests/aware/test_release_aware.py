"""The component: what it adds to the loss, what learns, what is saved, and that it does what it is for."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppreid_plugin import ReleaseAware, build
from ppreid_plugin.aware import release_aware
from ppreid_plugin.aware.codebook import expected_gain
from ppreid_plugin.aware.contrastive import supervised_contrastive
from ppreid_plugin.aware.noise import draw_epsilon
from ppreid_plugin.components import Batch, Context
from ppreid_plugin.config import ConfigError
from ppreid_plugin.dp.gallery import DPGallery
from ppreid_plugin.dp.subset import PriorSubset
from ppreid_plugin.retrieval import evaluate

SAMPLER = ("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4)
AWARE = (*SAMPLER, "privacy.aware.enabled", True)
SMALL = ("privacy.aware.codewords", 16, "privacy.aware.levels", 2)
DIM = 16


def built(part, columns=DIM):
    part.build(Context(columns, None, 8, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), (part,)))
    return part


def batch_of(features, pids):
    return Batch(torch.zeros(len(pids), 3, 4, 2), pids, features, None, 0.0)


def people(count=8, images=4, columns=DIM, seed=0, spread=0.6):
    """Features of people: a direction each, an axis that all share, and what differs from image to image."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, columns, generator=generator)
    features = means.repeat_interleave(images, 0)
    features = features + spread * torch.randn(features.shape, generator=generator) + 3.0
    return features, torch.arange(count).repeat_interleave(images)


def small_codebook(monkeypatch, **options):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 64)
    return built(ReleaseAware("prior_subset", codewords=16, **options))


def started(part, seed=0):
    """Pass batches until the codebook has started."""
    for number in range(3):
        features, pids = people(seed=seed + number)
        part.loss_terms(batch_of(features, pids))
    assert part.state.codebook.started
    return part


@pytest.mark.parametrize("mechanism", ["gaussian", "privunit", "privunit_g"])
def test_the_term_is_the_contrastive_loss_of_clean_queries_and_the_mechanisms_draw(mechanism):
    part = built(ReleaseAware(mechanism, epsilon_min=4, epsilon_max=16, weight=0.7, temperature=0.2, seed=5))
    features, pids = people()
    features.requires_grad_()
    (term,) = part.loss_terms(batch_of(features, pids)).values()
    generator = np.random.default_rng([5, 0])
    epsilon = draw_epsilon(4, 16, generator)
    gallery = DPGallery(mechanism, epsilon=epsilon, transform="center")
    gallery.public_transform.fit(features.detach())
    rows = gallery.transform(features.detach()).float()
    released = F.normalize(gallery.mechanism.privatize(rows, generator=generator), dim=1)
    sigma = gallery.mechanism.sigma or gallery.mechanism.effective_sigma
    wanted = supervised_contrastive(rows @ released.T * (1 + DIM * sigma**2) ** 0.5, pids, 0.2)
    assert term.item() == pytest.approx(0.7 * wanted.item(), rel=1e-4)
    term.backward()
    assert (features.grad.abs().sum(1) > 0).all()
    assert part.finish_step(None)["loss_aware"] == pytest.approx(wanted.item(), rel=1e-4)


def test_none_is_the_contrastive_loss_alone():
    part = built(ReleaseAware("none", weight=1.0, temperature=0.2))
    features, pids = people()
    (term,) = part.loss_terms(batch_of(features, pids)).values()
    rows = F.normalize(F.normalize(features, dim=1) - F.normalize(features, dim=1).mean(0), dim=1)
    assert term.item() == pytest.approx(supervised_contrastive(rows @ rows.T, pids, 0.2).item(), rel=1e-5)


def test_a_codebooks_term_is_that_of_the_mechanisms_mean_release(monkeypatch):
    part = started(small_codebook(monkeypatch, commitment=0.5, usage=0.25, weight=2.0, epsilon_min=3, epsilon_max=3))
    part.state.double()
    features, pids = people(seed=9)
    features = features.double()
    part.state.center.momentum = 0.99
    (term,) = part.loss_terms(batch_of(features, pids)).values()
    rows = part.state.center(features).detach()
    mechanism = PriorSubset(epsilon=3.0, codebook=part.state.codebook.released())
    mean = torch.from_numpy(mechanism.symbol_probabilities(rows) @ mechanism.decoder)  # its constant part included
    contrast = supervised_contrastive(rows @ mean.T, pids, part.temperature)
    means = torch.stack([rows[pids == pid].mean(0) for pid in pids])
    near = torch.from_numpy(mechanism.decode(mechanism.members(means)[:, 0].numpy()))
    distance = (rows - near).square().sum(1).mean().item()
    figures = part.finish_step(None)
    gap = part.state.codebook.usage_gap(part.state.codebook.assign(rows)).item()
    assert figures["loss_aware"] == pytest.approx(contrast.item(), rel=1e-6)
    assert figures["loss_aware_commitment"] == pytest.approx(distance, rel=1e-6)
    assert term.item() == pytest.approx(2 * (contrast.item() + 1.5 * distance + 0.25 * gap), rel=1e-6)
    symbols = mechanism.members(rows)[:, 0]
    pairs = [(i, j) for i in range(len(pids)) for j in range(len(pids)) if i != j and pids[i] == pids[j]]
    assert figures["aware_shared"] == pytest.approx(100 * np.mean([bool(symbols[i] == symbols[j]) for i, j in pairs]))


def test_commitment_moves_the_rows_and_the_following_moves_the_codebook(monkeypatch):
    """With the contrastive loss flat (huge temperature) each part has one learner and the right scale."""
    grads = {}
    for commitment in (0.0, 0.5):
        part = started(small_codebook(monkeypatch, commitment=commitment, usage=0.0, temperature=1e9))
        features, pids = people(seed=9)
        features.requires_grad_()
        (term,) = part.loss_terms(batch_of(features, pids)).values()
        term.backward()
        levels = torch.cat([level.grad.flatten() for level in part.state.codebook.levels])
        grads[commitment] = features.grad.norm(), levels
    assert grads[0.0][0] < 1e-6 < grads[0.5][0]
    assert torch.allclose(grads[0.0][1], grads[0.5][1], atol=1e-6)
    assert grads[0.0][1].norm() > 1e-3


def test_the_mechanism_codebook_has_sets_of_one(monkeypatch):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 64)
    features, pids = people(seed=9)
    terms = {
        (mechanism, set_size): started(built(ReleaseAware(mechanism, codewords=16, set_size=set_size)))
        .loss_terms(batch_of(features, pids))["loss_aware"]
        .item()
        for mechanism, set_size in (("codebook", 1), ("prior_subset", 1), ("prior_subset", 3))
    }
    assert terms["codebook", 1] == terms["prior_subset", 1] != terms["prior_subset", 3]


def test_the_codebooks_gradient_is_that_of_the_batch_alone(monkeypatch):
    """torchreid clears the gradients of its own optimizer only."""
    part = started(small_codebook(monkeypatch))
    for seed in (9, 10):
        fresh = copy.deepcopy(part)  # its parameters have no gradient yet
        for one in (part, fresh):
            features, pids = people(seed=seed)
            one.loss_terms(batch_of(features, pids))["loss_aware"].backward()
        for level, wanted in zip(part.state.codebook.levels, fresh.state.codebook.levels, strict=True):
            assert torch.equal(level.grad, wanted.grad)


def test_only_its_own_step_moves_the_codebook(monkeypatch):
    part = started(small_codebook(monkeypatch))
    before = [level.detach().clone() for level in part.state.codebook.levels]
    features, pids = people(seed=9)
    (term,) = part.loss_terms(batch_of(features.requires_grad_(), pids)).values()
    term.backward()
    assert all(torch.equal(old, new) for old, new in zip(before, part.state.codebook.levels, strict=True))
    part.finish_step(None)
    assert all(not torch.equal(old, new) for old, new in zip(before, part.state.codebook.levels, strict=True))


def test_until_the_codebook_has_started_there_is_no_term(monkeypatch):
    part = small_codebook(monkeypatch)
    features, pids = people()
    assert part.loss_terms(batch_of(features, pids)) == {}
    assert part.finish_step(None) == {}
    assert part.loss_terms(batch_of(features, pids)) != {}


def test_stopped_while_rows_are_gathered_it_starts_from_the_same_ones(monkeypatch):
    """What goes on from a checkpoint of the first batches has the codebook of a training that was not stopped."""
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 80)  # no multiple of a batch of 32
    whole, first, again = (built(ReleaseAware("prior_subset", codewords=16)) for _ in range(3))
    batches = [batch_of(*people(seed=seed)) for seed in range(4)]
    for batch in batches:
        whole.loss_terms(batch)
    for batch in batches[:2]:
        first.loss_terms(batch)
    again.state.load_state_dict(first.state.state_dict())
    assert not again.state.codebook.started
    for batch in batches[2:]:
        again.loss_terms(batch)
    assert whole.state.codebook.started
    for (name, one), other in zip(whole.state.state_dict().items(), again.state.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_codebook_starts_from_the_first_rows_in_their_order(monkeypatch):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 80)
    part, alone = (built(ReleaseAware("prior_subset", codewords=16)) for _ in range(2))
    seen = []
    for seed in range(3):
        features, _pids = people(seed=seed)
        part.state.gather(rows := F.normalize(features, dim=1))
        seen.append(rows)
    assert torch.equal(part.state.gathered, torch.cat(seen)[:80])
    assert not alone.state.gather(seen[0])
    assert not alone.state.gather(seen[1])
    assert alone.state.gather(seen[2])


def test_a_large_level_gathers_enough_rows_to_start_from():
    assert ReleaseAware("prior_subset", codewords=512, levels=1)._start_rows == 16 * 512


def test_at_weight_0_training_is_bit_identical(make_engine, run_engine, monkeypatch):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 32)
    watching = [
        (*AWARE, *SMALL, "privacy.aware.weight", 0, "privacy.aware.mechanism", m) for m in ("privunit", "codebook")
    ]
    runs = []
    for options in (SAMPLER, *watching):
        engine = make_engine(*options, "train.max_epoch", 1)
        losses = []
        step = engine.forward_backward
        engine.forward_backward = lambda data, step=step, losses=losses: losses.append(step(data)) or losses[-1]
        engine.test = lambda *args, **kwargs: 0.0
        run_engine(engine)
        runs.append((losses, engine.model.state_dict()))
    (plain, weights), *others = runs
    assert len(plain) > 2
    for watched, same in others:
        assert [{key: figures[key] for key in ("loss", "acc")} for figures in watched] == plain
        assert "loss_aware" in watched[-1]
        assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize("options", [("loss.name", "softmax"), ("loss.name", "triplet", "loss.triplet.weight_x", 0.5)])
def test_it_trains_resumes_and_goes_on_as_if_never_stopped(make_engine, run_engine, monkeypatch, options):
    """State after one epoch comes back whole; the codebook, its optimizer and the next draw of noise included."""
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 32)
    options = (*AWARE, *SMALL, *options)
    engine = make_engine(*options, "train.max_epoch", 1)
    engine.test = lambda *args, **kwargs: 0.0
    run_engine(engine)
    path = f"{engine.cfg.data.save_dir}/model/model.pth.tar-1"
    again = make_engine(*options, "train.max_epoch", 2, "model.resume", path)
    (old,), (new,) = engine.components, again.components
    assert old.state.codebook.started
    assert int(new.state.steps) == int(old.state.steps) > 0
    for (name, one), other in zip(old.state.state_dict().items(), new.state.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    moments = [next(iter(part._optimizer.state_dict()["state"].values()))["exp_avg"] for part in (old, new)]
    assert torch.equal(*moments)
    features, pids = people(columns=512)
    terms = [next(iter(part.loss_terms(batch_of(features, pids)).values())) for part in (old, new)]
    assert torch.equal(*terms)
    assert len(again.components[0].trainables()) == 1


def test_draws_differ_from_batch_to_batch_and_rank_to_rank_and_not_from_run_to_run(monkeypatch):
    features, pids = people()
    runs = []
    for seed, rank in ((1, 0), (1, 0), (2, 0), (1, 1)):
        monkeypatch.setattr(release_aware.ranks, "rank", lambda rank=rank: rank)
        part = built(ReleaseAware("privunit_g", seed=seed))
        runs.append([next(iter(part.loss_terms(batch_of(features, pids)).values())).item() for _ in range(3)])
    assert runs[0] == runs[1]
    assert len({term for run in runs for term in run}) == 9


def test_budgets_of_the_range_reach_the_mechanism(monkeypatch):
    seen = []
    part = built(ReleaseAware("privunit_g", epsilon_min=6, epsilon_max=12))
    own = part._noise.release
    monkeypatch.setattr(
        part._noise, "release", lambda rows, epsilon, rng: seen.append(epsilon) or own(rows, epsilon, rng)
    )
    features, pids = people()
    for _ in range(30):
        part.loss_terms(batch_of(features, pids))
    assert 6 <= min(seen) < 7
    assert 11 < max(seen) <= 12


def test_collapse_is_flagged_once_and_healthy_use_is_not(monkeypatch, caplog):
    part = started(small_codebook(monkeypatch))
    with caplog.at_level(logging.WARNING):
        for number in range(60):
            part.loss_terms(batch_of(*people(seed=number)))
        assert not caplog.records
        monkeypatch.setattr(part.state.codebook, "nearest", lambda unit, count: torch.zeros(len(unit), 1, dtype=int))
        for number in range(80):
            part.loss_terms(batch_of(*people(seed=number)))
    (record,) = caplog.records
    assert "people share few symbols" in record.message
    assert "Raise privacy.aware.usage (now 0.1) or lower privacy.aware.commitment" in record.message


def trained(mechanism, features, pids, steps=100, **options):
    """Train a linear map of fixed features with the term alone; return it."""
    torch.manual_seed(0)
    encoder = nn.Linear(features.shape[1], features.shape[1])
    nn.init.eye_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    part = built(ReleaseAware(mechanism, epsilon_min=6, epsilon_max=12, codewords=64, **options), features.shape[1])
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randperm(int(pids.max()) + 1, generator=generator)[:16]
        rows = torch.cat([torch.nonzero(pids == pid).flatten()[:4] for pid in chosen])
        terms = part.loss_terms(batch_of(encoder(features[rows]), pids[rows]))
        if terms:
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        part.finish_step(None)
    return encoder, part


def mixed_people(count, seed):
    """64 columns: 16 tell people apart, 48 louder ones tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 16, generator=generator).repeat_interleave(6, 0)
    own = means + 0.3 * torch.randn(means.shape, generator=generator)
    noise = 3.0 * torch.randn(len(means), 48, generator=generator)
    return torch.cat([own, noise], 1) + 2.0, torch.arange(count).repeat_interleave(6)


@pytest.mark.parametrize(
    ("mechanism", "steps", "protection"),
    [("privunit_g", 300, {}), ("prior_subset", 100, {"codewords": 64, "kind": "residual", "min_people": 1})],
)
def test_a_release_of_other_people_ranks_better_after_the_training(monkeypatch, mechanism, steps, protection):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 256)
    features, pids = mixed_people(150, seed=0)
    others, labels = mixed_people(40, seed=1)
    kept = torch.arange(len(labels)) % 6 > 0
    encoder, _ = trained(mechanism, features, pids, steps, temperature=0.2)
    figures = []
    for encode in (lambda x: x, encoder):
        with torch.no_grad():
            gallery = DPGallery(mechanism, epsilon=10.0, options=protection).fit(encode(features), pids.numpy())
            queries, rows = gallery.transform(encode(others[::6])), gallery.protect(encode(others[kept]))
        sides = (labels[::6].numpy(), labels[kept].numpy(), np.zeros(40, dtype=int), np.ones(200, dtype=int))
        figures.append(evaluate(queries, rows, *sides, metric="cosine").mAP)
    assert figures[1] > 1.3 * figures[0]


def test_the_usage_term_keeps_vectors_in_use_and_commitment_joins_a_persons_images(monkeypatch):
    monkeypatch.setattr(release_aware, "_LEAST_START_ROWS", 256)
    features, pids = mixed_people(40, seed=0)
    figures = []
    for usage, commitment in ((0.0, 0.0), (0.0, 5.0), (10.0, 5.0)):
        part = trained("prior_subset", features, pids, 50, temperature=1e9, usage=usage, commitment=commitment)[1]
        figures.append(part.finish_step(None))
    loose, collapsed, kept = figures
    assert collapsed["aware_shared"] > loose["aware_shared"] + 20
    assert collapsed["aware_used"] < 50 < kept["aware_used"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReleaseAware("laplace"), "privacy.aware.mechanism is 'laplace'; allowed: codebook, prior_subset,"),
        (lambda: ReleaseAware("gausian"), "Did you mean 'gaussian'"),
        (lambda: ReleaseAware(set_size=2.5), "privacy.aware.set_size is 2.5, must be a whole number >= 1"),
        (lambda: ReleaseAware(codewords=64.5), "privacy.aware.codewords is 64.5, must be a whole number >= 1"),
        (lambda: ReleaseAware(levels=0), "privacy.aware.levels is 0, must be a whole number >= 1"),
        (lambda: ReleaseAware(weight=-1.0), "privacy.aware.weight is -1.0, must be a finite number >= 0"),
        (lambda: ReleaseAware(temperature=0.0), "privacy.aware.temperature is 0.0, must be a finite number > 0"),
        (lambda: ReleaseAware(assignment_temperature=0), "privacy.aware.assignment_temperature is 0, must be a finite"),
        (lambda: ReleaseAware(lr=float("inf")), "privacy.aware.lr is inf, must be a finite number > 0"),
        (lambda: ReleaseAware(usage=float("nan")), "privacy.aware.usage is nan, must be a finite number >= 0"),
        (lambda: ReleaseAware(epsilon_min=9, epsilon_max=8), "epsilon_min is 9 and epsilon_max 8"),
        (lambda: ReleaseAware(codewords=1009), "codewords is 1009 with 2 levels, which does not split"),
        (lambda: ReleaseAware(set_size=1024), "set_size 1024 of 1024 codewords"),
        (lambda: ReleaseAware("privunit_g", delta=0.1), "needs delta 0"),
        (lambda: ReleaseAware("gaussian", delta=2.0), "delta is 2.0"),
        (lambda: ReleaseAware("codebook", set_size=8), "privacy.aware.set_size is 8, and 'codebook' has no sets"),
        (lambda: ReleaseAware("codebook", delta=0.7), "privacy.aware.delta is 0.7, and 'codebook' is pure or has no"),
        (lambda: ReleaseAware("none", delta=5), "privacy.aware.delta is 5, and 'none' is pure or has no budget"),
        (
            lambda: built(ReleaseAware("none")).loss_terms(batch_of(torch.rand(4, DIM), torch.arange(4))),
            "none of the 4 images",
        ),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_component_without_an_engine_says_what_is_missing():
    with pytest.raises(RuntimeError, match="no state yet: give it to an engine"):
        ReleaseAware().loss_terms(batch_of(*people()))


@pytest.mark.parametrize("options", [(), (*SAMPLER[:2], "sampler.num_instances", 1)])
def test_a_configuration_without_pairs_is_refused(make_cfg, options):
    cfg = make_cfg("privacy.aware.enabled", True, *options)
    with pytest.raises(ConfigError, match="several images a person.*RandomIdentitySampler sampler.num_instances 4"):
        build.check(cfg)


def test_the_keys_reach_the_component(make_cfg):
    values = {
        "mechanism": "prior_subset",
        "epsilon_min": 3.0,
        "epsilon_max": 5.0,
        "weight": 0.5,
        "temperature": 0.15,
        "codewords": 27,
        "levels": 3,
        "set_size": 2,
        "assignment_temperature": 0.07,
        "commitment": 0.3,
        "usage": 0.2,
        "lr": 0.01,
    }
    options = [word for key, value in values.items() for word in (f"privacy.aware.{key}", value)]
    (part,) = build.build_components(make_cfg(*AWARE, *options))
    assert {key: getattr(part, key) for key in values} == values
    assert part.make_scheduler is not None
    assert build.build_components(make_cfg(*AWARE, "privacy.aware.mechanism", "gaussian", "privacy.aware.delta", 1e-6))
    with pytest.raises(ConfigError, match="privacy.aware.temperature is 0.0, must be > 0"):
        build.check(make_cfg(*AWARE, "privacy.aware.temperature", 0))


def test_gain_is_what_the_budget_leaves():
    gains = [expected_gain(epsilon, 1024, 1)[0] for epsilon in (2, 4, 8, 16)]
    assert gains == sorted(gains)
    assert gains[0] < 0.01
    assert gains[-1] > 0.999
