"""Sweeps over budgets: the figures are those of the parts, and rows say what they are."""

import json

import numpy as np
import pytest
import torch

from ppreid_plugin import DPGallery, cli
from ppreid_plugin.dp import bound_query_to_row
from ppreid_plugin.evaluation import Extracted
from ppreid_plugin.report.choice import choose, evaluate_choices, split_validation
from ppreid_plugin.report.sweep import Fitter, MechanismSpec, load_split, make_gallery, sweep, table
from ppreid_plugin.report.sweep_command import sweep_command
from ppreid_plugin.retrieval import evaluate, evaluate_enrolled


def split(seed, people, first_pid):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, 16)) + 1.0
    pids = np.repeat(np.arange(people) + first_pid, 6)
    features = (centers[pids - first_pid] + 0.3 * rng.normal(size=(len(pids), 16))).astype(np.float32)
    return Extracted(torch.from_numpy(features), pids, np.tile(np.arange(3), 2 * people))


TRAIN, GALLERY = split(0, 30, 1000), split(1, 20, 1)
QUERY = Extracted(GALLERY.features + 0.1, GALLERY.pids, GALLERY.camids)
SUBSET = MechanismSpec("prior_subset", {"codewords": 16, "set_size": 2, "min_people": 1})


def test_a_row_is_what_the_parts_give():
    (row,) = sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[5.0], protocols=["anonymous"], seeds=1)
    gallery = DPGallery("prior_subset", epsilon=5.0, seed=1, options=SUBSET.options).fit(TRAIN.features, TRAIN.pids)
    rows = (gallery.transform(QUERY.features).float(), gallery.protect(GALLERY.features).float())
    wanted = evaluate(*rows, QUERY.pids, GALLERY.pids, QUERY.camids, GALLERY.camids)
    assert (row["rank1"], row["mAP"]) == (wanted.rank1, wanted.mAP)
    assert (row["epsilon"], row["delta"], row["unit"], row["chosen_on"]) == (5.0, 0.0, "image", "nothing")
    assert row["person_epsilon"] == [30.0, 30.0]  # six rows a person, pure
    assert row["prior_cell"] == gallery.prior.people_behind


def test_more_budget_helps_and_every_seed_is_another_draw():
    rows = sweep(TRAIN, QUERY, GALLERY, mechanisms=[MechanismSpec("privunit_g", {})], epsilons=[0.5, 50.0], seeds=2)
    assert len(rows) == 8
    figures = {(r["protocol"], r["epsilon"], r["seed"]): r["mAP"] for r in rows}
    for protocol in ("anonymous", "enrolled"):
        assert figures[protocol, 50.0, 1] > figures[protocol, 0.5, 1] + 0.2
    assert figures["anonymous", 0.5, 1] != figures["anonymous", 0.5, 2]
    assert table(rows).count("privunit_g") == 4


def test_the_person_unit_is_enrolled_from_some_cameras_and_carries_its_bound():
    rows = sweep(
        TRAIN, QUERY, GALLERY, mechanisms=[MechanismSpec("none", {})], epsilons=[2.0], units=["person"], seeds=1
    )
    clean = DPGallery("none", epsilon=1.0, unit="person").fit(TRAIN.features)
    centered = clean.transform(GALLERY.features).numpy()
    mine = GALLERY.camids == 0  # the first half of three cameras
    prototypes = np.stack([centered[mine & (GALLERY.pids == pid)].mean(axis=0) for pid in range(1, 21)])
    others = QUERY.camids != 0
    wanted = evaluate_enrolled(
        clean.transform(QUERY.features[others]), prototypes, QUERY.pids[others], np.arange(1, 21),
        QUERY.camids[others], np.full(20, -1),
    )  # fmt: skip
    by_protocol = {row["protocol"]: row for row in rows}
    assert by_protocol["enrolled"]["rank1"] == wanted.rank1
    assert by_protocol["enrolled"]["bound"] is None  # nothing is promised
    (row,) = sweep(
        TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[2.0], units=["person"], protocols=["enrolled"], seeds=1
    )
    assert row["bound"] == pytest.approx(bound_query_to_row(2.0, 20))
    assert row["person_epsilon"] == [2.0, 2.0]


def test_what_is_fitted_once_is_what_each_would_fit():
    fitter = Fitter(TRAIN)
    for options in ({"kind": "residual", "set_size": 1}, {"kind": "residual", "set_size": 3}, {"set_size": 3}):
        spec = MechanismSpec("prior_subset", {"codewords": 16, "min_people": 1, **options})
        for epsilon in (1.0, 3.0):
            shared = fitter.fit(make_gallery(spec, epsilon=epsilon, unit="image", seed=2, delta=None))
            alone = make_gallery(spec, epsilon=epsilon, unit="image", seed=2, delta=None).fit(
                TRAIN.features, TRAIN.pids
            )
            np.testing.assert_array_equal(shared.protect(GALLERY.features), alone.protect(GALLERY.features))
            assert shared.mechanism.describe() == alone.mechanism.describe()


def test_alternatives_are_multiplied():
    specs = MechanismSpec.expand("prior_subset:codewords=16|64,kind=residual,set_size=1|2|4")
    assert len(specs) == 6
    assert str(specs[-1]) == "prior_subset:codewords=64,kind=residual,set_size=4"
    assert MechanismSpec.expand("gaussian") == [MechanismSpec("gaussian", {})]


def row(mechanism, epsilon, value, *, public=False, protocol="anonymous", seed=1):
    figures = {"mAP": value, "rank1": 1 - value, "prior_is_public": public, "chosen_on": "nothing"}
    return {"mechanism": mechanism, "params": {"k": 1}, "unit": "image", "protocol": protocol, "epsilon": epsilon,
            "seed": seed, **figures}  # fmt: skip


def test_the_best_mean_is_chosen_for_each_budget_protocol_and_kind_of_prior():
    rows = [
        row("a", 1.0, 0.2), row("a", 1.0, 0.4, seed=2), row("b", 1.0, 0.29), row("b", 1.0, 0.29, seed=2),
        row("a", 2.0, 0.5), row("b", 2.0, 0.6), row("c", 2.0, 0.9, public=True),
        row("a", 1.0, 0.7, protocol="enrolled"), row("b", 1.0, 0.8, protocol="enrolled"),
    ]  # fmt: skip
    chosen = {(c["protocol"], c["epsilon"], c["prior_is_public"]): c["mechanism"] for c in choose(rows)}
    assert chosen == {
        ("anonymous", 1.0, False): "a",
        ("anonymous", 2.0, False): "b",
        ("anonymous", 2.0, True): "c",
        ("enrolled", 1.0, False): "a",  # by rank-1
    }


def test_the_gap_is_what_looking_would_have_given():
    choices = choose([row("a", 1.0, 0.5), row("b", 1.0, 0.4)])
    candidates = [row("a", 1.0, 0.2), row("b", 1.0, 0.25)]
    asked = []

    def run(spec, unit, protocol, epsilon):
        asked.append((spec.name, unit, protocol, epsilon))
        return [row("a", 1.0, 0.2), row("a", 1.0, 0.22, seed=2)]

    rows, (gap,) = evaluate_choices(choices, run, candidates)
    assert asked == [("a", "image", "anonymous", 1.0)]
    assert {r["chosen_on"] for r in rows} == {"validation people"}
    assert (gap["validation"], gap["chosen"], gap["optimum"]) == pytest.approx((0.5, 0.21, 0.25))
    assert gap["gap"] == pytest.approx(0.04)
    assert gap["optimum_params"] == "b:k=1"


def test_a_table_says_no_deviation_of_one_draw():
    row = {"mechanism": "g", "params": {}, "unit": "image", "protocol": "anonymous", "epsilon": 8.0, "tpir": None}
    row |= {"prior_cell": None, "prior_is_public": False, "person_epsilon": [8.0, 8.0], "bound": None, "mAP": 0.5}
    assert "±" not in table([{**row, "rank1": 0.5}])
    assert "55.0 ± 7.1" in table([{**row, "rank1": 0.5}, {**row, "rank1": 0.6}])  # of a sample, not of a population


def test_validation_queries_are_first_rows_of_a_camera_of_people_seen_by_two():
    people = Extracted(torch.zeros(7, 2), np.array([3, 3, 3, 4, 4, 5, 5]), np.array([0, 0, 1, 2, 2, 0, 3]))
    query, gallery = split_validation(people)
    assert query.places.tolist() == [0, 2, 5, 6]  # person 4 was seen by one camera
    assert len(gallery.pids) == 7
    with pytest.raises(ValueError, match="none of 1 validation people was seen by two cameras"):
        split_validation(people.take(people.pids == 4))


def save(path, part, **changes):
    arrays = {"features": part.features.numpy(), "pids": part.pids, "camids": part.camids, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_the_command_writes_json_and_a_table(tmp_path, capsys):
    files = {
        name: save(tmp_path / f"{name}.npz", part)
        for name, part in (("train", TRAIN), ("query", QUERY), ("gallery", GALLERY))
    }
    flags = [word for name, file in files.items() for word in (f"--{name}", file)]
    out = tmp_path / "sweep.json"
    spec = "prior_subset:codewords=16,kind=residual,min_people=2"
    argv = [*flags, "--mechanisms", "gaussian", spec, "--epsilons", "4", "--seeds", "1", "--out", str(out)]
    assert cli.run(sweep_command, argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mechanism"], row["protocol"]) for row in rows] == [
        ("gaussian", "anonymous"),
        ("gaussian", "enrolled"),
        ("prior_subset", "anonymous"),
        ("prior_subset", "enrolled"),
    ]
    assert "kind residual" in capsys.readouterr().out


def test_the_command_chooses_on_validation_people_and_draws_curves(tmp_path, capsys):
    parts = {"train": TRAIN, "query": QUERY, "gallery": GALLERY, "validation": split(2, 16, 1)}
    flags = [word for name, part in parts.items() for word in (f"--{name}", save(tmp_path / f"{name}.npz", part))]
    spec = "prior_subset:codewords=16,set_size=1|4,kind=residual,min_people=2"
    argv = ["--mechanisms", "privunit_g", spec, "--epsilons", "2", "6", "--units", "image", "person", "--seeds", "2"]
    argv += ["--choose", "--gap", "6", "--validation-seeds", "1", "--out", str(tmp_path / "s.json")]
    assert cli.run(sweep_command, [*flags, *argv, "--curves", str(tmp_path / "c.png")]) == 0
    record = json.loads((tmp_path / "s.json").read_text())
    assert len(record["choices"]) == 2 * 2 * 2  # units, protocols, budgets
    assert {row["chosen_on"] for row in record["rows"]} == {"validation people"}
    assert all(choice["gap"] >= 0 for choice in record["choices"] if choice["epsilon"] == 6)
    assert all("gap" not in choice for choice in record["choices"] if choice["epsilon"] == 2)
    assert {row["seed"] for row in record["validation"]} == {1}
    assert {row["seed"] for row in record["rows"]} == {1, 2}
    for choice in record["choices"]:
        same = [
            row for row in record["validation"]
            if all(row[k] == choice[k] for k in ("unit", "protocol", "epsilon"))
        ]  # fmt: skip
        means = {}
        for one in same:
            means.setdefault(json.dumps([one["mechanism"], one["params"]]), []).append(one[choice["metric"]])
        assert choice["validation"] == pytest.approx(max(np.mean(values) for values in means.values()))
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert "best on the gallery" in capsys.readouterr().out
    only = [*flags[:2], *flags[6:], *argv[:6], "--choose", "--out", str(tmp_path / "only.json")]
    assert cli.run(sweep_command, only) == 0  # a choice needs no gallery
    assert json.loads((tmp_path / "only.json").read_text())["rows"] == []


def named(part, prefix):
    return [f"{prefix}{number}" for number in range(len(part.pids))]


@pytest.mark.parametrize("seen", ["gallery", "query"])
def test_nothing_is_chosen_on_the_rows_that_are_reported(tmp_path, capsys, seen):
    parts = {"train": TRAIN, "query": QUERY, "gallery": GALLERY}
    flags = []
    for name, part in {**parts, "validation": parts[seen]}.items():
        path = tmp_path / f"{name}.npz"
        save(path, part)
        np.savez(path, **dict(np.load(path)), row_ids=np.array(named(part, seen if name == "validation" else name)))
        flags += [f"--{name}", str(path)]
    assert cli.run(sweep_command, [*flags, "--choose", "--epsilons", "8", "--out", str(tmp_path / "s.json")]) == 2
    assert f"rows of --{seen}, such as {seen}0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epsilons": [8.0, 8]}, "--epsilons has 8 twice"),
        ({"mechanisms": [MechanismSpec("gaussian", {})] * 2}, "--mechanisms has gaussian twice"),
        ({"units": ["person"], "enroll_cameras": [0, 1, 2, 3]}, "no query is of another camera"),
    ],
)
def test_what_would_count_twice_or_not_at_all_is_refused(more, message):
    given = {"mechanisms": [MechanismSpec("gaussian", {})], "epsilons": [8.0], "seeds": 1, **more}
    with pytest.raises(ValueError, match=message):
        sweep(TRAIN, QUERY, GALLERY, **given)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train", "t.npz", "--choose"], "--choose needs --validation"),
        (["--train", "t.npz"], "--query and --gallery must both be given"),
        (["--train", "t.npz", "--query", "q.npz"], "--query and --gallery must both be given"),
        (["--train", "t.npz", "--query", "q", "--gallery", "g", "--out", "no/s.json"], "but 'no' is no folder"),
        (["--train", "t.npz", "--query", "q", "--gallery", "g", "--curves", "no/c.svg"], "--curves is 'no/c.svg'"),
        (["--train", "t", "--query", "q", "--gallery", "g", "--validation", "v"], "--validation goes with --choose"),
        (["--train", "t", "--query", "q", "--gallery", "g", "--gap"], "--gap goes with --choose, which is not given"),
        (["--train", "t", "--query", "q", "--gallery", "g", "--enroll-cameras", "0"], "is for the person unit"),
    ],
)
def test_flags_that_lack_something_are_named(argv, message, capsys):
    assert cli.run(sweep_command, argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--mechanisms", "gaussian:sigma=1"],
            "--mechanisms has 'sigma'; allowed: clip_norm, max_rows_per_person, proto",
        ),
        (["--mechanisms", "gaussian:epsilon=3"], "--mechanisms has 'epsilon'; allowed: clip_norm"),
        (["--mechanisms", "privunit_g:delta=0"], "--mechanisms has 'delta'; allowed: clip_norm, dimension"),
        (
            ["--mechanisms", "prior_subset"],
            "size is missing. Give for example: --mechanisms prior_subset:codewords=1024",
        ),
        (["--mechanisms", "gaussian:max_rows_per_person=-1"], "max_rows_per_person of --mechanisms is -1, must be"),
        (["--mechanisms", "gaussian:transform=centre"], "transform of --mechanisms is 'centre'; registered"),
        (["--mechanisms", "gaussian:clip_norm=0"], "clip_norm of --mechanisms is 0, must be a finite number > 0"),
        (["--transform", "centre"], "--transform is 'centre'; registered"),
        (["--mechanisms", "prior_subset:codewords=1"], "codewords of --mechanisms is 1, must be a whole number >= 2"),
        (["--mechanisms", "prior_subset:codewords=8,seed=x"], "seed of --mechanisms is 'x', must be a whole number"),
        (["--mechanisms", "prior_subset:codewords=8,kind=x"], "kind of --mechanisms is 'x'; allowed: gaussian"),
        (
            ["--mechanisms", "prior_subset:codewords=8,set_size=9,prior_is_public=True"],
            "set_size of --mechanisms is 9, must be 1 to 7",
        ),
        (
            ["--mechanisms", "prior_subset:codewords=8,kind=gaussian,set_size=9,prior_is_public=True"],
            "set_size of --mechanisms is 9, must be 1 to 7",
        ),
        (["--transform", "pca:components=0"], "components of --transform is 0, must be a whole number >= 1"),
        (["--transform", "pca:components=999"], "components of --transform is 999, but"),
        (
            ["--mechanisms", "gaussian:transform=lda:shrinkage=-1"],
            "shrinkage of transform of --mechanisms is -1, must be a finite number >= 0",
        ),
        (["--mechanisms", "gaussian:transform=3"], "transform of --mechanisms is '3'; registered"),
        (["--epsilons", "4", "nan"], "--epsilons is nan, must be a finite number > 0"),
        (
            ["--mechanisms", "privunit_g", "--epsilons", "5e-324"],
            "--epsilons is 5e-324, privunit_g is computed from 1e-100 on. Take that or more",
        ),
        (["--delta", "2"], "--delta is 2.0, gaussian needs 0 < delta < 1"),
        (["--units", "person", "--enroll-cameras", "9"], "--enroll-cameras is [9], and the gallery has no row of them"),
        (
            ["--units", "person", "--mechanisms", "gaussian:prototype=False", "--epsilons", "1e-300"],
            "nothing for each. Set max_rows_per_person of --mechanisms lower, or prototype of --mechanisms True.",
        ),
    ],
)
def test_errors_name_the_flag_and_no_key_of_a_configuration(tmp_path, capsys, flags, message):
    argv = ["--out", str(tmp_path / "sweep.json"), "--mechanisms", "gaussian", "--seeds", "1"]
    for name, rows in (("train", TRAIN), ("query", QUERY), ("gallery", GALLERY)):
        np.savez(tmp_path / f"{name}.npz", features=rows.features.numpy(), pids=rows.pids, camids=rows.camids)
        argv += [f"--{name}", str(tmp_path / f"{name}.npz")]
    assert cli.run(sweep_command, [*argv, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "privacy." not in err


def test_a_mechanisms_written_form_may_clip():
    spec = MechanismSpec.parse("gaussian:clip_norm=0.5")
    gallery = make_gallery(spec, epsilon=8.0, unit="image", seed=1, delta=None)
    assert gallery.mechanism.describe()["clip_norm"] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MechanismSpec.parse("prior_subset:codewords"), "'codewords' must be NAME=VALUE"),
        (
            lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0], protocols=["anonymus"]),
            "--protocols has 'anonymus'; allowed: anonymous, enrolled",
        ),
        (lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0, -1.0]), "--epsilons is -1.0"),
        (lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0], seeds=0), "--seeds is 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_files_that_lack_something_are_named(tmp_path):
    with pytest.raises(ValueError, match="lacks camids"):
        load_split(save(tmp_path / "a.npz", TRAIN, camids=None))
    with pytest.raises(ValueError, match="lengths differ"):
        load_split(save(tmp_path / "b.npz", TRAIN, pids=TRAIN.pids[1:]))
