"""Patches: what is seen inside the boxes of fine cues, such as a face or a logo, made again from the feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from typing_extensions import Self

from ..number_checks import require_whole
from .attack import Attack, Figure, register_attack
from .cues import HIDDEN, FineCues
from .data import LeakageSet
from .patch_models import Matrix
from .recovery import Recovery, View, explained, fit_recovery

SIZE = 16  # pixels of a patch's side; the generated pedestrians' boxes are about 20 x 26 (face) and 16 x 19 (logo)


@register_attack("patches")
class PatchAttack(Attack):
    """Recovers the pixels inside the box of each fine cue, and the bits of the code that is to be read there.

    A box is cut out of the original image at its own resolution, and resized to 16 x 16. Rows whose cue is hidden count
    nowhere. Of each cue there are up to three figures: ``face``, the pixels; ``face detail``, the pixels less the
    patch's own mean color, which a pixelated image still shows; ``face code``, the bits, where they are known.

    A figure is the explained variance (:func:`.recovery.explained`): 0 for the best answer without features, which is
    the floor, 1 for the patch itself. Our definition. The best of several regressions on held-out training people
    counts; they learn from the rows as they are attacked, with several draws of the noise where there are any, and from
    the rows before the noise where these are known.

    Others: ``held_out``, the figure on held-out training people; ``people``, ``rows``; of a code
    ``balanced_accuracy``, the mean over the bits that vary (0.5: guessed).

    Args:
        seed: of the choice of held-out people, the models and the noise they draw.
        size: side of a patch in pixels, >= 2.

    Raises:
        ValueError: a size below 2.
    """

    channel = "patches"

    def __init__(self, *, seed: int = 0, size: int = SIZE) -> None:
        super().__init__(seed=seed)
        self.size = require_whole("size", size, least=2, hint="pixels of a patch's side")
        self._recoveries: dict[tuple[str, str], dict[str, Recovery]] | None = None

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check that there is a cue which two training people and a row to attack show.

        Raises:
            ValueError: rows without images or boxes, or no such cue.
        """
        learned, attacked = _with_cues(train, "training rows"), _with_cues(test, "rows to attack")
        shown = [cue for cue, _, rows in _parts(learned) if len(np.unique(rows.pids)) > 1]
        if not {cue for cue, _, _ in _parts(attacked)} & set(shown):
            raise ValueError(
                "no fine cue is visible on two training people and in a row to attack: nothing is to be recovered. "
                f"Training rows have boxes of {', '.join(_cues(learned).boxes)}, the rows to attack of "
                f"{', '.join(_cues(attacked).boxes)}; -1 hides. Check them, or leave patches out of --attacks."
            )

    def fit(self, train: LeakageSet) -> Self:
        """Fit the models of every cue on training people, and keep the best on those held out.

        Raises:
            ValueError: rows without images or boxes.
        """
        self._recoveries = {
            (cue, part): fit_recovery(rows, self._wanted(cue, part), _VIEWS[part], seed=self.seed)
            for cue, part, rows in _parts(_with_cues(train, "training rows"))
            if len(np.unique(rows.pids)) > 1
        }
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Recover what is in the boxes of the gallery's images and compare it with what is there.

        Raises:
            RuntimeError: not fitted.
            ValueError: rows without images or boxes, a code of another length.
        """
        if self._recoveries is None:
            raise RuntimeError("the attack on patches is not fitted; call fit(train) first.")
        figures = {}
        for cue, part, rows in _parts(_with_cues(test, "rows to attack")):
            wanted = self._wanted(cue, part)(rows)
            for view, recovery in self._recoveries.get((cue, part), {}).items():
                made, constant = recovery(rows), recovery.constant(rows.camids)
                if made.shape != wanted.shape:
                    raise ValueError(
                        f"code_{cue} has {wanted.shape[1]} bits, that of the training rows {made.shape[1]}. Give both "
                        "sets the same code."
                    )
                of = _VIEWS[part][view]
                score, error = explained(of(made), of(wanted), of(constant), rows.pids)
                others = {"held_out": recovery.held_out}
                others |= {"people": float(len(np.unique(rows.pids))), "rows": float(len(rows))}
                if part == "code":
                    accuracy = bit_accuracy(made - constant, wanted)
                    others |= {} if accuracy is None else {"balanced_accuracy": accuracy}
                figures[cue + view] = Figure(score, error, recovery.name, others)
        return figures

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Return 0 for every figure: the best answer without features explains nothing by definition."""
        return self._all(test, 0.0)

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """Return 1 for every figure."""
        return self._all(test, 1.0)

    def _all(self, test: LeakageSet, value: float) -> dict[str, float]:
        parts = _parts(_with_cues(test, "rows to attack"))
        return {cue + view: value for cue, part, _ in parts for view in _VIEWS[part]}

    def _wanted(self, cue: str, part: str) -> Callable[[LeakageSet], Matrix]:
        if part == "code":
            return lambda rows: _cues(rows).codes[cue].astype(np.float32)
        return lambda rows: (
            rows.pictures.crops(_cues(rows).boxes[cue], self.size).reshape(len(rows), -1) / np.float32(255)
        )


def bit_accuracy(made: Matrix, wanted: Matrix) -> float | None:
    """Return the balanced accuracy of saying 1 where ``made`` is above 0: a mean over the bits that vary, if any does.

    Shape:
        made, wanted: (n, bits); ``wanted`` holds 0 and 1.

    Example:
        >>> bit_accuracy(np.array([[0.2, 1.0], [0.3, 1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]))
        0.5
    """
    said, true = made > 0, wanted > 0.5
    varied = [bit for bit in range(true.shape[1]) if 0 < true[:, bit].sum() < len(true)]
    reached = [(said[true[:, bit], bit].mean() + (~said[~true[:, bit], bit]).mean()) / 2 for bit in varied]
    return float(np.mean(reached)) if reached else None


def without_mean_color(patches: Matrix) -> Matrix:
    """Return patches less the mean of each color over the patch.

    Shape:
        patches: (n, size * size * 3), colors last. Output: same.
    """
    colors = patches.reshape(len(patches), -1, 3)
    return (colors - colors.mean(axis=1, keepdims=True)).reshape(patches.shape)


_VIEWS: dict[str, dict[str, View]] = {
    "pixels": {"": lambda patches: patches, " detail": without_mean_color},
    "code": {" code": lambda bits: bits},
}


def _parts(rows: LeakageSet) -> Iterator[tuple[str, str, LeakageSet]]:
    """Yield what is to be recovered: cue, ``pixels`` or ``code``, and the rows that show it."""
    cues = _cues(rows)
    for cue in sorted(cues.boxes):
        visible = cues.visible(cue)
        known = visible & (cues.codes[cue] != HIDDEN).all(axis=1) if cue in cues.codes else np.zeros_like(visible)
        for part, places in (("pixels", visible), ("code", known)):
            if places.any():
                yield cue, part, rows.take(places)


def _with_cues(rows: LeakageSet, what: str) -> LeakageSet:
    """Return the rows of people, where there are boxes."""
    if rows.images is None or rows.images.cues() is None:
        raise ValueError(
            f"the {what} have no boxes of fine cues: nothing says where a face or a logo is. The generated pedestrians "
            "have them (--images-root names the folder that holds synthetic_pedestrians); for images of your own add "
            "the arrays box_<cue> (n, 4). Or leave patches out of --attacks."
        )
    return rows.people_of(what)


def _cues(rows: LeakageSet) -> FineCues:
    if (cues := rows.pictures.cues()) is None:
        raise ValueError("the images have no boxes of fine cues.")
    return cues
