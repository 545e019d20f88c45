"""Configuration: torchreid's YAML unchanged, errors that name key, value and fix."""

import argparse
import itertools
import re
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from ppreid_plugin import build
from ppreid_plugin.cli import split_options
from ppreid_plugin.config import (
    ConfigError,
    check_config,
    get_default_config,
    get_option,
    merge_file,
    merge_options,
)
from ppreid_plugin.options import OPTIONS, describe_options

# keys beside privacy that torchreid does not have
OURS = [("data", "transforms_test"), ("data", "download"), ("train", "amp"), ("test", "exclude_same_camera")]
FOLDER = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("data.norm_mean", "['a','b','c']", "'a' in it must be a float"),
        ("data.sources", "[3]", "3 in it must be a str"),
        ("test.ranks", "[1, True]", "True in it must be a int"),
        ("privacy.gallery.background_pids", "['a']", "'a' in it must be a int"),
    ],
)
def test_elements_of_lists_are_of_the_defaults_kind(key, value, wrong):
    with pytest.raises(ConfigError, match=re.escape(wrong)):
        merge_options(get_default_config(), [key, value])
    cfg = get_default_config()
    merge_options(cfg, ["data.norm_mean", "[0, 0.5, 1]"])
    assert cfg.data.norm_mean == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("privacy.adversary.names", "[attributes]", ["attributes"]),
        ("privacy.adversary.names", "[identity:weight=0.5+lr=0.1, camera]", ["identity:weight=0.5+lr=0.1", "camera"]),
        ("train.open_layers", "[fc,classifier]", ["fc", "classifier"]),
        ("train.open_layers", "['fc', 'classifier']", ["fc", "classifier"]),
        ("train.open_layers", "fc", ["fc"]),
        ("data.transforms", "[]", []),
        ("data.save_dir", "[log]", "[log]"),  # no list is meant
    ],
)
def test_words_of_a_list_need_no_quotes(key, text, value):
    cfg = get_default_config()
    merge_options(cfg, [key, text])
    assert get_option(cfg, key) == value


@pytest.mark.parametrize("text", ["[a", "[a]]", "[a,,b]", "['a]", "[a: b]", "[on]", "[[a]]", "[2020-13-45]"])
def test_what_looks_like_a_list_and_is_none_is_refused_with_the_form(text):
    message = f"train.open_layers in the command line is '{text}', which is no list of words. Write it as one word"
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge_options(get_default_config(), ["train.open_layers", text])


CONFIGS = sorted(path for path in FOLDER.glob("im_*.yaml"))
MODELS, LOSSES = ("osnet_x0_25", "osnet_x1_0", "resnet50"), ("softmax", "triplet")
# what each preset is made of, and the keys that tell it from the others
PRESETS = {
    "baseline": ([], {}),
    "clean_decoder": (["DeIDDecoder"], {"privacy.deid.target": "none"}),
    "deid_pixelate": (["DeIDDecoder"], {"privacy.deid.target": "pixelate"}),
    "deid_blur": (["DeIDDecoder"], {"privacy.deid.target": "blur"}),
    "deid_noise": (["DeIDDecoder"], {"privacy.deid.target": "noise"}),
    "deid_mask": (["DeIDDecoder"], {"privacy.deid.target": "mask"}),
    "deid_adv": (["DeIDDecoder", "IdentityAdversary"], {"privacy.adversary.input": "feature"}),
    "one_stage": (["DeIDDecoder", "IdentityAdversary"], {"privacy.adversary.input": "reconstruction"}),
    "one_stage_attr": (["DeIDDecoder", "IdentityAdversary", "AttributesAdversary"], {}),
    "image_adv": (["ImageAdversary"], {"privacy.adversary.input": "feature"}),
    "two_stage": (["DeIDDecoder", "IdentityAdversary", "DPGallery"], {"privacy.adversary.input": "reconstruction"}),
}


def recipe(model, loss):
    return FOLDER / f"im_{model}_{loss}_256x128_amsgrad.yaml"


def preset_file(model, loss, preset):
    return FOLDER / f"im_{model}_{loss}_256x128_amsgrad_{preset}.yaml"


def loaded(path, *options):
    cfg = get_default_config()
    merge_file(cfg, path)
    merge_options(cfg, list(options))
    check_config(cfg)
    return cfg


def components(cfg, folder):
    if "one_stage_attr" in cfg.data.save_dir:
        path = folder / "attributes.csv"
        path.write_text("pid,gender\n1,f\n2,m\n")
        cfg.privacy.adversary.labels = str(path)
    return build.build_components(cfg)


def test_every_shipped_file_is_a_recipe_a_preset_or_the_demo():
    presets = {preset_file(*parts) for parts in itertools.product(MODELS, LOSSES, PRESETS)}
    assert len(presets) == 66
    recipes = {recipe(*parts) for parts in itertools.product(MODELS, LOSSES)}
    assert set(CONFIGS) == presets | recipes | {FOLDER / "im_osnet_x0_25_softmax_128x64_amsgrad_demo.yaml"}
    blocks = {path.stem for path in (FOLDER / "privacy").glob("*.yaml")}
    assert blocks == set(PRESETS) - {"baseline"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_merge_and_check(path):
    loaded(path)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_a_preset_is_its_recipe_with_the_parts_that_its_name_says(model, loss, preset, tmp_path):
    cfg, plain = loaded(preset_file(model, loss, preset)), loaded(recipe(model, loss))
    assert (cfg.model.name, cfg.loss.name) == (model, loss)
    assert cfg.data.save_dir == f"log/{model}_market1501_{loss}_{preset}"
    kinds, keys = PRESETS[preset]
    assert [type(part).__name__ for part in components(cfg, tmp_path)] == kinds
    for key, value in keys.items():
        assert get_option(cfg, key) == value
    for key in OPTIONS:
        if not key.startswith("privacy.") and key != "data.save_dir":
            assert get_option(cfg, key) == get_option(plain, key), key


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_same_for_every_model_and_loss(preset):
    blocks = {str(loaded(preset_file(*parts, preset)).privacy) for parts in itertools.product(MODELS, LOSSES)}
    assert len(blocks) == 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_recipes_are_stock_torchreid_files(model, loss):
    """A yacs node of torchreid's keys alone merges them."""
    stock = get_default_config()
    del stock["privacy"]
    for section, key in OURS:
        del stock[section][key]
    stock.merge_from_file(str(recipe(model, loss)))
    assert stock.model.name == model


def test_two_stages_differ_from_one_in_the_gallery_only():
    one, two = (loaded(preset_file("resnet50", "softmax", preset)).privacy for preset in ("one_stage", "two_stage"))
    assert (one.deid, one.adversary) == (two.deid, two.adversary)
    assert (one.gallery.enabled, two.gallery.enabled) == (False, True)


def test_bases_are_merged_in_order_and_own_keys_last(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.yaml").write_text("train: {lr: 0.1, max_epoch: 1, batch_size: 2}")
    (tmp_path / "b.yaml").write_text("_base_: deep/a.yaml\ntrain: {max_epoch: 3}")
    (tmp_path / "c.yaml").write_text("train: {max_epoch: 4, stepsize: [7]}")
    (tmp_path / "d.yaml").write_text("_base_: [b.yaml, c.yaml]\ntrain: {batch_size: 5}")
    cfg = loaded(tmp_path / "d.yaml")
    assert (cfg.train.lr, cfg.train.max_epoch, cfg.train.batch_size, cfg.train.stepsize) == (0.1, 4, 5, [7])
    (tmp_path / "e.yaml").write_text("_base_: [b.yaml, b.yaml]")  # twice is no circle
    assert loaded(tmp_path / "e.yaml").train.max_epoch == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("_base_: a.yaml", ConfigError, r"is based on it: a.yaml -> a.yaml. Remove"),
        (
            "_base_: b.yaml",
            ConfigError,
            r"b.yaml has _base_ 'a.yaml', which is based on it: a.yaml -> b.yaml -> a.yaml",
        ),
        ("_base_: nothing.yaml", FileNotFoundError, r"a.yaml has _base_ 'nothing.yaml', but .* is no file"),
        ("_base_: 3", ConfigError, "has _base_ 3, must be the name of a YAML file or a list"),
        ("_base_: [3]", ConfigError, r"has _base_ \[3\], must be the name"),
        ("_base_: {a: b}", ConfigError, "must be the name of a YAML file"),
        ("_base_: c.yaml", ConfigError, r"c.yaml has the unknown key 'modle'"),
    ],
)
def test_bases_that_cannot_be_used_are_named(tmp_path, text, error, message):
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("_base_: a.yaml")
    (tmp_path / "c.yaml").write_text("modle: {name: x}")
    with pytest.raises(error, match=message):
        merge_file(get_default_config(), tmp_path / "a.yaml")


def test_a_stock_torchreid_yaml_merges_unchanged(tmp_path):
    # keys and value forms of torchreid's own files: quoted words, ints for floats, lists
    stock = {
        "model": {"name": "resnet50_fc512", "pretrained": True},
        "data": {"type": "image", "sources": ["market1501"], "transforms": ["random_flip"], "save_dir": "log/x"},
        "loss": {"name": "softmax", "softmax": {"label_smooth": True}},
        "train": {"optim": "amsgrad", "lr": 0.0003, "max_epoch": 60, "stepsize": [20], "weight_decay": 0},
        "test": {"batch_size": 100, "dist_metric": "euclidean", "eval_freq": -1},
    }
    path = tmp_path / "stock.yaml"
    path.write_text(yaml.safe_dump(stock))
    cfg = get_default_config()
    merge_file(cfg, path)
    check_config(cfg)
    assert cfg.train.weight_decay == 0.0
    assert isinstance(cfg.train.weight_decay, float)
    assert cfg.model.name == "resnet50_fc512"
    assert build.build_components(cfg) == []


def test_the_defaults_enable_nothing_private():
    assert build.build_components(get_default_config()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["privacy.dedi.enabled", "True"], "unknown key 'privacy.dedi.enabled'. Did you mean 'privacy.deid.enabled'?"),
        (["modle.name", "x"], "unknown key 'modle.name'. Did you mean 'model.name'?"),
        (["train.max_epoch"], "KEY VALUE pairs, got 1 words"),
        (["train.max_epoch", "ten"], "train.max_epoch in the command line is 'ten', must be a int"),
        (["train.max_epoch", "1.5"], "train.max_epoch in the command line is 1.5, must be a int"),
        (["train.lr", "fast"], "train.lr in the command line is 'fast', must be a float"),
        (["privacy.deid.enabled", "1"], "privacy.deid.enabled in the command line is 1, must be a bool"),
        (["privacy.gallery.epsilon", "-4"], "privacy.gallery.epsilon is -4.0, must be > 0.*append: privacy.gallery"),
        (["privacy.gallery.epsilon", "0"], "privacy.gallery.epsilon is 0.0, must be > 0"),
        (["privacy.gallery.epsilon", "nan"], "privacy.gallery.epsilon is nan, must be > 0"),
        (["privacy.deid.weight", "-1"], "privacy.deid.weight is -1.0, must be >= 0"),
        (["data.transforms", "['random_flipp']"], "data.transforms is 'random_flipp'; allowed: .*'random_flip'"),
        (["data.transforms", "[random_flipp]"], "data.transforms is 'random_flipp'; allowed: .*'random_flip'"),
        (["loss.name", "arcface"], "loss.name is 'arcface'; allowed: softmax, triplet"),
        (["data.type", "audio"], "data.type is 'audio'; allowed: image, video"),
        (["train.optim", "adamw"], "train.optim is 'adamw'; allowed: .*Did you mean 'adam'?"),
        (["sampler.train_sampler", "Random"], "sampler.train_sampler is 'Random'; allowed"),
        (["data.k_tfm", "2"], "data.k_tfm is 2; torchreid's engines cannot"),
        (["privacy.validation.ids_fraction", "1.0"], r"ids_fraction is 1.0, must lie in \[0, 1\)"),
        (["privacy.adversary.enabled", "True"], "there is no decoder to reconstruct with"),
        (["privacy.gallery.enabled", "True", "data.combineall", "True"], "fitted on the gallery"),
        (["loss.name", "triplet", "train.fixbase_epoch", "5"], "train.fixbase_epoch is 5 with loss.triplet.weight_x 0"),
        (["test.visrank", "True"], "only with test.evaluate True"),
        (["test.ranks", "[0]"], r"test.ranks is \[0\]"),
        (["privacy.gallery.unit", "people"], "privacy.gallery.unit is 'people'; allowed: image, person"),
        (["privacy.adversary.schedule", "reverse"], "schedule is 'reverse'; allowed: reversal"),
    ],
)
def test_errors_name_key_value_and_fix(options, message):
    cfg = get_default_config()
    with pytest.raises(ConfigError, match=message):
        merge_options(cfg, options)
        check_config(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["privacy.deid.enabled", "True", "privacy.deid.target", "pixelize"], "privacy.deid.target is 'pixelize'"),
        (["privacy.deid.enabled", "True", "privacy.deid.decoder", "big"], "privacy.deid.decoder is 'big'"),
        (
            [
                "privacy.deid.enabled",
                "True",
                "privacy.adversary.enabled",
                "True",
                "privacy.adversary.names",
                "['iden']",
            ],
            "privacy.adversary.names is 'iden'; registered: .*Did you mean 'identity'",
        ),
        (["privacy.gallery.enabled", "True", "privacy.gallery.mechanism", "gausian"], "Did you mean 'gaussian'"),
        (["privacy.deid.enabled", "True", "privacy.deid.kwargs.block", "3"], "kwargs has 'block'; allowed: blocks"),
        (
            ["privacy.gallery.enabled", "True", "privacy.gallery.kwargs.k", "3"],
            "privacy.gallery.kwargs has 'k'; allowed",
        ),
        (
            ["privacy.gallery.enabled", "True", "privacy.gallery.kwargs.epsilon", "3"],
            "privacy.gallery.kwargs has 'epsilon'; allowed: none",
        ),
        (["privacy.gallery.enabled", "True", "privacy.gallery.delta", "0"], "delta is 0.0.*0 < delta < 1"),
        (["privacy.gallery.enabled", "True", "privacy.gallery.delta", "1.5"], "delta is 1.5"),
        (["privacy.gallery.enabled", "True", "privacy.gallery.transform", "centre"], "'centre'; registered: center"),
    ],
)
def test_errors_of_components_come_before_any_data_are_read(options, message):
    cfg = get_default_config()
    merge_options(cfg, options)
    with pytest.raises(ValueError, match=message):
        build.check(cfg)


def test_integers_are_floats_where_a_float_is_meant_and_numbers_in_words_too():
    cfg = get_default_config()
    merge_options(cfg, ["privacy.gallery.epsilon", "8", "train.lr", "1e-3", "privacy.gallery.delta", "1e-6"])
    assert cfg.privacy.gallery.epsilon == 8.0
    assert isinstance(cfg.privacy.gallery.epsilon, float)
    assert (cfg.train.lr, cfg.privacy.gallery.delta) == (0.001, 1e-6)


def test_kwargs_of_outside_parts_are_free_but_nothing_else_is():
    cfg = get_default_config()
    merge_options(cfg, ["privacy.gallery.kwargs.set_size", "4"])
    assert cfg.privacy.gallery.kwargs == {"set_size": 4}


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        merge_file(get_default_config(), path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is no file"):
        merge_file(get_default_config(), tmp_path / "nothing.yaml")


def test_every_key_has_a_comment_and_its_default_in_the_help():
    cfg = get_default_config()
    text = describe_options()
    for key, (default, comment) in OPTIONS.items():
        assert comment
        assert f"  {key} " in text
        assert repr(default) in text
        value = get_option(cfg, key)
        assert value == default or isinstance(value, CfgNode)


@pytest.mark.parametrize(
    ("argv", "flags", "options"),
    [
        (
            ["--root", "D", "--transforms", "random_flip", "model.pretrained", "False"],
            ["--root", "D", "--transforms", "random_flip"],
            ["model.pretrained", "False"],
        ),
        (
            ["-s", "market1501", "train.lr", "0.1", "-t", "cuhk03"],
            ["-s", "market1501", "-t", "cuhk03"],
            ["train.lr", "0.1"],
        ),
        (["--root", "use_gpu"], ["--root", "use_gpu"], []),
        (["data.save_dir", "train.lr"], [], ["data.save_dir", "train.lr"]),
        (["privacy.deid.kwargs.size", "3"], [], ["privacy.deid.kwargs.size", "3"]),
    ],
)
def test_the_first_known_key_starts_the_options(argv, flags, options):
    assert split_options(argv) == (flags, options)


def test_a_file_that_is_called_like_a_section_is_no_misspelled_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--gallery", "test.npz", "--images", "data.jpg", "video.png", "--top", "3", "model.name", "osnet_x0_25"]
    parser = argparse.ArgumentParser()
    for flag, nargs in (("--gallery", None), ("--images", "+"), ("--top", None)):
        parser.add_argument(flag, nargs=nargs)
    for name in ("data.jpg", "video.png"):
        (tmp_path / name).touch()
    assert split_options(argv, parser) == (argv[:-2], argv[-2:])
    (tmp_path / "video.png").unlink()  # what is not there may be a key that is misspelled
    assert split_options(argv, parser)[1] == ["video.png", "--top", "model.name", "osnet_x0_25"]


def test_a_key_without_a_value_is_named_and_takes_no_flag():
    with pytest.raises(ConfigError, match="give train.max_epoch a value before --root"):
        split_options(["train.max_epoch", "--root", "data"])
    assert split_options(["test.eval_freq", "-1"]) == ([], ["test.eval_freq", "-1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sampler.num_instances", "0"], "sampler.num_instances is 0, must be >= 1"),
        (["train.stepsize", "[]"], r"train.stepsize is \[\], must hold whole numbers >= 1"),
        (["train.stepsize", "[0]"], "train.stepsize is"),
        (["data.norm_std", "[0.2, 0.0, 0.2]"], "data.norm_std is .*, must be three numbers, one a color, > 0"),
        (["data.norm_mean", "[0.5]"], "data.norm_mean is .*, must be three numbers, one a color. ImageNet's"),
        (["loss.triplet.margin", "nan"], "loss.triplet.margin is nan"),
        (["train.gamma", "nan"], "train.gamma is nan, must be > 0"),
        (["train.base_lr_mult", "0.0"], "train.base_lr_mult is 0.0, must be > 0"),
        (["sgd.momentum", "nan"], "sgd.momentum is nan, must be >= 0"),
        (["rmsprop.alpha", "-0.1"], "rmsprop.alpha is -0.1, must be >= 0"),
        (
            ["cuhk03.use_metric_cuhk03", "True", "test.exclude_same_camera", "False"],
            "cuhk03.use_metric_cuhk03 True leaves the query's camera out by definition",
        ),
        (
            ["train.fixbase_epoch", "3", "train.open_layers", "[]"],
            r"train.open_layers is \[\] with train.fixbase_epoch 3",
        ),
        (
            ["sampler.train_sampler", "RandomDomainSampler", "sampler.num_cams", "5"],
            "train.batch_size is 32 with sampler.num_cams 5; RandomDomainSampler takes .*Append: train.batch_size 30",
        ),
        (
            ["sampler.train_sampler", "RandomDatasetSampler", "sampler.num_datasets", "3", "train.batch_size", "2"],
            "train.batch_size is 2 with sampler.num_datasets 3; RandomDatasetSampler .*Append: train.batch_size 3",
        ),
        (
            [
                *("data.load_train_targets", "True", "sampler.train_sampler_t", "RandomDomainSampler"),
                *("sampler.num_cams", "5", "test.evaluate", "True"),  # torchreid builds it for a test, too
            ],
            "train.batch_size is 32 with sampler.num_cams 5",
        ),
        (["adam.beta1", "1.0"], r"adam.beta1 is 1.0, must lie in \[0, 1\). Append: adam.beta1 0.9"),
        (["train.optim", "amsgrad", "adam.beta2", "-0.1"], "adam.beta2 is -0.1, must lie in"),
        (["train.optim", "radam", "adam.beta2", "nan"], "adam.beta2 is nan, must lie in"),
        (["train.optim", "rmsprop", "rmsprop.alpha", "1"], "rmsprop.alpha is 1.0, must lie in"),
        (["train.seed", "-1"], "train.seed is -1, must be a whole number from 0 to 4294967295"),
        (["train.seed", str(2**32), "test.evaluate", "True"], "train.seed is 4294967296, must be"),
        (
            ["train.optim", "sgd", "sgd.nesterov", "True", "sgd.momentum", "0"],
            "sgd.nesterov is True with sgd.momentum 0.0 and sgd.dampening 0.0; it needs momentum > 0",
        ),
        (["train.optim", "sgd", "sgd.nesterov", "True", "sgd.dampening", "0.1"], "and sgd.dampening 0.1; it needs"),
        (["train.batch_size", "1"], "train.batch_size is 1, must be >= 2: batch norm"),
        (["data.save_dir", ""], "data.save_dir is ''; checkpoints and logs need a folder"),
        (["train.start_epoch", "5", "train.max_epoch", "5"], "train.start_epoch is 5, and train.max_epoch 5: nothing"),
    ],
)
def test_values_that_would_end_in_a_traceback_or_do_nothing_are_refused(options, message):
    cfg = get_default_config()
    merge_options(cfg, options)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


@pytest.mark.parametrize(
    "options",
    [
        ["sampler.num_cams", "5", "sampler.num_datasets", "5"],
        ["sampler.train_sampler", "RandomDomainSampler", "sampler.num_cams", "8"],
        ["sampler.train_sampler", "RandomDomainSampler", "sampler.num_cams", "0"],  # torchreid: all cameras
        ["sampler.train_sampler_t", "RandomDomainSampler", "sampler.num_cams", "5"],  # its loader is not built
        ["train.optim", "sgd", "adam.beta1", "1", "rmsprop.alpha", "1", "sgd.nesterov", "True"],
        ["train.optim", "adam", "sgd.nesterov", "True", "sgd.momentum", "0", "rmsprop.alpha", "1", "adam.beta1", "0"],
        ["train.optim", "rmsprop", "adam.beta2", "1", "sgd.momentum", "0"],
        ["train.seed", "0"],
        ["train.seed", "4294967295"],
        ["train.batch_size", "2"],
        ["train.batch_size", "1", "data.type", "video"],
        ["test.evaluate", "True", "train.batch_size", "1", "data.save_dir", "", "adam.beta1", "1"],
        ["test.evaluate", "True", "train.fixbase_epoch", "1", "train.open_layers", "[]"],
    ],
)
def test_values_that_nothing_reads_or_that_torchreid_takes_pass(options):
    cfg = get_default_config()
    merge_options(cfg, options)
    check_config(cfg)
