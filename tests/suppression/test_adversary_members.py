"""Members, folds and restarts: nobody steps on whom he attacks, runs repeat, old settings mean the same."""

import dataclasses
import math

import pytest
import torch
from adversary_cases import CLASSES, KINDS, SCHEDULES, memorize, setup
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ppreid_plugin.suppression import IdentityAdversary
from ppreid_plugin.suppression.adversary import ADVERSARIES
from ppreid_plugin.suppression.adversary_members import people_folds, take
from ppreid_plugin.suppression.adversary_terms import bounded, weighted_mean


@given(st.integers(2, 60), st.sampled_from(["held_out", "cross_fit"]), st.floats(0.3, 0.7), st.integers(0, 5))
def test_folds_part_the_people(num_people, people, share, seed):
    folds = people_folds(num_people, people, share, seed)
    for learns, attacks in folds:
        assert not (learns & attacks).any()
        assert (learns | attacks).all()
        assert learns.any()
        assert attacks.any()
    attacked = torch.stack([attacks for _, attacks in folds]).sum(0)
    if people == "cross_fit":
        assert (attacked == 1).all()  # everybody is attacked by exactly one fold
    else:
        assert attacked.sum() == pytest.approx(share * num_people, abs=0.5 + 1e-9)


def test_too_few_people_cannot_be_parted():
    with pytest.raises(ValueError, match="'held_out': 0 of 3 training people would be held out"):
        people_folds(3, "held_out", 0.1, 1)


def one_person(batch, pid):
    rows = (batch.pids == pid).nonzero().squeeze(1)
    return dataclasses.replace(take(batch, rows), features=batch.features[rows])


@pytest.mark.parametrize("people", ["held_out", "cross_fit"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "identity"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_member_never_steps_on_a_person_that_it_attacks(kind, people, schedule, tmp_path):
    _, _, adversary, batch = setup(kind, tmp_path, input="feature", people=people, schedule=schedule)
    for pid in range(CLASSES):
        before = [[p.clone() for p in member.module.parameters()] for member in adversary.members]
        alone = one_person(batch, pid)
        adversary.loss_terms(alone)
        adversary.finish_step(alone)
        known = kind != "attributes" or pid != 3  # nothing is known of person 3
        for old, member in zip(before, adversary.members, strict=True):
            moved = any(not torch.equal(a, b) for a, b in zip(old, member.module.parameters(), strict=True))
            assert moved == (bool(member.learns[pid]) and known)
            assert bool(member.learns[pid]) != bool(member.attacks[pid])


@pytest.mark.parametrize("kind", ["image", "attributes", "camera"])
def test_the_gradient_on_a_person_comes_from_the_member_that_does_not_learn_him(kind, tmp_path):
    _, decoder, adversary, batch = setup(kind, tmp_path, input="feature", people="cross_fit", ensemble=2)
    assert len(adversary.members) == 4
    memorize(adversary, decoder, batch)
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    # by hand: one sample and attacking member at a time
    weights = adversary.sample_weights(batch)
    values, shares = [], []
    for member in adversary.members:
        losses = bounded(
            adversary.sample_losses(member.module(batch.features), batch), adversary.bounds(member.module, batch)
        )
        for row, pid in enumerate(batch.pids):
            if member.attacks[pid]:
                values.append(losses[row])
                shares.append(torch.ones_like(losses[row]) if weights is None else weights[row])
    values, shares = torch.stack(values), torch.stack(shares)
    means = (values * shares).sum(0) / shares.sum(0)
    assert term.item() == pytest.approx(-means.mean().item(), rel=1e-5)
    (got,) = torch.autograd.grad(term, batch.features)
    (wanted,) = torch.autograd.grad(-means.mean(), batch.features)
    assert torch.allclose(got, wanted, atol=1e-6)


def test_held_out_people_alone_give_a_gradient_and_their_loss_is_logged(tmp_path):
    _, decoder, adversary, batch = setup(
        "camera", tmp_path, input="feature", people="held_out", held_out_people=0.3, weight=2.0
    )
    (member,) = adversary.members
    assert member.attacks.sum() == 2
    memorize(adversary, decoder, batch)
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    (gradient,) = torch.autograd.grad(term, batch.features)
    assert torch.equal(gradient.abs().sum(1) > 0, member.attacks[batch.pids])
    figures = adversary.finish_step(batch)
    assert figures["held_out_loss_adversary_camera"] == pytest.approx(-term.item() / 2, rel=1e-5)


def test_the_loss_on_held_out_people_weighs_classes_alike_and_leaves_out_the_unknown(tmp_path):
    settings = {"input": "feature", "people": "held_out", "held_out_people": 0.8, "attributes": ["gender", "hair"]}
    _, _, adversary, batch = setup("attributes", tmp_path, weight=0.0, **settings)
    (member,) = adversary.members
    attacked = member.attacks[batch.pids]
    losses = adversary.sample_losses(member.module(batch.features), batch)[attacked].detach()
    weights = adversary.sample_weights(batch)[attacked]
    assert (weights == 0).any()
    wanted = ((losses * weights).sum(0) / weights.sum(0)).mean().item()
    adversary.loss_terms(batch)
    assert adversary.finish_step(batch)["held_out_loss_adversary_attributes"] == pytest.approx(wanted, rel=1e-5)


def test_chance_is_that_of_the_labels_that_are_known(tmp_path, monkeypatch):
    settings = {"input": "feature", "people": "all", "attributes": ["gender", "hair"]}
    _, _, adversary, batch = setup("attributes", tmp_path, **settings)
    seen = []
    monkeypatch.setattr(adversary.guard, "watch", lambda **figures: seen.append(figures["chance"]))
    for pid in (4, 5):  # gender and hair, gender alone
        adversary.loss_terms(one_person(batch, pid))
        adversary.finish_step(one_person(batch, pid))
    assert seen == pytest.approx([(math.log(2) + math.log(3)) / 2, math.log(2)])


def test_identity_has_nobody_to_hold_out():
    with pytest.raises(ValueError, match="its labels are the people"):
        IdentityAdversary(people="cross_fit")
    assert IdentityAdversary().people == "all"


def test_members_start_apart_and_a_seed_repeats_them():
    def weights(**settings):
        return [[p.clone() for p in m.module.parameters()] for m in setup(ensemble=3, **settings)[2].members]

    one, two, other = weights(), weights(), weights(seed=2)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    firsts = [member[0] if member[0].std() > 0 else member[1] for member in (*one, *other)]
    assert not any(torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


def test_the_term_of_an_ensemble_is_the_mean_of_its_members():
    _, decoder, adversary, batch = setup(input="feature", ensemble=3)
    memorize(adversary, decoder, batch)
    terms = [
        bounded(adversary.sample_losses(member.module(batch.features), batch), adversary._bound).mean().item()
        for member in adversary.members
    ]
    assert len(set(terms)) == 3
    (term,) = adversary.loss_terms(batch).values()
    assert term.item() == pytest.approx(-sum(terms) / 3, rel=1e-5)


def test_figures_are_means_over_the_members_before_their_first_step(tmp_path):
    _, _, adversary, batch = setup("camera", tmp_path, input="feature", ensemble=3, people="all", steps=3)
    made = [member.module(batch.features).detach() for member in adversary.members]
    balance = adversary.sample_weights(batch)
    losses = [weighted_mean(adversary.sample_losses(one, batch), balance).item() for one in made]
    hits = [(one.argmax(1) == batch.data["camid"]).float().mean().item() for one in made]  # cameras have equal shares
    adversary.loss_terms(batch)
    figures = adversary.finish_step(batch)
    assert figures["loss_adversary_camera"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert figures["acc_adversary_camera"] == pytest.approx(100 * sum(hits) / 3, rel=1e-5)


def restarts(epochs, **settings):
    """Epochs in which each member started anew."""
    adversary = setup(**settings)[2]
    found = [[] for _ in adversary.members]
    for epoch in range(epochs):
        before = [[p.clone() for p in member.module.parameters()] for member in adversary.members]
        adversary.begin_epoch(epoch)
        for number, (old, member) in enumerate(zip(before, adversary.members, strict=True)):
            if any(not torch.equal(a, b) for a, b in zip(old, member.module.parameters(), strict=True)):
                found[number].append(epoch)
    return found


def test_members_restart_in_turn():
    assert restarts(13, restart_epochs=6) == [[6, 12]]
    assert restarts(13, restart_epochs=6, ensemble=2) == [[6, 12], [3, 9]]
    assert restarts(5, restart_epochs=2, ensemble=2) == [[2, 4], [1, 3]]


@pytest.mark.parametrize(
    ("settings", "members"),
    [({"ensemble": 3}, 3), ({"people": "cross_fit"}, 2), ({"people": "cross_fit", "ensemble": 2}, 4)],
)
def test_members_that_would_restart_at_once_are_refused(settings, members):
    settings = {"input": "feature", **settings}
    with pytest.raises(ValueError, match=f"restart_epochs 1 with {members} members.*must be 0 .never. or >= {members}"):
        ADVERSARIES.get("image")(restart_epochs=1, **settings)
    assert ADVERSARIES.get("image")(restart_epochs=members, **settings).restart_epochs == members
    assert restarts(13) == [[]]


def test_a_restart_forgets_the_optimizers_moments_and_keeps_rate_and_statistics(tmp_path):
    _, _, adversary, batch = setup("image", tmp_path, input="feature", restart_epochs=2, lr=0.01)
    adversary.loss_terms(batch)
    adversary.finish_step(batch)
    (member,) = adversary.members
    member.optimizer.param_groups[0]["lr"] = 0.002
    mean = member.module.mean_image.clone()
    assert member.optimizer.state
    adversary.begin_epoch(1)
    assert member.optimizer.state
    adversary.begin_epoch(2)
    assert not member.optimizer.state
    assert member.optimizer.param_groups[0]["lr"] == 0.002
    assert torch.equal(member.module.mean_image, mean)
    # the optimizer still moves the parameters that the module now has
    before = [p.clone() for p in member.module.parameters()]
    adversary.loss_terms(batch)
    adversary.finish_step(batch)
    assert any(not torch.equal(a, b) for a, b in zip(before, member.module.parameters(), strict=True))


def test_plain_settings_step_as_adam_does():
    """The defaults (AdamW without decay, one member, all people) are the adversary of old, bit for bit."""
    _, _, adversary, batch = setup(input="feature")
    twin = setup(input="feature")[2].module
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(5):
        adversary.loss_terms(batch)
        adversary.finish_step(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(batch.features.detach()), batch.pids, reduction="none").mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(adversary.module.parameters(), twin.parameters(), strict=True))


def test_weight_decay_shrinks_and_dropout_is_off_while_attacking():
    norms = []
    for decay in (0.0, 10.0):
        _, _, adversary, batch = setup(input="feature", weight_decay=decay)
        adversary.loss_terms(batch)
        adversary.finish_step(batch)
        norms.append(adversary.module[1].weight.norm().item())
    assert norms[1] == pytest.approx(norms[0] * (1 - 1e-3 * 10), rel=1e-3)
    _, _, adversary, batch = setup(input="feature", dropout=0.5)
    terms = {next(iter(adversary.loss_terms(batch).values())).item() for _ in range(3)}
    assert len(terms) == 1
    assert adversary.module.training
    seen = {adversary.sample_losses(adversary.module(batch.features), batch).mean().item() for _ in range(3)}
    assert len(seen) == 3


def test_weights_by_hand():
    values = torch.tensor([[1.0, 4.0], [3.0, 8.0], [5.0, 2.0]])
    weights = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 2.0]])
    assert weighted_mean(values, weights).item() == pytest.approx(((1 + 9) / 4 + (16 + 4) / 4) / 2)
    assert weighted_mean(values, torch.zeros_like(weights)).item() == 0
    assert weighted_mean(values[:, 0], None).item() == 3
