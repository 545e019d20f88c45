"""Configuration: torchreid's YAML unchanged, errors that name key, value and fix."""

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

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_merge_check_and_name_their_parts(path):
    cfg = get_default_config()
    merge_file(cfg, path)
    check_config(cfg)
    parts = {type(part).__name__ for part in build.build_components(cfg)}
    expected = {
        "deid_pixelate": {"DeIDDecoder"},
        "one_stage": {"DeIDDecoder", "IdentityAdversary"},
        "two_stage": {"DeIDDecoder", "IdentityAdversary", "DPGallery"},
        "demo": {"DeIDDecoder", "IdentityAdversary", "DPGallery"},
    }
    suffix = next((suffix for suffix in expected if path.stem.endswith(suffix)), None)
    assert parts == (expected[suffix] if suffix else set())


def test_only_the_last_block_of_a_private_config_is_not_torchreids():
    plain, private = (
        yaml.safe_load(next(p for p in CONFIGS if p.stem.endswith(end)).read_text())
        for end in ("256x128_amsgrad", "softmax_256x128_amsgrad_one_stage")
    )
    assert private.pop("privacy")
    private["data"].pop("save_dir")
    plain["data"].pop("save_dir")
    assert private == plain


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
            "privacy.adversary.names is 'iden'; registered: identity",
        ),
        (["privacy.gallery.enabled", "True", "privacy.gallery.mechanism", "gausian"], "Did you mean 'gaussian'"),
        (["privacy.deid.enabled", "True", "privacy.deid.kwargs.block", "3"], "kwargs has 'block'; allowed: blocks"),
        (
            ["privacy.gallery.enabled", "True", "privacy.gallery.kwargs.k", "3"],
            "privacy.gallery.kwargs has 'k'; allowed",
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
