"""Releases: what is in the folder, what is not, protocols and units, validation on load, plans, errors, mutants."""

import json
import logging
import math
import re
import shutil
import time

import numpy as np
import pytest
import torch
from gallery_cases import DIM, PIDS, gallery, open_ledger, release, subset, transform
from safetensors.numpy import load_file, save_file
from scipy import stats

from ppreid_plugin.dp import journal, sampling
from ppreid_plugin.dp.bounds import bound_query_to_row, bound_row_to_person_gaussian
from ppreid_plugin.dp.budget import BudgetExceeded
from ppreid_plugin.dp.entropy import Entropy
from ppreid_plugin.dp.exact import LatticeGaussian
from ppreid_plugin.dp.manifest import sha256
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleasePlan, ReleaseTerms
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.stored_gallery import StoredGallery
from ppreid_plugin.dp.transforms import Center
from ppreid_plugin.dp.units import GalleryRows, group_units, select_rows, unit_features

KEPT = [index for index, pid in enumerate(PIDS) if pid >= 0]


def unit_rows(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# --- what is in the folder


def test_an_enrolled_release_holds_labels_and_unit_rows(tmp_path):
    result = release(tmp_path, protocol="enrolled", controller="The museum", purpose="a test", expires="2999-01-31")
    assert sorted(path.name for path in result.folder.iterdir()) == ["gallery.safetensors", "manifest.json"]
    assert result.row_ids == [f"r{index}" for index in KEPT]
    assert result.pids.tolist() == [PIDS[index] for index in KEPT]
    assert result.camids.tolist() == [index % 3 for index in KEPT]
    assert result.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=1), 1, atol=1e-6)
    manifest = result.manifest
    assert (manifest["controller"], manifest["purpose"], manifest["expires"]) == ("The museum", "a test", "2999-01-31")
    lattice = LatticeGaussian(8.0, 1e-5, DIM)
    assert (manifest["sigma"], manifest["mu"]) == (lattice.sigma, lattice.mu)
    assert manifest["rows_a_person"] == {"median": 2, "largest": 3}
    assert manifest["person_level"]["epsilon_at_largest"] == pytest.approx(15.86, abs=0.01)
    queries = np.random.default_rng(3).normal(size=(4, DIM))
    np.testing.assert_array_equal(result.transform().transform(queries), transform().transform(queries))
    assert manifest["bounds"]["row_to_person"] == pytest.approx(bound_row_to_person_gaussian(lattice.mu, 4), abs=2e-6)


def test_an_anonymous_release_holds_no_labels_and_no_order(tmp_path):
    result = release(tmp_path, truth_out="keep/truth.json")
    assert {name for name in result.arrays if not name.startswith("transform.")} == {"features", "row_id"}
    assert (result.pids, result.camids) == (None, None)
    assert result.row_ids == [f"{index:06d}" for index in range(9)]
    text = (result.folder / "manifest.json").read_text()
    assert not re.search(r"\br\d\b", text)  # no row id
    truth = json.loads((tmp_path / "keep" / "truth.json").read_text())["rows"]
    assert sorted(row["row_id"] for row in truth) == [f"r{index}" for index in KEPT]
    assert all(row["pid"] == PIDS[int(row["row_id"][1:])] for row in truth)
    assert [row["row"] for row in truth] == result.row_ids
    assert "market1501" not in text


def test_the_map_to_labels_is_right_and_every_row_is_released(tmp_path):
    """At a huge epsilon each released row points at its own image."""
    terms = {"ledger": open_ledger(tmp_path, epsilon=1e6), "epsilon": 5e3, "truth_out": "truth.json"}
    result = release(tmp_path, **terms)
    truth = json.loads((tmp_path / "truth.json").read_text())["rows"]
    clean = unit_rows(transform().transform(gallery().features))
    nearest = (result.features @ clean.T).argmax(axis=1)
    assert [f"r{index}" for index in nearest] == [row["row_id"] for row in truth]
    assert [row["row_id"] for row in truth] != sorted(row["row_id"] for row in truth)  # shuffled: 1 in 9! otherwise


def test_rows_are_shuffled_uniformly():
    """Where row 0 of three lands, 3000 times: chi-square at a false alarm of 1e-6."""
    places = [Entropy().permutation(3).tolist().index(0) for _ in range(3000)]
    assert stats.chisquare(np.bincount(places, minlength=3)).pvalue > 1e-6


@pytest.mark.parametrize("protocol", ["anonymous", "enrolled"])
def test_a_finite_release_holds_symbols_and_the_codebook(tmp_path, protocol):
    mechanism = subset(12.0, decoder=np.random.default_rng(8).normal(size=(20, DIM)))
    result = release(tmp_path, mechanism=mechanism, protocol=protocol, prior={"source": "generated people"})
    assert (result.arrays["symbols"].dtype, result.arrays["symbols"].shape) == (np.int64, (9,))
    np.testing.assert_array_equal(result.arrays["codebook"], mechanism.decoder.astype(np.float32))
    np.testing.assert_array_equal(result.arrays["codewords"], mechanism.codebook)
    np.testing.assert_array_equal(result.features, result.arrays["codebook"][result.arrays["symbols"]])
    assert (result.manifest["delta"], result.manifest["pure"], result.manifest["mu"]) == (0.0, True, None)
    assert result.manifest["mechanism"]["set_size"] == 3
    assert result.manifest["prior"] == {"source": "generated people"}
    if protocol == "enrolled":
        members = mechanism.sets(torch.from_numpy(transform().transform(gallery().features)[KEPT])).numpy()
        kept = members[np.arange(9), result.arrays["symbols"]]
        assert kept.sum() >= 8  # outside with probability 3.5e-5 a row: two of nine, a false alarm of 5e-8


def test_person_unit_one_prototype_a_person_background_by_row(tmp_path):
    result = release(tmp_path, unit="person", protocol="enrolled")
    assert result.row_ids == ["person-1", "person-2", "person-3", "person-4", "r0"]
    assert result.pids.tolist() == [1, 2, 3, 4, 0]
    assert result.camids is None
    assert result.manifest["rows_a_person"] == {"median": 1, "largest": 1}
    assert result.manifest["person_level"]["epsilon_at_largest"] == 8.0


def test_bounds_on_rank_1_in_the_person_unit_only(tmp_path):
    person = release(tmp_path, mechanism=subset(2.0), unit="person").manifest["bounds"]
    image = release(tmp_path, mechanism=subset(2.0), name="b", out="b").manifest["bounds"]
    assert person["query_to_row"] == bound_query_to_row(2.0, 4)
    assert set(image) == {"row_to_person", "auc"}


def test_prototypes_are_normalized_means_of_unit_rows():
    rows = select_rows(gallery())
    units = group_units(rows, "person")
    prototypes = unit_features(rows.features, units)
    for unit, prototype in zip(units, prototypes, strict=True):
        mean = sum(rows.features[index] / np.linalg.norm(rows.features[index]) for index in unit.members)
        np.testing.assert_allclose(prototype, mean / np.linalg.norm(mean), atol=1e-12)
    assert [len(unit.members) for unit in units] == [3, 2, 2, 1, 1]


def test_limit_and_opt_out(tmp_path, caplog):
    result = release(tmp_path, protocol="enrolled", max_rows_per_person=1, opt_out=(2,))
    assert result.row_ids == ["r0", "r1", "r6", "r9"]
    assert (result.manifest["max_rows_per_person"], result.manifest["opted_out"]) == (1, 1)
    many = GalleryRows(np.ones((5, DIM)), list("edcba"), np.array([7, 7, 7, 0, 0]), np.zeros(5, int))
    assert select_rows(many, max_rows_per_person=2).row_ids == ("a", "b", "c", "d")  # no limit for background
    seen = GalleryRows(np.ones((6, DIM)), list("abcdef"), np.full(6, 7), np.array([2, 2, 2, 0, 0, 1]))
    assert select_rows(seen, max_rows_per_person=3).row_ids == ("a", "d", "f")  # one of each camera
    assert select_rows(seen, max_rows_per_person=4).row_ids == ("a", "b", "d", "f")


def test_budgets_of_everyone_are_told_and_mu_is_that_of_sigma(tmp_path):
    everyone = dict.fromkeys([0, 1, 2, 3, 4], 32.0)
    result = release(tmp_path, ledger=open_ledger(tmp_path, epsilon=1e6), budgets=everyone, protocol="enrolled")
    manifest = result.manifest
    assert manifest["individual_budgets"] == [{"epsilon": 32.0, "rows": 9}]  # though they are all alike
    assert manifest["mu"] * manifest["sigma"] == pytest.approx(manifest["sensitivity"])
    assert StoredGallery(tmp_path / "release").person_level_epsilon(1) == pytest.approx(32.0, rel=1e-3)
    assert StoredGallery(tmp_path / "release").person_level_epsilon(3) > 32 * 3**0.5


def test_only_rows_of_the_named_cameras_go_in_and_the_manifest_names_them(tmp_path):
    result = release(tmp_path, unit="person", protocol="enrolled", cameras=(0, 1))
    assert result.manifest["cameras"] == [0, 1]
    kept = [(pid, camid) for pid, camid in zip(PIDS, np.arange(10) % 3, strict=True) if pid != -1 and camid != 2]
    assert set(result.pids.tolist()) == {pid for pid, _ in kept}
    stored = StoredGallery(tmp_path / "release")
    assert stored.queried(np.array([0, 1, 2])).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="or of other cameras"):
        release(tmp_path, out="none", name="b", cameras=(9,))


def test_prototypes_of_unknown_cameras_are_warned_of(tmp_path, caplog):
    release(tmp_path, unit="person", protocol="enrolled")
    stored = StoredGallery(tmp_path / "release")
    assert "does not say which cameras its prototypes are from" in caplog.text
    assert stored.queried(np.array([0, 1])).all()
    told = StoredGallery(tmp_path / "release", enroll_cameras=[0])
    assert told.queried(np.array([0, 1])).tolist() == [False, True]


def test_budgets_of_their_own_are_kept_and_warned_about(tmp_path, caplog):
    ledger = open_ledger(tmp_path, epsilon=1e6)
    result = release(tmp_path, budgets={2: 0.5}, ledger=ledger, epsilon=5e3, protocol="enrolled")
    assert "noise level of a row is visible" in caplog.text
    assert result.arrays["epsilon"].tolist() == [0.5 if pid == 2 else 5e3 for pid in result.pids]
    assert result.manifest["individual_budgets"] == [{"epsilon": 0.5, "rows": 2}, {"epsilon": 5000.0, "rows": 7}]
    assert (ledger.total("image:r4"), ledger.total("image:r1")) == (0.5, 5e3)
    cosine = (result.features * unit_rows(transform().transform(gallery().features))[KEPT]).sum(axis=1)
    assert (cosine[result.pids != 2] > 0.99).all()
    assert (np.abs(cosine[result.pids == 2]) < 0.9).any()
    assert result.manifest["epsilon"] == 5e3


def test_delta_too_large_for_the_number_of_rows_is_warned_about(tmp_path, caplog):
    release(tmp_path, ledger=open_ledger(tmp_path, delta=0.05), delta=0.05)
    assert "above 1 / (10 n) = 0.0111111 for 9 rows" in caplog.text
    caplog.clear()
    release(tmp_path, ledger=open_ledger(tmp_path, scope="b", delta=0.01), delta=0.01, out="b")
    assert "above" not in caplog.text


def test_features_come_as_torch_or_numpy_of_any_scale(tmp_path):
    rows = gallery()
    scaled = torch.from_numpy(rows.features * 1e6).float()
    plan = ReleasePlan(rows, subset(), transform(), ReleaseTerms(name="a", model="m"))
    other = ReleasePlan(
        GalleryRows(scaled, rows.row_ids, rows.pids, rows.camids),
        subset(),
        transform(),
        ReleaseTerms(name="a", model="m"),
    )
    np.testing.assert_allclose(plan._features, other._features, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(plan._features, axis=1), 1, atol=1e-12)


# --- neighbors: what depends on clean features


def test_manifests_of_neighbors_differ_in_the_noised_rows_only(tmp_path, monkeypatch, caplog):
    """Same key, time and labels; one row's features replaced. Ledger, manifest, log: equal but for the noised bytes."""
    monkeypatch.setattr(journal, "utc_now", lambda: "2027-01-01T00:00:00Z")
    monkeypatch.setattr("ppreid_plugin.dp.manifest.utc_now", journal.utc_now)
    monkeypatch.setattr(journal.secrets, "token_bytes", lambda count: b"k" * count)
    caplog.set_level(logging.DEBUG)
    texts, logs = [], []
    folder = tmp_path / "place"
    for seed in (0, 1):
        folder.mkdir()
        rows = gallery()
        if seed:
            features = rows.features.copy()
            features[1] = -1e9 * features[1]
            rows = GalleryRows(features, rows.row_ids, rows.pids, rows.camids)
        manifest = release(folder, rows, protocol="enrolled").manifest
        assert manifest["file"].pop("sha256") == sha256((folder / "release" / "gallery.safetensors").read_bytes())
        ledger = (
            (folder / "ledger" / "market.jsonl").read_bytes().splitlines()[:-1]
        )  # the last holds the manifest's hash
        texts.append((json.dumps(manifest), ledger))
        logs.append([one.getMessage() for one in caplog.records if one.name.startswith("ppreid_plugin")])
        caplog.clear()
        folder.rename(tmp_path / str(seed))
    assert texts[0] == texts[1]
    assert logs[0] == logs[1]
    first, second = (load_release(tmp_path / str(seed) / "release").arrays for seed in (0, 1))
    assert set(first) == set(second)
    assert [name for name in first if not np.array_equal(first[name], second[name])] == ["features"]


def test_a_row_depends_on_its_own_image_and_training_people_only():
    rows, terms = gallery(), ReleaseTerms(name="a", model="m")
    before = ReleasePlan(rows, subset(), transform(), terms)._features
    features = rows.features.copy()
    features[1] = 1e6
    after = ReleasePlan(
        GalleryRows(features, rows.row_ids, rows.pids, rows.camids), subset(), transform(), terms
    )._features
    changed = (before != after).any(axis=1)
    assert changed.tolist() == [False, True, *[False] * 7]


# --- a mutant of each kind must be seen


def audit(samples_x, samples_y, epsilon, delta, direction):
    """Lower bound of mu from the two error rates at the best threshold; false alarm 1e-6 by DKW."""
    scores_x, scores_y = np.sort(samples_x @ direction), np.sort(samples_y @ direction)
    slack = math.sqrt(math.log(2 / 5e-7) / (2 * len(scores_x)))
    best = 0.0
    for threshold in np.quantile(scores_x, np.linspace(0.02, 0.98, 49)):
        true = np.mean(scores_x > threshold) - slack
        false = np.mean(scores_y > threshold) + slack
        if 0 < true < 1 and 0 < false < 1:
            best = max(best, stats.norm.ppf(true) - stats.norm.ppf(false))
    return best


MUTANTS = {
    "correct": lambda self, rows: self.real(rows),
    "half sigma": lambda self, rows: self.lattice(rows) * self.step + (self.real(rows * 0)) / 2,
    "input not bounded": lambda self, rows: rows * 1.5 + self.real(rows * 0),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_an_audit_of_the_released_noise_sees_mutants(monkeypatch, mutant):
    """Two opposite rows, 20,000 draws each: mu is bounded from below to within 15 %, and each mutant exceeds it."""
    mechanism = LatticeGaussian(4.0, 1e-5, 1)
    real = LatticeGaussian.release
    monkeypatch.setattr(LatticeGaussian, "real", real, raising=False)
    monkeypatch.setattr(LatticeGaussian, "release", MUTANTS[mutant])
    x = mechanism.release(np.full((20_000, 1), 1.0))
    y = mechanism.release(np.full((20_000, 1), -1.0))
    bound = audit(x, y, 4.0, 1e-5, np.ones(1))
    assert (bound <= mechanism.mu) == (mutant == "correct")
    assert bound > 0.85 * mechanism.mu


def reused(self, rows, epsilon):
    noised = LatticeGaussian(epsilon, 1e-5, self.dim).release(rows[:1] * 0) + rows  # one draw for all rows
    return {"features": noised.astype(np.float32)}


@pytest.mark.parametrize("mutant", [None, reused])
def test_noise_is_not_shared_between_rows(tmp_path, monkeypatch, mutant):
    if mutant:
        monkeypatch.setattr(sampling.GaussianSampler, "draw", mutant)
    same = GalleryRows(np.ones((6, DIM)), list("abcdef"), np.arange(1, 7), np.zeros(6, int))
    features = release(tmp_path, same, protocol="enrolled", center=transform("none")).features
    distinct = len(np.unique(features, axis=0))
    assert (distinct == 6) == (mutant is None)


def test_a_release_takes_no_seed_and_no_generator(tmp_path):
    for name in ("seed", "generator"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            release(tmp_path, **{name: 1})
    first = second = None
    for out in ("x", "y"):
        torch.manual_seed(0)
        np.random.seed(0)
        first, second = second, release(tmp_path, epsilon=4.0, protocol="enrolled", name=out, out=out).features
    assert (first != second).all(axis=None)


# --- loading


def saved(tmp_path):
    return release(tmp_path, protocol="enrolled").folder


def rewrite(folder, change_manifest=lambda manifest: None, change_arrays=None):
    """Change arrays and manifest and make size and hash fit again: what only the deeper checks can see."""
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = load_file(folder / "gallery.safetensors")
    if change_arrays:
        change_arrays(arrays)
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, folder / "gallery.safetensors")
        manifest["arrays"] = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()}
    data = (folder / "gallery.safetensors").read_bytes()
    manifest["file"] = {"name": "gallery.safetensors", "bytes": len(data), "sha256": sha256(data)}
    change_manifest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_load_gives_what_was_released(tmp_path):
    result = release(tmp_path, protocol="enrolled")
    loaded = load_release(str(tmp_path / "release"))
    assert loaded.manifest == result.manifest
    np.testing.assert_array_equal(loaded.features, result.features)
    rewrite(loaded.folder)
    load_release(loaded.folder)  # rewrite itself breaks nothing


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: shutil.rmtree(f), FileNotFoundError, "holds no manifest.json: it is not a release"),
        (lambda f: (f / "manifest.json").unlink(), FileNotFoundError, "holds no manifest.json"),
        (lambda f: (f / "gallery.safetensors").unlink(), FileNotFoundError, "holds no gallery.safetensors"),
        (lambda f: (f / "manifest.json").write_text("{"), ValueError, "is not JSON: cut off or edited"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), ValueError, "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), ValueError, "not the manifest of a release"),
        (lambda f: (f / "manifest.json").write_text('{"format": "x"}'), ValueError, "not the manifest of a release"),
        (
            lambda f: (f / "gallery.safetensors").write_bytes((f / "gallery.safetensors").read_bytes()[:-9]),
            ValueError,
            r"gallery.safetensors holds \d+ bytes, manifest.json says \d+: cut off or exchanged",
        ),
        (
            lambda f: (f / "gallery.safetensors").write_bytes((f / "gallery.safetensors").read_bytes()[:-1] + b"\x01"),
            ValueError,
            "SHA-256 differs",
        ),
        (lambda f: rewrite(f, lambda m: m.update(version=2)), ValueError, "has version 2; this program reads 1"),
        (lambda f: rewrite(f, lambda m: m.pop("unit")), ValueError, "lacks unit"),
        (lambda f: rewrite(f, lambda m: m.update(epsilon=0)), ValueError, "epsilon is 0, must be a finite number > 0"),
        (
            lambda f: rewrite(f, lambda m: m.update(epsilon=float("nan"))),
            ValueError,
            "epsilon is nan, must be a finite",
        ),
        (lambda f: rewrite(f, lambda m: m.update(delta=1.0)), ValueError, r"delta is 1.0, must be .* in \[0, 1\)"),
        (lambda f: rewrite(f, lambda m: m.update(scope="s")), ValueError, "is malformed: scope is 's'"),
        (lambda f: rewrite(f, lambda m: m.update(expires=3)), ValueError, "is malformed: expires is 3"),
        (
            lambda f: rewrite(f, lambda m: m.update(delta="x")),
            ValueError,
            r"delta is 'x', must be a finite number in \[0, 1\)",
        ),
        (lambda f: rewrite(f, lambda m: m.update(rows=8)), ValueError, "rows is 8, features holds 9"),
        (lambda f: rewrite(f, lambda m: m["parts"].pop()), ValueError, r"rows is 9, its parts hold \[\]"),
        (lambda f: rewrite(f, lambda m: m["parts"][0].pop("rows")), ValueError, "is malformed"),
        (lambda f: rewrite(f, lambda m: m.update(arrays=3)), ValueError, "is malformed"),
        (lambda f: rewrite(f, lambda m: m.update(file=3)), ValueError, "manifest.json says 3"),
        (
            lambda f: rewrite(f, lambda m: m["arrays"].pop("pids")),
            ValueError,
            "differ from .* in pids",
        ),
        (
            lambda f: rewrite(f, lambda m: m.update(protocol="anonymous")),
            ValueError,
            "holds pids, camids",
        ),
        (lambda f: rewrite(f, change_arrays=lambda a: a.pop("pids")), ValueError, "holds no pids"),
        (lambda f: rewrite(f, change_arrays=lambda a: a.pop("features")), ValueError, "either features or symbols"),
        (lambda f: rewrite(f, change_arrays=lambda a: a.update(pids=a["pids"][1:])), ValueError, "pids holds 8"),
        (
            lambda f: rewrite(f, change_arrays=lambda a: a["features"].__setitem__((0, 0), np.nan)),
            ValueError,
            "features hold NaN",
        ),
        (
            lambda f: rewrite(f, change_arrays=lambda a: a["row_id"].__setitem__(0, a["row_id"][1])),
            ValueError,
            "holds a row id twice",
        ),
    ],
)
def test_a_damaged_release_is_refused(tmp_path, damage, error, message):
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(error, match=message):
        load_release(folder)


def test_a_symbol_outside_the_codebook_is_refused(tmp_path):
    folder = release(tmp_path, mechanism=subset()).folder
    rewrite(folder, change_arrays=lambda arrays: arrays["symbols"].__setitem__(0, 20))
    with pytest.raises(ValueError, match=r"symbols must be in \[0, 20\)"):
        load_release(folder)


def test_an_expired_release_loads_with_a_warning(tmp_path, caplog):
    folder = release(tmp_path, expires="2999-01-01").folder
    caplog.clear()
    load_release(folder)
    assert "expired" not in caplog.text
    rewrite(folder, lambda manifest: manifest.update(expires="2020-01-01"))
    load_release(folder)
    assert "expired on 2020-01-01: delete it" in caplog.text


# --- errors before anything is spent


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mechanism": build_mechanism("privunit_g", epsilon=8.0)}, ValueError, "'privunit_g' is research only: no"),
        ({"mechanism": build_mechanism("privunit", epsilon=8.0)}, ValueError, "'privunit' is research only: no"),
        ({"mechanism": build_mechanism("none", epsilon=1.0)}, ValueError, "mechanism 'none' is research only"),
        ({"center": Center()}, RuntimeError, "is not fitted"),
        ({"unit": "camera"}, ValueError, "unit is 'camera'; allowed: image, person"),
        ({"protocol": "open"}, ValueError, "protocol is 'open'; allowed: anonymous, enrolled"),
        ({"name": "a/b"}, ValueError, "name is 'a/b', must be letters, digits"),
        ({"model": ""}, ValueError, "must be a fingerprint"),
        ({"expires": "soon"}, ValueError, "expires is 'soon', must be a date"),
        ({"budgets": {1: -2.0}}, ValueError, r"budgets\[1\] is -2.0, must be a finite number > 0"),
        ({"max_rows_per_person": -1}, ValueError, "max_rows_per_person is -1"),
        ({"opt_out": (0, 1, 2, 3, 4)}, ValueError, "none of 10 rows is left to release"),
        ({"truth_out": "release/truth.json"}, ValueError, "truth_out lies inside the release"),
        ({"truth_out": "taken"}, FileExistsError, "taken' exists already"),
        ({"out": "ledger/release"}, ValueError, "out is .*ledger/release', in the ledger's folder: that is to be kept"),
        ({"truth_out": "/proc/t.json"}, ValueError, "truth_out is .*, where nothing can be written"),
        ({"truth_out": "ledger/s.jsonl"}, ValueError, "truth_out is .*, in the ledger's folder: it could take the"),
        ({"truth_out": "t" * 248}, ValueError, "where nothing can be written .File name too long"),
        ({"out": "r" * 240}, ValueError, "where nothing can be written .File name too long"),
        ({"out": "/proc/release"}, ValueError, "out is '/proc/release', where nothing can be written"),
        ({"out": "taken"}, FileExistsError, "taken' exists already, and a release overwrites nothing"),
        ({"epsilon": 17.0}, BudgetExceeded, "9 of 9 units have spent epsilon 0.00 of 16.00"),
        (
            {"rows": GalleryRows(np.eye(3), ["x"] * 0 + list("abc"), np.ones(3, int), np.ones(3, int))},
            ValueError,
            "columns",
        ),
    ],
)
def test_errors_come_before_anything_is_spent(tmp_path, change, error, message):
    open_ledger(tmp_path).open()
    (tmp_path / "taken").mkdir()
    change = dict(change)
    with pytest.raises(error, match=message):
        release(tmp_path, change.pop("rows", None), **change)
    assert len(open_ledger(tmp_path).records()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger", "taken"]


NO_ROWS = {"features": np.zeros((0, 2)), "row_ids": [], "pids": np.zeros(0, int), "camids": np.zeros(0, int)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_ids": ["a", "b", "a"]}, "row_ids holds 'a' twice"),
        ({"row_ids": ["a", "b", ""]}, "row_ids holds ''"),
        ({"row_ids": ["a", "b", "c\0"]}, "must be printable text"),
        ({"row_ids": ["a", "b"]}, "row_ids 2, pids 3"),
        ({"pids": np.ones(3)}, "pids is of type float64, must be whole numbers"),
        ({"camids": np.ones((3, 1), int)}, "lengths"),
        ({"features": np.full((3, 2), np.nan)}, r"rows 0, 1, 2 \(3 of 3\) hold NaN"),
        (
            {"features": np.zeros((0, 2)), "row_ids": [], "pids": np.zeros(0, int), "camids": np.zeros(0, int)},
            "at least 1",
        ),
    ],
)
def test_gallery_errors(change, message):
    fields = {"features": np.eye(3), "row_ids": list("abc"), "pids": np.ones(3, int), "camids": np.ones(3, int)}
    with pytest.raises(ValueError, match=message):
        GalleryRows(**{**fields, **change})


def test_row_ids_may_be_numbers_or_any_script(tmp_path):
    numbers = GalleryRows(np.eye(3, DIM), np.arange(3), np.array([1, 2, 3]), np.zeros(3, int))
    assert release(tmp_path, numbers, protocol="enrolled").row_ids == ["0", "1", "2"]
    words = GalleryRows(np.eye(3, DIM), ["æ", "名前", "z"], np.array([1, 2, 3]), np.zeros(3, int))
    assert release(tmp_path, words, protocol="enrolled", name="b", out="b").row_ids == ["z", "æ", "名前"]


def test_zero_rows_are_noised_too(tmp_path):
    rows = GalleryRows(np.zeros((4, DIM)), list("abcd"), np.arange(1, 5), np.zeros(4, int))
    features = release(tmp_path, rows, protocol="enrolled").features
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_rows_of_a_large_gallery_are_drawn_in_time_that_grows_with_them():
    """A set built anew for each row took 30 s for 32,000 of them, under the ledger's lock."""
    features = np.random.default_rng(0).normal(size=(32_000, 2))
    rows = GalleryRows(features, [f"r{index}" for index in range(32_000)], np.arange(32_000), np.zeros(32_000, int))
    mechanism = build_mechanism("prior_subset", epsilon=1.0, codebook=np.eye(2))
    plan = ReleasePlan(rows, mechanism, transform("none"), ReleaseTerms(name="a", model="m"))
    names = [unit.name for unit in plan.units]
    start = time.process_time()
    assert len(plan.rows_of(names)["symbols"]) == 32_000
    assert time.process_time() - start < 8


@pytest.mark.parametrize(("given", "kept"), [("29990131", "2999-01-31"), ("2999-W01-1", "2998-12-31")])
def test_dates_are_kept_in_one_form(given, kept):
    assert ReleaseTerms(name="a", model="m", expires=given).expires == kept


def test_a_date_that_is_over_is_refused():
    with pytest.raises(ValueError, match="expires is '2020-01-01', which is over"):
        ReleaseTerms(name="a", model="m", expires="2020-01-01").require_current()


def test_features_without_columns_are_refused():
    with pytest.raises(ValueError, match=r"features has shape \(2, 0\), must have at least one column"):
        GalleryRows(np.empty((2, 0)), ["a", "b"], np.array([1, 2]), np.array([0, 0]))


def test_a_decoder_that_float32_does_not_hold_spends_nothing(tmp_path):
    mechanism = subset(12.0, decoder=np.full((20, DIM), 1e300))
    with pytest.raises(ValueError, match="the decoder of the codebook holds numbers up to 1e\\+300"):
        release(tmp_path, mechanism=mechanism)
    assert not (tmp_path / "release").exists()


def test_a_pid_or_camera_named_twice_makes_no_other_release(tmp_path):
    first = release(tmp_path, epsilon=4.0, cameras=(0, 1))
    again = release(tmp_path, epsilon=4.0, cameras=(1, 0, 1), background_pids=(0, 0))
    assert again.folder == first.folder
    assert len(open_ledger(tmp_path).parts()) == 1
