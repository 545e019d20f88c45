"""The ledger: what spends and what is free, budgets, edits, two processes at once, and processes killed at any step."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from datetime import date

import numpy as np
import pytest
from gallery_cases import gallery, open_ledger, release, subset, transform

from ppreid_plugin.dp import journal as journal_module
from ppreid_plugin.dp import release as release_module
from ppreid_plugin.dp.budget import BudgetExceeded
from ppreid_plugin.dp.calibration import gaussian_epsilon, gaussian_sigma
from ppreid_plugin.dp.charges import Charge, compose, largest_epsilon
from ppreid_plugin.dp.journal import Journal, LedgerError
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import fingerprint, transform_state, transformed
from ppreid_plugin.dp.prior import fit_prior
from ppreid_plugin.dp.recovery import finish_release, purge_release, verify_releases, void_release
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows

FORK = multiprocessing.get_context("fork")


def gaussian_total(*epsilons):
    mu = math.hypot(*(1 / gaussian_sigma(epsilon, 1e-5, 1.0) for epsilon in epsilons))
    return gaussian_epsilon(1.0, 1e-5, mu)


def altered(rows, **changes):
    fields = {name: getattr(rows, name) for name in ("features", "row_ids", "pids", "camids")}
    return GalleryRows(**{**fields, **changes})


def take(rows, positions):
    return rows.take(np.asarray(positions))


# --- what is the same release, and what is another one


def same_bytes(first, second):
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in os.listdir(first))


@pytest.mark.parametrize("protocol", ["anonymous", "enrolled"])
@pytest.mark.parametrize("change", ["nothing", "jitter", "reorder", "re-extraction"])
def test_the_same_again_is_free_and_draws_nothing(tmp_path, monkeypatch, change, protocol):
    rows = gallery()
    first = release(tmp_path, rows, protocol=protocol)
    before = (tmp_path / "release" / "gallery.safetensors").read_bytes()
    records = len(open_ledger(tmp_path).records())
    if change == "jitter":
        rows = altered(rows, features=rows.features + 1e-3)
    elif change == "reorder":
        rows = take(rows, np.random.default_rng(0).permutation(len(rows)))
    elif change == "re-extraction":
        rows = altered(rows, features=gallery(seed=7).features.astype(np.float32))
    monkeypatch.setattr("ppreid_plugin.dp.sampling.GaussianSampler.draw", None)
    for out in ("release", "elsewhere"):
        again = release(tmp_path, rows, protocol=protocol, out=out)
        assert again.folder == first.folder
    assert (tmp_path / "release" / "gallery.safetensors").read_bytes() == before
    assert len(open_ledger(tmp_path).records()) == records
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_draw_must_be_said_and_spends(tmp_path):
    first = release(tmp_path, epsilon=4.0)
    second = release(tmp_path, epsilon=4.0, out="second", new_release=True)
    assert (second.manifest["release"], first.manifest["release"]) == ("a-0002", "a-0001")
    assert (first.features != second.features).all(axis=None)
    assert open_ledger(tmp_path).total("image:r1") == pytest.approx(gaussian_total(4.0, 4.0), rel=1e-6)
    assert release(tmp_path, epsilon=4.0, out="second").folder == tmp_path / "second"  # the name means the latest


def test_a_rename_spends(tmp_path):
    release(tmp_path, epsilon=4.0)
    release(tmp_path, epsilon=4.0, name="b", out="b")
    assert open_ledger(tmp_path).total("image:r1") == pytest.approx(gaussian_total(4.0, 4.0), rel=1e-6)


def test_a_subset_spends_for_its_rows_only(tmp_path):
    release(tmp_path, epsilon=4.0)
    release(tmp_path, take(gallery(), [1, 2]), epsilon=4.0, name="b", out="b")
    ledger = open_ledger(tmp_path)
    assert ledger.total("image:r1") == pytest.approx(gaussian_total(4.0, 4.0), rel=1e-6)
    assert ledger.total("image:r3") == 4.0
    assert ledger.total("image:r8") == 0.0  # junk is not released


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"model": "model-2"}, "model"),
        ({"center": transform(seed=10)}, "transform"),
        ({"epsilon": 4.5}, "mechanism"),
        ({"delta": 1e-6}, "mechanism"),
        ({"protocol": "enrolled"}, "protocol"),
        ({"unit": "person"}, "unit"),
        ({"budgets": {1: 2.0}}, "budgets"),
        ({"rows": gallery(7)}, "rows"),
        ({"opt_out": (1,)}, "rows"),
        ({"max_rows_per_person": 1}, "max_rows_per_person, rows"),
    ],
)
def test_another_release_may_not_take_the_name_silently_and_spends(tmp_path, change, differs):
    change = dict(change)
    rows = change.pop("rows", None)
    release(tmp_path, epsilon=4.0)
    arguments = {"epsilon": 4.0, "out": "b", **change}
    with pytest.raises(ValueError, match=f"belongs to release 'a-0001', which differs in: {differs}"):
        release(tmp_path, rows, **arguments)
    assert open_ledger(tmp_path).total("image:r4") == 4.0
    release(tmp_path, rows, **arguments, name="b")
    assert open_ledger(tmp_path).total("image:r4") > 4.0


def test_another_codebook_is_another_release(tmp_path):
    release(tmp_path, mechanism=subset())
    other = np.random.default_rng(6).normal(size=(20, 16))
    mechanism = type(subset())(4.0, codebook=other, set_size=3)
    with pytest.raises(ValueError, match="differs in: prior"):
        release(tmp_path, mechanism=mechanism, out="b")


def fitted(kind, jitter):
    """Return a transform and a mechanism, fitted on the same training rows but for what an extraction moves."""
    draw = np.random.default_rng(9)
    rows, pids = draw.normal(size=(120, 16)), np.arange(120) // 4
    rows = rows + jitter * np.random.default_rng(10).normal(size=rows.shape)
    center = build_transform("pca:components=6" if kind == "pca" else "center").fit(rows, pids)
    if kind in ("center", "pca"):
        return center, None
    prior = fit_prior(transformed(center, rows), pids, codewords=9, set_size=2, kind=kind, prior_is_public=True, seed=1)
    return center, build_mechanism("prior_subset", epsilon=4.0, **prior.options())


@pytest.mark.parametrize("kind", ["center", "pca", "kmeans", "residual", "gaussian"])
def test_what_is_fitted_again_is_the_stored_one_but_for_rounding(tmp_path, kind):
    first_fit, again_fit = fitted(kind, 0), fitted(kind, 1e-7)
    assert fingerprint({}, transform_state(first_fit[0])) != fingerprint({}, transform_state(again_fit[0]))
    first = release(tmp_path, gallery(5), epsilon=4.0, center=first_fit[0], mechanism=first_fit[1])
    spent = open_ledger(tmp_path).total("image:r1")
    again = release(tmp_path, gallery(5), epsilon=4.0, center=again_fit[0], mechanism=again_fit[1], out="elsewhere")
    assert again.folder == first.folder
    assert open_ledger(tmp_path).total("image:r1") == spent
    more = release(tmp_path, epsilon=4.0, center=again_fit[0], mechanism=again_fit[1], append=True)
    assert len(more.row_ids) == 9
    for name in [name for name in first.arrays if name.startswith(("transform.", "code"))]:
        np.testing.assert_array_equal(more.arrays[name], first.arrays[name])
    assert verify_releases(open_ledger(tmp_path)) == []


@pytest.mark.parametrize("kind", ["center", "residual"])
def test_other_training_people_are_no_rounding(tmp_path, kind):
    center, mechanism = fitted(kind, 0)
    release(tmp_path, gallery(5), epsilon=4.0, center=center, mechanism=mechanism)
    center, mechanism = fitted(kind, 1e-2)
    for append in (False, True):
        with pytest.raises(ValueError, match="differs in: (prior, )?transform"):
            release(tmp_path, gallery(5), epsilon=4.0, center=center, mechanism=mechanism, append=append)
    fresh = release(tmp_path, gallery(5), epsilon=4.0, center=center, mechanism=mechanism, new_release=True, out="new")
    np.testing.assert_array_equal(fresh.arrays["transform.mean"], center.mean)


@pytest.mark.parametrize("protocol", ["anonymous", "enrolled"])
def test_append_keeps_old_rows_and_spends_for_new_units_only(tmp_path, protocol):
    old = release(tmp_path, gallery(5), epsilon=4.0, protocol=protocol)
    new = release(tmp_path, epsilon=4.0, protocol=protocol, append=True, truth_out="truth.json")
    assert len(new.row_ids) == 9
    for name, array in old.arrays.items():
        np.testing.assert_array_equal(new.arrays[name][: len(array)] if "transform." not in name else array, array)
    ledger = open_ledger(tmp_path)
    assert {ledger.total(f"image:r{index}") for index in (0, 1, 2, 3, 4, 5, 6, 7, 9)} == {4.0}
    assert [part["rows"] for part in new.manifest["parts"]] == [5, 4]
    assert new.manifest["rows_a_person"] == {"median": 2, "largest": 3}  # over old and new rows
    assert len(json.loads((tmp_path / "truth.json").read_text())["rows"]) == 4
    again = release(tmp_path, epsilon=4.0, protocol=protocol, append=True)  # nothing new: free
    np.testing.assert_array_equal(again.features, new.features)
    assert release(tmp_path, epsilon=4.0, protocol=protocol).folder == new.folder  # the whole gallery is known now
    assert verify_releases(ledger) == []


def test_append_only_the_new_rows_or_a_person_with_more_images(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0)
    new = release(tmp_path, take(gallery(), [6, 7]), epsilon=4.0, append=True)
    assert len(new.row_ids) == 7
    people = release(tmp_path, take(gallery(), [1, 4]), epsilon=4.0, unit="person", name="p", out="p")
    more = release(tmp_path, take(gallery(), [1, 2, 4, 6]), epsilon=4.0, unit="person", name="p", out="p", append=True)
    np.testing.assert_array_equal(more.features[:2], people.features)
    assert len(more.row_ids) == 3  # people 1 and 2 keep their prototypes; 3 is new
    assert open_ledger(tmp_path).total("image:r2") == 4.0  # not in the prototype, so not charged for it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "b"}, "append to 'b': there is no release of that name"),
        ({"model": "model-2"}, "append to release 'a-0001': it differs in: model"),
        ({"epsilon": 5.0}, "it differs in: mechanism"),
        ({"new_release": True}, "choose one"),
    ],
)
def test_append_errors(tmp_path, change, message):
    release(tmp_path, gallery(5), epsilon=4.0)
    with pytest.raises(ValueError, match=message):
        release(tmp_path, **{"epsilon": 4.0, "append": True, **change})


def test_deleting_refunds_nothing(tmp_path):
    release(tmp_path, epsilon=8.0)
    release(tmp_path, take(gallery(), [0]), name="b", out="b", epsilon=4.0)  # r1 is gone from the gallery
    purge_release(open_ledger(tmp_path), "a-0001")
    assert not (tmp_path / "release").exists()
    assert open_ledger(tmp_path).total("image:r1") == 8.0
    with pytest.raises(BudgetExceeded):
        release(tmp_path, name="c", out="c", epsilon=13.0)
    with pytest.raises(ValueError, match="was purged; what it spent stays spent"):
        release(tmp_path)
    assert open_ledger(tmp_path).parts()["a-0001"].state == "purged"


# --- accounts


def test_image_rows_are_charged_to_people_in_a_scope_of_people(tmp_path):
    ledger = open_ledger(tmp_path, unit="person", epsilon=40.0)
    release(tmp_path, ledger=ledger, mechanism=subset(4.0))
    assert ledger.total("person:1") == compose([Charge(4.0, 0.0, rows=3)], 1e-5) <= 12.0
    assert ledger.total("person:4") == pytest.approx(4.0, rel=1e-3)
    assert ledger.total("image:r0") == pytest.approx(4.0, rel=1e-3)  # background: a unit of its own
    assert ledger.total("person:0") == 0.0
    release(tmp_path, ledger=ledger, epsilon=8.0, unit="person", name="p", out="p")
    assert ledger.total("person:4") > 8.0


def test_a_prototype_is_charged_to_its_images_in_a_scope_of_images(tmp_path):
    release(tmp_path, unit="person", max_rows_per_person=2)
    ledger = open_ledger(tmp_path)
    assert [ledger.total(f"image:r{index}") for index in (0, 1, 2, 3, 4)] == [8.0, 8.0, 8.0, 0.0, 8.0]


def test_in_a_scope_of_people_nobody_else_can_be_made_to_pay(tmp_path):
    ledger = open_ledger(tmp_path, unit="person", epsilon=40.0)
    release(tmp_path, ledger=ledger, mechanism=subset(4.0))
    with pytest.raises(ValueError, match=r"background_pids is \[0, 1\]; scope 'market' accounts per person and was"):
        release(tmp_path, ledger=ledger, mechanism=subset(4.0), background_pids=(0, 1), name="b", out="b")
    rows = altered(gallery(), pids=np.where(gallery().pids == 1, 4, gallery().pids))
    with pytest.raises(ValueError, match=r"row 'r1' \(and 2 more\) had pid 1 in an earlier release, now 4"):
        release(tmp_path, rows, ledger=ledger, mechanism=subset(4.0), name="b", out="b")
    assert len(ledger.parts()) == 1


def test_budget_message_and_what_is_left(tmp_path):
    release(tmp_path, epsilon=8.0)
    records = len(open_ledger(tmp_path).records())
    expected = (
        "scope 'market', unit image: 9 of 9 units have spent epsilon 8.00 of 16.00 (delta 1e-05); releasing at 16.00 "
        f"would reach {gaussian_total(8.0, 16.0):.2f}.\n  Left: 12.41. Ask for that or less, or reuse release "
        "'a-0001', which is free."
    )
    with pytest.raises(BudgetExceeded) as error:
        release(tmp_path, epsilon=16.0, name="b", out="b")
    assert str(error.value) == expected
    assert len(open_ledger(tmp_path).records()) == records
    assert sorted(os.listdir(tmp_path)) == ["ledger", "release"]
    with pytest.raises(BudgetExceeded):
        release(tmp_path, epsilon=12.43, name="b", out="b")
    release(tmp_path, epsilon=12.41, name="b", out="b")
    with pytest.raises(BudgetExceeded, match=r"Left: 0.\d\d. "):
        release(tmp_path, epsilon=8.0, name="c", out="c")


def test_one_unit_over_refuses_all(tmp_path):
    release(tmp_path, take(gallery(), [1]), epsilon=15.0)
    with pytest.raises(BudgetExceeded, match="1 of 9 units have spent epsilon 15.00"):
        release(tmp_path, epsilon=8.0, name="b", out="b")
    assert open_ledger(tmp_path).total("image:r2") == 0.0


def test_a_budget_can_be_spent_to_the_last_digit(tmp_path):
    ledger = open_ledger(tmp_path, epsilon=0.3, delta=0.0)
    for name in "abc":
        release(tmp_path, ledger=ledger, mechanism=subset(0.1), name=name, out=name)
    with pytest.raises(BudgetExceeded, match="Nothing is left for them, or reuse release 'c-0001'"):
        release(tmp_path, ledger=ledger, mechanism=subset(1e-3), name="d", out="d")
    with pytest.raises(BudgetExceeded, match="which admits pure mechanisms only"):
        release(tmp_path, ledger=open_ledger(tmp_path, scope="pure", delta=0.0), epsilon=0.1)


def test_compose():
    g = Charge(4.0, 1e-5, mu=1 / gaussian_sigma(4.0, 1e-5, 1.0))
    assert compose([], 1e-5) == 0.0
    assert compose([g], 1e-5) == 4.0
    assert compose([g.times(5), g.times(5)], 1e-5) == pytest.approx(gaussian_total(*[4.0] * 10), rel=1e-6)
    assert compose([g, g], 1e-5) == pytest.approx(compose([g.times(2)], 1e-5), rel=1e-12)
    assert compose([Charge(2.0, 0.0), Charge(3.0, 0.0, rows=2)], 0.0) == 8.0
    assert compose([g, Charge(2.0, 0.0)], 1e-5) <= 6.0
    assert compose([g], 0.0) == compose([Charge(1.0, 1e-3)], 1e-5) == math.inf
    assert compose([Charge(1.0, 1e-6)] * 3, 1e-5) == pytest.approx(3.0, rel=1e-4)
    left = largest_epsilon([g], 8.0, 1e-5, lambda e: Charge(e, 1e-5, mu=1 / gaussian_sigma(e, 1e-5, 1.0)))
    assert gaussian_total(4.0, left) == pytest.approx(8.0, rel=1e-5)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"epsilon": 8.0}, "opened with epsilon 16.0, now it is 8.0"),
        ({"delta": 1e-6}, "opened with delta 1e-05, now it is 1e-06"),
        ({"unit": "person"}, "opened with unit 'image'"),
        ({"epsilon": -1.0}, "budget epsilon is -1.0"),
        ({"delta": 1.0}, r"budget delta is 1.0, must be in \[0, 1\)"),
        ({"unit": "camera"}, "unit of the scope is 'camera'; allowed: image, person"),
        ({"scope": "../x"}, "scope is '../x', must be letters"),
        ({"scope": "new"}, "scope 'new' is not in the ledger. To open it, give its budget: epsilon"),
    ],
)
def test_scope_errors(tmp_path, terms, message):
    open_ledger(tmp_path).open()
    arguments = dict(terms)
    with pytest.raises(ValueError, match=message):
        Ledger(tmp_path / "ledger", arguments.pop("scope", "market"), **arguments)
    assert sorted(os.listdir(tmp_path / "ledger"))[:2] == ["ledger.key", "ledger.lock"]
    assert Ledger(tmp_path / "ledger", "market").epsilon == 16.0


@pytest.mark.parametrize("refused", ["budget", "taken", "append", "delta"])
def test_what_is_refused_declares_no_scope(tmp_path, refused):
    """A mistyped first command would else be the scope's budget for good."""
    (tmp_path / "taken").mkdir()
    terms = {"taken": {"out": "taken"}, "append": {"append": True}}.get(refused, {})
    wrong = {"budget": {"epsilon": 2.0}, "delta": {"delta": 0.0}}.get(refused, {"unit": "person"})
    with pytest.raises((ValueError, FileExistsError)):
        release(tmp_path, epsilon=4.0, ledger=open_ledger(tmp_path, **wrong), **terms)
    release(tmp_path, epsilon=4.0)
    ledger = Ledger(tmp_path / "ledger", "market")
    assert (ledger.unit, ledger.epsilon, ledger.delta, len(ledger.records())) == ("image", 16.0, 1e-5, 3)


def test_two_processes_that_declare_a_scope_declare_the_same_one(tmp_path):
    one, same, other = open_ledger(tmp_path), open_ledger(tmp_path), open_ledger(tmp_path, epsilon=99.0)
    one.open()
    same.open()
    with pytest.raises(ValueError, match=r"opened with epsilon 16.0, now it is 99.0"):
        release(tmp_path, epsilon=4.0, ledger=other)
    assert [record["kind"] for record in one.records()] == ["open"]


# --- edits of the files


def lines_of(tmp_path):
    return (tmp_path / "ledger" / "market.jsonl").read_bytes().splitlines(keepends=True)


def two_releases(tmp_path):
    release(tmp_path, epsilon=4.0)
    release(tmp_path, epsilon=4.0, name="b", out="b")


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [lines[0], lines[1].replace(b'"epsilon":4.0', b'"epsilon":1.0'), *lines[2:]],
        lambda lines: [lines[0].replace(b"16.0", b"99.0"), *lines[1:]],
        lambda lines: [lines[0], *lines[3:]],
        lambda lines: [lines[0], lines[1], lines[3], lines[2], lines[4]],
        lambda lines: lines[:1] * 2 + lines[1:],
        lambda lines: [*lines[:-1], b"{}\n"],
        lambda lines: [*lines, b"garbage\n"],
        lambda lines: [lines[0].replace(b":", b": "), *lines[1:]],
        lambda lines: lines[:-1],
        lambda lines: lines[:-2],
        lambda lines: lines[:1],
        lambda lines: [],
        lambda lines: [*lines[:-1], lines[-1][:-5]],
    ],
)
def test_edits_and_truncation_show_and_nothing_is_released(tmp_path, edit):
    two_releases(tmp_path)
    lines = lines_of(tmp_path)
    assert len(lines) == 5
    (tmp_path / "ledger" / "market.jsonl").write_bytes(b"".join(edit(lines)))
    with pytest.raises(LedgerError, match="was edited, moved|was cut off or exchanged"):
        release(tmp_path, epsilon=0.1, name="c", out="c")
    assert not (tmp_path / "c").exists()


def test_an_edited_head_or_key_shows(tmp_path):
    two_releases(tmp_path)
    folder = tmp_path / "ledger"
    head = json.loads((folder / "market.head").read_text())
    earlier = json.loads(lines_of(tmp_path)[2])
    (folder / "market.jsonl").write_bytes(b"".join(lines_of(tmp_path)[:3]))
    (folder / "market.head").write_text(json.dumps({**head, "seq": 2, "mac": earlier["mac"]}))
    with pytest.raises(LedgerError, match="market.head was edited"):
        open_ledger(tmp_path)
    (folder / "market.head").unlink()
    with pytest.raises(LedgerError, match="market.head is missing beside its records"):
        open_ledger(tmp_path)
    key = (folder / "ledger.key").read_bytes()
    (folder / "ledger.key").write_bytes(key[:5])
    with pytest.raises(LedgerError, match=r"ledger.key holds 5 bytes"):
        open_ledger(tmp_path)
    (folder / "ledger.key").unlink()
    with pytest.raises(LedgerError, match=r"ledger.key is missing"):
        open_ledger(tmp_path)
    assert not (folder / "ledger.key").exists()


def test_a_record_of_another_history_shows(tmp_path):
    """Signed by the same key, at the same place, in a chain whose head is right: only the link to it is wrong."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    release(one, epsilon=4.0)
    shutil.copytree(one, other)
    release(one, epsilon=8.0, name="b", out="b")
    release(other, epsilon=0.1, name="b", out="b")
    lines = [lines_of(one), lines_of(other)]
    (one / "ledger" / "market.jsonl").write_bytes(b"".join([*lines[0][:3], lines[1][3], lines[0][4]]))
    with pytest.raises(LedgerError, match="line 5 of market.jsonl was edited, moved or is not of this ledger"):
        open_ledger(one)


def test_a_scope_may_not_be_renamed_into_another(tmp_path):
    open_ledger(tmp_path).open()
    folder = tmp_path / "ledger"
    for ending in ("jsonl", "head"):
        (folder / f"market.{ending}").rename(folder / f"other.{ending}")
    with pytest.raises(LedgerError, match="not of this ledger|not of this"):
        open_ledger(tmp_path, scope="other")


def test_rolling_back_everything_shows_only_by_a_manifest_that_was_given_away(tmp_path):
    release(tmp_path, epsilon=4.0)
    copies = {name: (tmp_path / "ledger" / name).read_bytes() for name in ("market.jsonl", "market.head")}
    release(tmp_path, epsilon=4.0, name="b", out="b")
    for name, data in copies.items():
        (tmp_path / "ledger" / name).write_bytes(data)
    ledger = open_ledger(tmp_path)
    assert verify_releases(ledger) == []  # the documented limit
    with pytest.raises(LedgerError, match="was rolled back or exchanged"):
        verify_releases(ledger, [tmp_path / "b"])


def test_verify_sees_a_changed_release_and_tells_what_is_open(tmp_path):
    two_releases(tmp_path)
    manifest = json.loads((tmp_path / "release" / "manifest.json").read_text())
    (tmp_path / "release" / "manifest.json").write_text(json.dumps({**manifest, "epsilon": 0.5}))
    with pytest.raises(LedgerError, match="its manifest differs"):
        verify_releases(open_ledger(tmp_path))
    with pytest.raises(LedgerError, match="not as it was committed"):
        release(tmp_path, epsilon=4.0)
    purge_release(open_ledger(tmp_path), "a-0001")
    (tmp_path / "b").rename(tmp_path / "moved")
    assert verify_releases(open_ledger(tmp_path)) == ["a-0001: purged", "b-0001: its folder is gone"]
    with pytest.raises(FileNotFoundError, match="Put it back"):
        release(tmp_path, epsilon=4.0, name="b")
    assert release(tmp_path, epsilon=4.0, name="b", out="moved").folder == tmp_path / "moved"


def test_files_are_private(tmp_path):
    release(tmp_path, truth_out="truth.json")
    for path in (*(tmp_path / "ledger").glob("market.*l"), tmp_path / "ledger" / "ledger.key", tmp_path / "truth.json"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "ledger").stat().st_mode & 0o077 == 0


def test_no_trace_of_feature_contents_in_the_ledger(tmp_path):
    """Two galleries with the same labels leave the same records but for times and chain values."""

    def trace(folder, seed):
        folder.mkdir()
        release(folder, gallery(seed=seed))
        records = [json.loads(line) for line in (folder / "ledger" / "market.jsonl").read_bytes().splitlines()]
        for record in records:
            for key in ("time", "mac", "previous"):
                del record[key]
            record["content"].pop("folder", None)
            record["content"].pop("manifest", None)  # of the released rows
        return records

    assert trace(tmp_path / "x", 0) == trace(tmp_path / "y", 1)


# --- processes


def run_forked(target, *arguments):
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def _try_release(folder, number, results):
    try:
        release(folder, epsilon=3.0, name=f"n{number}", out=f"n{number}", mechanism=subset(3.0))
        results.put("released")
    except BudgetExceeded:
        results.put("refused")


def test_processes_at_once_never_overspend(tmp_path):
    open_ledger(tmp_path, delta=0.0).open()
    results = FORK.Queue()
    processes = [run_forked(_try_release, tmp_path, number, results) for number in range(8)]
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["released"] * 5
    ledger = open_ledger(tmp_path)
    assert ledger.total("image:r1") == 15.0
    assert verify_releases(ledger) == []


def _same_release(folder):
    release(folder, epsilon=4.0)


def test_processes_that_ask_for_the_same_release_get_one(tmp_path):
    processes = [run_forked(_same_release, tmp_path) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ledger = open_ledger(tmp_path)
    assert [part.state for part in ledger.parts().values()] == ["committed"]
    assert ledger.total("image:r1") == 4.0


STEPS = [
    "reserved",
    "drawn",
    "truth written",
    "arrays written",
    "manifest written",
    "old moved",
    "renamed",
    "committed",
]


def _killed_at(folder, step, arguments):
    def stop(reached):
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    release_module.reached = stop
    release(folder, **arguments)


@pytest.mark.parametrize(
    ("step", "append"), [(step, append) for step in STEPS for append in (False, True) if append or step != "old moved"]
)
def test_killed_at_each_step_then_finished_or_voided(tmp_path, step, append):
    old = release(tmp_path, gallery(5), epsilon=4.0) if append else None
    process = run_forked(_killed_at, tmp_path, step, {"epsilon": 4.0, "append": append, "truth_out": "truth.json"})
    process.join()
    assert process.exitcode == -signal.SIGKILL
    ledger = open_ledger(tmp_path)
    assert ledger.total("image:r9") == 4.0  # spent, whatever became of it
    assert ledger.total("image:r1") == 4.0
    (part,) = [part for part in ledger.parts().values() if part.state == "reserved"] or [None]
    if part is None:
        assert step == "committed"
        assert len(load_release(tmp_path / "release").row_ids) == 9
        return
    with pytest.raises(ValueError, match="reserved and not committed|is not complete"):
        release(tmp_path, epsilon=4.0, append=append)
    if STEPS.index(step) >= STEPS.index("manifest written"):
        assert len(finish_release(ledger, part.reservation).row_ids) == 9
        np.testing.assert_array_equal(release(tmp_path, epsilon=4.0).features, load_release(part.folder).features)
    else:
        with pytest.raises(ValueError, match="was not written completely, so there is nothing to finish"):
            finish_release(ledger, part.reservation)
        void_release(ledger, part.reservation)
        if old is not None:
            np.testing.assert_array_equal(load_release(tmp_path / "release").features, old.features)
    assert ledger.total("image:r9") == 4.0
    left = {name for name in os.listdir(tmp_path) if name.startswith(".")}
    assert not left
    with pytest.raises(ValueError, match="only an interrupted one is finished or voided"):
        void_release(ledger, part.reservation)


@pytest.mark.parametrize(
    ("step", "append"),
    [("manifest written", False), ("renamed", False), *((step, True) for step in STEPS[4:7])],
)
def test_a_complete_release_can_be_voided_too(tmp_path, step, append):
    if append:
        release(tmp_path, gallery(5), epsilon=4.0)
    run_forked(_killed_at, tmp_path, step, {"epsilon": 4.0, "append": append}).join()
    ledger = open_ledger(tmp_path)
    void_release(ledger, "a-0001+1" if append else "a-0001")
    assert ledger.total("image:r9") == 4.0
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    if not append:
        assert not (tmp_path / "release").exists()
    elif step != "renamed":
        assert len(load_release(tmp_path / "release").row_ids) == 5


def _release_many(folder, drawn_file, first, started):
    drawn = os.open(drawn_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    name = ""
    release_module.reached = lambda step: os.write(drawn, f"{name}-0001\n".encode()) if step == "drawn" else None
    ledger = open_ledger(folder, epsilon=1e6, delta=0.0)
    started.send(True)
    for number in range(first, first + 1000):
        name = f"n{number}"
        release(folder, gallery(3), ledger=ledger, mechanism=subset(1e-3), name=name, out=name)


def test_killed_at_any_moment_100_times(tmp_path):
    """Real SIGKILL at random times: whatever was drawn is spent, once, and stays so; the chain stays whole."""
    ledger = open_ledger(tmp_path, epsilon=1e6, delta=0.0)
    drawn = tmp_path / "ledger" / "drawn.txt"
    rng = np.random.default_rng(0)
    known: dict[str, str] = {}
    ends = {"finished": 0, "voided": 0}
    committed: list[str] = []
    for attempt in range(400):
        if attempt >= 100 and len(committed) >= 5 and min(ends.values()) >= 1:
            break  # on a busy machine all of the first hundred may come too early
        ready, started = FORK.Pipe(duplex=False)
        process = run_forked(_release_many, tmp_path, drawn, 1000 * attempt, started)
        assert ready.recv()
        time.sleep(float(rng.uniform(0, 0.1 * (1 + attempt // 100) ** 2)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        parts = ledger.parts()
        assert set(known) <= set(parts)  # nothing is lost
        assert not drawn.exists() or set(drawn.read_text().split()) <= set(parts)  # no noise without a reservation
        assert ledger.total("image:r1") == pytest.approx(1e-3 * len(parts))  # nothing doubled, nothing refunded
        open_parts = [part for part in parts.values() if part.state == "reserved"]
        assert len(open_parts) <= 1
        for part in open_parts:
            try:
                finish_release(ledger, part.reservation)
                ends["finished"] += 1
            except ValueError:
                void_release(ledger, part.reservation)
                ends["voided"] += 1
        known = {name: part.state for name, part in ledger.parts().items()}
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
        committed = [name for name, state in known.items() if state == "committed"]
    print(f"{attempt} kills: {len(known)} reservations, {len(committed)} committed, {ends}")
    assert len(committed) >= 5  # the kills landed in all places
    assert min(ends.values()) >= 1
    assert {name for name in os.listdir(tmp_path) if name != "ledger"} == {name[:-5] for name in committed}
    assert all(finding.endswith("voided") for finding in verify_releases(ledger))


def test_a_torn_record_is_dropped_and_a_head_one_behind_is_caught_up(tmp_path):
    book = Journal(tmp_path, "s")
    with book.locked():
        book.append("open", {})
        head = (tmp_path / "s.head").read_bytes()
        record = book.append("reserve", {"n": 1})
    (tmp_path / "s.head").write_bytes(head)  # killed between record and head
    assert [one["seq"] for one in book.read()] == [0, 1]
    with (tmp_path / "s.jsonl").open("ab") as stream:
        stream.write(journal_module.canonical(record)[:40])  # killed in the middle of the write
    assert [one["seq"] for one in book.read()] == [0, 1]
    with book.locked():
        book.append("commit", {})
    assert [one["kind"] for one in Journal(tmp_path, "s").read()] == ["open", "reserve", "commit"]
    (tmp_path / "s.head").write_bytes(head)
    with pytest.raises(LedgerError, match="cut off"):
        book.read()  # two behind is no crash


def test_append_is_on_the_disk_before_it_returns(tmp_path, monkeypatch):
    order = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), real(descriptor)))
    monkeypatch.setattr(release_module, "reached", lambda step: order.append(step))
    release(tmp_path, truth_out="truth.json")
    for step in ("reserved", "truth written", "arrays written", "manifest written", "renamed", "committed"):
        assert order[order.index(step) - 1] == "fsync", step


def test_a_held_lock_times_out_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_LOCK_TIMEOUT_S", 0.2)
    holder = Journal(tmp_path, "s")
    with holder.locked(), pytest.raises(LedgerError, match="another process has held the lock of scope 's'"):
        Journal(tmp_path, "s").read()


# --- what an append may not do


def test_who_opted_out_stays_out_of_appends_and_who_is_in_is_told(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0, opt_out=(2,))
    with pytest.raises(ValueError, match=r"pid 2 opted out of release 'a-0001', .* again \(--opt-out 2\)"):
        release(tmp_path, epsilon=4.0, append=True)
    with pytest.raises(ValueError, match="pid 2 opted out of release 'a-0001', and is not named now"):
        release(tmp_path, gallery(5), epsilon=4.0, new_release=True, out="new")
    with pytest.raises(ValueError, match="pid 1 opts out, and has rows in it, which an append does not take out"):
        release(tmp_path, epsilon=4.0, append=True, opt_out=(1, 2))
    more = release(tmp_path, epsilon=4.0, append=True, opt_out=(2, 3), protocol="anonymous")
    assert more.manifest["opted_out"] == 2
    assert set(open_ledger(tmp_path).spent()) == {f"image:r{index}" for index in (0, 1, 2, 3, 9)}
    with pytest.raises(ValueError, match="pid 3 opted out"):  # of the part that was appended
        release(tmp_path, epsilon=4.0, append=True, opt_out=(2,))


def test_an_appended_release_states_the_budgets_of_all_its_rows(tmp_path):
    ledger = open_ledger(tmp_path, epsilon=64.0)
    terms = {"ledger": ledger, "epsilon": 4.0, "budgets": {1: 16.0}, "protocol": "enrolled"}
    release(tmp_path, gallery(5), **terms)
    more = release(tmp_path, take(gallery(), [6, 7]), append=True, **terms)
    whole = release(tmp_path, take(gallery(), [0, 1, 2, 3, 4, 6, 7]), name="b", out="b", **terms)
    assert sorted(more.arrays["epsilon"].tolist()) == [4.0] * 4 + [16.0] * 3
    for key in ("individual_budgets", "person_level", "bounds", "rows", "rows_a_person", "pure"):
        assert more.manifest[key] == whole.manifest[key], key
    assert more.manifest["individual_budgets"] == [{"epsilon": 4.0, "rows": 4}, {"epsilon": 16.0, "rows": 3}]


def test_an_append_keeps_to_the_limit_of_rows_a_person(tmp_path):
    terms = {"epsilon": 4.0, "max_rows_per_person": 2, "protocol": "enrolled"}
    release(tmp_path, take(gallery(), [0, 1, 4]), **terms)  # background, one row of 1, one of 2
    more = release(tmp_path, altered(gallery(), row_ids=[f"n{index}" for index in range(10)]), append=True, **terms)
    counts = {pid: int((more.pids == pid).sum()) for pid in (0, 1, 2, 3, 4)}
    assert counts == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
    assert more.manifest["rows_a_person"]["largest"] == 2
    again = release(tmp_path, gallery(4), append=True, **terms)  # everybody is at the limit: background alone
    assert int((again.pids == 1).sum()) == 2


def test_an_append_drops_nothing_that_was_said_and_a_stored_release_takes_nothing_new(tmp_path):
    said = {"controller": "The museum", "purpose": "a test", "expires": "2999-01-31", "prior": {"source": "generated"}}
    first = release(tmp_path, gallery(5), epsilon=4.0, **said)
    more = release(tmp_path, epsilon=4.0, append=True, prior={"source": "not stated"})
    for key in said:
        assert more.manifest[key] == first.manifest[key] == said[key]
    with pytest.raises(ValueError, match="expires is '2888-01-01'; release 'a-0001' is stored with '2999-01-31'"):
        release(tmp_path, epsilon=4.0, expires="2888-01-01")
    with pytest.raises(ValueError, match="truth_out is '.*t.json', which is not there; release 'a-0001' is stored"):
        release(tmp_path, epsilon=4.0, truth_out="t.json")
    assert release(tmp_path, epsilon=4.0, **said).manifest == more.manifest
    assert release(tmp_path, epsilon=4.0, append=True).manifest == more.manifest
    with pytest.raises(ValueError, match=r"t.json"):
        release(tmp_path, epsilon=4.0, append=True, truth_out="t.json")


def test_a_release_takes_the_place_of_nothing_but_its_own_shorter_self(tmp_path, monkeypatch):
    release(tmp_path, gallery(5), epsilon=4.0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"dear")
    other = release(tmp_path, gallery(3), epsilon=4.0, name="b", out="b")
    records = len(open_ledger(tmp_path).records())
    for out in ("photos", "b"):
        with pytest.raises(FileExistsError, match="exists already, and a release overwrites nothing"):
            release(tmp_path, epsilon=4.0, append=True, out=out)
    assert len(open_ledger(tmp_path).records()) == records  # nothing was spent
    assert (tmp_path / "photos" / "wedding.jpg").read_bytes() == b"dear"
    assert load_release(tmp_path / "b").manifest == other.manifest

    def appears(step):  # while rows are drawn
        if step == "manifest written":
            (tmp_path / "late").mkdir()
            (tmp_path / "late" / "notes.txt").write_text("mine")

    monkeypatch.setattr(release_module, "reached", appears)
    with pytest.raises(FileExistsError, match="holds something else than what c-0001 appends to.* finish c-0001"):
        release(tmp_path, gallery(3), epsilon=4.0, name="c", out="late")
    assert (tmp_path / "late" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError):
        finish_release(open_ledger(tmp_path), "c-0001")
    (tmp_path / "late").rename(tmp_path / "away")
    assert finish_release(open_ledger(tmp_path), "c-0001").manifest["release"] == "c-0001"


def test_an_interrupted_release_does_not_end_another_that_took_its_place(tmp_path, monkeypatch):
    def stop(step):
        if step == "manifest written":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(release_module, "reached", stop)
        release(tmp_path, epsilon=4.0, name="first")
    second = release(tmp_path, epsilon=4.0, name="second")
    with pytest.raises(FileExistsError, match="holds something else than what first-0001 appends to"):
        finish_release(open_ledger(tmp_path), "first-0001")
    assert load_release(tmp_path / "release").manifest == second.manifest


def test_what_an_append_left_elsewhere_is_found_and_purged(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0, out="short")
    long = release(tmp_path, epsilon=4.0, out="long", append=True)
    assert release(tmp_path, epsilon=4.0, out="short").folder == long.folder  # the shorter one is not the release
    ledger = open_ledger(tmp_path)
    found = f"a-0001: as it was before an append it still lies in '{tmp_path / 'short'}'"
    assert verify_releases(ledger) == [found]
    (tmp_path / "long" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError):  # what cannot be read is not deleted, and neither is the rest
        purge_release(ledger, "a-0001")
    assert (tmp_path / "short").exists()
    shutil.rmtree(tmp_path / "long")
    assert purge_release(ledger, "a-0001")
    assert not (tmp_path / "short").exists()


def test_the_map_of_an_append_is_not_written_into_the_earlier_folder(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0, out="short")
    with pytest.raises(ValueError, match="short/truth.json', inside the release"):
        release(tmp_path, epsilon=4.0, out="long", append=True, truth_out="short/truth.json")


def test_a_stored_release_takes_no_other_file_for_its_map(tmp_path):
    release(tmp_path, epsilon=4.0, truth_out="truth.json")
    release(tmp_path, epsilon=4.0, name="b", out="b", truth_out="b.json")
    release(tmp_path, epsilon=4.0, truth_out="truth.json")
    with pytest.raises(ValueError, match="b.json"):
        release(tmp_path, epsilon=4.0, truth_out="b.json")
    (tmp_path / "x.json").write_text("x")
    with pytest.raises(ValueError, match="is no map from released rows"):
        release(tmp_path, epsilon=4.0, truth_out="x.json")


def test_a_void_does_not_hide_the_release_that_was_appended_to(tmp_path, monkeypatch):
    def stop(step):
        if step == "old moved":
            raise KeyboardInterrupt

    release(tmp_path, gallery(5), epsilon=4.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(release_module, "reached", stop)
        release(tmp_path, epsilon=4.0, append=True)
    release(tmp_path, epsilon=4.0, name="b")
    with pytest.raises(FileExistsError, match=r"holds something else .* void a-0001\+1"):
        void_release(open_ledger(tmp_path), "a-0001+1")
    (tmp_path / "release").rename(tmp_path / "b")
    void_release(open_ledger(tmp_path), "a-0001+1")
    assert load_release(tmp_path / "release").manifest["release"] == "a-0001"


def test_an_append_may_bring_the_expiry_forward_only(tmp_path, monkeypatch):
    release(tmp_path, gallery(3), epsilon=4.0, expires="2999-06-01")
    with pytest.raises(ValueError, match="expires is '2999-12-01'; release 'a-0001' has rows that were promised"):
        release(tmp_path, gallery(4), epsilon=4.0, append=True, expires="2999-12-01")
    more = release(tmp_path, gallery(4), epsilon=4.0, append=True, expires="2999-01-01")
    assert more.manifest["expires"] == "2999-01-01"

    class Later(date):
        @classmethod
        def today(cls):
            return cls(3000, 1, 1)

    monkeypatch.setattr("ppreid_plugin.dp.plan.date", Later)
    again = release(tmp_path, gallery(4), epsilon=4.0, expires="2999-01-01")  # draws nothing, so it may
    assert again.manifest == more.manifest
    with pytest.raises(ValueError, match="append to release 'a-0001': it expired on 2999-01-01"):
        release(tmp_path, gallery(5), epsilon=4.0, append=True)
    with pytest.raises(ValueError, match="expires is '2999-01-01', which is over"):
        release(tmp_path, gallery(4), epsilon=4.0, expires="2999-01-01", new_release=True, out="new")


@pytest.mark.parametrize("truth", ["release", "release/t.json", "link/release/t.json", "box"])
def test_the_map_and_the_release_lie_apart(tmp_path, truth):
    (tmp_path / "link").symlink_to(tmp_path)
    out = "box/release" if truth == "box" else "release"
    with pytest.raises(ValueError, match="truth_out"):
        release(tmp_path, truth_out=truth, out=out)
    assert open_ledger(tmp_path).records() == []
    assert not (tmp_path / out).exists()


def test_a_name_of_a_prototype_and_of_a_row_are_not_two_rows_of_one_release(tmp_path):
    terms = {"epsilon": 4.0, "unit": "person", "protocol": "enrolled"}
    release(tmp_path, take(gallery(), [1, 4]), **terms)
    clash = GalleryRows(np.ones((1, 16)), ["person-1"], np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="row_ids holds 'person-1', which is a row of the stored release"):
        release(tmp_path, clash, append=True, **terms)


def test_a_head_that_is_gone_shows(tmp_path):
    """Else whoever can write there cuts the records to the first and has the budget again."""
    release(tmp_path)
    (first, *_) = lines_of(tmp_path)
    (tmp_path / "ledger" / "market.jsonl").write_bytes(first)
    (tmp_path / "ledger" / "market.head").unlink()
    with pytest.raises(LedgerError, match="market.head is missing beside its records"):
        open_ledger(tmp_path)


def test_verify_tells_of_a_folder_that_holds_another_release(tmp_path):
    release(tmp_path, epsilon=4.0)
    release(tmp_path, epsilon=4.0, name="b", out="b")
    shutil.rmtree(tmp_path / "release")
    (tmp_path / "b").rename(tmp_path / "release")
    ledger = open_ledger(tmp_path)
    assert verify_releases(ledger) == ["a-0001: its folder holds another release"]  # b was found at its place
    shutil.rmtree(tmp_path / "release")
    assert verify_releases(ledger) == ["a-0001: its folder is gone", "b-0001: its folder is gone"]


def test_a_scope_without_a_delta_says_that_it_admits_pure_mechanisms_only(tmp_path):
    ledger = open_ledger(tmp_path, delta=0.0)
    with pytest.raises(BudgetExceeded, match="opened with delta 0, which admits pure mechanisms only; this one has"):
        release(tmp_path, ledger=ledger, epsilon=1.0)
    assert release(tmp_path, ledger=ledger, mechanism=subset(1.0)).manifest["pure"]


# --- whose release lies where


def _stopped_at(monkeypatch, at, folder, rows=None, **arguments):
    """Release, interrupted at a step."""

    def stop(step):
        if step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(release_module, "reached", stop)
        release(folder, rows, epsilon=4.0, **arguments)


def test_a_void_of_a_complete_append_puts_back_what_it_was_appended_to(tmp_path, monkeypatch):
    first = release(tmp_path, gallery(5), epsilon=4.0)
    _stopped_at(monkeypatch, "renamed", tmp_path, append=True)
    void_release(open_ledger(tmp_path), "a-0001+1")
    np.testing.assert_array_equal(load_release(tmp_path / "release").features, first.features)
    assert verify_releases(open_ledger(tmp_path)) == ["a-0001+1: voided"]
    assert release(tmp_path, gallery(5), epsilon=4.0).folder == first.folder  # free
    assert sorted(os.listdir(tmp_path)) == ["ledger", "release"]


def test_a_void_deletes_no_committed_release(tmp_path, monkeypatch):
    release(tmp_path, gallery(5), epsilon=4.0)
    _stopped_at(monkeypatch, "renamed", tmp_path, append=True)
    (old,) = [folder for folder in tmp_path.iterdir() if folder.name.endswith(".old")]
    shutil.rmtree(old)
    with pytest.raises(ValueError, match=r"what it was appended to is not there any more.* finish a-0001\+1"):
        void_release(open_ledger(tmp_path), "a-0001+1")
    assert len(finish_release(open_ledger(tmp_path), "a-0001+1").row_ids) == 9


def test_what_a_commit_left_is_deleted_by_the_next_request(tmp_path, monkeypatch):
    release(tmp_path, gallery(5), epsilon=4.0)
    _stopped_at(monkeypatch, "committed", tmp_path, append=True)
    (finding,) = verify_releases(open_ledger(tmp_path))
    assert finding.startswith("a-0001: as it was before an append it still lies in")
    release(tmp_path, epsilon=4.0, append=True)
    assert verify_releases(open_ledger(tmp_path)) == []
    assert sorted(os.listdir(tmp_path)) == ["ledger", "release"]


def test_releases_of_one_name_in_two_scopes_are_told_apart(tmp_path, monkeypatch):
    other = open_ledger(tmp_path, scope="other")
    _stopped_at(monkeypatch, "manifest written", tmp_path)
    mine = release(tmp_path, epsilon=4.0, ledger=other)  # of the same name, to the same place
    with pytest.raises(FileExistsError, match="holds something else than what a-0001 appends to"):
        finish_release(open_ledger(tmp_path), "a-0001")
    void_release(open_ledger(tmp_path), "a-0001")
    np.testing.assert_array_equal(load_release(tmp_path / "release").features, mine.features)
    assert verify_releases(other) == []
    with pytest.raises(ValueError, match="release' holds another release than 'a-0001'"):
        purge_release(open_ledger(tmp_path), "a-0001", tmp_path / "release")
    assert purge_release(open_ledger(tmp_path), "a-0001") is None
    assert (tmp_path / "release").exists()


def test_a_forged_release_is_no_release_of_the_ledger(tmp_path):
    stored = release(tmp_path, epsilon=4.0)
    shutil.copytree(stored.folder, tmp_path / "forged")
    manifest = json.loads((tmp_path / "forged/manifest.json").read_text())
    for changes, message in (
        ({"release": "a-0002", "epsilon": 0.1}, "its parts are not those of its name"),
        ({"epsilon": 0.1}, "is not as release 'a-0001' was committed"),
    ):
        (tmp_path / "forged/manifest.json").write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(LedgerError, match=message):
            verify_releases(open_ledger(tmp_path), [tmp_path / "forged"])
    purge_release(open_ledger(tmp_path), "a-0001")
    with pytest.raises(LedgerError, match="is not as release 'a-0001' was committed"):
        verify_releases(open_ledger(tmp_path), [tmp_path / "forged"])
    (tmp_path / "forged/manifest.json").write_bytes((json.dumps(manifest, indent=2) + "\n").encode())
    found = verify_releases(open_ledger(tmp_path), [tmp_path / "forged"])
    assert found == ["a-0001: purged", f"a-0001: purged, and lies in '{tmp_path / 'forged'}'"]


def test_a_shorter_copy_is_a_finding_and_no_error(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0, out="short")
    release(tmp_path, epsilon=4.0, out="long", append=True)
    found = [f"a-0001: as it was before an append it lies in '{tmp_path / 'short'}'"]
    assert verify_releases(open_ledger(tmp_path), [tmp_path / "short"]) == found


@pytest.mark.parametrize("spelling", ["release", "x/../release", "./release"])
def test_a_purge_takes_its_folder_in_any_spelling(tmp_path, monkeypatch, spelling):
    release(tmp_path, epsilon=4.0)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert purge_release(open_ledger(tmp_path), "a-0001", spelling) == [tmp_path / "release"]
    assert verify_releases(open_ledger(tmp_path)) == ["a-0001: purged"]


def test_a_purge_of_what_is_not_there_records_nothing(tmp_path):
    release(tmp_path, epsilon=4.0)
    with pytest.raises(FileNotFoundError, match="mistyped' is not there, so nothing was purged"):
        purge_release(open_ledger(tmp_path), "a-0001", tmp_path / "mistyped")
    assert verify_releases(open_ledger(tmp_path)) == []


@pytest.mark.parametrize("what", ["purge", "purge of a copy", "void"])
def test_a_deletion_that_was_cut_off_goes_on(tmp_path, monkeypatch, what):
    if what == "void":
        _stopped_at(monkeypatch, "renamed", tmp_path)
    else:
        release(tmp_path, epsilon=4.0)

    def end(ledger, name):
        if what == "void":
            void_release(ledger, name)
        elif what == "purge":
            purge_release(ledger, name)
        else:
            purge_release(ledger, name, tmp_path / "moved")

    if what == "purge of a copy":
        (tmp_path / "release").rename(tmp_path / "moved")
    deleted = shutil.rmtree

    def cut_off(folder, *arguments, **options):
        if str(folder).endswith(".del") and os.path.exists(folder):
            os.unlink(os.path.join(folder, "manifest.json"))
            raise KeyboardInterrupt
        deleted(folder, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut_off)
        end(open_ledger(tmp_path), "a-0001")
    end(open_ledger(tmp_path), "a-0001")
    assert os.listdir(tmp_path) == ["ledger"]


# --- what is asked for again


def test_another_scopes_release_of_the_name_hides_the_own_one_not(tmp_path):
    other = release(tmp_path, epsilon=4.0, out="other", ledger=open_ledger(tmp_path, scope="other"))
    mine = release(tmp_path, epsilon=4.0)
    assert release(tmp_path, epsilon=4.0, out="other").folder == mine.folder
    assert load_release(other.folder).manifest == other.manifest


def test_a_full_disk_spends_nothing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=500))
    with pytest.raises(ValueError, match="release', where 0.0 MiB are free, and the release takes 0.0"):
        release(tmp_path, epsilon=4.0)
    assert not open_ledger(tmp_path).parts()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=9 * 16 * 4))
    release(tmp_path, epsilon=4.0)


def test_what_is_left_of_a_release_is_to_be_deleted_by_hand(tmp_path):
    release(tmp_path, epsilon=4.0)
    (tmp_path / "release/manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no manifest.json.* delete '.*release' by hand first"):
        purge_release(open_ledger(tmp_path), "a-0001", tmp_path / "release")
    with pytest.raises(
        ValueError, match="holds no whole release. If it is what is left of 'a-0001', delete it by hand"
    ):
        purge_release(open_ledger(tmp_path), "a-0001")


@pytest.mark.parametrize("end", ["voided", "purged"])
def test_a_draw_that_is_gone_does_not_hide_the_one_before(tmp_path, monkeypatch, end):
    first = release(tmp_path, gallery(5), epsilon=4.0)
    if end == "voided":
        _stopped_at(monkeypatch, "drawn", tmp_path, gallery(5), new_release=True, out="second")
        void_release(open_ledger(tmp_path), "a-0002")
    else:
        release(tmp_path, gallery(5), epsilon=4.0, new_release=True, out="second")
        purge_release(open_ledger(tmp_path), "a-0002")
    spent = open_ledger(tmp_path).total("image:r1")
    assert release(tmp_path, gallery(5), epsilon=4.0).folder == first.folder
    assert release(tmp_path, epsilon=4.0, append=True).manifest["release"] == "a-0001"
    assert open_ledger(tmp_path).total("image:r1") == spent


def test_who_opted_out_of_a_later_draw_is_not_published_by_an_earlier_one(tmp_path):
    release(tmp_path, epsilon=4.0)
    release(tmp_path, epsilon=4.0, new_release=True, out="second", opt_out=(3,))
    purge_release(open_ledger(tmp_path), "a-0002")
    with pytest.raises(ValueError, match="pid 3 opted out of release 'a-0002', and is not named now"):
        release(tmp_path, epsilon=4.0)


def test_an_opt_out_of_one_name_is_none_of_another(tmp_path):
    release(tmp_path, epsilon=4.0, opt_out=(3,))
    for _ in range(2):
        assert len(release(tmp_path, epsilon=4.0, name="b", out="b").row_ids) == 9


def test_a_link_to_nothing_takes_no_release_and_spends_nothing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="link' exists already"):
        release(tmp_path, epsilon=4.0, out="link")
    assert not open_ledger(tmp_path).parts()


def test_an_append_behind_a_link_goes_where_the_link_shows(tmp_path):
    release(tmp_path, gallery(5), epsilon=4.0)
    (tmp_path / "release").rename(tmp_path / "moved")
    (tmp_path / "release").symlink_to(tmp_path / "moved")
    assert release(tmp_path, epsilon=4.0, append=True).folder == tmp_path / "moved"
    assert len(load_release(tmp_path / "release").row_ids) == 9
    assert purge_release(open_ledger(tmp_path), "a-0001") == [tmp_path / "moved"]


def test_an_opt_out_is_kept_by_an_append_that_adds_nothing(tmp_path):
    few = take(gallery(), range(6))
    release(tmp_path, few, epsilon=4.0)
    records = len(open_ledger(tmp_path).records())
    release(tmp_path, few, epsilon=4.0, append=True, opt_out=(3,))
    assert len(open_ledger(tmp_path).records()) == records + 1
    release(tmp_path, few, epsilon=4.0, append=True, opt_out=(3,))  # on record
    assert len(open_ledger(tmp_path).records()) == records + 1
    with pytest.raises(ValueError, match="pid 3 opted out of release 'a-0001', and is not named now"):
        release(tmp_path, epsilon=4.0, append=True)
    release(tmp_path, epsilon=4.0, append=True, opt_out=(3,))
    held = {pid for part in open_ledger(tmp_path).parts().values() for pid in part.rows.values()}
    assert held == {0, 1, 2, 4}


def test_a_reservation_that_fails_after_its_record_is_told(tmp_path, monkeypatch, caplog):
    ledger = open_ledger(tmp_path)
    ledger.open()
    written = Journal._write_head

    def full(self, seq, mac):
        if seq == 1:
            raise OSError(28, "No space left on device")
        written(self, seq, mac)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Journal, "_write_head", full)
        release(tmp_path, epsilon=4.0, ledger=ledger)
    assert "what it reserved stays spent" in caplog.text
    void_release(open_ledger(tmp_path), "a-0001")


def test_a_map_takes_the_place_of_no_other(tmp_path, monkeypatch, caplog):
    def another(step):
        if step == "drawn":
            (tmp_path / "truth.json").write_text("another's")

    monkeypatch.setattr(release_module, "reached", another)
    release(tmp_path, epsilon=4.0, truth_out="truth.json")
    assert (tmp_path / "truth.json").read_text() == "another's"
    (mine,) = tmp_path.glob("truth.json.a-0001.*")
    assert json.loads(mine.read_text())["reservation"] == "a-0001"
    assert mine.name in caplog.text


def test_an_epsilon_that_symbols_are_not_drawn_at_spends_nothing(tmp_path):
    with pytest.raises(ValueError, match="epsilon is 1e\\+06, must be <= 700"):
        release(tmp_path, mechanism=subset(1e6), ledger=open_ledger(tmp_path, epsilon=1e9))
    assert not open_ledger(tmp_path, epsilon=1e9).parts()
