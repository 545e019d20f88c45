"""The plan of an ablation: a YAML file that lists rows, seeds and what is measured.

A row is trained (``config``), or takes the weights of another (``of``) and changes how images reach them (``options``)
or what becomes of the features (``defense``). docs/ablation.md has the whole format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from ..config import ConfigError, get_default_config, merge_file, merge_options, set_option
from ..config_files import read_config
from ..leakage import ATTACKS
from ..leakage.battery import attacks_by_source
from ..leakage.known_people import LEARN_FROM
from ..registry import closest
from ..suppression import standalone_deid_target
from .defense import build_defense

METRICS = ("cosine", "euclidean")
SCORED_ON = ("gallery", "validation")
# keys that change nothing here, and what to do instead
WITHOUT_EFFECT = {
    "data.save_dir": "the folder is --out",
    "privacy.gallery.release": "a row draws its own gallery; tools/measure_leakage.py attacks a stored release",
    "model.resume": "what was stopped goes on by itself; other weights to start from are model.load_weights",
    "test.dist_metric": "the metric is measures.metric, or --metric",
    "test.evaluate": "trained rows are measured again with --no-train",
    "test.normalize_feature": "measures.metric cosine normalizes; the JSON file has both",
    "test.ranks": "the JSON file has rank-1 and rank-5",
    "test.rerank": "an ablation does not re-rank; tools/evaluate_features.py does, from saved features",
    "test.visrank": "tools/train.py writes ranked pictures",
    "test.visrank_topk": "tools/train.py writes ranked pictures",
    "train.seed": "seeds are the plan's, or --seeds",
    "train.start_epoch": "what was stopped goes on by itself",
}


@dataclass(frozen=True)
class Measures:
    """What is measured of every row.

    Attributes:
        metric: distance of the figures in the table (the JSON file has both): cosine or euclidean.
        scored_on: gallery, or validation: people held out of training (``privacy.validation.ids_fraction``), to choose
            weights by before the gallery is looked at.
        attacks: registered attacks.
        attack_seeds: runs of every attack.
        learn_from: whom attackers learn from: train, or gallery: half of the people who are scored on, to attack the
            others; both: the stronger counts.
        attributes: attributes that are probed; empty: all that ``labels`` has.
        labels: file of people's attributes: ``market_attribute.mat``, or pid and attributes as .csv, .npz,
            .safetensors.
        judge, judge_weights: independent torchreid model and its checkpoint or ``zoo:NAME``; empty: no judge.
        deid_target: De-ID target T of the L_deid column and of the reconstruction attack; empty: no such column.
        deid_steps: batches of 64 that the fresh De-ID decoder learns from.
        inversion_steps: batches of 256 that the inversion decoder learns from.
        test_rows: rows that are reconstructed (0: all).
        step_pairs: pairs of training steps that are timed (0: no cost column).
    """

    metric: str = "cosine"
    scored_on: str = "gallery"
    attacks: tuple[str, ...] = ("identification", "attributes", "reconstruction")
    attack_seeds: int = 3
    learn_from: tuple[str, ...] = ("train",)
    attributes: tuple[str, ...] = ()
    labels: str = ""
    judge: str = ""
    judge_weights: str = ""
    deid_target: str = "pixelate"
    deid_steps: int = 2000
    inversion_steps: int = 340
    test_rows: int = 3000
    step_pairs: int = 12


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: in the table.
        config: configuration file of a row that is trained; None: the weights are those of ``of``.
        of: row whose weights (and, without ``options``, features) are used.
        options: configuration keys that the row changes.
        defense: what its features go through, written as ``NAME:KEY=VALUE,...``; empty: nothing, or what
            ``privacy.gallery`` of the configuration says.
    """

    name: str
    config: Path | None = None
    of: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    defense: str = ""


@dataclass(frozen=True)
class Plan:
    """Rows, seeds and measures.

    Attributes:
        rows: in the order of the table; the reference comes first.
        seeds: of the training; figures are paired by them.
        options: configuration keys of all rows, applied before a row's own.
        last_options: those of the command line as KEY, VALUE, ...: applied last.
        measures: what is measured.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Any]
    measures: Measures
    last_options: tuple[str, ...] = ()

    @property
    def reference(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[0]

    def row(self, name: str) -> Row:
        """Return a row by name."""
        return next(row for row in self.rows if row.name == name)

    def trained(self, row: Row) -> Row:
        """Return the row whose training made the weights of ``row``."""
        return row if row.config is not None else self.trained(self.row(row.of))

    def config(self, row: Row, seed: int) -> CfgNode:
        """Return the whole configuration of a row: file, options of all rows, its own, the command line's.

        Adversaries of attributes learn from ``measures.labels``, unless they have labels of their own.
        """
        cfg = get_default_config()
        chain = [row]
        while (file := chain[0].config) is None:
            chain.insert(0, self.row(chain[0].of))
        merge_file(cfg, file)
        for options in (self.options, *(one.options for one in chain)):
            for key, value in options.items():
                set_option(cfg, key, value, source=f"the plan, row '{row.name}'")
        merge_options(cfg, list(self.last_options))
        if not cfg.privacy.adversary.labels:
            cfg.privacy.adversary.labels = self.measures.labels
        _check_whole_training(cfg, row)
        cfg.train.seed = seed
        cfg.use_gpu = cfg.use_gpu and torch.cuda.is_available()
        return cfg

    def selected(self, names: Sequence[str] = ()) -> tuple[Row, ...]:
        """Return the rows of these names (none: all) in the plan's order; the reference is always there.

        Raises:
            ConfigError: a row that is not there.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ConfigError(f"--rows has '{name}'; the plan has: {', '.join(known)}.{closest(name, known)}")
        return tuple(row for row in self.rows if not names or row.name in names or row is self.reference)


def load_plan(
    path: str | Path,
    *,
    options: Sequence[str] = (),
    seeds: Sequence[int] = (),
    measures: Mapping[str, Any] | None = None,
) -> Plan:
    """Read a plan and check it.

    Args:
        path: YAML file; configuration files in it are relative to it.
        options: KEY, VALUE, ... for all rows, after everything else.
        seeds: instead of the plan's.
        measures: fields of `Measures` that replace the plan's.

    Raises:
        FileNotFoundError, ConfigError, ValueError: no such file, an unknown key, row, attack or defense, a value of the
            wrong type, rows that refer to each other in a circle.
    """
    path = Path(path)
    loaded: dict[str, Any] = {}
    for _, mapping in read_config(path, flag="--plan"):
        loaded |= mapping
    _check_keys(loaded, ("seeds", "options", "measures", "rows"), str(path))
    chosen = tuple(seeds) or tuple(_list(loaded.get("seeds", [1]), "seeds", path))
    if not chosen or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in chosen):
        raise ConfigError(f"{path} has seeds {list(chosen)}, must be whole numbers >= 0, such as: seeds: [1, 2, 3]")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{path} has seeds {list(chosen)}, one of them twice. Name each once.")
    rows = tuple(_row(entry, path) for entry in _list(loaded.get("rows", []), "rows", path))
    _check_rows(rows, path)
    measured = {**_mapping(loaded.get("measures"), "measures", path), **(measures or {})}
    common = _mapping(loaded.get("options"), "options", path)
    _check_options(common, f"{path}, options")
    _check_options(options[::2], "the command line")
    return Plan(rows, chosen, common, _measures(measured, path), tuple(options))


def _row(entry: Any, path: Path) -> Row:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ConfigError(f"{path} has the row {entry!r}, must be a mapping with a name.")
    what = f"{path}, row '{entry['name']}'"
    _check_keys(entry, ("name", "config", "of", "options", "defense"), what)
    if ("config" in entry) == ("of" in entry):
        raise ConfigError(f"{what} must have either config (it is trained) or of (the weights of another row).")
    if entry.get("defense"):
        build_defense(str(entry["defense"]))
    for key in ("config", "of"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key]):
            raise ConfigError(f"{what} has {key} {entry[key]!r}, must be text: a file of a configuration, or a row.")
    config = path.parent / entry["config"] if "config" in entry else None
    if config is not None:
        try:
            merge_file(get_default_config(), config)
        except FileNotFoundError:
            raise FileNotFoundError(f"{what} has config '{entry['config']}', but '{config}' is no file.") from None
    options = _mapping(entry.get("options"), "options", path)
    _check_options(options, what)
    return Row(entry["name"], config, str(entry.get("of", "")), options, str(entry.get("defense") or ""))


def _check_options(options: Iterable[str], what: str) -> None:
    for key in options:
        if key in WITHOUT_EFFECT:
            raise ConfigError(f"{what} has {key}, which changes nothing in an ablation: {WITHOUT_EFFECT[key]}.")


def _check_whole_training(cfg: CfgNode, row: Row) -> None:
    """Refuse trainings that begin in the middle, or do not begin: what is made would stand for whole ones."""
    if cfg.model.resume or cfg.train.start_epoch:
        raise ConfigError(
            f"row '{row.name}' has model.resume {cfg.model.resume!r} and train.start_epoch {cfg.train.start_epoch}; a "
            "row is trained from the first epoch on, and goes on by itself where it was stopped. Leave both out."
        )
    if cfg.train.max_epoch < 1:
        raise ConfigError(
            f"row '{row.name}' has train.max_epoch {cfg.train.max_epoch}, must be >= 1. Weights as they are: "
            "tools/extract_features.py, then tools/measure_leakage.py."
        )


def _check_rows(rows: Sequence[Row], path: Path) -> None:
    if not rows or rows[0].config is None or rows[0].defense:
        raise ConfigError(f"{path} must begin with the reference: a row with a config and without a defense.")
    seen: list[str] = []
    for row in rows:
        if row.name in seen:
            raise ConfigError(f"{path} has two rows '{row.name}'. Give each a name of its own.")
        if row.of and row.of not in seen:
            raise ConfigError(
                f"{path}, row '{row.name}' is of '{row.of}', which is no row above it: {', '.join(seen)}."
                f"{closest(row.of, seen)}"
            )
        if row.of and next(one for one in rows if one.name == row.of).defense:
            raise ConfigError(
                f"{path}, row '{row.name}' is of '{row.of}', which has a defense. Name the row that it is of."
            )
        seen.append(row.name)


def _measures(given: Mapping[str, Any], path: Path) -> Measures:
    fields: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(Measures)}
    _check_keys(given, tuple(fields), f"{path}, measures")
    values: dict[str, Any] = {}
    for name, value in given.items():
        wanted = type(fields[name])
        if wanted is tuple:
            value = tuple(str(one) for one in _list(value, name, path))
        if type(value) is not wanted or (wanted is int and value < 0):
            what = "a whole number >= 0" if wanted is int else "text" if wanted is str else "a list"
            raise ConfigError(f"{path} has measures.{name} {value!r}, must be {what} (default {fields[name]!r}).")
        values[name] = value
    made = Measures(**values)
    if made.metric not in METRICS:
        raise ConfigError(f"{path} has measures.metric {made.metric!r}; allowed: {', '.join(METRICS)}.")
    if made.scored_on not in SCORED_ON:
        raise ConfigError(f"{path} has measures.scored_on {made.scored_on!r}; allowed: {', '.join(SCORED_ON)}.")
    if not made.learn_from or set(made.learn_from) - set(LEARN_FROM):
        raise ConfigError(
            f"{path} has measures.learn_from {list(made.learn_from)}; allowed: one or more of {', '.join(LEARN_FROM)}."
        )
    if made.attack_seeds < 1 or not made.deid_steps or not made.inversion_steps:
        raise ConfigError(f"{path}: measures.attack_seeds, deid_steps and inversion_steps must be >= 1.")
    if bool(made.judge) != bool(made.judge_weights):
        raise ConfigError(f"{path}: measures.judge and judge_weights belong together, such as: judge: osnet_x1_0")
    if made.judge and "reconstruction" not in made.attacks:
        raise ConfigError(
            f"{path}: measures.judge is {made.judge}, which looks at reconstructions, and measures.attacks has none. "
            "Add reconstruction to measures.attacks, or leave the judge out."
        )
    attacks_by_source(made.learn_from, {name: ATTACKS.get(name, key="measures.attacks") for name in made.attacks})
    if "attributes" in made.attacks and not made.labels:
        raise ConfigError(
            f"{path}: measures.attacks has attributes, but no labels: FILE says what they are (market_attribute.mat, "
            ".csv, .npz). Append --labels FILE, or leave attributes out of measures.attacks."
        )
    if made.deid_target:
        standalone_deid_target(made.deid_target, key="measures.deid_target")
    return made


def _check_keys(mapping: Mapping[str, Any], allowed: Sequence[str], what: str) -> None:
    for key in mapping:
        if key not in allowed:
            raise ConfigError(
                f"{what} has the unknown key '{key}'; allowed: {', '.join(allowed)}.{closest(str(key), list(allowed))}"
            )


def _mapping(value: Any, name: str, path: Path) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{path} has {name} {value!r}, must be a mapping.")
    return dict(value or {})


def _list(value: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path} has {name} {value!r}, must be a list.")
    return value
