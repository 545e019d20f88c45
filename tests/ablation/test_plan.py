"""Plans: what is wrong is named before anything runs; keys change with what they stand for and with nothing else."""

from itertools import product

import numpy as np
import pytest
import yaml
from ablation_cases import OPTIONS as OPTIONS_OF_ALL
from ablation_cases import ROWS, preset
from yacs.config import CfgNode

from ppreid_plugin.ablation import Measures, Row, load_plan
from ppreid_plugin.ablation.command import ablation_command
from ppreid_plugin.ablation.keys import features_key, measured_key, training_key
from ppreid_plugin.ablation.plan import WITHOUT_EFFECT
from ppreid_plugin.ablation.runner import Runner
from ppreid_plugin.config import ConfigError, get_default_config, get_option
from ppreid_plugin.leakage.erasure import Leace
from ppreid_plugin.options import OPTIONS
from ppreid_plugin.suppression import ADVERSARIES, AttributesAdversary


def derived(**entry):
    return [*ROWS, {"name": "other", **entry}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "must begin with the reference"),
        ([{"name": "a", "of": "b"}], "must begin with the reference"),
        ([{**ROWS[0], "defense": "permute"}], "must begin with the reference: .*without a defense"),
        ([{"config": preset("baseline")}], "must be a mapping with a name"),
        (["baseline"], "has the row 'baseline', must be a mapping"),
        ([ROWS[0], ROWS[0]], "two rows 'baseline'"),
        (derived(), "row 'other' must have either config .* or of"),
        (derived(of="baseline", config=preset("one_stage")), "must have either config"),
        (derived(of="baselin"), "of 'baselin', which is no row above it: .*Did you mean 'baseline'"),
        (derived(of="other"), "is of 'other', which is no row above"),
        (derived(of="baseline", defence="permute"), "unknown key 'defence'; allowed: .*Did you mean 'defense'"),
        (derived(of="baseline", defense="permut"), "Did you mean 'permute'"),
        (derived(of="baseline", defense="quantize:bits"), "defense 'quantize:bits': 'bits' must be NAME=VALUE"),
        (derived(of="baseline", defense="quantize:bits=1,bits=2"), "defense 'quantize:.*' gives 'bits' twice"),
        ([*derived(of="baseline", defense="permute"), {"name": "c", "of": "other"}], "'other', which has a defense"),
        (derived(of="baseline", options=["a"]), "has options .'a'., must be a mapping"),
    ],
)
def test_rows_that_cannot_be_used_are_named(write_plan, rows, message):
    with pytest.raises(ValueError, match=message):
        load_plan(write_plan(rows))


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"attaks": []}, "unknown key 'attaks'.*Did you mean 'attacks'"),
        ({"attacks": ["identify"]}, "measures.attacks is 'identify'"),
        ({"attacks": ["attributes"]}, "has attributes, but no labels"),
        ({"attack_seeds": 0}, "must be >= 1"),
        ({"test_rows": -1}, "measures.test_rows -1, must be a whole number >= 0"),
        ({"deid_steps": "many"}, "measures.deid_steps 'many', must be a whole number"),
        ({"scored_on": "people"}, "measures.scored_on 'people'; allowed: gallery, validation"),
        ({"learn_from": ["query"]}, r"measures.learn_from \['query'\]; allowed: one or more of train, gallery"),
        ({"attacks": ["membership"], "learn_from": ["gallery"]}, "membership cannot learn from half of the gallery"),
        ({"metric": "l2"}, "measures.metric 'l2'; allowed: cosine, euclidean"),
        ({"judge": "osnet_x0_25"}, "judge and judge_weights belong together"),
        ({"judge": "osnet_x0_25", "judge_weights": "w", "attacks": []}, "judge is osnet_x0_25, which looks at recon"),
        ({"deid_target": "mean_image"}, "which learns from training images first"),
        ({"deid_target": "pixelat"}, "Did you mean 'pixelate'"),
    ],
)
def test_measures_that_cannot_be_used_are_named(write_plan, measures, message):
    with pytest.raises(ValueError, match=message):
        load_plan(write_plan(measures=measures))


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], ["one"], [True]])
def test_seeds_are_different_whole_numbers(write_plan, seeds):
    with pytest.raises(ConfigError, match="has seeds"):
        load_plan(write_plan(seeds=seeds))


def test_files_that_are_not_there_are_named(write_plan, tmp_path):
    with pytest.raises(FileNotFoundError, match="row 'a' has config 'nothing.yaml', but '.*nothing.yaml' is no file"):
        load_plan(write_plan([{"name": "a", "config": "nothing.yaml"}]))
    with pytest.raises(FileNotFoundError, match="is no file"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="unknown key 'row'; allowed: .*Did you mean 'rows'"):
        load_plan(write_plan(row=[]))


def test_rows_are_selected_in_the_plans_order_with_the_reference(write_plan):
    plan = load_plan(write_plan(derived(of="one_stage")))
    assert [row.name for row in plan.selected(["other"])] == ["baseline", "other"]
    assert [row.name for row in plan.selected()] == ["baseline", "one_stage", "other"]
    with pytest.raises(ConfigError, match="--rows has 'onestage'; the plan has: .*Did you mean 'one_stage'"):
        plan.selected(["onestage"])


def test_options_come_in_order_file_all_rows_own_command_line(write_plan):
    rows = [ROWS[0], {**ROWS[1], "options": {"train.lr": 0.5, "train.batch_size": 3}},
            {"name": "other", "of": "one_stage", "options": {"test.batch_size": 7}}]  # fmt: skip
    plan = load_plan(write_plan(rows, options={"train.lr": 0.1}), options=["train.batch_size", "9"])
    first, second, third = (plan.config(row, 4) for row in plan.rows)
    assert [cfg.train.lr for cfg in (first, second, third)] == [0.1, 0.5, 0.5]
    assert [cfg.train.batch_size for cfg in (first, second, third)] == [9, 9, 9]
    assert third.test.batch_size == 7
    assert second.privacy.adversary.enabled
    assert first.train.seed == 4
    assert (first.train.max_epoch, second.train.weight_decay) == (1, 5e-4)


def test_keys_change_with_what_determines_the_work_and_with_nothing_else(write_plan, tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"one")

    def keys(*options, row=1, **measures):
        plan = load_plan(write_plan(), options=list(map(str, options)), measures=measures)
        cfg, reference = plan.config(plan.rows[row], 1), plan.config(plan.rows[0], 1)
        return (
            training_key(cfg), features_key(cfg), measured_key(cfg, reference, plan.rows[row].defense, plan.measures),
        )  # fmt: skip

    base = keys()
    for same in (
        ("train.print_freq", 3),
        ("train.channels_last", True),
        ("test.eval_freq", 1),  # nobody is held out: it chooses nothing
        ("privacy.aware.weight", 3),
    ):
        assert keys(*same) == base
    for training in (
        ("train.lr", 0.1),
        ("train.max_epoch", 9),
        ("privacy.deid.weight", 3),
        ("data.transforms", "[]"),
        ("model.load_weights", weights),
    ):
        assert all(one != other for one, other in zip(keys(*training), base, strict=True))
    one = keys("model.load_weights", weights)
    weights.write_bytes(b"two")
    assert keys("model.load_weights", weights)[0] != one[0]  # the content of a file counts
    test_images = keys("data.transforms_test", "['pixelate']")
    assert test_images[0] == base[0]
    assert test_images[1:] != base[1:]
    assert test_images[1] != base[1]
    for measures in ({"scored_on": "validation"}, {"learn_from": ["gallery"]}, {"attack_seeds": 2}):
        measured = keys(**measures)
        assert measured[:2] == base[:2]
        assert measured[2] != base[2]
    assert keys(scored_on="gallery", learn_from=["train"], metric="euclidean") == base
    gallery = keys("privacy.gallery.enabled", True)
    assert gallery[:2] == base[:2]
    assert gallery[2] != base[2] != keys("test.exclude_same_camera", False)[2]
    assert keys("privacy.deid.weight", 3, row=0) == keys(row=0)  # a part that is not enabled


def test_figures_of_other_background_are_other_figures_on_either_side():
    """The clean side is read with the reference's background, the row's own with the row's."""
    plain, other = get_default_config(), get_default_config()
    other.privacy.gallery.background_pids = [0, 5]
    assert len({measured_key(*pair, "", Measures()) for pair in product((plain, other), repeat=2)}) == 4


def test_every_option_changes_the_work_or_is_refused():
    """So no figure is taken for another's. Those that are left change nothing but speed and rounding."""
    harmless = {
        "data.download", "test.batch_size", "test.fast_extraction", "test.feature_cache", "train.channels_last",
        "train.print_freq", "train.rank_timeout_s", "use_gpu",
    }  # fmt: skip

    def all_on():
        cfg = get_default_config()
        for node in cfg.privacy.values():
            if "enabled" in node:
                node.enabled = True
        cfg.privacy.validation.ids_fraction, cfg.test.eval_freq = 0.1, 1
        return cfg

    same = set()
    for key in OPTIONS:
        cfg = all_on()
        value = get_option(cfg, key)
        other = (
            not value if isinstance(value, bool)
            else value + 1 if isinstance(value, (int, float))
            else value + "x" if isinstance(value, str)
            else ["camera"]
        )  # fmt: skip
        *path, leaf = key.split(".")
        node = cfg
        for name in path:
            node = node[name]
        node[leaf] = other
        if measured_key(cfg, all_on(), "", Measures()) == measured_key(all_on(), all_on(), "", Measures()):
            same.add(key)
    assert same - set(WITHOUT_EFFECT) == harmless


def test_label_files_count_by_content_however_they_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(ADVERSARIES._entries, "own", type("Own", (AttributesAdversary,), {}))  # from outside
    labels = tmp_path / "l.csv"
    for written in (
        {"labels": str(labels)},
        {"labels": f"market1501={labels}"},
        {"labels": "other.csv", "names": [f"attributes:labels={labels}"]},
        {"labels": str(labels), "names": ["identity", "own"]},
        {"labels": "other.csv", "kwargs": CfgNode({"labels": str(labels)})},
    ):
        cfg = get_default_config()
        cfg.privacy.adversary.enabled, cfg.privacy.adversary.names = True, ["attributes"]
        for name, value in written.items():
            cfg.privacy.adversary[name] = value
        keys = []
        for text in ("pid,gender\n1,a\n", "pid,gender\n1,b\n"):
            labels.write_text(text)
            keys.append(training_key(cfg))
        assert keys[0] != keys[1], written


@pytest.mark.parametrize("key", ["train.seed", "test.rerank", "model.resume", "data.save_dir"])
def test_options_that_would_change_nothing_are_refused_wherever_they_stand(write_plan, key):
    with pytest.raises(ConfigError, match=f"plan.yaml, options has {key}, which changes nothing in an ablation: "):
        load_plan(write_plan(options={key: 1}))
    with pytest.raises(ConfigError, match=f"row 'other' has {key}, which changes nothing"):
        load_plan(write_plan(derived(of="baseline", options={key: 1})))
    with pytest.raises(ConfigError, match=f"the command line has {key}, which changes nothing"):
        load_plan(write_plan(), options=["train.lr", "0.1", key, "1"])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"max_epoch": 0}, "row 'part' has train.max_epoch 0, must be >= 1"),
        ({"start_epoch": 2}, "row 'part' has model.resume '' and train.start_epoch 2; a row is trained from the first"),
    ],
)
def test_rows_are_whole_trainings(write_plan, tmp_path, train, message):
    file = tmp_path / "part.yaml"
    file.write_text(yaml.safe_dump({"_base_": preset("baseline"), "train": train}))
    options = {key: value for key, value in OPTIONS_OF_ALL.items() if key != "train.max_epoch"}
    path = write_plan([{"name": "part", "config": str(file)}])
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "options": options}))
    plan = load_plan(path)
    with pytest.raises(ConfigError, match=message):
        Runner(plan, tmp_path / "out", plan.rows)


def test_checkpoints_are_not_chosen_on_those_who_are_scored(write_plan, tmp_path):
    options = {"privacy.validation.ids_fraction": 0.4, "test.eval_freq": 1}
    plan = load_plan(write_plan(options=options, measures={"scored_on": "validation"}))
    with pytest.raises(ConfigError, match="test.eval_freq of row 'baseline' is 1: checkpoints would be chosen on the"):
        Runner(plan, tmp_path / "out", plan.rows)


def test_rows_of_another_row_may_not_change_training_nor_have_two_defenses(write_plan, tmp_path):
    def runner(**entry):
        plan = load_plan(write_plan(derived(of="baseline", **entry)))
        return Runner(plan, tmp_path / "out", plan.rows)

    with pytest.raises(ConfigError, match=r"row 'other' is of 'baseline', but its options \(train.lr\) change what is"):
        runner(options={"train.lr": 0.5})
    with pytest.raises(ConfigError, match="row 'other' has a defense, and privacy.gallery.enabled True"):
        runner(options={"privacy.gallery.enabled": True}, defense="permute")
    with pytest.raises(ConfigError, match="has 2 budgets"):
        runner(options={"privacy.gallery.enabled": True, "privacy.gallery.epsilons": [4.0, 8.0]})
    with pytest.raises(ValueError, match="privacy.gallery.unit is 'person'; an ablation compares galleries row by row"):
        runner(options={"privacy.gallery.enabled": True, "privacy.gallery.unit": "person"})
    with pytest.raises(ValueError, match="privacy.gallery.fit_views is 1; an ablation fits on the training rows that"):
        runner(options={"privacy.gallery.enabled": True, "privacy.gallery.fit_views": 1})
    assert not (tmp_path / "out").exists()


def test_adversaries_learn_from_the_labels_that_are_measured(write_plan):
    plan = load_plan(write_plan([{"name": "a", "config": preset("one_stage_attr")}]), measures={"labels": "l.csv"})
    assert plan.config(plan.rows[0], 1).privacy.adversary.labels == "l.csv"
    assert plan.trained(Row("b", of="a")) == plan.rows[0]


def test_the_shipped_plan_is_one(tmp_path):
    from ablation_cases import CONFIGS

    labels = tmp_path / "attributes.csv"
    labels.write_text("pid,gender\n1,a\n")
    plan = load_plan(CONFIGS / "ablation.yaml", measures={"labels": str(labels)})
    work = Runner(plan, tmp_path / "out", plan.rows).work
    assert len({one.measured for one in work}) == len(plan.rows) * len(plan.seeds)
    by_name = {one.row.name: one for one in work if one.seed == 1}
    assert by_name["two_stage"].training == by_name["one_stage"].training
    assert len({one.training for one in work}) == 21 * len(plan.seeds)
    assert plan.config(by_name["erasure"].row, 1).privacy.erasure.attributes[0] == "gender"


def test_the_shipped_plan_of_weights_looks_at_people_held_out_only(tmp_path):
    from ablation_cases import CONFIGS

    labels = tmp_path / "attributes.csv"
    labels.write_text("pid,gender\n1,a\n")
    plan = load_plan(CONFIGS / "ablation_weights.yaml", measures={"labels": str(labels)})
    assert plan.measures.scored_on == "validation"
    work = Runner(plan, tmp_path / "out", plan.rows).work
    trained = [one for one in work if one.row.config is not None]
    assert len({one.training for one in trained}) == len(trained)  # no two rows are the same training
    assert {one.cfg.privacy.validation.ids_fraction for one in work} == {0.4}


def test_files_that_a_gallery_or_a_defense_names_count_by_content(write_plan, tmp_path):
    file = tmp_path / "t.safetensors"
    written = {
        "gallery": {"options": {"privacy.gallery.enabled": True, "privacy.gallery.transform": f"leace:{file}"}},
        "argument": {
            "options": {"privacy.gallery.enabled": True, "privacy.gallery.kwargs": {"codebook": str(file), "size": 2}}
        },
        "defense": {"defense": f"dp:epsilon=8,transform=leace:{file}"},
        "other": {"defense": "dp:epsilon=8,transform=center"},
    }
    rows = [ROWS[0], *({"name": name, "of": "baseline", **row} for name, row in written.items())]

    def keys():
        plan = load_plan(write_plan(rows))
        reference = plan.config(plan.rows[0], 1)
        return {row.name: measured_key(plan.config(row, 1), reference, row.defense, plan.measures) for row in plan.rows}

    drawn = np.random.default_rng(0)
    rows_to_erase, bits = drawn.normal(size=(40, 8)), drawn.integers(0, 2, (40, 2))
    Leace().fit_concepts(rows_to_erase, bits[:, :1]).save(file)
    one = keys()
    assert keys() == one
    Leace().fit_concepts(rows_to_erase, bits[:, 1:]).save(file)
    assert {name for name, key in keys().items() if key != one[name]} == {"gallery", "argument", "defense"}


def test_figures_with_and_without_the_cost_of_a_step_are_not_one():
    cfg = get_default_config()
    cfg.privacy.gallery.enabled = True
    for defense in ("", "leace"):
        keys = {measured_key(cfg, cfg, defense, Measures(), has_step=has_step) for has_step in (True, False)}
        assert len(keys) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "b", "config": preset("two_stage")}], "'b' is the reference, and privacy.gallery.enabled is True"),
        (
            [ROWS[0], {"name": "d", "of": "baseline", "defense": "dp:epsilon=8",
                       "options": {"privacy.gallery.epsilon": 4.0}}],
            "row 'd' has a defense, and privacy.gallery.epsilon, which would do nothing",
        ),
        (
            [ROWS[0], {"name": "d", "of": "baseline", "options": {"privacy.gallery.epsilon": 4.0}}],
            "row 'd' has privacy.gallery.epsilon with privacy.gallery.enabled False: it would do nothing",
        ),
        (
            [ROWS[0], {"name": "d", "config": preset("baseline"), "options": {"data.combineall": True}}],
            "data.combineall is True in row 'd': attackers",
        ),
        (
            [ROWS[0], {"name": "r", "of": "baseline", "options": {"privacy.gallery.release": "museum"}}],
            "has privacy.gallery.release, which changes nothing in an ablation: a row draws its own gallery",
        ),
    ],
)  # fmt: skip
def test_rows_that_would_not_be_what_they_say_are_refused(write_plan, flags, rows, message):
    with pytest.raises(ConfigError, match=message):
        ablation_command([*flags(write_plan(rows)), "--list"])
