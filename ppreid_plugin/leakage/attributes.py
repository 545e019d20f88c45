"""Attributes and cameras: what probes read off the features about the person and the place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

import numpy as np
from typing_extensions import Self

from .attack import Attack, Figure, register_attack
from .camera_answers import CameraAnswers, camera_answers
from .data import LeakageSet
from .probe_models import Labels
from .probes import Probe, check_labels, fit_probes, probabilities
from .scores import balanced_accuracy, balanced_accuracy_error


class ProbeAttack(Attack):
    """Reads labels off the features by the best of logistic regression, MLP and boosted trees on held-out people.

    The figure is the balanced accuracy; its floor 1 / classes, of those that the gallery has, or, where the models are
    told the camera, what that alone says (`camera_answers`) if it is more. Where the training rows
    carry their clean features too, the models learn from these and from both as well.

    Args:
        seed: of the split into held-out people and of the models.
    """

    uses_camids = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.probes: dict[str, Probe] = {}
        self._by_camera: dict[str, CameraAnswers | None] = {}

    @abstractmethod
    def labels(self, rows: LeakageSet, what: str) -> Mapping[str, Labels]:
        """Return the labels by figure, (n,) each, -1 where not known; ``what`` names the rows in errors."""

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check the labels of both, and that some training people can be held out.

        Raises:
            ValueError: labels that are missing or of one class, fewer people than folds.
        """
        learned, asked = self.labels(train.people, "training rows"), self.labels(test.people, "rows to attack")
        check_labels(learned, train.people.pids)
        _require_labels(learned, asked)

    def fit(self, train: LeakageSet) -> Self:
        """Fit the probes on the people of ``train``.

        Raises:
            ValueError: labels that are missing or of one class, fewer people than folds.
        """
        people = train.people
        labels = self.labels(people, "training rows")
        camids = people.camids if self.uses_camids else None
        self.probes = fit_probes(
            people.features, labels, people.pids, camids=camids, clean=people.clean, seed=self.seed
        )
        if camids is not None:
            self._by_camera = {
                name: camera_answers(values, camids, people.pids, seed=self.seed) for name, values in labels.items()
            }
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Return a figure for each set of labels.

        Raises:
            RuntimeError: not fitted.
            ValueError: labels that are missing or of one class.
        """
        if not self.probes:
            raise RuntimeError(f"the attack on {self.channel} is not fitted; call fit(train) first.")
        people = test.people
        labels = self.labels(people, "rows to attack")
        _require_labels(self.probes, labels)
        probes = {name: self.probes[name] for name in labels}
        said = probabilities(probes, people.features, people.camids if self.uses_camids else None)
        figures = {}
        for name, values in labels.items():
            known = values >= 0
            answers = probes[name].classes[said[name].argmax(axis=1)]
            figures[name] = Figure(
                balanced_accuracy(values[known], answers[known]),
                balanced_accuracy_error(values[known], answers[known], people.pids[known], seed=self.seed),
                probes[name].name,
                {"held_out": probes[name].held_out, "accuracy": float((values == answers)[known].mean())},
            )
        return figures

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Return 1 / classes, or what the camera alone says, as far as that is learned."""
        people, floors = test.people, {}
        for name, values in self.labels(people, "rows to attack").items():
            known = values >= 0
            floors[name] = 1 / len(np.unique(values[known]))
            if (answers := self._by_camera.get(name)) is not None:
                floors[name] = max(floors[name], balanced_accuracy(values[known], answers(people.camids[known])))
        return floors

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """Return 1 each."""
        return dict.fromkeys(self.labels(test.people, "rows to attack"), 1.0)


@register_attack("attributes")
class AttributesAttack(ProbeAttack):
    """Reads each attribute of the people off the features, and from the camera label beside them.

    Args:
        seed: of the split into held-out people and of the models.
    """

    channel = "attributes"

    def labels(self, rows: LeakageSet, what: str) -> Mapping[str, Labels]:
        """Return the attributes.

        Raises:
            ValueError: none, or one with fewer than two classes.
        """
        if not rows.attributes:
            raise ValueError(
                f"the {what} have no attributes. Add arrays attr_<name>, or labels by pid (--attributes, "
                "--market-attributes), or leave attributes out of --attacks."
            )
        single = [name for name, values in rows.attributes.items() if len(np.unique(values[values >= 0])) < 2]
        if single:
            raise ValueError(
                f"attribute {', '.join(repr(name) for name in single)} has fewer than two classes among the {what}: "
                "there is nothing to tell apart. Leave it out, or give more people (--learn-from gallery halves them)."
            )
        return rows.attributes


@register_attack("camera")
class CameraAttack(ProbeAttack):
    """Reads the camera off the features, without its label.

    Args:
        seed: of the split into held-out people and of the models.
    """

    channel = "camera"
    uses_camids = False

    def labels(self, rows: LeakageSet, what: str) -> Mapping[str, Labels]:
        """Return the camids as one set of labels.

        Raises:
            ValueError: one camera only.
        """
        cameras = np.unique(rows.camids[rows.camids >= 0])
        if len(cameras) < 2:
            raise ValueError(
                f"the {what} are of one camera ({cameras[0] if len(cameras) else 'none known'}): there is none to "
                "tell. Give camids of two cameras or more, or leave camera out of --attacks."
            )
        return {"": np.where(rows.camids < 0, -1, rows.camids)}


def _require_labels(learned: Collection[str], asked: Collection[str]) -> None:
    if missing := sorted(set(asked) - set(learned)):
        raise ValueError(f"the training rows have no labels of {', '.join(missing)}. Give them, or drop these.")
