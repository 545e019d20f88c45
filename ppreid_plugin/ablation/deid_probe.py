"""L_deid on test people: how well a fresh decoder makes the De-ID image T(x) from features that it cannot change.

The decoder is that of stage 1, trained anew on training people whatever the row was trained with. A weight of the De-ID
loss near zero leaves the features as they are, and this figure where it was.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import isolated_rng
from ..leakage import LeakageSet
from ..leakage.compute import compute_device
from ..leakage.image_scores import mean_over_people
from ..leakage.images import RowImages
from ..leakage.inversion_decoder import to_images
from ..suppression import DECODERS, DeIDDecoder, standalone_deid_target

TRAIN_ROWS, TEST_ROWS = 10_000, 3_000
_BATCH, _CHUNK = 64, 256
_LEARNING_RATE = 1e-3  # as in stage 1
_HEIGHT, _WIDTH = 64, 32


class DeIDProbe:
    """Measures L_deid; the images T(x) are made once for all rows of a table.

    Args:
        target: registered De-ID target at its default strength.
        height, width: of the images that T sees, in pixels.
        steps: batches of 64.

    Raises:
        ValueError: an unknown target, or one that learns from training images first. (Of ``mean_image`` the loss is 0
            whatever the features hold.)
    """

    def __init__(self, target: str, *, height: int, width: int, steps: int) -> None:
        standalone_deid_target(target, key="measures.deid_target")
        self._component = DeIDDecoder(target, height=_HEIGHT, width=_WIDTH)
        self._size = (height, width)
        self._steps = steps
        self._known: dict[str, Tensor] = {}
        self._device = compute_device()

    def loss(self, train: LeakageSet, test: LeakageSet, *, seed: int = 0) -> float:
        r"""Return the mean squared error of a decoder fitted on ``train``, on ``test``, averaged over people.

        Features are centered and divided by one number, their training deviation, so that rows of models with other
        scales start alike. The learning rate falls to zero by a cosine.

        Args:
            train: rows of training people, with images; 10,000 at most are used.
            test: rows of other people, with images; 3,000 at most are used.
            seed: of rows, initial weights and batches.
        """
        train, test = _some(train.people, TRAIN_ROWS, 0), _some(test.people, TEST_ROWS, 0)
        wanted, judged = self._targets(train), self._targets(test)
        rows = torch.from_numpy(train.features).to(self._device)
        mean, scale = rows.mean(0), (rows - rows.mean(0)).square().mean().sqrt().clamp(min=1e-12)
        rows, asked = (rows - mean) / scale, (torch.from_numpy(test.features).to(self._device) - mean) / scale
        with isolated_rng(seed):
            network = DECODERS.get("light")((rows.shape[1],), 3, _HEIGHT, _WIDTH).to(self._device)
            solver = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, self._steps)
            for _ in range(self._steps):
                chosen = torch.randint(len(rows), (min(_BATCH, len(rows)),)).to(self._device)
                solver.zero_grad()
                F.mse_loss(network(rows[chosen]), wanted[chosen].float() / 255).backward()
                solver.step()
                schedule.step()
        with torch.no_grad():
            errors = [
                (network(part) - true.float() / 255).square().mean(dim=(1, 2, 3))
                for part, true in zip(asked.split(_CHUNK), judged.split(_CHUNK), strict=True)
            ]
        return mean_over_people(torch.cat(errors).double().cpu().numpy(), test.pids)[0]

    def _targets(self, rows: LeakageSet) -> Tensor:
        """Return T(x), (n, 3, 64, 32), in 256 steps: a thousandth of the errors that are measured."""
        if rows.images is None:
            raise ValueError("the rows have no images: nothing says what to decode.")
        key = rows.images.fingerprint()
        if key not in self._known:
            self._known[key] = torch.cat([self._made(rows.images, start) for start in range(0, len(rows), _CHUNK)]).to(
                self._device
            )
        return self._known[key]

    def _made(self, images: RowImages, start: int) -> Tensor:
        places = np.arange(start, min(start + _CHUNK, len(images)))
        made = self._component.deidentify(to_images(images.take(places).load(*self._size)))
        return (255 * made).round().clamp(0, 255).to(torch.uint8)


def _some(rows: LeakageSet, most: int, seed: int) -> LeakageSet:
    if len(rows) <= most:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:most]))
