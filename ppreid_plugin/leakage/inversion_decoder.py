"""The models that invert features into images: one image for all rows, ridge regression, and a decoder on top of it.

Each gives RGB images (n, 3, 64, 32) and is judged by SSIM on held-out people. None looks at the batch that a row is
in: an output that is scaled by its own batch would hide a failure.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import isolated_rng
from .image_scores import in_chunks, ssim
from .images import HEIGHT, WIDTH, Pixels

Matrix = npt.NDArray[np.float32]

BATCH = 256
STEPS = 340  # eight epochs of Market-1501's training split; held-out people gain little after six
CHECKS = 8  # looks at held-out people while a decoder learns
PATIENCE = 3  # of them without gain before it stops
CONSTANT_STEPS, CONSTANT_BATCH, CONSTANT_RATE = 150, 64, 4e-3
PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of ridge regression, in variances of a column
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
HIDDEN, CHANNELS = 1024, (48, 32, 16)
INPUT_NOISE, INPUT_DROPOUT, DROPOUT = 0.4, 0.1, 0.5  # noise in standard deviations: the decoder learns few people


def to_images(pixels: Pixels | Tensor) -> Tensor:
    """Return pixels (n, H, W, 3) as images (n, 3, H, W) in [0, 1], on the pixels' device."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 255


def fit_constant(pixels: Pixels | Tensor, mean: Tensor, *, steps: int = CONSTANT_STEPS, seed: int = 0) -> Tensor:
    """Return the one image, (3, 64, 32), that is nearest to all by SSIM and L1: what an attacker without features says.

    Args:
        pixels: (n, 64, 32, 3), of training people.
        mean: (3, 64, 32), their mean image, from which it starts.
        steps: batches.
        seed: of the batches.
    """
    stored = torch.as_tensor(pixels, device=mean.device)
    constant = mean.clone().requires_grad_()
    solver = torch.optim.Adam([constant], lr=CONSTANT_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(solver, 1.0, 0.1, total_iters=steps)
    for chosen in itertools.islice(batches(len(pixels), seed, CONSTANT_BATCH), steps):
        _step(
            solver,
            constant.expand(len(chosen), -1, -1, -1),
            to_images(stored[torch.from_numpy(chosen).to(mean.device)]),
        )
        schedule.step()
    return constant.detach().clamp(0, 1)


class LinearInversion(nn.Module):
    """An image that is linear in the feature.

    Args:
        mean, scale: (d,) and a number: features are centered and divided by them.
        weight: (d, 3 * 64 * 32).
        constant: (3, 64, 32), the image of the mean feature.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    constant: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor, constant: Tensor) -> None:
        super().__init__()
        for name, value in {"mean": mean, "scale": scale, "weight": weight, "constant": constant}.items():
            self.register_buffer(name, value)

    def standardize(self, features: Tensor) -> Tensor:
        """Return centered features with columns of variance about 1."""
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Return images, (B, 3, 64, 32); they may leave [0, 1]."""
        return self.constant + (self.standardize(features) @ self.weight).view(-1, 3, HEIGHT, WIDTH)


def fit_linear(draws: Iterator[Matrix], pixels: Pixels | Tensor, constant: Tensor) -> Iterator[LinearInversion]:
    """Yield ridge regressions from features to images, from weakly to strongly regularized.

    Args:
        draws: the same rows (n, d) once, or several times with fresh noise; only sums over the draws are kept.
        pixels: (n, 64, 32, 3).
        constant: image that the regression is around.
    """
    device, stored = constant.device, torch.as_tensor(pixels)
    mean, scale, total = (value(()).to(device) for value in (torch.zeros, torch.ones, torch.zeros))
    count, gram = 0, torch.zeros((), dtype=torch.float64, device=device)
    for features in draws:
        rows = torch.from_numpy(features).to(device)
        if not count:
            mean = rows.mean(0)
            scale = (rows - mean).square().mean().sqrt().clamp(min=1e-12)
        inputs = (rows - mean) / scale
        gram = gram + (inputs.T @ inputs).double()
        total = total + inputs
        count += 1
    gram = gram / (count * len(pixels))
    product = torch.zeros(total.shape[1], constant.numel(), dtype=torch.float64, device=device)
    for start in range(0, len(pixels), BATCH):
        wanted = (to_images(stored[start : start + BATCH].to(device)) - constant).flatten(1)
        product += total[start : start + BATCH].T @ wanted / (count * len(pixels))
    values, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ product
    for penalty in PENALTIES:
        weight = vectors @ (turned / (values.clamp(min=0) + penalty)[:, None])
        yield LinearInversion(mean, scale, weight.float(), constant)


class InversionDecoder(nn.Module):
    """Ridge regression, kept as it is, plus what a network of dense layers and convolutions adds to it.

    About 13 million multiply-adds beside the regression's 3 for 512 columns, against 5 of the decoder of stage 1. It
    starts as the regression itself: the last layer is zero.

    Args:
        linear: fitted regression.
    """

    def __init__(self, linear: LinearInversion) -> None:
        super().__init__()
        self.linear = linear
        self.start = (HEIGHT // 8, WIDTH // 8)
        self.dense = nn.Sequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(len(linear.mean), HIDDEN),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, CHANNELS[0] * self.start[0] * self.start[1]),
            nn.GELU(),
        )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(CHANNELS):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1), nn.GELU()]
        last = nn.Conv2d(CHANNELS[-1], 12, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return images, (B, 3, 64, 32); they may leave [0, 1]."""
        inputs = self.linear.standardize(features)
        if self.training:
            inputs = inputs + INPUT_NOISE * torch.randn_like(inputs)
        plain: Tensor = self.linear(features)
        return plain + self.layers(self.dense(inputs).unflatten(1, (-1, *self.start)))


def fit_decoder(
    decoder: InversionDecoder,
    draw: Callable[[int], Matrix],
    pixels: Pixels | Tensor,
    held_out: tuple[Tensor, Tensor],
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> float:
    """Train a decoder by AdamW on SSIM and L1; leave it as it was best on held-out people, and return their SSIM.

    Args:
        decoder: it is changed; it learns on the device that it is on.
        draw: features (n, d) of the rows by epoch: fresh noise where there is any.
        pixels: (n, 64, 32, 3), of the same rows.
        held_out: features and images of people that are not among the rows, as they will be attacked.
        steps: batches.
        seed: of batches, dropout and noise.
    """
    device = decoder.linear.constant.device
    stored = torch.as_tensor(pixels, device=device)
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    solver = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(solver, LEARNING_RATE, total_steps=steps + 1, pct_start=0.15)
    best, state, since = held_out_ssim(decoder, held_out), copy.deepcopy(decoder.state_dict()), 0
    looks = {max(1, round(steps * check / CHECKS)) for check in range(1, CHECKS + 1)}
    epoch, features, left = -1, torch.empty(0, device=device), 0
    with isolated_rng(seed):
        for step, chosen in enumerate(itertools.islice(batches(len(pixels), seed), steps), 1):
            if left == 0:
                epoch, left = epoch + 1, max(1, len(pixels) // BATCH)
                features = torch.from_numpy(draw(epoch)).to(device)
            left -= 1
            decoder.train()
            places = torch.from_numpy(chosen).to(device)
            _step(solver, decoder(features[places]), to_images(stored[places]))
            schedule.step()
            if step in looks:
                reached = held_out_ssim(decoder, held_out)
                since += 1
                if reached > best:
                    best, state, since = reached, copy.deepcopy(decoder.state_dict()), 0
                if since >= PATIENCE:
                    break
    decoder.load_state_dict(state)
    return best


def held_out_ssim(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> float:
    """Return the mean SSIM that a model reaches on features with images, all on one device."""
    model.eval()
    return float(in_chunks(lambda rows, images: ssim(model(rows).clamp(0, 1), images), *held_out).mean())


def _step(solver: torch.optim.Optimizer, made: Tensor, images: Tensor) -> None:
    loss = 1 - ssim(made, images).mean() + F.l1_loss(made, images)
    solver.zero_grad()
    loss.backward()
    solver.step()


def batches(rows: int, seed: int, most: int = BATCH) -> Iterator[npt.NDArray[np.int64]]:
    """Yield batches of row numbers for ever: every row once an epoch, but those that fill no batch."""
    rng = np.random.default_rng(seed)
    size = min(most, rows)
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows - size + 1, size):
            yield order[start : start + size]
