"""Sweeps: utility of mechanisms over budgets, units and protocols, from saved features, with research noise.

Parameters in a mechanism's written form are those of the mechanism, of `fit_prior`, and ``transform``, ``prototype``,
``max_rows_per_person`` and ``clip_norm`` of `DPGallery`.

Nothing is chosen here: every row says ``chosen_on: nothing``. Picking a mechanism, its parameters or a budget by these
figures and then releasing the same gallery is a look at the gallery that the budget does not cover; :mod:`.choice`
picks on validation people instead.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ..dp.bounds import bound_query_to_row
from ..dp.feature_files import load_arrays, require_arrays
from ..dp.gallery import DPGallery
from ..dp.mechanisms import MECHANISMS
from ..dp.prior import Prior, fit_prior
from ..dp.spec import MechanismSpec, naming_flags
from ..dp.transforms import PublicTransform
from ..dp.units import UNITS
from ..evaluation import FPIRS, Extracted, open_set_figures, protected_sets
from ..progress import track
from ..registry import check_arguments
from ..retrieval import evaluate, evaluate_enrolled

PROTOCOLS = ("anonymous", "enrolled")
_GALLERY_OPTIONS = ("transform", "prototype", "max_rows_per_person", "clip_norm")  # of DPGallery, not of the mechanism
_NO_OPTIONS = ("epsilon", "delta", "train_features", "train_pids")  # what flags and files give
_FLAGS = {
    **{"mechanism": "--mechanisms", "epsilon": "--epsilons", "delta": "--delta", "unit": "--units"},
    **{"transform": "--transform", "enroll_cameras": "--enroll-cameras"},
}


def make_gallery(
    spec: MechanismSpec,
    *,
    epsilon: float,
    unit: str,
    seed: int,
    delta: float | None,
    flags: Mapping[str, str] = _FLAGS,
    **common: Any,
) -> DPGallery:
    """Return the component that a mechanism with its parameters makes; ``delta`` goes to approximate ones only.

    Args:
        spec: the mechanism.
        epsilon: as in `DPGallery`.
        unit: as there.
        seed: as there.
        delta: of approximate mechanisms.
        flags: that ``mechanism`` and the other arguments were given by, which errors name; those of a sweep.
        common: further arguments of `DPGallery`.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    entry = MECHANISMS.get(spec.name, key=flags["mechanism"])
    takers: list[Callable[..., Any]] = [entry, lambda transform, prototype, max_rows_per_person, clip_norm: None]
    if "codebook" in inspect.signature(entry).parameters:
        takers.append(fit_prior)
    check_arguments(spec.options, takers, key=flags["mechanism"], given=_NO_OPTIONS)
    own = {key: value for key, value in spec.options.items() if key not in _GALLERY_OPTIONS}
    chosen = {key: value for key, value in spec.options.items() if key in _GALLERY_OPTIONS}
    called = {key: f"{key} of {flags['mechanism']}" for key in (*_GALLERY_OPTIONS, *own)} | dict(flags)
    if "transform" in chosen:
        called["transform"] = f"transform of {flags['mechanism']}"
    given = {"epsilon": epsilon, "unit": unit, "seed": seed, "options": own, **common, **chosen}
    with naming_flags({**called, "public transform": called["transform"]}):
        return DPGallery(spec.name, delta=None if entry.pure else delta, called=called, **given)


class Fitter:
    """Fits transforms and codebooks on the training split, each only once however many budgets use it.

    Args:
        train: people outside every gallery that is evaluated.
    """

    def __init__(self, train: Extracted) -> None:
        self._train = train
        self._transforms: dict[str, PublicTransform] = {}
        self._priors: dict[str, Prior] = {}

    def fit(self, gallery: DPGallery) -> DPGallery:
        """Do what ``gallery.fit`` does."""
        name = gallery.transform_name
        if name not in self._transforms:
            fitted = gallery.public_transform
            if fitted.needs_fit:
                gallery.fit_transform(self._train.features, self._train.pids)
            self._transforms[name] = fitted
        gallery.public_transform = self._transforms[name]
        if gallery.fits_prior:
            gallery.use_prior(self._prior(gallery, name))
        return gallery

    def _prior(self, gallery: DPGallery, transform: str) -> Prior:
        options = dict(gallery.prior_options)
        set_size = options.get("set_size", 1)
        if options.get("kind") in ("residual", "gaussian"):  # the codebook does not depend on it
            options["set_size"] = 1
        key = f"{transform} {sorted(options.items())}"
        if key not in self._priors:
            rows = gallery.transform(self._train.features)
            with gallery.naming_options():
                self._priors[key] = fit_prior(rows, self._train.pids, **options)
        prior = self._priors[key]
        with gallery.naming_options():
            return prior if prior.set_size == set_size else prior.with_set_size(set_size)


def load_split(path: str) -> Extracted:
    """Load ``features``, ``pids`` and ``camids`` from a .npz or .safetensors file.

    Raises:
        FileNotFoundError, ValueError: no such file, an array is missing, or lengths differ.
    """
    arrays = load_arrays(path)
    require_arrays(path, arrays, ("features", "pids", "camids"))
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
    units: Sequence[str] = ("image",),
    seeds: int | Sequence[int] = 3,
    delta: float | None = None,
    transform: str = "center",
    background_pids: Sequence[int] = (0,),
    enroll_cameras: Sequence[int] | None = None,
    fitter: Fitter | None = None,
    description: str = "Sweep",
) -> list[dict[str, Any]]:
    """Protect the gallery with each mechanism at each budget and evaluate it; one row a unit, protocol and seed.

    Transform and codebook are fitted on ``train`` only. The same seed gives the same noise in both protocols.

    Args:
        train: people outside the gallery.
        query: query rows, matched as they are.
        gallery: the rows that are protected.
        mechanisms: what to try.
        epsilons: budgets of one unit, > 0.
        protocols: anonymous, enrolled.
        units: image, person (enrolled from some cameras, queries of the others).
        seeds: number of noise draws (and of codebooks), seeds 1, 2, ...; or the seeds themselves.
        delta: failure probability of approximate mechanisms; None lets each mechanism choose.
        transform: registered public transform, unless a mechanism names its own.
        background_pids: pids that are no person.
        enroll_cameras: person unit: camids to enroll from; None: the first half.
        fitter: fits on ``train``; pass one to share what it has fitted already.
        description: what the progress bar says.

    Returns:
        Rows with ``mechanism, params, unit, protocol, epsilon, delta, person_epsilon, seed, rank1, mAP, tpir,
        chosen_on, prior_cell, prior_is_public, bound``; figures as fractions; ``mAP`` of the enrolled protocol is the
        mean reciprocal rank; ``tpir`` by false positive identification rate, enrolled only. ``person_epsilon`` is at
        the median and the largest number of rows a person. ``bound`` is `bound_query_to_row` where it applies: pure,
        person unit, one row a person.

    Raises:
        ValueError: an unknown name, or a value out of range, before anything is evaluated.
    """
    for flag, given, allowed in (("protocols", protocols, PROTOCOLS), ("units", units, UNITS)):
        if unknown := [name for name in given if name not in allowed]:
            raise ValueError(f"--{flag} has '{unknown[0]}'; allowed: {', '.join(allowed)}.")
    written = {"mechanisms": [str(spec) for spec in mechanisms], "epsilons": epsilons}
    for flag, named in {**written, "protocols": protocols, "units": units}.items():
        if twice := [value for place, value in enumerate(named) if value in named[:place]]:
            raise ValueError(f"--{flag} has {twice[0]} twice: its rows would count as two draws. Leave one out.")
    if "person" in units and enroll_cameras and not (~np.isin(query.camids, enroll_cameras)).any():
        raise ValueError(
            f"--enroll-cameras is {list(enroll_cameras)}: no query is of another camera, and those of the cameras that "
            "people are enrolled from are not counted. Leave a camera out."
        )
    if isinstance(seeds, int) and seeds < 1:
        raise ValueError(f"--seeds is {seeds}, must be >= 1.")
    chosen_seeds = range(1, seeds + 1) if isinstance(seeds, int) else seeds
    if np.isin(gallery.pids, background_pids).all():
        raise ValueError(
            f"--background-pids is {list(background_pids)}: nobody is left in the gallery. Leave out those who are."
        )
    common: dict[str, Any] = {
        "transform": transform,
        "background_pids": background_pids,
        "enroll_cameras": enroll_cameras,
    }
    plan = [
        (spec, seed, make_gallery(spec, epsilon=epsilon, unit=unit, seed=seed, delta=delta, **common))
        for spec, unit, seed, epsilon in itertools.product(mechanisms, units, chosen_seeds, epsilons)
    ]
    fitter = fitter or Fitter(train)
    rows: list[dict[str, Any]] = []
    for spec, seed, protection in track(plan, description, unit="releases"):
        rows.extend(_evaluated(spec, seed, fitter.fit(protection), {"query": query, "gallery": gallery}, protocols))
    return rows


def _evaluated(
    spec: MechanismSpec, seed: int, protection: DPGallery, sets: dict[str, Extracted], protocols: Sequence[str]
) -> Iterator[dict[str, Any]]:
    protected, _ = protected_sets(protection, sets)
    query, gallery = protected["query"], protected["gallery"]
    rows = (query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids)
    people = gallery.pids[~np.isin(gallery.pids, protection.background_pids)]
    counts = np.unique(people, return_counts=True)[1]
    mechanism, prior = protection.mechanism, protection.prior
    one_row_each = protection.unit == "person" and counts.max() == 1
    for protocol in protocols:
        if protocol == "anonymous":
            ranking = evaluate(*rows, metric="cosine")
            rank1, mean_ap, tpir, listed = ranking.rank1, ranking.mAP, None, len(gallery.pids)
        else:
            enrolled = evaluate_enrolled(*rows, background_pids=protection.background_pids)
            rank1, mean_ap, listed = enrolled.rank1, enrolled.mrr, enrolled.num_people
            open_set = open_set_figures(protection, sets["gallery"], protected)
            tpir = None if open_set is None else {str(point.fpir): point.tpir for point in open_set.points}
        yield {
            "mechanism": spec.name,
            "params": spec.options,
            "unit": protection.unit,
            "protocol": protocol,
            "epsilon": mechanism.epsilon,
            "delta": mechanism.delta,
            "person_epsilon": [protection.person_level_epsilon(float(k)) for k in (np.median(counts), counts.max())],
            "seed": seed,
            "rank1": rank1,
            "mAP": mean_ap,
            "tpir": tpir,
            "chosen_on": "nothing",
            "prior_cell": None if prior is None else prior.people_behind,
            "prior_is_public": prior is not None and prior.is_public,
            "bound": bound_query_to_row(mechanism.epsilon, listed) if one_row_each and mechanism.pure else None,
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in percent: mean and standard deviation over the seeds, one line a mechanism, protocol and budget."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
        groups.setdefault((row["mechanism"], params, row["unit"], row["protocol"], row["epsilon"]), []).append(row)
    lines = []
    for key, group in groups.items():
        shown = [_mean_and_deviation([row[name] for row in group]) for name in ("rank1", "mAP")]
        rates = [_mean_and_deviation([(row["tpir"] or {}).get(str(rate)) for row in group]) for rate in FPIRS]
        cell = group[0]["prior_cell"]
        people = "-" if cell is None else f"{cell:.1f}{' (public)' if group[0]['prior_is_public'] else ''}"
        person = "{:.3g} / {:.3g}".format(*group[0]["person_epsilon"])
        bound = group[0]["bound"]
        lines.append([*key, person, *shown, *rates, "-" if bound is None else f"{100 * bound:.1f}", people])
    headers = ["mechanism", "parameters", "unit", "protocol", "epsilon", "a person, median / largest", "rank-1", "mAP"]
    headers += [*(f"TPIR@{rate:.0%}" for rate in FPIRS), "bound on rank-1", "cell"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else "-"
    return f"{np.mean(known):.1f} ± {np.std(known, ddof=1):.1f}"
