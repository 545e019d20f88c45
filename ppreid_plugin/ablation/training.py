"""Training of one row: by the package's own engine, kept after every epoch, and continued from the last one kept.

A training that was stopped and continued is the one that was not: the states of the random generators are kept too
(with ``test.eval_freq -1``; evaluations between epochs draw from them).
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from .. import build
from ..arguments import engine_run_arguments
from ..checkpoint import LAST_FILE, best_until, best_weights, resume
from ..cli import tee
from ..dp.feature_files import model_fingerprint
from ..report.record import environment, result_to_dict, write_json
from ..report.training_curves import write_training_curves

TRAINED = "trained.json"  # there once a training is finished
_KEPT = "kept"  # folder of the checkpoints to continue from
_EPOCH = "epoch.json"  # the last epoch that is kept whole
_RANDOM = "random.pt"
_ANEW = f"Delete the folder '{_KEPT}' to train from the first epoch on."


def trained_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished training in ``folder``; None: there is none, or its weights are gone.

    Raises:
        ValueError: a record that cannot be read.
    """
    if not (path := folder / TRAINED).is_file():
        return None
    record = read_state(path, needs=("weights", "fingerprint", "chosen_on"), remedy="Delete its folder to train again.")
    return record if (folder / record["weights"]).is_file() else None


def kept_epoch(folder: Path) -> int:
    """Return how many epochs of an unfinished training are kept.

    Raises:
        ValueError: a record that cannot be read.
    """
    path = folder / _KEPT / _EPOCH
    return int(read_state(path, needs=("epoch",), remedy=_ANEW)["epoch"]) if path.is_file() else 0


def read_state(path: Path, *, needs: Sequence[str], remedy: str) -> dict[str, Any]:
    """Return the record in a file of this package's own.

    Args:
        path: JSON file.
        needs: keys that it must have.
        remedy: what to do with one that cannot be used, in the error.

    Raises:
        ValueError: it is damaged; it is named.
    """
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{path}' cannot be read ({error}). {remedy}") from None
    if missing := [key for key in needs if key not in record]:
        raise ValueError(f"'{path}' has no {', '.join(missing)}. {remedy}")
    return record


def train(cfg: CfgNode, folder: Path) -> dict[str, Any]:
    """Train what ``cfg`` says in ``folder``, or the rest of it; return the record, also in ``trained.json``.

    Args:
        cfg: configuration; its protected galleries are not evaluated here.
        folder: of this training alone.

    Raises:
        ValueError, OSError: as the configuration and the data sets say.
    """
    if (record := trained_record(folder)) is not None:
        return record
    cfg = cfg.clone()
    cfg.data.save_dir = str(folder)
    cfg.test.evaluate, cfg.privacy.gallery.enabled = False, False
    epoch, start = kept_epoch(folder), time.time()
    with tee(folder / f"train.log-{time.strftime('%Y-%m-%d-%H-%M-%S')}"):
        print(f"Configuration\n{cfg}\n")
        engine = build.build_engine(cfg)
        if epoch:
            cfg.train.start_epoch = _continue(engine, folder / _KEPT, epoch)
            engine.best = best_until(engine, folder, epoch)  # evaluated after the epoch was kept
            print(f"Continuing after epoch {epoch} of {cfg.train.max_epoch}")
        _keep_every_epoch(engine, folder / _KEPT)
        if cfg.test.eval_freq <= 0:  # nothing is chosen: features are extracted and measured later, once
            engine.test = lambda *args, **kwargs: 0.0
        engine.run(**engine_run_arguments(cfg))
    write_training_curves(folder)
    best = best_weights(folder, "model", engine.best["epoch"]) if engine.best else None
    weights = best or folder / "model" / LAST_FILE
    record = {
        "epochs": cfg.train.max_epoch,
        "weights": weights.relative_to(folder).as_posix(),
        "fingerprint": model_fingerprint(str(weights)),
        "chosen_on": engine.chosen_on,
        "targets": {target: result_to_dict(result) for target, result in engine.results.items()},
        "seconds_since_last_start": round(time.time() - start, 1),
        "environment": environment("cuda" if cfg.use_gpu else "cpu"),
    }
    write_json(record, folder / TRAINED)
    shutil.rmtree(folder / _KEPT, ignore_errors=True)
    return record


def _continue(engine: Any, kept: Path, epoch: int) -> int:
    """Put engine and random generators where they were after an epoch; return the next one's number."""
    try:
        start = resume(engine, kept / "model" / f"model.pth.tar-{epoch}")
        _set_random_state(torch.load(kept / f"{epoch}-{_RANDOM}", weights_only=True))
    except (ValueError, OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"'{kept}' holds an epoch that cannot be continued from ({error}). {_ANEW}") from error
    return start


def _keep_every_epoch(engine: Any, folder: Path) -> None:
    """Let the engine keep itself after each epoch; an earlier one stays until the next is whole."""
    train_epoch = engine.train

    def train_and_keep(*args: Any, **kwargs: Any) -> None:
        train_epoch(*args, **kwargs)
        done = engine.epoch + 1
        folder.mkdir(parents=True, exist_ok=True)
        engine.save_model(engine.epoch, 0.0, str(folder))
        torch.save(_random_state(), folder / f"{done}-{_RANDOM}")
        write_json({"epoch": done}, folder / _EPOCH)
        for name in engine.get_model_names():
            for path in (folder / name).glob("model.pth.tar-*"):
                if path.name != f"model.pth.tar-{done}":
                    path.unlink()
        for path in folder.glob(f"*-{_RANDOM}"):
            if path.name != f"{done}-{_RANDOM}":
                path.unlink()

    engine.train = train_and_keep


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(one) for one in rest)],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    version, words, normal = state["python"]
    random.setstate((version, tuple(words.tolist()), normal))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
