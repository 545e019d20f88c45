"""Who learns from what: every cell of the table in design terms, by which parameters have a non-zero gradient."""

import math

import pytest
import torch
from torch import nn

from ppreid_plugin.components import Batch, Context
from ppreid_plugin.suppression import DeIDDecoder, IdentityAdversary

CLASSES, DIM, SIZE = 5, 16, (32, 16)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * SIZE[0] * SIZE[1], DIM)

    def forward(self, images):
        return 20 * self.layer(images.flatten(1) - 0.5)  # features of different images differ clearly


def setup(*, source="reconstruction", deid_weight=1.0, adversary_weight=1.0, samples=6, ramp=False):
    torch.manual_seed(0)
    encoder = Encoder()
    decoder = DeIDDecoder("pixelate", weight=deid_weight, height=16, width=16, options={"blocks": 4})
    adversary = IdentityAdversary(input=source, weight=adversary_weight, ramp=ramp)
    parts = (decoder, adversary)
    context = Context(
        feature_dim=DIM,
        feature_map_shape=None,
        num_classes=CLASSES,
        height=SIZE[0],
        width=SIZE[1],
        norm_mean=(0, 0, 0),
        norm_std=(1, 1, 1),
        device=torch.device("cpu"),
        components=parts,
    )
    for part in parts:
        part.build(context)
    images = torch.rand(samples, 3, *SIZE)
    pids = torch.arange(samples) % CLASSES
    batch = Batch(images=images, pids=pids, features=encoder(images), feature_map=None, progress=1.0)
    return encoder, decoder, adversary, batch


def has_gradient(module):
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def learners(encoder, decoder, adversary):
    named = {"encoder": encoder, "decoder": decoder.network, "adversary": adversary.module}
    return {name for name, module in named.items() if has_gradient(module)}


def test_the_deid_loss_teaches_encoder_and_decoder_only():
    encoder, decoder, adversary, batch = setup()
    (loss,) = decoder.loss_terms(batch).values()
    loss.backward()
    assert learners(encoder, decoder, adversary) == {"encoder", "decoder"}


@pytest.mark.parametrize("source", ["reconstruction", "feature"])
def test_the_adversarial_term_teaches_the_encoder_only(source):
    encoder, decoder, adversary, batch = setup(source=source)
    # an adversary that knows the people, so that the bounded term has a gradient
    memorize(adversary, decoder, batch)
    (term,) = adversary.loss_terms(batch).values()
    term.backward()
    assert learners(encoder, decoder, adversary) == {"encoder"}


@pytest.mark.parametrize("source", ["reconstruction", "feature"])
def test_the_adversarys_own_step_teaches_the_adversary_only(source):
    encoder, decoder, adversary, batch = setup(source=source)
    adversary.loss_terms(batch)
    before = {name: p.clone() for name, p in adversary.module.named_parameters()}
    figures = adversary.finish_step(batch)
    assert learners(encoder, decoder, adversary) == {"adversary"}
    assert any(not torch.equal(before[name], p) for name, p in adversary.module.named_parameters())
    assert figures["loss_adversary_identity"] == pytest.approx(math.log(CLASSES), rel=0.2)


def memorize(adversary, decoder, batch, steps=200):
    """Train the adversary on this batch until it beats chance on every sample."""
    read = (decoder.decode_frozen(batch) if adversary.input == "reconstruction" else batch.features).detach()
    optimizer = torch.optim.Adam(adversary.module.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = adversary.sample_losses(adversary.module(read), batch)
        losses.mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert losses.max() < 0.8 * math.log(CLASSES)


def test_the_reversal_pushes_the_adversarys_loss_up_with_the_right_sign_and_scale():
    encoder, decoder, adversary, batch = setup(source="feature", adversary_weight=0.7)
    memorize(adversary, decoder, batch)
    losses = adversary.sample_losses(adversary.module(batch.features), batch)
    assert (losses < math.log(CLASSES)).all()
    (wanted,) = torch.autograd.grad(losses.mean(), encoder.layer.weight, retain_graph=True)
    (term,) = adversary.loss_terms(batch).values()
    (got,) = torch.autograd.grad(term, encoder.layer.weight)
    assert torch.allclose(got, -0.7 * wanted, rtol=1e-5, atol=1e-8)


def test_no_gradient_for_a_sample_on_which_the_adversary_is_at_or_below_chance():
    _, decoder, adversary, batch = setup(source="feature")
    memorize(adversary, decoder, batch)
    wrong = (batch.pids + 1) % CLASSES
    batch.pids = torch.where(torch.arange(len(wrong)) < 3, wrong, batch.pids)
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    (gradient,) = torch.autograd.grad(term, batch.features)
    rows = gradient.abs().sum(1)
    assert (rows[:3] == 0).all()
    assert (rows[3:] > 0).all()


def test_an_uninformed_adversary_gives_the_encoder_nothing():
    _, _, adversary, batch = setup(source="feature")
    for parameter in adversary.module.parameters():
        nn.init.zeros_(parameter)  # uniform posterior: exactly chance
    batch.features = batch.features.detach().requires_grad_()
    (term,) = adversary.loss_terms(batch).values()
    (gradient,) = torch.autograd.grad(term, batch.features)
    assert gradient.abs().max() < 1e-7
    assert term.item() == pytest.approx(-math.log(CLASSES), rel=1e-6)


def test_the_decoder_does_not_learn_to_hide_what_the_features_hold():
    """Its parameters move the same with and without an adversary behind it."""
    moved = []
    for weight in (0.0, 5.0):
        encoder, decoder, adversary, batch = setup(adversary_weight=weight)
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
    from ppreid_plugin.suppression import DeIDLoss

    decoded = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    for kind in ("mse", "l1"):
        assert torch.autograd.gradcheck(lambda x, loss=DeIDLoss(kind): loss(x, target), decoded)


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
