"""The prior: decoder and cells against loops, limits on people, and that it is a training affair."""

import inspect
import json

import numpy as np
import pytest
import torch

from ppreid_plugin.dp import build_mechanism, fit_prior


def training(rows=240, people=40, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    pids = np.arange(rows) % people
    return rng.normal(size=(people, columns))[pids] + 0.5 * rng.normal(size=(rows, columns)), pids


@pytest.mark.parametrize("set_size", [1, 3])
@pytest.mark.parametrize("kind", ["kmeans", "raw"])
def test_decoder_and_cells_against_loops(kind, set_size):
    features, pids = training()
    prior = fit_prior(features, pids, codewords=8, set_size=set_size, kind=kind, prior_is_public=True)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(prior.codebook, axis=1), 1)
    sets = [set(np.argsort(-(prior.codebook @ row), kind="stable")[:set_size]) for row in unit]
    cells, owners = [], []
    for symbol in range(8):
        members = [row for row in range(len(unit)) if symbol in sets[row]]
        np.testing.assert_allclose(prior.decoder[symbol], unit[members].mean(axis=0))
        cells.append(len({int(pids[row]) for row in members}))
        owners.append(
            len({int(pid) for row, pid in zip(unit, pids, strict=True) if (prior.codebook @ row).argmax() == symbol})
        )
    assert (prior.people_per_cell, prior.smallest_cell) == (np.mean(cells), min(cells))
    assert prior.people_per_codeword == np.mean(owners)
    assert (prior.rows, prior.people) == (240, 40)
    if kind == "raw":
        assert all((np.abs(unit - word).max(axis=1) < 1e-12).any() for word in prior.codebook)


def test_a_mechanism_is_built_from_it_and_ranks_better_with_budget():
    features, pids = training()
    prior = fit_prior(features, pids, codewords=12, set_size=2, min_people=5)
    gallery, _ = training(seed=1)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    scores = []
    for epsilon in (0.1, 8.0):
        mechanism = build_mechanism("prior_subset", epsilon=epsilon, **prior.options())
        released = mechanism.privatize(gallery, generator=np.random.default_rng(0))
        scores.append((unit * released).sum(axis=1).mean())
    assert scores[1] > scores[0] + 0.2


def test_seed_and_container_give_the_same_prior():
    features, pids = training()
    first = fit_prior(features, pids, codewords=6, seed=3)
    second = fit_prior(torch.from_numpy(features), torch.from_numpy(pids), codewords=6, seed=3)
    np.testing.assert_array_equal(first.codebook, second.codebook)
    np.testing.assert_array_equal(first.decoder, second.decoder)
    assert not np.array_equal(first.codebook, fit_prior(features, pids, codewords=6, seed=4).codebook)


def test_small_cells_are_refused_or_merged_or_said_to_be_public():
    features, pids = training()
    with pytest.raises(
        ValueError, match=r"people_behind is [\d.]+ with 60 codewords and set_size 1, must be at least 10"
    ):
        fit_prior(features, pids, codewords=60)
    merged = fit_prior(features, pids, codewords=60, merge=True)
    assert merged.people_behind >= 10
    assert len(merged.codebook) < 30
    with pytest.raises(ValueError, match="people_behind is .* with 60 codewords and set_size 20"):
        fit_prior(features, pids, codewords=60, set_size=20)  # large sets do not hide whose mean a codeword is
    public = fit_prior(features, pids, codewords=60, prior_is_public=True)
    assert public.people_behind < 10
    assert public.describe()["is_public"] is True
    with pytest.raises(ValueError, match="people_behind is .* must be at least 1000"):
        fit_prior(features, pids, codewords=60, merge=True, min_people=1000)


def test_there_is_no_way_to_pass_a_gallery():
    assert not [name for name in inspect.signature(fit_prior).parameters if "gallery" in name]


def test_description_is_json_without_features_and_arrays_are_read_only():
    features, pids = training()
    prior = fit_prior(features, pids, codewords=6)
    described = json.loads(json.dumps(prior.describe()))
    assert (described["prior"], described["codewords"], described["fitted_people"]) == ("kmeans", 6, 40)
    for array in (prior.codebook, prior.decoder):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "random"}, "kind is 'random'; allowed: gaussian, kmeans, raw, residual"),
        ({"kind": "raw"}, "kind is 'raw', which publishes training features as they are"),
        ({"min_people": 0}, "min_people is 0, must be a finite number > 0"),
        ({"codewords": 1}, "codewords is 1, must be 2 to 240"),
        ({"codewords": 241}, "codewords is 241, must be"),
        ({"codewords": 8.0}, "codewords is 8.0"),
        ({"seed": "x"}, "seed is 'x', must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296, must be a whole number from 0 to"),
        ({"seed": -1, "kind": "gaussian"}, "seed is -1, must be a whole number >= 0"),
        ({"seed": True, "kind": "raw", "prior_is_public": True}, "seed is True, must be a whole number >= 0"),
        ({"set_size": 8}, "set_size is 8, must be 1 to 7"),
        ({"train_pids": [1, 2]}, r"train_pids has shape \(2,\) of int64, must be \(240,\)"),
        ({"train_features": np.zeros((240, 6))}, "train_features row 0 is zero"),
        ({"train_features": np.full((240, 6), np.nan)}, "hold NaN or infinity"),
    ],
)
def test_errors(options, message):
    features, pids = training()
    with pytest.raises(ValueError, match=message):
        fit_prior(**{"train_features": features, "train_pids": pids, "codewords": 8, **options})
