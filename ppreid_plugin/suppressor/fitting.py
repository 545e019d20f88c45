"""How the suppressor is fitted: Re-ID loss, ranking, class means and similarities, on the features themselves."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..aware.contrastive import supervised_contrastive
from ..components import isolated_rng
from ..dp.arrays import directions, to_rows
from ..dp.transforms import checked_pids, frozen, normalized
from ..leakage.erasure import checked_concepts, checked_numbers
from ..number_checks import require_not_negative, require_positive, require_whole
from ..progress import track
from ..suppression.erasure import class_offsets

_SCALE = 16.0  # of the cosines that the Re-ID loss reads
_SMOOTHING = 0.1


class SuppressorNetwork(nn.Module):
    """W c + V relu(U c + a) + b; starts as the identity.

    Args:
        columns: d.
        hidden: h; 0: the linear map alone.
    """

    def __init__(self, columns: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.eye(columns))
        inner = nn.Linear(columns, max(hidden, 1))
        self.hidden, self.hidden_bias = nn.Parameter(inner.weight[:hidden].detach()), nn.Parameter(inner.bias[:hidden])
        self.out = nn.Parameter(torch.zeros(columns, hidden))
        self.out_bias = nn.Parameter(torch.zeros(columns))

    def forward(self, rows: Tensor) -> Tensor:
        """Return unit rows (n, d)."""
        inner = torch.relu(F.linear(rows, self.hidden, self.hidden_bias))
        return F.normalize(F.linear(rows, self.linear) + F.linear(inner, self.out, self.out_bias), dim=1)


class SuppressorFit:
    r"""Fits the network by Adam with decoupled weight decay and a one-cycle learning rate.

    .. math:: L = \lambda_i L_{id} + \lambda_c L_{con}
              + \lambda_e \frac1A \sum_a \frac{1}{C_a} \sum_c |m_{ac} - \bar m_a|^2
              + \lambda_v \frac{\| \mathrm{Cov}(y, v) \|_F^2}{\mathrm{tr}\, \mathrm{Cov}(v)}
              + \lambda_s \frac{1}{B^2} \sum_{ij} (y_i \cdot y_j - c_i \cdot c_j)^2

    over batches of B rows: cross-entropy over the training people by scaled cosines to a learned vector each; the
    supervised contrastive loss of the batch; the distance of the class means of every attribute, which is 0 where the
    nearest-mean classifier is at chance; the covariance with numbers v such as image components, 0 where least squares
    finds nothing; and the similarities that the features had. The first and the second know the training people by
    heart, so they do not say what suppression destroys of others; the last does. The third and the fourth have no
    parameters, and need batches large enough to tell them from noise: 64 rows fit noise, 1,024 do not. What is not
    given, attributes or numbers, has no term.

    Args:
        hidden: h, at least 0.
        identity, erasure, image_erasure, contrast, distillation: the weights, at least 0 (image_erasure is that of v).
            Where both erasures are 0 nothing is suppressed: the reference.
        temperature: of the contrastive loss, in cosines, > 0.
        epochs, batch: how long, and B >= 2 (all rows where there are fewer).
        lr, weight_decay: of the optimizer.
        seed: of the start, and of the order of the rows.

    Raises:
        ValueError: a number out of range.

    Source:
        Contrastive loss: Khosla et al., arXiv 2004.11362; similarities: Tung and Mori, arXiv 1907.09682; class means as
        `ppreid_plugin.suppression.ClassMeanErasure`, covariance as `ppreid_plugin.suppression.ImageErasure`. Their sum
        on features is ours.
    """

    def __init__(
        self,
        *,
        hidden: int = 1024,
        identity: float = 1.0,
        erasure: float = 30.0,
        image_erasure: float = 300.0,
        contrast: float = 1.0,
        distillation: float = 50.0,
        temperature: float = 0.3,
        epochs: int = 15,
        batch: int = 1024,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        seed: int = 1,
    ) -> None:
        require_whole("hidden", hidden, least=0)
        require_whole("epochs", epochs)
        require_whole("batch", batch, least=2)
        require_whole("seed", seed, least=0)
        weights = {
            "identity": identity,
            "erasure": erasure,
            "image_erasure": image_erasure,
            "contrast": contrast,
            "distillation": distillation,
        }
        for name, value in {**weights, "weight_decay": weight_decay}.items():
            require_not_negative(name, value)
        require_positive("temperature", temperature, hint="such as 0.3")
        require_positive("lr", lr, hint="such as 0.001")
        self.hidden, self.epochs, self.batch = hidden, epochs, batch
        self.identity, self.erasure, self.image_erasure, self.contrast, self.distillation = weights.values()
        self.temperature, self.lr, self.weight_decay, self.seed = temperature, lr, weight_decay, seed
        self.losses: list[dict[str, float]] = []

    def fit(
        self,
        features: np.ndarray | Tensor,
        pids: npt.ArrayLike | Tensor,
        concepts: npt.ArrayLike | None = None,
        *,
        numbers: npt.ArrayLike | None = None,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return what a `Suppressor` learns, by name.

        Args:
            features: training rows, (n, d), n >= 2.
            pids: their people, (n,), whole numbers.
            concepts: labels, (n, k), -1 where not known; None: no attribute is suppressed.
            numbers: (n, r), such as image components; None: there are none.

        Raises:
            ValueError: neither concepts nor numbers, shapes that differ, labels that are none, a concept of one class,
                fewer than two people, nobody with two rows, NaN or infinity (rows are named), a fit that diverged.
        """
        rows, _ = to_rows(features)
        people = _people(pids, len(rows))
        if concepts is None and numbers is None:
            raise ValueError("there is nothing to suppress. Give concepts, (n, k) labels, or numbers, (n, r).")
        none = np.empty((len(rows), 0))
        labels = torch.from_numpy(
            none.astype(np.int64) if concepts is None else _classes(checked_concepts(concepts, len(rows)))
        )
        values = torch.from_numpy(none if numbers is None else checked_numbers(numbers, len(rows)))
        values = values / (values - values.mean(0)).square().sum(1).mean().sqrt().clamp(min=1e-12)
        unit = directions(rows.double().cpu())[0]
        mean = unit.mean(0)
        centered = normalized(unit - mean).float()
        network = self._trained(centered, people, labels, values.float())
        learned = {name: frozen(value.detach().double().numpy()) for name, value in network.named_parameters()}
        return {"mean": frozen(mean.numpy()), **learned}

    def _trained(self, rows: Tensor, people: Tensor, labels: Tensor, values: Tensor) -> SuppressorNetwork:
        counts = [int(column.max()) + 1 for column in labels.T]
        with isolated_rng(self.seed):
            network = SuppressorNetwork(rows.shape[1], self.hidden)
        generator = torch.Generator().manual_seed(self.seed)
        sums = rows.new_zeros(int(people.max()) + 1, rows.shape[1]).index_add(0, people, rows)
        proxies = nn.Parameter(F.normalize(sums, dim=1))
        optimizer = torch.optim.AdamW([*network.parameters(), proxies], lr=self.lr, weight_decay=self.weight_decay)
        size = min(self.batch, len(rows))
        batches = len(rows) // size  # all of one length: what does not fill a batch is left out
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.epochs * batches)
        self.losses = []
        for _ in track(range(self.epochs), "suppressor"):
            total: dict[str, float] = {}
            for chosen in torch.randperm(len(rows), generator=generator)[: batches * size].split(size):
                made = network(rows[chosen])
                terms = self._matching(made, rows[chosen], proxies, people[chosen])
                terms |= self._suppression(made, labels[chosen], counts, values[chosen])
                optimizer.zero_grad()
                torch.stack([weight * term for weight, term in terms.values()]).sum().backward()
                optimizer.step()
                schedule.step()
                for name, (_, term) in terms.items():
                    total[name] = total.get(name, 0.0) + float(term.detach()) / batches
            self.losses.append(total)
            if not all(math.isfinite(value) for value in total.values()):
                break
        finite = all(bool(torch.isfinite(value).all()) for value in network.parameters())
        if not finite or not all(math.isfinite(value) for value in self.losses[-1].values()):
            raise ValueError(
                f"lr is {self.lr:g}: the fit diverged in epoch {len(self.losses)} of {self.epochs}, its losses or "
                "weights are no numbers any more. Take a smaller one, such as 0.001, or smaller weights."
            )
        return network

    def _matching(
        self, made: Tensor, given: Tensor, proxies: Tensor, people: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """Return weight and loss by name: what keeps people apart."""
        scores = _SCALE * made @ F.normalize(proxies, dim=1).T
        similar = made @ made.T
        terms = {"identity": (self.identity, F.cross_entropy(scores, people, label_smoothing=_SMOOTHING))}
        if self.contrast and len(people.unique()) < len(people):
            terms["contrast"] = (self.contrast, supervised_contrastive(similar, people, self.temperature))
        terms["distillation"] = (self.distillation, (similar - given @ given.T).square().mean())
        return terms

    def _suppression(
        self, made: Tensor, labels: Tensor, counts: list[int], values: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """Return weight and loss by name: what takes attributes and numbers out; values have variance 1 in all."""
        terms = {}
        if counts:
            distances = [
                class_offsets(made, column, count).square().sum() / count
                for column, count in zip(labels.T, counts, strict=True)
            ]
            terms["erasure"] = (self.erasure, torch.stack(distances).mean())
        if values.shape[1]:
            covariance = made.T @ (values - values.mean(0)) / len(values)
            terms["image_erasure"] = (self.image_erasure, covariance.square().sum())
        return terms


def _people(pids: npt.ArrayLike | Tensor, rows: int) -> Tensor:
    people, places = np.unique(checked_pids(pids, rows), return_inverse=True)
    if len(people) < 2 or len(people) == rows:
        raise ValueError(f"pids names {len(people)} people in {rows} rows; must be at least 2, one of them twice.")
    return torch.from_numpy(places)


def _classes(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return labels with the classes of every column counted from 0; -1 stays."""
    counted = np.full_like(labels, -1)
    for column in range(labels.shape[1]):
        known = labels[:, column] >= 0
        classes, place = np.unique(labels[known, column], return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"concepts column {column} has {len(classes)} class(es) among the rows: nothing to suppress. Leave the "
                "column out."
            )
        counted[known, column] = place
    return counted
