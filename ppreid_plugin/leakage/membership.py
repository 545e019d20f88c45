"""Membership: whether an image or a person is in the released gallery, and whether people were trained on.

Channel ``membership``, three figures, one a game; each is an AUC with the true positive rates at 1 % and 0.1 % false
positives beside it:

* ``gallery_image``: the gallery holds half of the people; which clean images are those of its rows?
* ``gallery_person``: likewise, with images of its people that are not in it.
* ``training``: training people against people never seen. They *differ*, as do their pictures, so an encoder that
  remembers nothing may show a figure above 0.5: read it beside that of an encoder trained on other people.

The bounds of :mod:`ppreid_plugin.dp.bounds` hold for none of the three. They hold for
:func:`.membership_canary.canary_membership`, where one row is u or -u and nothing else is unknown.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from typing_extensions import Self

from .attack import Attack, Figure, register_attack
from .data import LeakageSet
from .linkage_figures import auc, auc_error, roc, tpr_at
from .membership_canary import FALSE_POSITIVE_RATES
from .membership_games import largest_cosine, likelihood_score, person_figures
from .scores import over_people

Floats = npt.NDArray[np.float64]

CANDIDATES = 4000  # clean rows that are asked about, of each kind
ROWS_A_PERSON = 4
_FEWEST_PEOPLE = 4  # of the gallery games
_FEWEST_TAUGHT = _FEWEST_ASKED = 2  # people of either side of the training game
_FEWEST_PLAYED = _FEWEST_TAUGHT + _FEWEST_ASKED


def gallery_membership(
    released: LeakageSet,
    members: LeakageSet,
    others: LeakageSet,
    *,
    train_clean: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """Tell clean rows that were released from rows of people who were not; one figure a score.

    ``cosine``: the largest cosine with a released row. ``likelihood``: under the mechanism ``released.protection``,
    where it is known (:func:`.membership_games.likelihood_score`). The confound: non-members are other people.

    Args:
        released: the gallery's rows.
        members: clean rows of released people, as they reach the noise; at most 4000 are asked about.
        others: clean rows of other people.
        train_clean: clean rows of training people, which finite mechanisms' likelihood needs.
        seed: of the rows asked about and of the errors.
    """
    rng = np.random.default_rng(seed)
    asked = [side.take(np.sort(rng.permutation(len(side))[:CANDIDATES])) for side in (members, others)]
    rows = np.concatenate([side.features for side in asked])
    pids = np.concatenate([side.pids for side in asked])
    member = np.arange(len(rows)) < len(asked[0])
    scores = {"cosine": largest_cosine(rows, released.features)}
    likelihood = likelihood_score(rows, released.features, released.protection, train_clean)
    if likelihood is not None:
        scores["likelihood"] = likelihood
    return {name: _figure(score, member, pids, name, seed) for name, score in scores.items()}


@register_attack("membership")
class MembershipAttack(Attack):
    """Plays the three games on training people and the gallery's.

    The gallery games ask about pictures as they reach the matching: ``test.queries`` where a defense changes them, else
    ``test.clean``; features without protection are their own. Without these they are left out. Half of the test people
    are the gallery, the other half are outside: both are people whom no training saw, so nothing but the release tells
    them apart. Cosine or likelihood is chosen by the same game on training people.

    The training game scores people by norm, tightness and a logistic regression of their mean row, all from 4 rows
    each. The attacker knows the answer for half of the people: they teach the regression and choose score and sign.

    Args:
        seed: of halves, rows and errors.
    """

    channel = "membership"
    from_gallery = False

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._train: LeakageSet | None = None
        self._chosen: dict[str, str] = {}

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check that one of the games can be played.

        Raises:
            ValueError: too few people, or rows of each, for any.
        """
        people = test.people
        sides = [_often_seen(side) for side in (train.people, people)]
        if (_sent(people) is None or len(np.unique(people.pids)) < _FEWEST_PEOPLE) and min(sides) < _FEWEST_PLAYED:
            raise ValueError(
                f"membership can play none of its games. Those of the gallery need {_FEWEST_PEOPLE} test people whose "
                "rows are known as they reach the matching (a --mechanism, or features that nothing protects); that of "
                f"training {_FEWEST_PLAYED} people with {ROWS_A_PERSON} rows among the training rows, and as many "
                f"to attack; there are {sides[0]} and {sides[1]}. Give more, or leave membership out of --attacks."
            )

    def fit(self, train: LeakageSet) -> Self:
        """Keep the training people, and choose the gallery games' scores on them."""
        self._train = train.people
        self._chosen = {}
        for name, figures in self._gallery_games(self._train).items():
            self._chosen[name] = max(figures, key=lambda score: figures[score].score)
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Play the games on the test people.

        Raises:
            RuntimeError: not fitted.
            ValueError: too few people for any game.
        """
        if self._train is None:
            raise RuntimeError("the membership attack is not fitted; call fit(train) first.")
        result = {}
        for name, figures in self._gallery_games(test.people).items():
            chosen = figures.get(self._chosen.get(name, ""), figures["cosine"])
            by_score = {f"auc_{score}": figure.score for score, figure in figures.items()}
            others = {**chosen.others, **by_score}
            result[name] = Figure(chosen.score, chosen.standard_error, chosen.attacker, others, chosen.tpr)
        training = self._training_game(self._train, test.people)
        if training is not None:
            result["training"] = training
        if not result:
            self.check(self._train, test)
        return result

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """One half: members and others are in the right order by chance."""
        return dict.fromkeys(("gallery_image", "gallery_person", "training"), 0.5)

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """All are in the right order."""
        return dict.fromkeys(("gallery_image", "gallery_person", "training"), 1.0)

    def _gallery_games(self, rows: LeakageSet) -> dict[str, dict[str, Figure]]:
        """Return the figures of both games by score, with half of the people released."""
        sent, people = _sent(rows), np.unique(rows.pids)
        if sent is None or len(people) < _FEWEST_PEOPLE:
            return {}
        rng = np.random.default_rng([self.seed, 2])
        inside = np.isin(rows.pids, rng.permutation(people)[: len(people) // 2])
        held_back = rng.random(len(rows)) < 0.5  # other images of the gallery's people
        if held_back[inside].all():
            held_back[np.flatnonzero(inside)[0]] = False  # something is released
        released, bare = rows.take(inside & ~held_back), rows.with_features(sent)
        there = np.isin(rows.pids, released.pids)  # a person may have all of his rows held back
        asked = {"gallery_image": inside & ~held_back, "gallery_person": inside & held_back & there}
        train_clean = None if self._train is None else self._train.clean
        return {
            name: gallery_membership(
                released, bare.take(chosen), bare.take(~inside), train_clean=train_clean, seed=self.seed
            )
            for name, chosen in asked.items()
            if chosen.any()
        }

    def _training_game(self, train: LeakageSet, test: LeakageSet) -> Figure | None:
        sides = [person_figures(side, per_person=ROWS_A_PERSON, seed=self.seed) for side in (train, test)]
        pids = np.arange(sum(len(people) for people, _ in sides))  # a pid of both sets is two people
        member = pids < len(sides[0][0])
        if min(np.count_nonzero(member), np.count_nonzero(~member)) < _FEWEST_PLAYED:
            return None
        learn = _taught_half(member, np.random.default_rng([self.seed, 3]))
        scores = {name: np.concatenate([figures[name] for _, figures in sides]) for name in ("norm", "tightness")}
        means = np.concatenate([figures["mean"] for _, figures in sides])
        scores["logistic"] = _logistic(means, member, learn)
        known = {name: auc(score[learn], member[learn]) for name, score in scores.items()}
        reached, signed = {}, {}
        for name, score in scores.items():
            signed[name] = score if known[name] >= 0.5 else -score
            reached[f"auc_{name}"] = auc(signed[name][~learn], member[~learn])
        chosen = max(known, key=lambda name: abs(known[name] - 0.5))
        figure = _figure(signed[chosen][~learn], member[~learn], pids[~learn], chosen, self.seed)
        others = {**figure.others, **reached, "people_differ": 1.0}
        return Figure(figure.score, figure.standard_error, chosen, others, figure.tpr)


def _sent(rows: LeakageSet) -> npt.NDArray[np.float32] | None:
    """Return the rows as they reach the matching when somebody sends their pictures, (n, d); None: not known."""
    sent = rows.queries if rows.queries is not None else rows.clean
    if sent is None:
        return rows.features if rows.protection is None else None
    return sent if sent.shape[1] == rows.features.shape[1] else None


def _often_seen(rows: LeakageSet) -> int:
    """Return how many people have as many rows as the training game takes of each."""
    return int(np.count_nonzero(np.unique(rows.pids, return_counts=True)[1] >= ROWS_A_PERSON))


def _taught_half(member: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return about half of the people, at least two of either side, and all but two at most."""
    learn = rng.random(len(member)) < 0.5
    for side in (member, ~member):
        places = np.flatnonzero(side)
        if not _FEWEST_TAUGHT <= np.count_nonzero(learn[places]) <= len(places) - _FEWEST_ASKED:
            learn[places] = rng.permutation(len(places)) < max(_FEWEST_TAUGHT, len(places) // 2)
    return learn


def _logistic(rows: Floats, member: npt.NDArray[np.bool_], learn: npt.NDArray[np.bool_]) -> Floats:
    """Return scores of all rows; of those learned from, by two models that each learned from the other half."""
    result = np.empty(len(rows))
    places = np.flatnonzero(learn)
    parts = [(~learn, learn)]
    for side in (0, 1):
        own, others = np.zeros_like(learn), np.zeros_like(learn)
        own[places[side::2]], others[places[1 - side :: 2]] = True, True
        parts.append((own, others))
    for scored, taught in parts:
        if len(np.unique(member[taught])) < 2:
            result[scored] = 0.0
            continue
        scaler = StandardScaler().fit(rows[taught])
        model = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=500)
        model.fit(scaler.transform(rows[taught]), member[taught])
        result[scored] = model.decision_function(scaler.transform(rows[scored]))
    return result


def _figure(scores: Floats, member: npt.NDArray[np.bool_], pids: npt.NDArray[np.int64], name: str, seed: int) -> Figure:
    others = {f"tpr_at_fpr_{rate}": tpr_at(scores, member, rate) for rate in FALSE_POSITIVE_RATES}
    people = min(len(np.unique(pids[member])), len(np.unique(pids[~member])))
    error = over_people(auc_error(scores, member, pids, seed=seed), people)
    return Figure(auc(scores, member), error, name, others, roc(scores, member))
