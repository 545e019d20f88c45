"""Sweeps: utility of mechanisms over budgets, from saved features, in both protocols, with research noise.

Nothing is chosen here: every row says ``chosen_on: nothing``. Picking a mechanism, its parameters or a budget by these
figures and then releasing the same gallery is a look at the gallery that the budget does not cover.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ..dp.feature_files import load_arrays
from ..dp.gallery import DPGallery
from ..evaluation import Extracted
from ..progress import track
from ..retrieval import evaluate, evaluate_enrolled
from .record import environment, write_json

PROTOCOLS = ("anonymous", "enrolled")


@dataclass(frozen=True)
class MechanismSpec:
    """A mechanism with its parameters, written ``prior_subset:codewords=1024,set_size=4``."""

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> MechanismSpec:
        """Parse the written form; values are Python literals or words.

        Raises:
            ValueError: a parameter that is not NAME=VALUE.

        Example:
            >>> MechanismSpec.parse("prior_subset:codewords=1024,kind=residual")
            MechanismSpec(name='prior_subset', options={'codewords': 1024, 'kind': 'residual'})
        """
        name, _, rest = text.partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, separator, value = part.partition("=")
            if not separator or not key or not value:
                raise ValueError(f"--mechanisms has '{text}': '{part}' must be NAME=VALUE, such as codewords=1024.")
            try:
                options[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                options[key] = value
        return cls(name, options)


def load_split(path: str) -> Extracted:
    """Load ``features``, ``pids`` and ``camids`` from a .npz or .safetensors file.

    Raises:
        FileNotFoundError, ValueError: no such file, an array is missing, or lengths differ.
    """
    arrays = load_arrays(path)
    missing = [name for name in ("features", "pids", "camids") if name not in arrays]
    if missing:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    lengths = {name: len(arrays[name]) for name in ("features", "pids", "camids")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"'{path}': lengths differ: {lengths}; one pid and one camid a row of features are needed.")
    return Extracted(torch.from_numpy(arrays["features"]), arrays["pids"], arrays["camids"])


def sweep(
    train: Extracted,
    query: Extracted,
    gallery: Extracted,
    *,
    mechanisms: Iterable[MechanismSpec],
    epsilons: Sequence[float],
    protocols: Sequence[str] = PROTOCOLS,
    seeds: int = 3,
    delta: float | None = None,
    transform: str = "center",
    background_pids: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Protect the gallery with each mechanism at each budget and evaluate it; one row a protocol and seed.

    Transform and codebook are fitted on ``train`` only. The same seed gives the same noise in both protocols.

    Args:
        train: people outside the gallery.
        query: query rows, matched as they are.
        gallery: the rows that are protected, unit one image.
        mechanisms: what to try.
        epsilons: budgets of one image, > 0.
        protocols: anonymous, enrolled.
        seeds: number of noise draws (and of codebooks), seeds 1, 2, ...
        delta: failure probability; None lets each mechanism choose.
        transform: registered public transform.
        background_pids: pids that are no person.

    Returns:
        Rows with ``mechanism, params, unit, protocol, epsilon, delta, person_epsilon, seed, rank1, mAP, chosen_on,
        prior_cell``; figures as fractions; ``mAP`` of the enrolled protocol is the mean reciprocal rank.
        ``person_epsilon`` is at the median and the largest number of rows a person.

    Raises:
        ValueError: an unknown name, or a value out of range, before anything is evaluated.
    """
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown:
        raise ValueError(f"--protocols has '{unknown[0]}'; allowed: {', '.join(PROTOCOLS)}.")
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}, must be >= 1.")
    plan = []
    for spec in mechanisms:
        for epsilon in epsilons:
            for seed in range(1, seeds + 1):
                protection = DPGallery(
                    spec.name,
                    epsilon=epsilon,
                    delta=delta if spec.name == "gaussian" else None,
                    transform=transform,
                    background_pids=background_pids,
                    seed=seed,
                    options=spec.options,
                )
                plan.append((spec, seed, protection))
    rows: list[dict[str, Any]] = []
    for spec, seed, protection in track(plan, "Sweep", unit="releases"):
        protection.fit(train.features, train.pids)
        rows.extend(_evaluated(spec, seed, protection, query, gallery, protocols))
    return rows


def _evaluated(
    spec: MechanismSpec,
    seed: int,
    protection: DPGallery,
    query: Extracted,
    gallery: Extracted,
    protocols: Sequence[str],
) -> Iterator[dict[str, Any]]:
    counts = np.unique(gallery.pids[~np.isin(gallery.pids, protection.background_pids)], return_counts=True)[1]
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    rows = (protection.transform(query.features).float(), protection.protect(gallery.features).float())
    prior = protection.prior
    for protocol in protocols:
        if protocol == "anonymous":
            ranking = evaluate(*rows, *labels)
            rank1, mean_ap = ranking.rank1, ranking.mAP
        else:
            enrolled = evaluate_enrolled(*rows, *labels, background_pids=protection.background_pids)
            rank1, mean_ap = enrolled.rank1, enrolled.mrr
        yield {
            "mechanism": spec.name,
            "params": spec.options,
            "unit": protection.unit,
            "protocol": protocol,
            "epsilon": protection.mechanism.epsilon,
            "delta": protection.mechanism.delta,
            "person_epsilon": [protection.person_level_epsilon(float(k)) for k in (np.median(counts), counts.max())],
            "seed": seed,
            "rank1": rank1,
            "mAP": mean_ap,
            "chosen_on": "nothing",
            "prior_cell": None if prior is None else prior.people_per_cell,
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in percent: mean and standard deviation over the seeds, one line a mechanism, protocol and budget."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
        groups.setdefault((row["mechanism"], params, row["protocol"], row["epsilon"]), []).append(row)
    lines = []
    for key, group in groups.items():
        figures = [[100 * row[name] for row in group] for name in ("rank1", "mAP")]
        shown = [f"{np.mean(values):.1f} ± {np.std(values):.1f}" for values in figures]
        cell = group[0]["prior_cell"]
        person = "{:.3g} / {:.3g}".format(*group[0]["person_epsilon"])
        lines.append([*key, person, *shown, "-" if cell is None else f"{cell:.1f}"])
    headers = ["mechanism", "parameters", "protocol", "epsilon", "a person, median / largest", "rank-1", "mAP", "cell"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def parser() -> argparse.ArgumentParser:
    """Parser of ``tools/sweep.py``."""
    made = argparse.ArgumentParser(
        description="Utility of DP mechanisms over budgets, from saved features (arrays features, pids, camids).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for split, text in (("train", "people outside the gallery"), ("query", "queries"), ("gallery", "gallery")):
        made.add_argument(f"--{split}", required=True, help=f"features of the {text}: .npz or .safetensors")
    made.add_argument("--mechanisms", nargs="+", default=["gaussian", "privunit_g"], metavar="NAME[:KEY=VALUE,...]")
    made.add_argument("--epsilons", nargs="+", type=float, default=[4.0, 8.0, 16.0], help="budgets of one image")
    made.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), help="anonymous, enrolled")
    made.add_argument("--seeds", type=int, default=3, help="noise draws")
    made.add_argument("--delta", type=float, help="of approximate mechanisms (1e-5, if not given)")
    made.add_argument("--transform", default="center", help="public transform, fitted on --train")
    made.add_argument("--background-pids", nargs="*", type=int, default=[0], help="pids that are no person")
    made.add_argument("--out", default="sweep.json", help="file to write")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def sweep_command(argv: Sequence[str]) -> dict[str, Any]:
    """Run a sweep as the command line says, write JSON, print the table."""
    args = parser().parse_args(argv)
    rows = sweep(
        load_split(args.train),
        load_split(args.query),
        load_split(args.gallery),
        mechanisms=[MechanismSpec.parse(text) for text in args.mechanisms],
        epsilons=args.epsilons,
        protocols=args.protocols,
        seeds=args.seeds,
        delta=args.delta,
        transform=args.transform,
        background_pids=args.background_pids,
    )
    record = {"rows": rows, "command": ["tools/sweep.py", *argv], "environment": environment("cpu")}
    write_json(record, args.out)
    print(table(rows))
    print(f"Research noise: for figures only. Written to '{args.out}'")
    return record
