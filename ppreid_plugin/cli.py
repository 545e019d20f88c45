"""Command lines: torchreid's flags, options after them, one-line errors and a log beside the console.

The tools in ``tools/`` are thin: parse, build, call the package, print.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from . import arguments, build, ranks
from .checkpoint import LAST_FILE
from .config import ConfigError, get_default_config, is_config_key, merge_file, merge_options
from .data.csv_dataset import register_csv_dataset
from .extraction import extract_command, extract_parser
from .memory import keep_freed_memory
from .options import OPTIONS, describe_options
from .progress import Tee
from .registry import closest
from .report.reconstructions import write_reconstructions
from .report.record import environment, result_to_dict, write_json
from .report.training_curves import write_training_curves
from .suppression import any_takes_labels, taken_by_deid_targets

# what a user can cause and mend; anything else is a bug and keeps its traceback
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, AssertionError)

_log = logging.getLogger(__name__)

_GIVEN = "nothing: these weights were given"  # what a test of weights chose its checkpoint on
_WITH_RELEASE = ("release", "truth", "enroll_cameras", "background_pids")  # keys that a stored release leaves open


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults of the flags, and the list of keys as it is."""


def train_parser() -> argparse.ArgumentParser:
    """Parser of ``tools/train.py``: torchreid's flags and ours."""
    parser = argparse.ArgumentParser(
        description="Train or test a person re-identification model with torchreid, with privacy options.",
        epilog="Options are KEY VALUE pairs after the flags, such as: train.max_epoch 60 privacy.deid.enabled True\n\n"
        "Keys, what they do [default]:\n" + describe_options(),
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config-file", default="", help="YAML file: torchreid's own, or one with a privacy block")
    parser.add_argument("-s", "--sources", nargs="+", help="source data sets (train)")
    parser.add_argument("-t", "--targets", nargs="+", help="target data sets (test)")
    parser.add_argument("--transforms", nargs="+", help="augmentation of the training images")
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=FILE.csv",
        help="own data: CSV with columns path, pid, camid, split (train, query or gallery); then -s NAME -t NAME",
    )
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast of the model's forward pass")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def split_options(argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> tuple[list[str], list[str]]:
    """Separate flags from KEY VALUE options: the first known key starts them, also right after a ``+`` flag.

    The value of a flag that takes one, and a file that is there, are no misspelled keys, whatever they are called
    (``--gallery test.npz``, ``--images data.jpg``).

    Args:
        argv: the words.
        parser: of the flags; None: that of ``tools/train.py``.

    Raises:
        ConfigError: a key that is followed by a flag.

    Example:
        >>> split_options(["--transforms", "random_flip", "model.pretrained", "False", "--root", "data"])
        (['--transforms', 'random_flip', '--root', 'data'], ['model.pretrained', 'False'])
    """
    actions = (train_parser() if parser is None else parser)._actions
    takes_one = {flag for action in actions if action.nargs is None for flag in action.option_strings}
    flags: list[str] = []
    options: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        is_value = bool(flags) and flags[-1] in takes_one
        if not is_value and is_config_key(word) and (word in OPTIONS or not Path(word).is_file()):
            if word in OPTIONS and index + 1 < len(argv) and argv[index + 1].startswith("--"):
                raise ConfigError(f"options are KEY VALUE pairs: give {word} a value before {argv[index + 1]}.")
            options.extend(argv[index : index + 2])
            index += 2
        else:
            flags.append(word)
            index += 1
    return flags, options


def parse_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[CfgNode, argparse.Namespace]:
    """Parse flags and options into a configuration: defaults, then YAML, then flags, then options.

    Raises:
        ValueError, OSError: as the configuration and the data sets say.
    """
    cfg, args, _ = _parsed(parser, argv)
    return cfg, args


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[CfgNode, argparse.Namespace, list[str]]:
    """Return what `parse_config` does, and the KEY VALUE options."""
    flags, options = split_options(argv, parser)
    args, rest = parser.parse_known_args(flags)
    if rest:
        raise ConfigError(
            f"'{rest[0]}' is neither a flag nor a configuration key.{_hint(rest[0])} --help lists all flags and keys."
        )
    cfg = get_default_config()
    cfg.use_gpu = torch.cuda.is_available()
    if args.config_file:
        merge_file(cfg, args.config_file)
    for spec in args.dataset:
        register_csv_dataset(spec)
    for flag, key in (("sources", "sources"), ("targets", "targets"), ("transforms", "transforms"), ("root", "root")):
        if getattr(args, flag):
            cfg.data[key] = getattr(args, flag)
    merge_options(cfg, options)
    cfg.train.amp = cfg.train.amp or args.amp
    if "use_gpu" in options[::2] and cfg.use_gpu and not torch.cuda.is_available():
        _log.warning("use_gpu is True, and torch sees no CUDA device: the CPU does the work.")
    cfg.use_gpu = cfg.use_gpu and torch.cuda.is_available()
    return cfg, args, options


def train(argv: Sequence[str]) -> dict[str, Any]:
    """Train or test as the command line says; return the record that is also written to ``save_dir/metrics.json``.

    Of several ranks (``torchrun``) the first writes and returns it; the others return nothing.
    """
    cfg, _, options = _parsed(train_parser(), argv)
    _refuse_idle_options(cfg, options)
    with ranks.joined(use_gpu=cfg.use_gpu, timeout_s=cfg.train.rank_timeout_s):
        return _train(cfg, argv)


def _train(cfg: CfgNode, argv: Sequence[str]) -> dict[str, Any]:
    build.check(cfg)
    start = time.time()
    name = "test" if cfg.test.evaluate else "train"
    log = Path(cfg.data.save_dir) / f"{name}.log-{time.strftime('%Y-%m-%d-%H-%M-%S')}"
    with tee(log) if ranks.is_first() else nullcontext():
        print(f"Configuration\n{cfg}\n")
        device = "cuda" if cfg.use_gpu else "cpu"
        print("Environment: " + ", ".join(f"{key} {value}" for key, value in environment(device).items()))
        engine = build.build_engine(cfg)
        with _saying_how_to_go_on(cfg):
            given = arguments.engine_run_arguments(cfg)
            engine.run(**given)
            if not cfg.test.evaluate:
                told = ("dist_metric", "normalize_feature", "use_metric_cuhk03", "ranks")
                engine.test_best(cfg.data.save_dir, **{name: given[name] for name in told})
        if not ranks.is_first():
            return {}
        record = {
            "command": ["tools/train.py", *argv],
            "targets": {target: result_to_dict(result) for target, result in engine.results.items()},
            "chosen_on": _GIVEN if cfg.test.evaluate else engine.chosen_on,
            "best": engine.best,
            "seed": cfg.train.seed,
            "processes": ranks.world_size(),
            "seconds": round(time.time() - start, 1),
            "environment": environment(device),
        }
        path = _record_path(cfg)
        write_json(record, path)
        write_reconstructions(engine, cfg.data.save_dir, command=record["command"], seed=cfg.train.seed)
        if not cfg.test.evaluate:
            write_training_curves(cfg.data.save_dir)
        if not engine.best and not cfg.test.evaluate and cfg.train.max_epoch:
            print(
                "No validation people: figures on the test gallery choose nothing, the last checkpoint is the result."
            )
        if not cfg.test.evaluate and not cfg.train.max_epoch:
            _log.warning("train.max_epoch is 0: nothing was trained or tested. To test weights: test.evaluate True")
        print(f"Figures written to '{path}'")
    return record


def extract_features(argv: Sequence[str]) -> dict[str, Path]:
    """Write the features of a data set's splits as the command line says; return the files by split."""
    cfg, args = parse_config(extract_parser(train_parser()), argv)
    with ranks.joined(use_gpu=cfg.use_gpu, timeout_s=cfg.train.rank_timeout_s):
        return extract_command(cfg, args)


def run(main: Callable[[Sequence[str]], Any], argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 2 a user's error (one line), 130 interrupted.

    Args:
        main: takes the arguments after the program's name.
        argv: these arguments; None takes the process's.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        if (processes := ranks.started()) > 1 and main not in (train, extract_features):
            raise ConfigError(f"torchrun started {processes} processes of a command that works in one: start it alone.")
        main(arguments)
    except USER_ERRORS as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"Error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def one_line(error: BaseException) -> str:
    """Message of an error on one line; of one that a loader worker raised, the worker's own message."""
    text = str(error)
    worker = re.search(r"Original Traceback.*\n[\w.]+: (.*)", text, re.DOTALL)
    return " ".join((worker.group(1) if worker else text).split()) or type(error).__name__


@contextmanager
def tee(path: Path) -> Iterator[None]:
    """Write what is printed inside the block to ``path`` too."""
    console = sys.stdout
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as log:
        sys.stdout = Tee(console, log)
        try:
            yield
        finally:
            sys.stdout = console


@contextmanager
def _saying_how_to_go_on(cfg: CfgNode) -> Iterator[None]:
    """Name the state after the latest epoch where a training is stopped or its evaluation fails."""
    start = time.time()
    try:
        yield
    except (Exception, KeyboardInterrupt):
        last = Path(cfg.data.save_dir, "model", LAST_FILE)
        if ranks.is_first() and not cfg.test.evaluate and last.is_file() and last.stat().st_mtime >= start:
            print(f"The state after the latest epoch is kept. To go on, append: model.resume {last}")
        raise


def _refuse_idle_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Raise ConfigError where KEY VALUE options of the command line set a privacy key that would do nothing."""
    gallery = cfg.privacy.gallery
    for key in options[::2]:
        node, _, name = key.removeprefix("privacy.").partition(".")
        if not key.startswith("privacy.") or name in ("", "enabled"):
            continue
        if not cfg.privacy[node].get("enabled", True):
            if key == "privacy.adversary.labels" and cfg.privacy.erasure.enabled:
                continue  # whose attributes are erased, where privacy.erasure.labels is empty
            raise ConfigError(
                f"{key} is given, but privacy.{node}.enabled is False: it would do nothing. Append: "
                f"privacy.{node}.enabled True, or leave the key out."
            )
        of_target = key in ("privacy.deid.blocks", "privacy.deid.sigma")
        if of_target and name not in taken_by_deid_targets(cfg.privacy.deid.target):
            raise ConfigError(
                f"{key} is given, and privacy.deid.target '{cfg.privacy.deid.target}' takes no {name}: it would do "
                "nothing. Leave it out."
            )
        of_labels = key == "privacy.adversary.labels" and not cfg.privacy.erasure.enabled
        if of_labels and not any_takes_labels(cfg.privacy.adversary.names):
            raise ConfigError(
                f"{key} is given, and of privacy.adversary.names {cfg.privacy.adversary.names} none takes labels: it "
                "would do nothing. Append: privacy.adversary.names [attributes], or leave the key out."
            )
        if node == "gallery" and gallery.release and name not in _WITH_RELEASE:
            raise ConfigError(
                f"{key} is given beside privacy.gallery.release '{gallery.release}', which was drawn with its own: it "
                "would do nothing. Leave one of them out."
            )
        if key == "privacy.gallery.truth" and not gallery.release:
            raise ConfigError(f"{key} names the rows of privacy.gallery.release, which is not given. Leave it out.")
        of_people = key in ("privacy.gallery.enroll_cameras", "privacy.gallery.prototype")
        if of_people and gallery.unit == "image" and not gallery.release:
            raise ConfigError(
                f"{key} is given with privacy.gallery.unit 'image': it would do nothing. Append: "
                "privacy.gallery.unit person, or leave the key out."
            )
        if key == "privacy.validation.seed" and not cfg.privacy.validation.ids_fraction:
            raise ConfigError(
                f"{key} is given with privacy.validation.ids_fraction 0: nobody is held out. Leave it out."
            )
        if key == "privacy.gallery.epsilon" and gallery.epsilons:
            raise ConfigError(
                f"{key} is given, but privacy.gallery.epsilons {gallery.epsilons} are what is evaluated. Leave one of "
                "them out; privacy.gallery.epsilons [] takes back those of a file."
            )


def _record_path(cfg: CfgNode) -> Path:
    """Return where figures are written: a test beside a training does not take the place of its record."""
    path = Path(cfg.data.save_dir) / "metrics.json"
    if not cfg.test.evaluate or not path.is_file():
        return path
    try:
        chosen_on = json.loads(path.read_text(encoding="utf-8"))["chosen_on"]
    except (ValueError, KeyError, TypeError):
        return path
    return path if chosen_on == _GIVEN else path.with_name("metrics-test.json")


def _hint(word: str) -> str:
    return closest(word, list(OPTIONS))
