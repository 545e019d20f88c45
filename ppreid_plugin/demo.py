"""The demonstration: from nothing to a protected gallery, on generated pedestrians, in minutes on a CPU."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from yacs.config import CfgNode

from . import arguments, build
from .cli import tee
from .config import ConfigError, check_config, get_default_config, merge_file, set_option
from .data.generator.writer import IMAGES_PER_PERSON
from .data.pedestrians import NAME, make_pedestrians
from .data.validation import held_out_count
from .dp.gallery import DPGallery
from .extracting import extract
from .number_checks import require_positive, require_whole
from .report.figures import image_rows, tsne_maps
from .report.reconstructions import example_reconstructions, run_mark
from .report.record import environment, result_to_dict, write_json
from .suppression import build_deid_target


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/demo.py``."""
    made = argparse.ArgumentParser(
        description="Train and protect on generated pedestrians; write pictures, a table and metrics.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--out", default="demo-output", help="folder to write into")
    made.add_argument("--config-file", default="configs/im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml", help="recipe")
    made.add_argument("--epsilon", type=float, default=16.0, help="budget of one gallery image, > 0")
    made.add_argument("--seed", type=int, default=1, help="seed of data, training and research noise")
    made.add_argument("--epochs", type=int, help="training epochs (the recipe's, if not given)")
    made.add_argument("--num-train-ids", type=int, default=100, help="generated people to train on")
    made.add_argument("--num-test-ids", type=int, default=100, help="generated people to test on")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def demo(argv: Sequence[str]) -> dict[str, Any]:
    """Run the demonstration and return what is written to ``metrics.json``."""
    args = parser().parse_args(argv)
    require_positive("--epsilon", args.epsilon)
    if args.epochs is not None:
        require_whole("--epochs", args.epochs)
    require_whole("--num-train-ids", args.num_train_ids)
    require_whole("--num-test-ids", args.num_test_ids)
    require_whole("--seed", args.seed, least=0, most=2**32 - 1)
    start = time.time()
    out = Path(args.out)
    cfg = get_default_config()
    merge_file(cfg, args.config_file)
    cfg.use_gpu = torch.cuda.is_available()
    for key, value in {
        "data.root": str(out / "data"),
        "data.save_dir": str(out / "log"),
        "train.seed": args.seed,
        "privacy.gallery.epsilon": args.epsilon,
        **({} if args.epochs is None else {"train.max_epoch": args.epochs}),
    }.items():
        set_option(cfg, key, value)
    check_config(cfg)
    galleries = [part for part in build.build_components(cfg) if isinstance(part, DPGallery)]
    if not cfg.privacy.deid.enabled or len(galleries) != 1:
        raise ConfigError(
            f"--config-file is '{args.config_file}', and the demonstration shows a De-ID decoder and a gallery at one "
            "budget. Name a recipe with privacy.deid.enabled True and privacy.gallery.enabled True, without epsilons."
        )
    _check_people(cfg, args.num_train_ids)

    print(f"[1/4] Generating {args.num_train_ids} + {args.num_test_ids} people in '{out / 'data'}' ...", flush=True)
    try:
        make_pedestrians(out / "data", args.num_train_ids, args.num_test_ids, args.seed)
    except FileExistsError as error:
        raise FileExistsError(
            f"'{out / 'data' / NAME}' was not made with --num-train-ids {args.num_train_ids} --num-test-ids "
            f"{args.num_test_ids} --seed {args.seed}, and is left as it is. Name another --out."
        ) from error
    print(f"[2/4] Training {cfg.model.name} from scratch with De-ID decoder and Adv-ID module ...", flush=True)
    (out / "log").mkdir(parents=True, exist_ok=True)
    with tee(out / "log" / "demo.log"):
        engine = build.build_engine(cfg)
        engine.run(**arguments.engine_run_arguments(cfg))
    result = result_to_dict(engine.results[NAME])
    print("[3/4] Drawing pictures ...", flush=True)
    command = ["tools/demo.py", *argv]
    pictures = _draw(engine, out, command, args.seed)

    (protected,) = result["protected"]
    record = {
        "command": command,
        "utility": {
            "clean": {key: result["clean"][key] for key in ("rank1", "mAP", "mINP")},
            "protected": {key: protected["anonymous"][key] for key in ("rank1", "mAP", "mINP")},
        },
        "privacy": {key: protected[key] for key in ("mechanism", "epsilon", "delta", "sigma", "unit")},
        "seed": args.seed,
        "seconds": round(time.time() - start, 1),
        "protocols": result,
        "environment": environment("cuda" if cfg.use_gpu else "cpu"),
    }
    write_json(record, out / "metrics.json")
    print(f"[4/4] Done in {record['seconds']:.0f} s: {', '.join(map(str, pictures))}, {out / 'metrics.json'}\n")
    print(_table(record))
    return record


def _check_people(cfg: CfgNode, num_train_ids: int) -> None:
    """Check that the people to train on fill a batch, however few images the generator makes of each.

    Raises:
        ConfigError: they may not; the number that does is named.
    """
    batch, each, least = cfg.train.batch_size, IMAGES_PER_PERSON[0], 1
    if cfg.sampler.train_sampler == "RandomIdentitySampler":  # takes people's images in groups
        group = cfg.sampler.num_instances
        each, least = max(group, each - each % group), batch // group
    least = max(least, math.ceil(batch / each))
    fraction, people = cfg.privacy.validation.ids_fraction, least
    while fraction > 0 and people - held_out_count(fraction, people) < least:
        people += 1
    if num_train_ids < people:
        held_out = f" beside those held out ({fraction:g})" if fraction > 0 else ""
        raise ConfigError(
            f"--num-train-ids is {num_train_ids}; a batch of the recipe takes {batch} images, of {least} people or "
            f"more{held_out}. Give --num-train-ids {people} or more."
        )


def _table(record: dict[str, Any]) -> str:
    privacy = record["privacy"]
    protected = f"protected, epsilon {privacy['epsilon']:g} an {privacy['unit']}"
    rows = [
        [title, *(f"{figures[key]:.1%}" for key in ("rank1", "mAP", "mINP"))]
        for title, figures in (("clean", record["utility"]["clean"]), (protected, record["utility"]["protected"]))
    ]
    return tabulate(rows, headers=["gallery", "rank-1", "mAP", "mINP"], disable_numparse=True)


def _draw(engine: Any, out: Path, command: Sequence[str], seed: int) -> list[Path]:
    """Write the pictures: targets, reconstructions of test people, and t-SNE maps of the gallery."""
    engine.set_model_mode("eval")
    manager = engine.datamanager
    rows = example_reconstructions(engine, NAME)
    if rows is None:
        raise RuntimeError(
            "the demonstration has no trained De-ID decoder. Take a recipe with privacy.deid.enabled True."
        )
    targets = {name: build_deid_target(name)(rows["original"]) for name in ("pixelate", "blur")}
    paths = [out / "deid_targets.png", out / "reconstructions.png", out / "tsne.png"]
    shown = {"original": rows["original"], **targets}
    image_rows(shown, paths[0], mark=run_mark("De-ID targets", command=command, seed=seed))
    image_rows(rows, paths[1], mark=run_mark("Reconstructions", command=command, seed=seed))
    with torch.no_grad():
        loader = engine.test_loader[NAME]["gallery"]
        gallery = extract(engine, loader, "gallery", manager.test_dataset[NAME]["gallery"])
    (protection,) = engine.galleries
    people = np.flatnonzero(~np.isin(gallery.pids, protection.background_pids))
    spaces = {
        "clean gallery": protection.transform(gallery.features)[people],
        f"protected gallery, epsilon {protection.mechanism.epsilon:g}": protection.protect(gallery.features)[people],
    }
    tsne_maps(spaces, gallery.pids[people], paths[2])
    return paths
