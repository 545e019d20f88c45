"""Protected galleries in the engine: person unit, noised queries, stored releases, releases from a configuration."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ppreid_plugin import cli, releasing
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.extracting import extract
from ppreid_plugin.retrieval import evaluate_enrolled

TARGET = "synthetic_pedestrians"
GALLERY = ("test.evaluate", True, "privacy.gallery.enabled", True)
PERSON = (*GALLERY, "privacy.gallery.unit", "person")


def protected(engine):
    engine.test()
    return engine.results[TARGET].protected[0]


def extracted(engine):
    engine.set_model_mode("eval")
    with torch.no_grad():
        return {role: extract(engine, loader, role) for role, loader in engine.test_loader[TARGET].items()}


def test_the_person_unit_matches_queries_of_the_other_cameras_with_prototypes(make_engine):
    engine = make_engine(*PERSON, "privacy.gallery.mechanism", "none")
    result = protected(engine)
    sets = extracted(engine)
    (gallery,) = engine.galleries
    query, rows = sets["query"], sets["gallery"]
    cameras = np.unique(rows.camids)
    mine = np.isin(rows.camids, cameras[: len(cameras) // 2])
    centered = gallery.transform(rows.features).numpy()
    people = np.unique(rows.pids[mine & (rows.pids > 0)])
    means = np.stack([centered[mine & (rows.pids == pid)].mean(axis=0) for pid in people])
    others = ~np.isin(query.camids, cameras[: len(cameras) // 2])
    wanted = evaluate_enrolled(
        gallery.transform(query.features[torch.from_numpy(others)]), means, query.pids[others], people,
        query.camids[others], np.full(len(people), -1),
    )  # fmt: skip
    assert result.enrolled.num_valid_queries == wanted.num_valid_queries
    assert result.enrolled.rank1 == pytest.approx(wanted.rank1)
    assert result.clean_enrolled.rank1 == pytest.approx(wanted.rank1)  # no noise: the same
    assert result.clean_anonymous.mAP == pytest.approx(result.anonymous.mAP)
    assert result.enrolled.rows_largest == 1


def test_the_table_of_the_person_unit_states_epsilon_a_person(make_engine, capsys):
    engine = make_engine(*PERSON, "privacy.gallery.epsilon", 5)
    assert protected(engine).person_epsilon == (5.0, 5.0)
    printed = capsys.readouterr().out
    assert "delta 1e-05 for one person (replace)" in printed
    assert sum("5 a person" in line for line in printed.splitlines()) == 2
    assert "an image" not in printed


@pytest.mark.parametrize("unit", [PERSON, (*GALLERY, "privacy.gallery.max_rows_per_person", 2)])
def test_ranked_pictures_show_the_rows_that_were_matched(make_engine, run_engine, unit):
    engine = make_engine(*unit, "test.visrank", True, "test.visrank_topk", 2)
    datasets = engine.datamanager.test_dataset
    run_engine(engine)
    assert engine.datamanager.test_dataset is datasets
    folder = Path(engine.cfg.data.save_dir) / "protected" / "gaussian_epsilon_16"
    assert list(folder.rglob("*.jpg"))


def test_noised_queries_match_worse_than_clean_ones(make_engine):
    epsilon = ("privacy.gallery.mechanism", "privunit_g", "privacy.gallery.epsilon", 24)
    clean, noised = (
        protected(make_engine(*GALLERY, *epsilon, "privacy.gallery.query", query)) for query in ("clean", "noised")
    )
    assert noised.anonymous.mAP < clean.anonymous.mAP
    assert noised.description["query"] == "noised"


@pytest.fixture
def weights(make_engine, tmp_path):
    """Checkpoint of an untrained model."""
    path = tmp_path / "model.pth"
    torch.save({"state_dict": make_engine().model.state_dict()}, path)
    return path


def flags(root, tmp_path, weights, *more, out="release", protocol="enrolled"):
    (tmp_path / "c.yaml").write_text(
        "model: {name: osnet_x0_25}\n"
        "privacy: {gallery: {enabled: True, mechanism: prior_subset, epsilon: 9.0, max_rows_per_person: 3,\n"
        "                    kwargs: {codewords: 8, min_people: 1, kind: residual}}}\n"
    )
    return [
        *("--config-file", str(tmp_path / "c.yaml"), "--root", str(root), "-s", TARGET, "-t", TARGET, "--name", "g"),
        *("--out", str(tmp_path / out), "--ledger", str(tmp_path / "ledger"), "--budget", "100"),
        *("--protocol", protocol, "--truth-out", str(tmp_path / f"{out}.json"), *more),
        *("model.load_weights", str(weights), "data.height", "64", "data.width", "32", "data.workers", "0"),
        *("use_gpu", "False", "data.save_dir", str(tmp_path / "log")),
    ]


@pytest.mark.parametrize("protocol", ["anonymous", "enrolled"])
def test_a_release_from_a_configuration_is_what_the_engine_evaluates(
    pedestrians, tmp_path, weights, make_engine, protocol
):
    assert cli.run(releasing.release, flags(pedestrians, tmp_path, weights, protocol=protocol)) == 0
    stored = load_release(tmp_path / "release")
    assert stored.manifest["epsilon"] == 9.0
    assert stored.manifest["mechanism"]["codewords"] == 8
    assert stored.manifest["prior"]["prior"] == "residual"
    assert stored.manifest["model"].startswith("sha256:")
    assert {"codeword_level_0", "codeword_level_1", "symbols"} <= set(stored.arrays)

    stored_keys = ("privacy.gallery.release", tmp_path / "release", "model.load_weights", weights)
    truth = ("privacy.gallery.truth", [str(tmp_path / "release.json")]) if protocol == "anonymous" else ()
    engine = make_engine(*GALLERY, *stored_keys, *truth)
    result = protected(engine)
    sets = extracted(engine)
    labels = {r["row"]: (r["pid"], r["camid"]) for r in json.loads((tmp_path / "release.json").read_text())["rows"]}
    pids, camids = np.array([labels[name] for name in stored.row_ids]).T
    query = stored.transform().transform(sets["query"].features.numpy())
    wanted = evaluate_enrolled(query, stored.features, sets["query"].pids, pids, sets["query"].camids, camids)
    assert result.enrolled.rank1 == pytest.approx(wanted.rank1)
    assert result.enrolled.rows_largest <= 3
    assert result.description["release"] == "g-0001"
    assert result.person_epsilon[1] == pytest.approx(27.0)


def test_a_release_of_prototypes_is_compared_with_the_clean_prototypes(pedestrians, tmp_path, weights, make_engine):
    more = ("--unit", "person", "--cameras", "0", "1", "2")
    assert cli.run(releasing.release, flags(pedestrians, tmp_path, weights, *more)) == 0
    engine = make_engine(*GALLERY, "privacy.gallery.release", tmp_path / "release", "model.load_weights", weights)
    result = protected(engine)
    same = make_engine(
        *PERSON, "privacy.gallery.mechanism", "none", "privacy.gallery.enroll_cameras", [0, 1, 2],
        "privacy.gallery.max_rows_per_person", 3, "model.load_weights", weights,
    )  # fmt: skip
    wanted = protected(same)
    assert result.clean_enrolled.rank1 == pytest.approx(wanted.clean_enrolled.rank1)
    assert result.clean_anonymous.mAP == pytest.approx(wanted.clean_anonymous.mAP)
    assert result.enrolled.num_valid_queries == wanted.enrolled.num_valid_queries


def test_flags_win_over_the_configuration_and_a_dry_run_spends_nothing(pedestrians, tmp_path, weights, capsys):
    argv = flags(pedestrians, tmp_path, weights, "--epsilon", "2.5", "--mechanism", "gaussian", "--dry-run")
    assert cli.run(releasing.release, argv) == 0
    assert "epsilon 2.5, delta 1e-05" in capsys.readouterr().out
    assert not (tmp_path / "release").exists()
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (["--name", "g"], "--name must be given"),
        (["model.load_weights"], "model.load_weights is empty"),
    ],
)
def test_what_is_missing_is_named(pedestrians, tmp_path, weights, capsys, drop, message):
    argv = flags(pedestrians, tmp_path, weights)
    start = argv.index(drop[0])
    del argv[start : start + 2]
    assert cli.run(releasing.release, argv) == 2
    assert message in capsys.readouterr().err


def test_a_release_fits_on_the_images_and_takes_the_rows_that_the_evaluation_does(
    pedestrians, tmp_path, weights, make_engine
):
    fitted = ("privacy.gallery.fit_images", "9", "privacy.gallery.fit_views", "2", "train.seed", "4")
    more = ("privacy.gallery.enroll_cameras", "[0, 2]")
    argv = [*flags(pedestrians, tmp_path, weights, "--unit", "person"), *fitted, *more]
    assert cli.run(releasing.release, argv) == 0
    stored = load_release(tmp_path / "release")
    assert stored.manifest["prior"]["fitted_rows"] == 27
    assert stored.manifest["cameras"] == [0, 2]
    same = make_engine(*PERSON, "privacy.gallery.mechanism", "none", "model.load_weights", weights, *fitted)
    same.test()
    rows = extracted(same)["query"].features
    assert torch.allclose(stored.transform().transform(rows).double(), same.galleries[0].transform(rows), atol=1e-6)


def test_a_release_clips_as_the_evaluation_does(pedestrians, tmp_path, weights, capsys):
    sigmas = []
    for keys in ((), ("privacy.gallery.clip_norm", "3.0")):
        argv = [*flags(pedestrians, tmp_path, weights, "--dry-run"), "privacy.gallery.mechanism", "gaussian", *keys]
        (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text().partition("kwargs")[0] + "epsilons: []}}\n")
        assert cli.run(releasing.release, argv) == 0
        sigmas.append(float(capsys.readouterr().out.partition("sigma ")[2].partition(",")[0]))
    assert sigmas[1] == pytest.approx(3 * sigmas[0], rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["privacy.gallery.epsilons", "[4.0, 8.0]"], "privacy.gallery.epsilons is [4.0, 8.0]; a release has one"),
        (
            ["privacy.gallery.unit", "person", "privacy.gallery.prototype", "False"],
            "privacy.gallery.prototype is False: rows at a share",
        ),
        (["privacy.gallery.release", "old"], "privacy.gallery.release is 'old', a stored release"),
        (["privacy.gallery.mechanism", "gausian"], "privacy.gallery.mechanism is 'gausian'"),
    ],
)
def test_what_only_an_evaluation_has_is_refused_before_anything_is_extracted(
    pedestrians, tmp_path, weights, capsys, keys, message
):
    assert cli.run(releasing.release, [*flags(pedestrians, tmp_path, weights), *keys]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Extract" not in captured.out


def test_of_several_budgets_one_is_released_by_its_flag(pedestrians, tmp_path, weights, capsys):
    argv = flags(pedestrians, tmp_path, weights, "--dry-run")
    for more, epsilon in (
        (["privacy.gallery.epsilons", "[4.0]"], 4),
        (["privacy.gallery.epsilons", "[4.0, 8.0]", "--epsilon", "8"], 8),
    ):
        assert cli.run(releasing.release, [*argv, *more]) == 0
        assert f"epsilon {epsilon}, " in capsys.readouterr().out


def test_an_anonymous_release_needs_its_labels(pedestrians, tmp_path, weights, make_engine):
    assert cli.run(releasing.release, flags(pedestrians, tmp_path, weights, protocol="anonymous")) == 0
    key = ("privacy.gallery.release", tmp_path / "release")
    with pytest.raises(ValueError, match="is anonymous: its rows carry no pids"):
        make_engine(*GALLERY, *key)
    own = json.loads((tmp_path / "release.json").read_text())
    for change in ({"rows": []}, {"rows": own["rows"][1:]}, {"reservation": "g-0002"}, {"ledger_head": "0" * 64}):
        (tmp_path / "other.json").write_text(json.dumps(own | change))
        with pytest.raises(ValueError, match=r"privacy.gallery.truth '.*other.json' is the map of .* no part of this"):
            make_engine(*GALLERY, *key, "privacy.gallery.truth", [str(tmp_path / "other.json")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="is no map from released rows"):
        make_engine(*GALLERY, *key, "privacy.gallery.truth", [str(tmp_path / "other.json")])


def test_a_release_is_evaluated_with_the_weights_that_made_it(pedestrians, tmp_path, weights, make_engine, caplog):
    assert cli.run(releasing.release, flags(pedestrians, tmp_path, weights)) == 0
    other = tmp_path / "other.pth"
    torch.save({"state_dict": make_engine("train.seed", 5).model.state_dict()}, other)
    make_engine(*GALLERY, "privacy.gallery.release", tmp_path / "release", "model.load_weights", other)
    assert "was made with other weights" in caplog.text
    with pytest.raises(ValueError, match=r"test\.visrank is True with privacy\.gallery\.release"):
        make_engine(*GALLERY, "privacy.gallery.release", tmp_path / "release", "test.visrank", True)
    with pytest.raises(ValueError, match="while training; a stored release fits the weights"):
        make_engine("privacy.gallery.enabled", True, "privacy.gallery.release", tmp_path / "release")


@pytest.mark.parametrize("more", [("test.rerank", True), ("cuhk03.use_metric_cuhk03", True)])
def test_clean_rows_are_ranked_as_the_protected_rows_beside_them(make_engine, run_engine, more):
    """With no noise to speak of both are the same rows: what differs would be the protocol."""
    limit = ("privacy.gallery.max_rows_per_person", 2, "privacy.gallery.epsilon", 1e6)
    found = []
    for options in (more, ()):
        engine = make_engine(*GALLERY, *limit, *options)
        run_engine(engine)
        found.append(engine.results[TARGET].protected[0])
    result, plain = found
    np.testing.assert_allclose(result.clean_anonymous.cmc, result.anonymous.cmc, atol=0.01)
    assert result.clean_anonymous.mAP == pytest.approx(result.anonymous.mAP, abs=0.01)
    assert np.abs(plain.anonymous.cmc - result.anonymous.cmc).max() > 0.03


def test_nothing_is_fitted_on_the_gallery_through_combineall(pedestrians, tmp_path, weights, capsys, monkeypatch):
    argv = flags(pedestrians, tmp_path, weights)
    (tmp_path / "c.yaml").write_text("model: {name: osnet_x0_25}\n")
    assert cli.run(releasing.release, [*argv, "data.combineall", "True"]) == 2
    assert "data.combineall is True: what is fitted on the training split would be" in capsys.readouterr().err
    extract_splits = releasing.extract_splits

    def overlapping(*args, **kwargs):
        made = extract_splits(*args, **kwargs)
        made["train"]["row_ids"][0] = made["gallery"]["row_ids"][3]
        return made

    monkeypatch.setattr(releasing, "extract_splits", overlapping)
    assert cli.run(releasing.release, argv) == 2
    assert "the training split holds 1 rows of the gallery, such as " in capsys.readouterr().err
    assert not (tmp_path / "release").exists()
