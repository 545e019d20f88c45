"""Who learns from what: every cell of the table in design terms, by which parameters have a non-zero gradient."""

import math

import pytest
import torch
from adversary_cases import (
    CLASSES,
    DIM,
    KINDS,
    SCHEDULES,
    SOURCES,
    clear_gradients,
    has_gradient,
    memorize,
    read_of,
    setup,
)
from torch import nn

from ppreid_plugin.components import Context
from ppreid_plugin.suppression import DeIDDecoder, DeIDLoss, IdentityAdversary
from ppreid_plugin.suppression.adversary_terms import bounded, divergence_from_uniform, weighted_mean

EVERY = [(k, i, s) for k in KINDS for i in SOURCES for s in SCHEDULES]


@pytest.fixture(params=EVERY, ids=["-".join(one) for one in EVERY])
def case(request, tmp_path):
    """Encoder, decoder, adversary that knows the batch by heart, and the batch: each kind, input and schedule."""
    kind, source, schedule = request.param
    # cross-fit members step on half of the people each; here all of them, so that each cell is alone in question
    parts = setup(kind, tmp_path, input=source, schedule=schedule, people="all")
    memorize(parts[2], parts[1], parts[3])
    return parts


def learners(encoder, decoder, adversary):
    named = {"encoder": encoder, "decoder": decoder.network, "adversary": adversary.module}
    return {name for name, module in named.items() if has_gradient(module)}


def test_the_deid_loss_teaches_encoder_and_decoder_only():
    encoder, decoder, adversary, batch = setup()
    (loss,) = decoder.loss_terms(batch).values()
    loss.backward()
    assert learners(encoder, decoder, adversary) == {"encoder", "decoder"}


def test_the_adversarial_term_teaches_the_encoder_only(case):
    encoder, decoder, adversary, batch = case
    (term,) = adversary.loss_terms(batch).values()
    clear_gradients(encoder, decoder.network, adversary.module)  # under alternating the adversary has just stepped
    term.backward()
    assert learners(encoder, decoder, adversary) == {"encoder"}


def test_the_adversarys_own_steps_teach_the_adversary_only(case):
    encoder, decoder, adversary, batch = case
    before = {name: p.clone() for name, p in adversary.module.named_parameters()}
    adversary.loss_terms(batch)
    moved_first = any(not torch.equal(before[name], p) for name, p in adversary.module.named_parameters())
    assert moved_first == (adversary.schedule == "alternating")
    figures = adversary.finish_step(batch)
    assert learners(encoder, decoder, adversary) == {"adversary"}
    assert any(not torch.equal(before[name], p) for name, p in adversary.module.named_parameters())
    assert figures[f"loss_{adversary.name}"] > 0


def test_under_alternating_the_encoder_meets_the_adversary_that_has_just_stepped():
    for steps in (1, 3):
        _, _, adversary, batch = setup(input="feature", schedule="alternating", steps=steps)
        (term,) = adversary.loss_terms(batch).values()
        expected = divergence_from_uniform(adversary.module(batch.features)).mean()
        assert term.item() == pytest.approx(expected.item(), rel=1e-6)
        after = [p.clone() for p in adversary.module.parameters()]
        adversary.finish_step(batch)  # takes no step again
        assert all(torch.equal(one, two) for one, two in zip(after, adversary.module.parameters(), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_adversary_takes_as_many_steps_on_a_batch_as_it_is_told(schedule):
    _, _, adversary, batch = setup(input="feature", schedule=schedule, steps=3)
    twin = torch.nn.Sequential(*[type(part)(*shape) for part, shape in _layers(adversary.module)])
    twin.load_state_dict(adversary.module.state_dict())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(batch.features.detach()), batch.pids).backward()
        optimizer.step()
    adversary.loss_terms(batch)
    adversary.finish_step(batch)
    for one, two in zip(twin.parameters(), adversary.module.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def _layers(network):
    shapes = {nn.LayerNorm: lambda p: (p.normalized_shape,), nn.Linear: lambda p: (p.in_features, p.out_features)}
    return [(part, shapes.get(type(part), lambda p: ())(part)) for part in network]


def test_reversal_pushes_the_adversarys_loss_up_with_the_right_sign_and_scale():
    encoder, decoder, adversary, batch = setup(input="feature", weight=0.7)
    memorize(adversary, decoder, batch)
    losses = adversary.sample_losses(adversary.module(batch.features), batch)
    assert (losses < math.log(CLASSES)).all()
    (wanted,) = torch.autograd.grad(losses.mean(), encoder.layer.weight, retain_graph=True)
    (term,) = adversary.loss_terms(batch).values()
    (got,) = torch.autograd.grad(term, encoder.layer.weight)
    assert torch.allclose(got, -0.7 * wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_along_the_term_makes_the_adversary_know_less(kind, schedule, tmp_path, monkeypatch):
    _, decoder, adversary, batch = setup(kind, tmp_path, input="feature", schedule=schedule, people="all")
    memorize(adversary, decoder, batch)
    monkeypatch.setattr("ppreid_plugin.suppression.adversary.learn", lambda *args: {})
    weights = adversary.sample_weights(batch)
    features = batch.features.detach()
    losses, knowledge = [], []
    for _ in range(2):
        batch.features = features.clone().requires_grad_()
        (term,) = adversary.loss_terms(batch).values()
        (gradient,) = torch.autograd.grad(term, batch.features)
        with torch.no_grad():
            outputs = adversary.module(features)
            losses.append(weighted_mean(adversary.sample_losses(outputs, batch), weights).item())
            knowledge.append(weighted_mean(adversary.forgetting(adversary.module, outputs, batch), weights).item())
        features = features - 0.05 * gradient / gradient.abs().max()
    if schedule == "reversal":
        assert losses[1] > losses[0]
    else:
        assert knowledge[1] < knowledge[0]


def test_no_gradient_for_a_sample_on_which_the_adversary_is_at_or_below_chance():
    _, decoder, adversary, batch = setup(input="feature")
    memorize(adversary, decoder, batch)
    wrong = (batch.pids + 1) % CLASSES
    batch.pids = torch.where(torch.arange(len(wrong)) < 3, wrong, batch.pids)
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    (gradient,) = torch.autograd.grad(term, batch.features)
    rows = gradient.abs().sum(1)
    assert (rows[:3] == 0).all()
    assert (rows[3:] > 0).all()


def uninformed(adversary):
    """Make every network's output what one who knows nothing says, but leave it a gradient to its input."""
    for member in adversary.members:
        if adversary.name == "adversary_image":
            mean = member.module.mean_image

            class Constant(nn.Module):
                def forward(self, read, mean=mean):
                    return mean + 0 * read.flatten(1).sum(1)[:, None, None, None]

            member.module.network = Constant()
        else:
            last = [layer for layer in member.module if isinstance(layer, nn.Linear)][-1]
            nn.init.zeros_(last.bias)
            with torch.no_grad():  # all logits move together: uniform posterior, whatever the input
                last.weight.copy_(last.weight[:1].expand_as(last.weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_uninformed_adversary_gives_the_encoder_nothing(kind, schedule, tmp_path, monkeypatch):
    _, _, adversary, batch = setup(kind, tmp_path, input="feature", schedule=schedule, people="all")
    for member in adversary.members:
        adversary.observe(member.module, batch)
    uninformed(adversary)
    monkeypatch.setattr("ppreid_plugin.suppression.adversary.learn", lambda *args: {})
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    (gradient,) = torch.autograd.grad(term, batch.features)
    assert gradient.abs().max() < 1e-6
    if schedule == "alternating":
        assert abs(term.item()) < 1e-6
    else:
        bounds = torch.as_tensor(adversary.bounds(adversary.module, batch)).mean()
        assert term.item() == pytest.approx(-bounds.item(), rel=1e-5)


def test_the_bound_itself_has_no_gradient():
    losses = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    bounded(losses, 1.0).sum().backward()
    assert losses.grad.tolist() == [1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_does_not_learn_to_hide_what_the_features_hold(kind, tmp_path):
    """Its parameters move the same with and without an adversary behind it."""
    moved = []
    for weight in (0.0, 5.0):
        encoder, decoder, adversary, batch = setup(kind, tmp_path, weight=weight, people="all")
        memorize(adversary, decoder, batch)
        terms = [*decoder.loss_terms(batch).values(), *adversary.loss_terms(batch).values()]
        torch.stack(terms).sum().backward()
        decoder.finish_step(batch)
        moved.append([p.clone() for p in decoder.network.parameters()])
        assert has_gradient(encoder)
    for plain, private in zip(*moved, strict=True):
        assert torch.equal(plain, private)


def test_weight_zero_decoder_learns_from_frozen_features():
    encoder, decoder, adversary, batch = setup(deid_weight=0.0)
    (loss,) = decoder.loss_terms(batch).values()
    loss.backward()
    assert learners(encoder, decoder, adversary) == {"decoder"}


def test_a_watching_adversary_learns_and_adds_nothing():
    for schedule in SCHEDULES:
        encoder, decoder, adversary, batch = setup(weight=0.0, schedule=schedule)
        assert adversary.loss_terms(batch) == {}
        assert adversary.finish_step(batch)["loss_adversary_identity"] > 0
        assert learners(encoder, decoder, adversary) == {"adversary"}


def test_the_ramp_starts_at_zero_and_reaches_the_weight():
    adversary = IdentityAdversary(weight=0.3)
    strengths = [adversary.strength(p / 10) for p in range(11)]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    assert strengths[-1] == pytest.approx(0.3, rel=1e-3)
    # Ganin and Lempitsky 2015: 2 / (1 + exp(-10 p)) - 1
    assert strengths[2] == pytest.approx(0.3 * (2 / (1 + math.exp(-2)) - 1))
    assert IdentityAdversary(weight=0.3, ramp=False).strength(0.0) == 0.3


def test_deid_loss_gradient_is_that_of_finite_differences():
    decoded = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    for kind in ("mse", "l1"):
        assert torch.autograd.gradcheck(lambda x, loss=DeIDLoss(kind): loss(x, target), decoded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_terms_gradient_is_that_of_finite_differences(kind, schedule, tmp_path, monkeypatch):
    """float64, from the features through the frozen members to the term: bounds, weights and folds included."""
    _, decoder, adversary, batch = setup(kind, tmp_path, input="feature", schedule=schedule, ensemble=2)
    memorize(adversary, decoder, batch)
    monkeypatch.setattr("ppreid_plugin.suppression.adversary.learn", lambda *args: {})
    for member in adversary.members:
        member.module.double()
    batch.images = batch.images.double()
    if kind in ("attributes", "camera"):
        adversary._balance = [weights.double() for weights in adversary._balance]

    def term(features):
        batch.features = features
        return next(iter(adversary.loss_terms(batch).values()))

    features = batch.features.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(term, features, eps=1e-7, atol=1e-6)
    (gradient,) = torch.autograd.grad(term(features), features)
    assert (gradient.abs().sum(1) > 0).float().mean() >= 0.5  # a check of zeros would check nothing


def test_an_adversary_on_the_reconstruction_needs_a_decoder():
    adversary = IdentityAdversary()
    context = Context(DIM, None, CLASSES, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), (adversary,))
    with pytest.raises(ValueError, match="no DeIDDecoder among the components"):
        adversary.build(context)


def test_building_parts_does_not_move_the_global_generator():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    setup_state = torch.get_rng_state()
    decoder = DeIDDecoder(height=16, width=16)
    decoder.build(Context(DIM, None, CLASSES, 32, 16, (0,) * 3, (1,) * 3, torch.device("cpu"), (decoder,)))
    assert torch.equal(torch.get_rng_state(), setup_state)
    assert torch.equal(torch.rand(3), wanted)


def test_an_adversary_reads_what_it_says():
    _, decoder, adversary, batch = setup(input="reconstruction")
    assert torch.equal(read_of(adversary, decoder, batch), decoder.decode(batch.features))
    adversary.loss_terms(batch)
    assert torch.equal(adversary._seen, decoder.decode(batch.features))
