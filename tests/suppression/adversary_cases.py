"""A small encoder, a decoder and an adversary of any kind, on random images: for tests of who learns from what."""

import torch
from torch import nn

from ppreid_plugin.components import Batch, Context
from ppreid_plugin.suppression import (
    AttributesAdversary,
    CameraAdversary,
    DeIDDecoder,
    IdentityAdversary,
    ImageAdversary,
)

CLASSES, DIM, SIZE = 6, 16, (32, 16)
KINDS = ("identity", "image", "attributes", "camera")
SOURCES = ("reconstruction", "feature")
SCHEDULES = ("reversal", "alternating")

# people 0 to 5 are called 10 to 15; of 13 nothing is known, of 15 no hair
LABELS = "pid,gender,hair\n10,f,long\n11,m,short\n12,f,bald\n14,m,long\n15,f,\n"


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * SIZE[0] * SIZE[1], DIM)

    def forward(self, images):
        return 20 * self.layer(images.flatten(1) - 0.5)  # features of different images differ clearly


def make_items(samples):
    return [(f"{10 + i % CLASSES:04d}_c{1 + i % 2}s1_{i}.jpg", i % CLASSES, i % 2, 0) for i in range(samples)]


def make_context(parts, samples=12):
    return Context(
        feature_dim=DIM,
        feature_map_shape=None,
        num_classes=CLASSES,
        height=SIZE[0],
        width=SIZE[1],
        norm_mean=(0, 0, 0),
        norm_std=(1, 1, 1),
        device=torch.device("cpu"),
        components=tuple(parts),
        train_items=make_items(samples),
        sources=("market1501",),
    )


def make_adversary(kind, folder=None, **settings):
    settings = {"weight": 1.0, "ramp": False, **settings}
    if kind == "attributes":
        path = folder / "people.csv"
        path.write_text(LABELS)
        return AttributesAdversary(labels=str(path), **settings)
    if kind == "image":
        return ImageAdversary(height=16, width=16, **settings)
    return {"identity": IdentityAdversary, "camera": CameraAdversary}[kind](**settings)


def setup(kind="identity", folder=None, *, deid_weight=1.0, samples=12, **settings):
    torch.manual_seed(0)
    encoder = Encoder()
    decoder = DeIDDecoder("pixelate", weight=deid_weight, height=16, width=16, options={"blocks": 4})
    adversary = make_adversary(kind, folder, **settings)
    context = make_context((decoder, adversary), samples)
    for part in (decoder, adversary):
        part.build(context)
    images = torch.rand(samples, 3, *SIZE)
    items = make_items(samples)
    batch = Batch(
        images=images,
        pids=torch.tensor([item[1] for item in items]),
        features=encoder(images),
        feature_map=None,
        progress=1.0,
        data={"camid": torch.tensor([item[2] for item in items]), "impath": [item[0] for item in items]},
    )
    return encoder, decoder, adversary, batch


def has_gradient(module):
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def clear_gradients(*modules):
    for module in modules:
        module.zero_grad(set_to_none=True)


def read_of(adversary, decoder, batch):
    return (decoder.decode_frozen(batch) if adversary.input == "reconstruction" else batch.features).detach()


def memorize(adversary, decoder, batch, steps=500, lr=0.003):
    """Train every member on the whole batch, also on the people that it is to attack, until it beats chance clearly."""
    read = read_of(adversary, decoder, batch)
    weights = adversary.sample_weights(batch)
    for member in adversary.members:
        adversary.observe(member.module, batch)
        optimizer = torch.optim.Adam(member.module.parameters(), lr=lr)
        for _ in range(steps):
            losses = adversary.sample_losses(member.module(read), batch)
            known = torch.ones_like(losses) if weights is None else weights
            if (losses < 0.85 * torch.as_tensor(adversary.bounds(member.module, batch)))[known > 0].all():
                break
            optimizer.zero_grad()
            (losses * (known > 0)).mean().backward()
            optimizer.step()
        else:
            raise AssertionError(f"{adversary.name} did not learn the batch in {steps} steps: {losses}")
        optimizer.zero_grad(set_to_none=True)
