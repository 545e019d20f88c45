"""Adv-ID: adversaries that try to recover identifying information, and the term that trains the encoder against them.

Who learns from what: the adversary from its own loss on *detached* input; the encoder from a bounded term, which passes
through decoder and adversary with their parameters frozen; the decoder from neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..components import Batch, Component, Context, Trainable, isolated_rng
from ..registry import Registry
from .adversary_guard import AdversaryGuard, feature_spread
from .adversary_members import PEOPLE, Member, people_folds
from .adversary_settings import AdversarySpec, check_settings, settings_of
from .adversary_steps import CHANCE, attack, learn
from .adversary_terms import divergence_from_uniform, ramp
from .deid_decoder import DeIDDecoder

_MEMBER_SEEDS, _RESTART_SEEDS = 7919, 104_729  # apart, so that no two networks of a run start equal


class Adversary(Component, ABC):
    r"""Base class of adversaries, and the contract of a registered one.

    A subclass says what it predicts: `make_module`, `sample_losses` and `chance_loss`; where a label may be unknown,
    classes are unequal or there are several labels, `sample_weights`; where chance is no number, `bounds` and
    `forgetting`. The base class does the rest. With the adversary frozen the encoder's loss gets, by ``schedule``,

    .. math::
        -\lambda(p) \, w \, \frac{1}{B} \sum_i \min(\ell_i, \ell_\text{chance})   \quad\text{(``reversal``)} \\
        \lambda(p) \, w \, \frac{1}{B} \sum_i \mathrm{KL}(u \| q_i)   \quad\text{(``alternating``)}

    with the loss :math:`\ell_i` and the posterior :math:`q_i` of a sample. The first has zero gradient on a sample once
    the adversary does no better than chance on it, the second where the posterior is uniform u. Under ``reversal`` the
    adversary steps after the encoder; under ``alternating`` before, so that the encoder meets what has just learned.
    :math:`\lambda(p) = 2 / (1 + e^{-10 p}) - 1` over the training's progress p when ``ramp``.

    Several members are averaged. (The largest term of each sample instead would change member between batches where
    they are near, and leave the others without effect; each mean is bounded, and ``weight`` is its scale.)

    Args:
        input: ``reconstruction`` (the De-ID decoder's image, as in the paper) or ``feature``.
        weight: w above, >= 0; at 0 the adversary only watches.
        schedule: ``reversal`` or ``alternating``.
        ramp: let the weight grow from 0 (Ganin and Lempitsky 2015).
        steps: steps of the adversary on a batch, >= 1.
        lr: learning rate of the adversary (Adam).
        weight_decay: of the adversary, decoupled (AdamW), >= 0.
        dropout: in [0, 1), before the last layer of the adversary's network; off while it attacks the encoder.
        ensemble: members, independently initialized (for each fold of ``cross_fit``).
        restart_epochs: draw a member's parameters anew every so many epochs, the members in turn, so no fewer than
            there are members; 0: never.
        people: whom it learns and whom it attacks: ``all`` people both, ``held_out`` ones are attacked and not learned,
            ``cross_fit`` (two folds, each attacks whom the other learns), or ``auto``: the adversary's own default.
        held_out_people: share of the training people that ``held_out`` attacks, in (0, 1).
        make_scheduler: makes a learning rate scheduler from the optimizer, stepped once an epoch.
        seed: seed of initial weights, restarts and folds.
        name: of figures and checkpoints, if not the class's own.

    Raises:
        ValueError: a setting out of range, no decoder for ``reconstruction``.

    Source:
        Kansal, Wong, Kankanhalli, WACV 2024 (Adv-ID module; layers, weights and schedules are our choice). Reversal:
        Ganin and Lempitsky 2015. Alternating, with a uniform posterior as the aim: Tzeng et al., ICCV 2015
        (arXiv 1510.02192), domain confusion.
    """

    name = "adversary"
    default_people: ClassVar[str] = "all"
    labels_are_people: ClassVar[bool] = False

    def __init__(
        self,
        *,
        input: str = "reconstruction",
        weight: float = 0.1,
        schedule: str = "reversal",
        ramp: bool = True,
        steps: int = 1,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        ensemble: int = 1,
        restart_epochs: int = 0,
        people: str = "auto",
        held_out_people: float = 0.5,
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        seed: int = 1,
        name: str | None = None,
    ) -> None:
        check_settings(
            {
                **{"input": input, "weight": weight, "schedule": schedule, "ramp": ramp, "steps": steps, "lr": lr},
                **{"weight_decay": weight_decay, "dropout": dropout, "ensemble": ensemble, "people": people},
                **{"restart_epochs": restart_epochs, "held_out_people": held_out_people},
            }
        )
        self.input, self.weight, self.schedule, self.ramp = input, weight, schedule, ramp
        self.steps, self.lr, self.weight_decay, self.dropout = steps, lr, weight_decay, dropout
        self.ensemble, self.restart_epochs = ensemble, restart_epochs
        self.people = self.default_people if people == "auto" else people
        self.held_out_people = held_out_people
        if self.labels_are_people and self.people != "all":
            raise ValueError(
                f"{self.name} has people '{people}', but its labels are the people: those it does not learn have no "
                f"class, so that nothing can be held out. Of {', '.join(PEOPLE)} it takes all (or auto)."
            )
        members = ensemble * (2 if self.people == "cross_fit" else 1)
        if 0 < restart_epochs < members:
            raise ValueError(
                f"{self.name} has restart_epochs {restart_epochs} with {members} members, of which several would "
                f"restart at once and leave the encoder without a trained opponent; must be 0 (never) or >= {members}. "
                f"Set privacy.adversary.restart_epochs {members} or more, or a smaller privacy.adversary.ensemble."
            )
        self.make_scheduler = make_scheduler
        self.seed = seed
        self.name = name or self.name
        self.guard = AdversaryGuard(self.name, labels_are_people=self.labels_are_people)
        self._decoder: DeIDDecoder | None = None
        self._members: list[Member] = []
        self._seen: Tensor | None = None
        self._learned: dict[str, float] | None = None
        self._held_out: float | None = None

    @abstractmethod
    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return the adversary's network for inputs (B, *input_shape)."""

    @abstractmethod
    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each sample from the network's outputs, shape (B,), or (B, labels) for several labels."""

    @abstractmethod
    def chance_loss(self, context: Context) -> float | Tensor:
        """Return the loss of an adversary that knows nothing (of each label): the bound of the encoder's gain."""

    def sample_weights(self, batch: Batch) -> Tensor | None:
        """Return weights >= 0 in the shape of `sample_losses`, 0 where a label is not known; None: all 1."""
        return None

    def bounds(self, module: nn.Module, batch: Batch) -> float | Tensor:
        """Return the loss of chance, as a number or of each sample; `chance_loss` unless overridden."""
        return self._bound

    def forgetting(self, module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
        """Return what ``alternating`` minimizes, shaped as `sample_losses`: 0 where nothing is read."""
        return divergence_from_uniform(outputs)

    def observe(self, module: nn.Module, batch: Batch) -> None:
        """See the batch that ``module`` is about to learn, before its step: for statistics kept in buffers."""

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Return further figures to log, such as an accuracy."""
        return {}

    def build(self, context: Context) -> None:
        """Make the networks; find the decoder whose reconstruction is read."""
        if self.input == "reconstruction":
            self._decoder = context.find(DeIDDecoder)
            if self._decoder is None:
                raise ValueError(
                    f"{self.name} reads the reconstruction, but there is no DeIDDecoder among the components. "
                    "Add one, or use input='feature' (privacy.adversary.input feature)."
                )
        self._context = context
        self._bound = self.chance_loss(context)
        folds = people_folds(context.num_classes, self.people, self.held_out_people, self.seed)
        self._members = []
        for learns, attacks in folds:
            for _ in range(self.ensemble):
                number = len(self._members)
                module = self._make(number)
                optimizer = torch.optim.AdamW(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
                scheduler = self.make_scheduler(optimizer) if self.make_scheduler else None
                name = f"{self.name}-{number + 1}" if number else self.name
                self._members.append(Member(name, module, optimizer, scheduler, learns, attacks))

    def trainables(self) -> dict[str, Trainable]:
        """The members' networks."""
        return {member.name: member.trainable for member in self._members}

    def small_state(self) -> dict[str, Any]:
        """What the guard knows of earlier epochs."""
        return {"guard": self.guard.state()}

    def take_small_state(self, state: Mapping[str, Any]) -> None:
        """Let the guard go on."""
        self.guard.take_state(state["guard"])

    def begin_epoch(self, epoch: int) -> None:
        """Restart the members whose turn it is."""
        every = self.restart_epochs
        for number, member in enumerate(self._members):
            # in turn, so that the encoder is never without a trained opponent
            if every and epoch > 0 and (epoch - number * every // len(self._members)) % every == 0:
                member.restart(self._make(number, restart=epoch))

    def finish_epoch(self, epoch: int) -> None:
        """Let the guard speak."""
        self.guard.finish_epoch(epoch)

    def strength(self, progress: float) -> float:
        """Weight of the adversarial term at ``progress`` in [0, 1]."""
        return self.weight * ramp(progress) if self.ramp else self.weight

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's adversarial term (nothing at weight 0)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            read = batch.features if self._decoder is None else self._decoder.decode_frozen(batch)
            self._seen, self._learned, self._held_out = read.detach(), None, None
            if self.schedule == "alternating":
                self._learned = learn(self, self._seen, batch)
            term = None
            if self.weight > 0 or self.people != "all":
                term, self._held_out = attack(self, read, batch)
        if term is None or self.weight == 0:
            return {}
        sign = -1.0 if self.schedule == "reversal" else 1.0
        return {f"loss_{self.name}": sign * self.strength(batch.progress) * term}

    def finish_step(self, batch: Batch) -> dict[str, float]:
        """Step the adversary on the detached input of this batch, unless it has (``alternating``)."""
        if self._seen is None:
            return {}
        figures = learn(self, self._seen, batch) if self._learned is None else self._learned
        spread = feature_spread(batch.features.detach())
        if figures:
            loss, chance = figures[f"loss_{self.name}"], figures.pop(CHANCE)
            self.guard.watch(loss=loss, chance=chance, spread=spread, held_out=self._held_out)
        if self._held_out is not None:
            figures[f"held_out_loss_{self.name}"] = self._held_out
        self._seen = self._learned = None
        return {**figures, "feature_spread": spread} if math.isfinite(spread) else figures

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks, each with whom it learns and attacks."""
        return tuple(self._members)

    @property
    def module(self) -> nn.Module:
        """The first member's network."""
        if not self._members:
            raise RuntimeError(f"{self.name} has no network yet: give it to an engine, or call build(context).")
        return self._members[0].module

    def _make(self, number: int, restart: int = 0) -> nn.Module:
        """Return a new network of that member, at its start or at the restart of an epoch."""
        decoder, context = self._decoder, self._context
        shape = (context.feature_dim,) if decoder is None else (decoder.out_channels, decoder.height, decoder.width)
        with isolated_rng(self.seed + _MEMBER_SEEDS * number + _RESTART_SEEDS * restart):
            return self.make_module(shape, context).to(context.device)


ADVERSARIES: Registry[type[Adversary]] = Registry("adversary", contract=Adversary)
register_adversary = ADVERSARIES.register


def any_takes_labels(names: Sequence[str]) -> bool:
    """Return whether any of these adversaries, as ``privacy.adversary.names`` has them, learns labels of people.

    Raises:
        ValueError: an unknown name (the nearest is suggested), or settings that cannot be read.
    """
    kinds = (ADVERSARIES.get(spec.kind, key="privacy.adversary.names") for spec in AdversarySpec.parse_all(names))
    return any("labels" in settings_of(kind) for kind in kinds)
