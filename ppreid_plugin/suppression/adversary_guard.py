"""The guard: says when an adversary gives the encoder nothing to learn from, and why."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..number_checks import require_whole

# all ours; shares are of the loss of chance
_BY_HEART = 0.1
_NOT_TRANSFERRED = 0.5
_AT_CHANCE = 0.98
_DIVERGED = 2.0
_CHANCE_EPOCHS = 3
_CAUSES = ("by heart", "chance", "features")
_COLLAPSED_SPREAD = 1e-4  # untrained OSNets have 0.3 to 0.8; equal features that bfloat16 has rounded 3e-6

_log = logging.getLogger(__name__)


@torch.no_grad()
def feature_spread(features: Tensor) -> float:
    r"""Share of the features' energy that differs between the rows of a batch, our definition.

    .. math:: s = \sum_i \lVert f_i - \bar f \rVert^2 / \sum_i \lVert f_i \rVert^2

    Shape:
        features: (B, d). Output: in [0, 1]; 0 where all rows are equal (or all zero), 1 where their mean is 0; nan for
        less than two rows.
    """
    if len(features) < 2:
        return math.nan
    features = features.double()
    energy = features.square().sum()
    return float((features - features.mean(0)).square().sum() / energy) if energy > 0 else 0.0


class AdversaryGuard:
    """Watches an adversary and warns, through ``logging``, at the end of an epoch in which a cause has appeared.

    A cause that stays is not repeated; one that went away and comes back is.

    * ``by heart``: its own loss is under a tenth of chance, and on people it does not learn still over half of chance.
      Where there are no such people the first is enough; of labels that people share, that may be no memory.
    * ``chance``: its own loss has been at 98 % of chance or more for three epochs.
    * ``features``: the spread of the encoder's features (`feature_spread`) is under 1e-4.

    Args:
        name: of the adversary, as figures show it.
        labels_are_people: it identifies people, so that nothing could be held out from it.
    """

    def __init__(self, name: str, *, labels_are_people: bool = False) -> None:
        self.name = name
        self.labels_are_people = labels_are_people
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._epochs_at_chance = 0
        self._standing: set[str] = set()

    def state(self) -> dict[str, Any]:
        """What it knows of earlier epochs, JSON-ready."""
        return {"epochs_at_chance": self._epochs_at_chance, "standing": sorted(self._standing)}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned.

        Raises:
            KeyError, ValueError: it cannot be that.
        """
        standing = state["standing"]
        if not (isinstance(standing, list) and set(standing) <= set(_CAUSES)):
            raise ValueError(f"standing is {standing!r}, must be a list of: {', '.join(_CAUSES)}.")
        epochs = require_whole("epochs_at_chance", state["epochs_at_chance"], least=0)
        self._epochs_at_chance, self._standing = epochs, set(standing)

    def watch(self, *, loss: float, chance: float, spread: float, held_out: float | None = None) -> None:
        """Take one step's figures: own loss, loss of chance, the features' spread, loss on people it does not learn."""
        figures = {"loss": loss, "chance": chance, "spread": spread, "held_out": held_out}
        for key, value in figures.items():
            if value is not None and math.isfinite(value):
                self._seen[key].append(value)

    def finish_epoch(self, epoch: int) -> list[str]:
        """Warn of what has appeared in this epoch; return the causes that stand."""
        means = {key: sum(values) / len(values) for key, values in self._seen.items()}
        self._seen.clear()
        if not {"loss", "chance", "spread"} <= means.keys():
            return sorted(self._standing)
        causes = self._causes(means)
        for cause in causes.keys() - self._standing:
            _log.warning("epoch %d: %s", epoch + 1, causes[cause])
        self._standing = set(causes)
        return sorted(causes)

    def _causes(self, means: dict[str, float]) -> dict[str, str]:
        loss, chance, held_out = means["loss"], means["chance"], means.get("held_out")
        causes = {}
        self._epochs_at_chance = self._epochs_at_chance + 1 if loss >= _AT_CHANCE * chance else 0
        if loss < _BY_HEART * chance and (held_out is None or held_out > _NOT_TRANSFERRED * chance):
            figures = f"loss {loss:.3g}, of chance {chance:.3g}"
            how = "dropout, weight_decay or restart_epochs (privacy.adversary.*)"
            if held_out is not None:
                figures += f"; on people it does not learn {held_out:.3g}"
            if held_out is None and not self.labels_are_people:
                causes["by heart"] = (
                    f"{self.name} may know its training people by heart: {figures}. Whether what it says of them holds "
                    f"for others is not measured: set privacy.adversary.people cross_fit, or raise {how}."
                )
            else:
                causes["by heart"] = (
                    f"{self.name} knows its training people by heart: {figures}. What it says of them holds for nobody "
                    f"else: raise {how}."
                )
        if self._epochs_at_chance >= _CHANCE_EPOCHS:
            why = (
                "Either nothing is left to read, which a freshly trained attacker must confirm, or it is too weak: "
                "raise privacy.adversary.lr or .steps."
            )
            if loss > _DIVERGED * chance:
                why = "It diverges: lower privacy.adversary.lr."
            causes["chance"] = (
                f"{self.name} has been at chance for {self._epochs_at_chance} epochs (loss {loss:.3g}, chance "
                f"{chance:.3g}): it gives the encoder no gradient. {why}"
            )
        if means["spread"] < _COLLAPSED_SPREAD:
            causes["features"] = (
                f"features of different images are nearly equal (spread {means['spread']:.2g}), seen by {self.name}; "
                "suppression has erased everything, Re-ID too. Lower privacy.adversary.weight, or turn the ramp on."
            )
        return causes
