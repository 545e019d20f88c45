"""Checkpoints: loading them safely (weights only) and continuing from them, privacy modules included."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import ranks
from .dp.journal import write_file
from .features import unwrap
from .training_log import TRAINING_LOG, TRAINING_PICTURE, read_training_log, write_training_log

# rank1 of checkpoints that torchreid wrote is a numpy scalar, under numpy 1 with the module's former name
_SCALAR = np.float32(0).__reduce__()[0]
_NUMPY_TYPES: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
# in the folder of each module: its state after an epoch (a number follows), after the latest and after the best one
EPOCH_FILE = "model.pth.tar-"
LAST_FILE = "model-last.pth.tar"
BEST_MODEL = "model-best.pth.tar"
BEST_FILE = "best.json"  # beside the modules' folders: epoch and mAP of the best checkpoint on validation people
STATES_FILE = "components.json"  # there too: what components keep beside their modules, by epoch and name

_log = logging.getLogger(__name__)

_CLASSIFIER = re.compile(r"(^|\.)classifier(\.|$|\d|_)|^fc\.|^last_linear")


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message names the file, what differs and the fix."""


def load_checkpoint(path: str | Path, *, option: str = "model.load_weights") -> dict[str, Any]:
    """Load a checkpoint or a bare state dict, on the CPU, without running code from the file.

    Args:
        path: the file; checkpoints written by stock torchreid (numpy scalars in them) load too.
        option: config key to name in errors.

    Returns:
        A dict with at least ``state_dict`` (``module.`` of DataParallel removed).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: no torch file, or one that holds more than weights and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{option} is '{path}', which does not exist. Give a file, or zoo:NAME for torchreid's."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{option} '{path}' cannot be loaded as weights ({reason[:160]}). Give a checkpoint written by torchreid, "
            "ppreid_plugin or torch.save(model.state_dict())."
        ) from error
    checkpoint = loaded if isinstance(loaded, dict) and "state_dict" in loaded else {"state_dict": loaded}
    state = checkpoint["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{option} '{path}' holds no state dict. Save one with torch.save(model.state_dict()).")
    checkpoint["state_dict"] = {key.removeprefix("module."): value for key, value in state.items()}
    return checkpoint


def load_weights(model: nn.Module, path: str | Path, *, model_name: str = "the model") -> list[str]:
    """Load pretrained weights into ``model``; a classifier for other people is left as it was initialized.

    Returns:
        Names of the parameters that were not loaded (all of the classifier).

    Raises:
        FileNotFoundError, CheckpointError: no such file, or weights of another model (what differs is named).
    """
    state = load_checkpoint(path)["state_dict"]
    own = unwrap(model).state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    # a bookkeeping counter that weights saved by old torch lack
    missing = [key for key in own if key not in fits and not key.endswith("num_batches_tracked")]
    wrong = [key for key in missing if not _CLASSIFIER.search(key)]
    if wrong:
        shown = ", ".join(f"{key} {_shape(own, key)} (file: {_shape(state, key)})" for key in wrong[:3])
        raise CheckpointError(
            f"model.load_weights '{path}' holds weights of another model than {model_name}: {len(wrong)} of {len(own)} "
            f"tensors differ, such as {shown}. Set model.name to the model that the file was trained with."
        )
    unwrap(model).load_state_dict(fits, strict=False)
    return missing


def resume(engine: Any, path: str | Path, *, save_dir: str | Path | None = None) -> int:
    """Continue from a checkpoint ``SAVE_DIR/model/model.pth.tar-N``: model, optimizer, scheduler, privacy modules.

    Args:
        engine: an engine made by ``with_privacy``; every registered module is loaded from its own folder.
        path: the checkpoint of the model.
        save_dir: folder that the run goes on in, to which the best weights and the curves so far come along; an
            earlier training there is set aside. None: none.

    Returns:
        The epoch to start from (N).

    Raises:
        FileNotFoundError: the checkpoint, or that of a privacy module, is missing.
        CheckpointError: another model, another number of people, or no training state in the file.
    """
    path = Path(path)
    loaded: dict[str, dict[str, Any]] = {}
    for name in engine.get_model_names():
        file = path if name == "model" else path.parent.parent / name / path.name
        if name != "model" and not file.is_file():
            raise FileNotFoundError(
                f"model.resume: the module '{name}' has no checkpoint at '{file}'. Continue with the components that "
                "the run was started with, or start from the weights alone: model.load_weights."
            )
        loaded[name] = load_checkpoint(file, option="model.resume")
        _check_fits(loaded[name], unwrap(engine._models[name]), file)
        if (epoch := loaded[name]["epoch"]) != loaded["model"]["epoch"]:
            raise CheckpointError(
                f"model.resume: '{file}' is of epoch {epoch}, '{path}' of epoch {loaded['model']['epoch']}: the run "
                "was stopped while it wrote them. Continue from a checkpoint with a number, or start again."
            )
        _check_same_optimizer(engine._optims[name], checkpoint=loaded[name], file=file)
    _warn_of_another_schedule(engine, loaded["model"])
    for name, checkpoint in loaded.items():
        unwrap(engine._models[name]).load_state_dict(checkpoint["state_dict"])
        engine._optims[name].load_state_dict(checkpoint["optimizer"])
        engine._scheds[name].load_state_dict(checkpoint["scheduler"])
    epoch = int(loaded["model"]["epoch"])
    engine.best = best_until(engine, path.parent.parent, epoch)
    engine.epoch = epoch - 1  # where nothing is left to train, torchreid saves under this one
    _take_small_states(engine, path.parent.parent / STATES_FILE, epoch)
    if save_dir is not None and ranks.is_first():
        _take_along(engine, path.parent.parent, Path(save_dir), epoch)
    return epoch


def _check_same_optimizer(optimizer: Any, *, checkpoint: Mapping[str, Any], file: Path) -> None:
    """Raise CheckpointError if a checkpoint is of an optimizer with other settings: its first step would fail."""
    mine, kept = (state.get("param_groups") for state in (optimizer.state_dict(), checkpoint["optimizer"]))
    if mine and kept and (others := set(mine[0]) ^ set(kept[0])):
        raise CheckpointError(
            f"model.resume: '{file}' is of another optimizer ({', '.join(sorted(others))}). Continue with the "
            "train.optim that the run was started with, or start from the weights alone: model.load_weights."
        )


def _warn_of_another_schedule(engine: Any, checkpoint: Mapping[str, Any]) -> None:
    """Say which settings of the configuration do not count, as the run goes on with those that it was started with."""
    mine, kept = engine._scheds["model"].state_dict(), checkpoint["scheduler"]
    names = [name for name in ("base_lrs", "T_max", "step_size", "milestones", "gamma") if name in mine or name in kept]
    if told := [
        f"{name} {kept.get(name)} (now {mine.get(name)})" for name in names if mine.get(name) != kept.get(name)
    ]:
        _log.warning(
            "model.resume goes on with the learning rate and schedule that the run was started with: %s. Other ones: "
            "start from the weights alone (model.load_weights).",
            ", ".join(told),
        )


def best_until(engine: Any, folder: Path, epoch: int) -> dict[str, float] | None:
    """Return the best epoch so far of a run's folder; None: there is none up to ``epoch``, or its weights are gone."""
    if not (path := folder / BEST_FILE).is_file():
        return None
    try:
        best = dict(json.loads(path.read_text(encoding="utf-8")))
        found = {"epoch": int(best["epoch"]), "mAP": float(best["mAP"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read ({error}). Remove it: the best epoch is then a later one."
        ) from None
    if found["epoch"] > epoch:
        return None
    if lost := [name for name in engine.get_model_names() if best_weights(folder, name, found["epoch"]) is None]:
        _log.warning(
            "'%s' says that epoch %d is the best on validation people, and there are no weights of it of %s: the best "
            "epoch is a later one.",
            path,
            found["epoch"],
            ", ".join(lost),
        )
        return None
    return found


def best_weights(folder: Path, name: str, epoch: float) -> Path | None:
    """Return the checkpoint of a module after its best epoch.

    A run that was stopped while it wrote may have left those of another epoch as the best: ``best.json`` is written
    last, and what it says counts.
    """
    for path in (folder / name / BEST_MODEL, folder / name / f"{EPOCH_FILE}{epoch:.0f}"):
        if path.is_file() and load_checkpoint(path, option="data.save_dir").get("epoch") == epoch:
            return path
    return None


def _take_along(engine: Any, folder: Path, save_dir: Path, epoch: int) -> None:
    """Copy best weights, curves and small states up to an epoch to another folder, in which a run goes on."""
    if save_dir.resolve() == folder.resolve():
        return
    lines = read_training_log(path) if (path := folder / TRAINING_LOG).is_file() else []
    states = _read_states(folder / STATES_FILE)
    set_aside(save_dir)  # nothing is moved for a run whose own files cannot be read
    if engine.best is not None:
        found = {name: best_weights(folder, name, engine.best["epoch"]) for name in engine.get_model_names()}
        keep_best(save_dir, engine.best, {name: path for name, path in found.items() if path is not None})
    if lines := [line for line in lines if line["epoch"] <= epoch]:
        write_training_log(save_dir / TRAINING_LOG, lines)
    if states := {number: state for number, state in states.items() if number.isdecimal() and int(number) <= epoch}:
        _write_states(save_dir / STATES_FILE, states)


def load_best(engine: Any, folder: Path, epoch: int) -> None:
    """Load the weights of all registered modules after the epoch that validation people chose in a folder's run.

    Raises:
        CheckpointError: they are gone.
    """
    for name in engine.get_model_names():
        if (path := best_weights(folder, name, epoch)) is None:
            raise CheckpointError(
                f"data.save_dir '{folder}' holds no weights of '{name}' after epoch {epoch}, the best on validation "
                "people: deleted meanwhile. Train again."
            )
        unwrap(engine._models[name]).load_state_dict(load_checkpoint(path)["state_dict"])


def set_aside(folder: Path) -> None:
    """Move what an earlier training left in a folder into one of its own, ``earlier-N``, from which it can go on.

    Checkpoints of all its modules, best epoch, curves, pictures and figures: of none may a new training pass for.
    """
    modules = {path.parent for path in folder.glob("*/model*.pth.tar*")}
    names = (BEST_FILE, STATES_FILE, TRAINING_LOG, TRAINING_PICTURE, "reconstructions_*.png")
    found = sorted(modules) + [path for name in names for path in folder.glob(name) if path.is_file()]
    if not found:
        return
    found += folder.glob("metrics*.json")
    number = next(number for number in itertools.count(1) if not os.path.lexists(folder / f"earlier-{number}"))
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    for path in found:
        path.replace(aside / path.name)
    _log.warning(
        "'%s' holds an earlier training: moved to '%s' (%s). Use another data.save_dir to keep runs apart.",
        folder,
        aside,
        ", ".join(path.name for path in found),
    )


def keep_best(folder: Path, best: Mapping[str, float], weights: Mapping[str, Path]) -> None:
    """Keep each module's checkpoint after the best epoch as ``model-best``, and write last which epoch that is."""
    copies = {}
    for name, path in weights.items():
        copies[folder / name / BEST_MODEL] = temporary = folder / name / f".{BEST_MODEL}.tmp"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, temporary)
    for path, temporary in copies.items():
        temporary.replace(path)
    write_file(folder / BEST_FILE, (json.dumps(dict(best)) + "\n").encode("utf-8"))


def keep_last(engine: Any, folder: Path, epoch: int) -> None:
    """Write ``NAME/model-last.pth.tar`` of each registered module after ``epoch`` epochs; what is there is replaced."""
    written = {}
    for name in engine.get_model_names():
        path = folder / name / LAST_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        written[path] = path.with_name(f".{LAST_FILE}.tmp")
        state = {
            "state_dict": engine._models[name].state_dict(),
            "epoch": epoch,
            "optimizer": engine._optims[name].state_dict(),
            "scheduler": engine._scheds[name].state_dict(),
        }
        torch.save(state, written[path])
    for path, temporary in written.items():
        temporary.replace(path)
    keep_small_states(engine, folder, epoch)


def keep_small_states(engine: Any, folder: Path, epoch: int) -> None:
    """Write what the components keep beside their modules after ``epoch`` epochs, beside what is there of others."""
    states = {name_of(component): state for component in engine.components if (state := component.small_state())}
    if not states:
        return
    path = folder / STATES_FILE
    try:
        kept = _read_states(path)
    except ValueError:  # of an earlier run; this one does not need it
        kept = {}
    _write_states(path, {**kept, str(epoch): states})


def modules_left_out(engine: Any, path: str | Path) -> list[str]:
    """Return the modules that the run of a checkpoint trained beside the model and that ``engine`` does not have."""
    path = Path(path)
    if path.parent.name != "model":  # no folder of a run
        return []
    beside = sorted(file.parent.name for file in path.parent.parent.glob(f"*/{path.name}"))
    return [name for name in beside if name not in engine.get_model_names()]


def _take_small_states(engine: Any, path: Path, epoch: int) -> None:
    """Let the components go on; those of whom nothing was kept, as by earlier versions, start with nothing."""
    try:
        states = _read_states(path).get(str(epoch), {})
        for component in engine.components:
            if (state := states.get(name_of(component))) is not None:
                component.take_small_state(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"model.resume: '{path}' cannot be used ({type(error).__name__}: {error}): edited or cut off. Delete it: "
            "then what it counts over epochs starts anew."
        ) from error


def _read_states(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError("not states by epoch")
    return content


def _write_states(path: Path, states: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(states, indent=1) + "\n").encode("utf-8"))


def name_of(component: Any) -> str:
    """Return what a component is called in records."""
    return str(getattr(component, "name", type(component).__name__))


def _check_fits(checkpoint: dict[str, Any], module: nn.Module, file: Path) -> None:
    absent = [key for key in ("epoch", "optimizer", "scheduler") if key not in checkpoint]
    if absent:
        raise CheckpointError(
            f"model.resume '{file}' has no {', '.join(absent)}, so training cannot continue from it. "
            "Use it as weights to start from: model.load_weights."
        )
    own, state = module.state_dict(), checkpoint["state_dict"]
    differs = [key for key in own.keys() | state.keys() if _shape(own, key) != _shape(state, key)]
    if differs:
        shown = ", ".join(f"{key} {_shape(own, key)} (file: {_shape(state, key)})" for key in sorted(differs)[:3])
        only_classifier = all(_CLASSIFIER.search(key) for key in differs)
        what = "another number of training people" if only_classifier else "another model"
        raise CheckpointError(
            f"model.resume '{file}' is a checkpoint of {what}: {shown}. Continue with the same model.name, "
            "data.sources and privacy.validation.ids_fraction, or start from the weights alone: model.load_weights."
        )


def _shape(state: dict[str, Any], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"
