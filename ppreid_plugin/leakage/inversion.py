"""Inversion of features into images, fitted on some people and chosen on others: the best of several models.

Of the training people a sixth is held out. On these the models compete by SSIM: one image for all rows, ridge
regression, and decoders that start from it and learn from the rows as they are attacked, from the rows before the
noise, or from the latter first and the former then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..components import isolated_rng
from .compute import compute_device
from .data import LeakageSet
from .image_scores import in_chunks, ssim
from .images import Pixels
from .inversion_decoder import (
    CONSTANT_STEPS,
    STEPS,
    InversionDecoder,
    fit_constant,
    fit_decoder,
    fit_linear,
    held_out_ssim,
    to_images,
)

Matrix = npt.NDArray[np.float32]

HELD_OUT = 6  # one of so many training people
HELD_OUT_ROWS = 1500  # more make the choice slow, not better
MOST_ROWS = 20_000  # training rows in memory: 120 MB of images
LINEAR_DRAWS = 4  # of the noise, for the sums of the regression
_DRAWS = 1_000_000  # seeds of the noise that attackers draw start here: never a draw of the rows themselves


@dataclass(frozen=True, eq=False)
class Inversion:
    """A fitted inversion.

    Attributes:
        name: the model that reached the most on held-out people: ``constant``, ``ridge`` or ``decoder``, with the rows
            that it learned from where there were several kinds.
        held_out: SSIM it reached on them.
        mean_image: (3, 64, 32), mean of the training people's images.
        constant: (3, 64, 32), the image that is best without features: the mean image, or one that is nearer by SSIM.
    """

    name: str
    held_out: float
    mean_image: Tensor
    constant: Tensor
    _model: nn.Module | None

    def __call__(self, features: Matrix) -> Tensor:
        """Return images (n, 3, 64, 32) in [0, 1]: values beyond are cut off, nothing is rescaled."""
        if self._model is None:
            return self.constant.expand(len(features), -1, -1, -1)
        model, device = self._model, next(self._model.buffers()).device
        return in_chunks(lambda rows: model(rows.to(device)).clamp(0, 1).cpu(), torch.from_numpy(features))


def fit_inversion(train: LeakageSet, *, steps: int = STEPS, seed: int = 0) -> Inversion:
    """Fit the models on most people of ``train``, and return the one that is best on the others.

    They learn on a GPU where there is one; its rounding and its draws of dropout are not the CPU's.

    Args:
        train: rows with images; at most 20,000 of them are used, of people drawn whole.
        steps: batches that a decoder learns from.
        seed: of the choice of people, the models and the noise they draw.

    Raises:
        ValueError: rows without images, or of one person only.
    """
    learned, held = split_people(train, seed)
    device, loaded = compute_device(), _pixels(learned)
    mean = torch.from_numpy(loaded.mean(axis=0, dtype=np.float64) / 255).float().permute(2, 0, 1).contiguous()
    mean, pixels = mean.to(device), torch.from_numpy(loaded).to(device)
    wanted = to_images(torch.from_numpy(_pixels(held)).to(device))
    held_out = torch.from_numpy(held.features).to(device), wanted
    learned_constant = fit_constant(pixels, mean, steps=min(CONSTANT_STEPS, 10 * steps), seed=seed)
    constant = max((mean, learned_constant), key=lambda one: _constant_ssim(one, wanted))
    candidates: list[tuple[float, str, nn.Module | None]] = [(_constant_ssim(constant, wanted), "constant", None)]
    noised = redrawn(learned, seed)
    draws = (noised(number) for number in range(1 if learned.redraw is None else LINEAR_DRAWS))
    reached, linear = max(
        ((held_out_ssim(model, held_out), model) for model in fit_linear(draws, pixels, constant)),
        key=lambda one: one[0],
    )
    candidates.append((reached, "ridge", linear))
    known = learned.clean if learned.clean is not None and learned.clean.shape == learned.features.shape else None
    with isolated_rng(seed):
        decoder = InversionDecoder(linear).to(device)
    if known is not None and held.clean is not None:
        # the regression of protected rows shrinks as their noise asks for; the network learns what it can beside it
        clean, taught = (torch.from_numpy(held.clean).to(device), wanted), copy.deepcopy(decoder)
        fit_decoder(taught, lambda _: known, pixels, clean, steps=steps, seed=seed)
        candidates.append((held_out_ssim(taught, held_out), "decoder, clean rows", copy.deepcopy(taught)))
        reached = fit_decoder(taught, noised, pixels, held_out, steps=steps, seed=seed)
        candidates.append((reached, "decoder, clean rows first", taught))
    reached = fit_decoder(decoder, noised, pixels, held_out, steps=steps, seed=seed)
    candidates.append((reached, "decoder", decoder))
    best, name, model = max(candidates, key=lambda one: one[0])
    return Inversion(name, best, mean.cpu(), constant.cpu(), model)


def split_people(train: LeakageSet, seed: int) -> tuple[LeakageSet, LeakageSet]:
    """Return the rows to learn from and those of held-out people, 20,000 at most in all.

    Raises:
        ValueError: fewer than two people.
    """
    pids, counts = np.unique(train.pids, return_counts=True)
    if len(pids) < 2:
        raise ValueError(
            f"the training rows are of {len(pids)} person: nobody could be held out. Give rows of at least 2 people "
            "outside the gallery."
        )
    order = np.random.default_rng(seed).permutation(len(pids))
    number = max(1, len(pids) // HELD_OUT)
    held = train.take(np.isin(train.pids, pids[order[:number]]))
    held = held.take(np.sort(np.random.default_rng(seed).permutation(len(held))[:HELD_OUT_ROWS]))
    rest = order[number:]
    kept = rest[: max(1, int(np.searchsorted(counts[rest].cumsum(), MOST_ROWS - len(held), side="right")))]
    return train.take(np.isin(train.pids, pids[kept])), held


def redrawn(rows: LeakageSet, seed: int) -> Callable[[int], Matrix]:
    """Return a function from a number to the rows' features, with fresh noise for each where there is any."""
    again = rows.redraw
    if again is None:
        return lambda number: rows.features
    return lambda number: again(_DRAWS + 1000 * seed + number)


def _pixels(rows: LeakageSet) -> Pixels:
    if rows.images is None:
        raise ValueError("the training rows have no images: nothing says what to reconstruct.")
    return rows.images.load()


def _constant_ssim(constant: Tensor, images: Tensor) -> float:
    return float(in_chunks(lambda some: ssim(constant.expand_as(some), some), images).mean())
