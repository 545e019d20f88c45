"""Runs a plan: trains, extracts and measures what is not finished yet, each step kept as it ends.

Below the output folder: ``training/KEY``, ``features/KEY`` (clean features: the unprotected gallery, so mode 0600),
``measured/KEY.json``, and ``attacks-SEED.json`` with the finished attacks of a seed. Keys are those of :mod:`.keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from .. import build, toolbox
from ..components import isolated_rng
from ..config import ConfigError, check_config
from ..dp.gallery import DPGallery
from ..features import probe_shapes
from ..leakage import Judge
from ..leakage.compute import compute_device
from ..leakage.finished import FinishedRuns
from ..registry import closest
from ..report.record import environment, write_json
from .cost import step_cost
from .defense import Defense, build_defense
from .deid_probe import DeIDProbe
from .features import attacked_sets, extract, probed_attributes, retrieval_sets
from .gallery_defenses import DPDefense
from .keys import features_key, measured_key, training_key
from .measuring import Sets, deid_figures, leakage_figures, retrieval_figures
from .plan import Plan, Row
from .progress import TimeLeft
from .training import kept_epoch, read_state, train, trained_record


@dataclass(frozen=True)
class Work:
    """One row with one seed: its configuration, the reference's, and where its parts are."""

    row: Row
    seed: int
    cfg: CfgNode
    training: Path
    reference_training: Path
    features: Path
    reference_features: Path
    measured: Path

    def state(self) -> str:
        """Return how far it is: ``measured``, ``trained``, ``epoch 3 of 60`` or ``-``."""
        if self.record() is not None:
            return "measured"
        if trained_record(self.training) is not None:
            return "trained"
        epoch = kept_epoch(self.training)
        return f"epoch {epoch} of {self.cfg.train.max_epoch}" if epoch else "-"

    def weights(self) -> dict[str, str]:
        """Return the fingerprints of the weights that the figures are of: the row's and the reference's."""
        places = {"row": self.training, "reference": self.reference_training}
        records = {name: trained_record(folder) for name, folder in places.items()}
        return {name: record["fingerprint"] for name, record in records.items() if record is not None}

    def record(self) -> dict[str, Any] | None:
        """Return the figures; None: there are none, or they are of weights that were trained again since.

        Raises:
            ValueError: a file that is damaged.
        """
        if not self.measured.is_file():
            return None
        record = read_state(self.measured, needs=("row", "seed"), remedy="Delete it to measure the row again.")
        told, there = record.get("weights", {}), self.weights()
        return record if all(there.get(name, one) == one for name, one in told.items()) else None


class Runner:
    """Runs the rows of a plan.

    Args:
        plan: what to run.
        out: folder of everything that is written.
        rows: of the plan; the reference is among them.

    Raises:
        ConfigError, ValueError: a configuration that cannot be used, or a row that would have to be trained anew.
    """

    def __init__(self, plan: Plan, out: Path, rows: Sequence[Row]) -> None:
        self.plan, self.out = plan, out
        self.work = [self._work(row, seed) for seed in plan.seeds for row in rows]
        for one in self.work:
            check_config(one.cfg)
            build.build_components(one.cfg)
            defense = self._defense(one)
            if defense is not None and one.row == plan.reference:
                raise ConfigError(
                    f"row '{one.row.name}' is the reference, and privacy.gallery.enabled is True in it: leakage is a "
                    "share of what unprotected features give away. Begin the plan with a row without a gallery."
                )
            if plan.measures.scored_on == "validation" and not one.cfg.privacy.validation.ids_fraction:
                raise ConfigError(
                    f"measures.scored_on is validation, but privacy.validation.ids_fraction of row '{one.row.name}' is "
                    "0: nobody is held out. Append such as: privacy.validation.ids_fraction 0.4"
                )
            if plan.measures.scored_on == "validation" and one.cfg.test.eval_freq > 0:
                raise ConfigError(
                    f"measures.scored_on is validation, and test.eval_freq of row '{one.row.name}' is "
                    f"{one.cfg.test.eval_freq}: checkpoints would be chosen on the people who are scored. Append: "
                    "test.eval_freq -1"
                )
        self._again = False
        self._judge: Judge | None = None
        self._sets: tuple[Path, Sets] | None = None  # of the reference that was read last

    def check(self) -> None:
        """Check data, weights, labels and judge before anything is trained.

        Raises:
            ValueError, OSError: the first that cannot be used.
        """
        measures = self.plan.measures
        for one in self.work:
            cfg = one.cfg.clone()
            cfg.data.save_dir = str(self.out)
            build.check(cfg)
            if len(cfg.data.targets) != 1:
                raise ConfigError(
                    f"data.targets is {list(cfg.data.targets)}; an ablation has one. Give one target: -t NAME"
                )
        if measures.judge:
            self._judge = Judge(measures.judge, measures.judge_weights)
        known = sorted({name for one in (self._people or {}).values() for name in one})
        for one in self.work:
            defense = self._defense(one)
            if defense is None:
                continue
            try:
                if defense.needs_columns:
                    cfg = one.cfg
                    defense.check_columns(_feature_columns(cfg.model.name, cfg.data.height, cfg.data.width))
            except ValueError as error:
                raise ConfigError(f"row '{one.row.name}': {error}") from None
            if defense.all_attributes and not known:
                raise ConfigError(
                    f"row '{one.row.name}' takes out all attributes that are probed, and there are none. Give labels: "
                    "--labels FILE"
                )
            for name in defense.attributes:
                if name not in known:
                    raise ConfigError(
                        f"row '{one.row.name}' takes out the attribute '{name}'; probed are: "
                        f"{', '.join(known) or 'none'}.{closest(name, known)}"
                    )

    def run(self, *, may_train: bool = True, again: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Do what is not finished; return the figures by row, one record a seed, in the plan's order.

        Args:
            may_train: False refuses rows that are not trained.
            again: measure what is measured already, too, attacks included. Former figures stay until there are new
                ones; stopped, the next such run goes on.

        Raises:
            ConfigError: a row is not trained and may not be.
        """
        self.check()
        if not may_train and (missing := [one for one in self.work if trained_record(one.training) is None]):
            raise ConfigError(
                f"row '{missing[0].row.name}', seed {missing[0].seed}, is not trained "
                f"({len(missing)} such). Run without --no-train, or name finished rows: --rows"
            )
        self._again = again
        todo, left = self._to_do(again), TimeLeft()
        for one in self.work:
            for step, done in self._steps(one, one in todo).items():
                if not done:
                    left.expect(step, one.training if step == "training" else one.measured)
        found: dict[str, list[dict[str, Any]]] = {}
        for number, one in enumerate(self.work, 1):
            if one in todo:
                print(f"[{number}/{len(self.work)}] {one.row.name}, seed {one.seed}{left}", flush=True)
                self._finish(one, left)
            record = one.record()
            if record is None:
                raise RuntimeError(f"row '{one.row.name}' was measured, and '{one.measured}' is gone.")
            found.setdefault(one.row.name, []).append(record)
        if again:
            self._take_over_attacks()
        return found

    def chosen_on(self) -> list[str]:
        """Return on what the checkpoints of the rows were chosen, each once; after :meth:`run`."""
        records = [trained_record(one.training) for one in self.work]
        return sorted({record["chosen_on"] for record in records if record is not None})

    def states(self) -> list[list[str]]:
        """Return name, kind and state by seed of every row."""
        rows: dict[str, list[str]] = {}
        for one in self.work:
            kind = one.row.defense or ("trained" if one.row.config is not None else f"weights of {one.row.of}")
            rows.setdefault(one.row.name, [one.row.name, kind]).append(one.state())
        return list(rows.values())

    def _work(self, row: Row, seed: int) -> Work:
        cfg, root = self.plan.config(row, seed), self.plan.trained(row)
        key = training_key(cfg)
        if row is not root and key != training_key(self.plan.config(root, seed)):
            raise ConfigError(
                f"row '{row.name}' is of '{root.name}', but its options ({', '.join(row.options)}) change what is "
                "trained. Give it a config of its own, or change keys of evaluation only."
            )
        reference = self.plan.config(self.plan.reference, seed)
        if row.defense and cfg.privacy.gallery.enabled:
            raise ConfigError(
                f"row '{row.name}' has a defense, and privacy.gallery.enabled True. Leave one of them out."
            )
        idle = [
            key
            for key in row.options
            if key.startswith("privacy.gallery.") and not key.endswith((".background_pids", ".enabled"))
        ]
        if row.defense and idle:
            raise ConfigError(
                f"row '{row.name}' has a defense, and {idle[0]}, which would do nothing. Write it as the defense's "
                "own: defense: 'dp:mechanism=NAME,epsilon=NUMBER'"
            )
        if idle and not cfg.privacy.gallery.enabled:
            raise ConfigError(
                f"row '{row.name}' has {idle[0]} with privacy.gallery.enabled False: it would do nothing. Append "
                "privacy.gallery.enabled: True, or leave it out."
            )
        if cfg.data.combineall:
            raise ConfigError(
                f"data.combineall is True in row '{row.name}': attackers, defenses and transforms would learn from the "
                "gallery that is attacked. Set data.combineall False."
            )
        has_step = row.config is not None
        measured = measured_key(cfg, reference, row.defense, self.plan.measures, has_step=has_step)
        return Work(
            row=row,
            seed=seed,
            cfg=cfg,
            training=self.out / "training" / key,
            reference_training=self.out / "training" / training_key(reference),
            features=self.out / "features" / features_key(cfg),
            reference_features=self.out / "features" / features_key(reference),
            measured=self.out / "measured" / f"{measured}.json",
        )

    def _to_do(self, again: bool) -> list[Work]:
        """Return what has no figures, and what has those of weights that will be trained again for another row."""
        todo = [one for one in self.work if again or one.record() is None]
        while True:
            anew = {one.training for one in todo if trained_record(one.training) is None}
            stale = [one for one in self.work if one not in todo and anew & {one.training, one.reference_training}]
            if not stale:
                return todo
            todo += stale

    def _steps(self, one: Work, is_to_do: bool) -> dict[str, bool]:
        """Return the steps of one row and whether each is finished."""
        return {"training": trained_record(one.training) is not None, "measuring": not is_to_do}

    def _finish(self, one: Work, left: TimeLeft) -> None:
        with left.step("training", one.training, count=trained_record(one.training) is None):
            record = train(one.cfg, one.training)
        with left.step("measuring", one.measured):
            weights = one.training / record["weights"]
            extract(one.cfg, weights, record["fingerprint"], one.features, self.plan.measures.scored_on)
            figures = self._measure(one)
            one.measured.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                {**figures, "weights": one.weights(), "environment": environment(compute_device().type)}, one.measured
            )

    def _measure(self, one: Work) -> dict[str, Any]:
        measures, cfg = self.plan.measures, one.cfg
        reference = self._reference_sets(one)
        sets = reference
        if one.features != one.reference_features:
            sets = attacked_sets(one.features, cfg, self._people, measures.scored_on)
        defense = self._defense(one)
        if defense is not None:
            defense.fit(sets[0])
        figures: dict[str, Any] = {"row": one.row.name, "seed": one.seed}
        figures["retrieval"] = retrieval_figures(
            *retrieval_sets(one.features, measures.scored_on, exclude_same_camera=cfg.test.exclude_same_camera),
            defense,
            seed=one.seed,
            draws=measures.attack_seeds,
            exclude_same_camera=cfg.test.exclude_same_camera,
        )
        if measures.attacks:
            figures["leakage"] = leakage_figures(
                sets,
                reference,
                defense,
                seed=one.seed,
                measures=measures,
                judge=self._judge,
                finished=self._finished(one.seed),
            )
        if measures.deid_target:
            figures["deid"] = deid_figures(self._probe, sets, reference, defense=defense, seed=one.seed)
        if measures.step_pairs and one.row.config is not None:
            figures["step_cost"] = step_cost(cfg, measures.step_pairs)
        return figures

    def _defense(self, one: Work) -> Defense | None:
        if one.row.defense:
            return build_defense(one.row.defense)
        galleries = [part for part in build.build_components(one.cfg) if isinstance(part, DPGallery)]
        if len(galleries) > 1:
            raise ConfigError(
                f"row '{one.row.name}' has {len(galleries)} budgets (privacy.gallery.epsilons); a row has one. Write "
                "one row for each: {name: ..., of: ..., options: {privacy.gallery.epsilon: ...}}"
            )
        return DPDefense.of(galleries[0]) if galleries else None

    def _reference_sets(self, one: Work) -> Sets:
        if self._sets is None or self._sets[0] != one.reference_features:
            cfg = self.plan.config(self.plan.reference, one.seed)
            made = attacked_sets(one.reference_features, cfg, self._people, self.plan.measures.scored_on)
            self._sets = (one.reference_features, made)
        return self._sets[1]

    def _finished(self, seed: int) -> Path:
        return self.out / f"attacks-{seed}{'.again' if self._again else ''}.json"

    def _take_over_attacks(self) -> None:
        """Put attacks that were run again in the place of the former ones."""
        for seed in self.plan.seeds:
            if (made := self._finished(seed)).is_file():
                FinishedRuns(self.out / f"attacks-{seed}.json").put_all(FinishedRuns(made))
                made.unlink()

    @cached_property
    def _people(self) -> Any:
        measures = self.plan.measures
        return probed_attributes(measures.labels, measures.attributes)

    @cached_property
    def _probe(self) -> DeIDProbe:
        cfg, measures = self.work[0].cfg, self.plan.measures
        return DeIDProbe(measures.deid_target, height=cfg.data.height, width=cfg.data.width, steps=measures.deid_steps)


@cache
def _feature_columns(model: str, height: int, width: int) -> int:
    with isolated_rng(0):
        built = toolbox.models.build_model(model, num_classes=1, pretrained=False)
    return probe_shapes(built, height, width)[0]
