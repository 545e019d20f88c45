"""The feature cache: what is there is used, what was stopped goes on, what changed is another set; it is private."""

import json
import os
import stat
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppreid_plugin import cli, config, feature_cache, feature_shards, ranks
from ppreid_plugin.dp.feature_files import load_arrays
from ppreid_plugin.extracting import extract
from ppreid_plugin.feature_cache import cached_shards, purge
from ppreid_plugin.feature_shards import FeatureShards, ShardError
from ppreid_plugin.suppression import DEID_TARGETS, DeIDTarget
from ppreid_plugin.suppression.image_transforms import ImageTransform, parse_image_transform

TARGET = "synthetic_pedestrians"


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two batches of four rows."""
    monkeypatch.setattr(feature_shards, "_LEAST_ROWS", 8)


def fill(shards, features, chunk):
    """Add the rows that are missing, ``chunk`` at a time; return their places."""
    rows = shards.missing_rows()
    for start in range(0, len(rows), chunk):
        shards.add(features[rows[start : start + chunk]])
    return rows


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 12), chunk=st.integers(1, 40), lost=st.sets(st.integers(0, 9)))
def test_rows_come_back_in_order_and_only_what_is_missing_is_asked_for(tmp_path_factory, rows, batch, chunk, lost):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_shards, "_LEAST_ROWS", 8)
        folder = tmp_path_factory.mktemp("shards")
        features = torch.randn(rows, 3)
        shards = FeatureShards(folder, rows, batch, about={})
        assert shards.shard_rows % batch == 0
        assert shards.shard_rows >= 8
        assert fill(shards, features, chunk) == list(range(rows))
        assert torch.equal(shards.join(), features)
        files = sorted(folder.glob("rows-*"))
        gone = [number for number in lost if number < len(files)]
        for number in gone:
            files[number].unlink()
        again = FeatureShards(folder, rows, batch, about={})
        wanted = [row for row in range(rows) if row // shards.shard_rows in gone]
        assert again.missing_rows() == wanted
        if gone:
            with pytest.raises(ShardError, match=f"lacks rows {wanted[0]} to"):
                again.join()
        fill(again, features, chunk)
        assert torch.equal(again.join(), features)


@pytest.mark.parametrize("damage", ["cut", "empty", "of another set", "a folder"])
def test_a_damaged_shard_is_written_again(tmp_path, small_shards, damage):
    features = torch.randn(20, 3)
    fill(FeatureShards(tmp_path, 20, 4, about={}), features, 4)
    second = sorted(tmp_path.glob("rows-*"))[1]
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    elif damage == "empty":
        second.write_bytes(b"")
    elif damage == "of another set":
        second.write_bytes((tmp_path / "rows-000000016.safetensors").read_bytes())  # four rows
    else:
        second.unlink()
        second.with_name(f".{second.name}.77.tmp").write_bytes(b"killed before it was renamed")
    shards = FeatureShards(tmp_path, 20, 4, about={})
    assert fill(shards, features, 4) == list(range(8, 16))
    assert torch.equal(shards.join(), features)


def test_two_at_once_write_the_same_and_do_not_disturb_each_other(tmp_path, small_shards):
    features = torch.randn(20, 3)
    first, second = (FeatureShards(tmp_path, 20, 4, about={}) for _ in range(2))
    assert first.missing_rows() == second.missing_rows() == list(range(20))
    for start in range(0, 20, 4):
        second.add(features[start : start + 4])
        first.add(features[start : start + 4])
    assert torch.equal(first.join(), features)
    assert torch.equal(second.join(), features)
    assert not list(tmp_path.glob(".*"))


def test_ranks_share_the_shards_and_none_is_done_twice(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    monkeypatch.setattr(ranks, "barrier", lambda: None)
    features = torch.randn(39, 3)
    seen = []
    for rank in (2, 0, 1):  # whoever comes first
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shards = FeatureShards(tmp_path, 39, 4, about={})
        seen.append(fill(shards, features, 4))
    assert sorted(row for rows in seen for row in rows) == list(range(39))
    assert [len(rows) for rows in seen] == [8, 16, 15]
    assert torch.equal(shards.join(), features)


def test_shards_that_are_not_kept_are_gone_once_read(tmp_path, small_shards):
    shards = FeatureShards(tmp_path / "set", 20, 4, about={}, keep=False)
    features = torch.randn(20, 3)
    fill(shards, features, 4)
    assert torch.equal(shards.join(), features)
    assert not (tmp_path / "set").exists()


def case(tmp_path):
    """A set of two images, its loader and an engine with a model of one layer."""
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for path in paths:
        with open(path, "wb") as stream:
            stream.write(b"pixels")
        os.utime(path, (1, 1))
    dataset = SimpleNamespace(transform="Resize(8)")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    engine = SimpleNamespace(_models={"model": model}, use_gpu=False, amp=False)
    return engine, SimpleNamespace(dataset=dataset, batch_size=4), [(path, 1, 0) for path in paths]


def changes():
    """What must make another set, by name: each changes a case in place, or returns other arguments."""

    def weight(engine, loader, items):
        engine._models["model"][0].weight.data[0, 0] += 1e-6

    def statistics(engine, loader, items):
        engine._models["model"][1].running_mean[0] = 0.5

    def size(engine, loader, items):
        with open(items[1][0], "ab") as stream:
            stream.write(b"!")
        os.utime(items[1][0], (1, 1))

    return {
        "weight": weight,
        "statistics": statistics,
        "size of a file": size,
        "time of a file": lambda engine, loader, items: os.utime(items[0][0], (1, 2)),
        "order": lambda engine, loader, items: items.reverse(),
        "fewer": lambda engine, loader, items: items.pop(),
        "transform": lambda engine, loader, items: setattr(loader.dataset, "transform", "Resize(9)"),
        "clip": lambda engine, loader, items: setattr(loader.dataset, "seq_len", 3),
        "batch": lambda engine, loader, items: setattr(loader, "batch_size", 8),
        "precision": lambda engine, loader, items: setattr(engine, "amp", True),
        "device": lambda engine, loader, items: setattr(engine, "use_gpu", True),
        "pooling": lambda engine, loader, items: setattr(engine, "pooling_method", "max"),
        "fast": lambda engine, loader, items: {"fast": True},
    }


def key(tmp_path, engine, loader, items, fast=False):
    return cached_shards(tmp_path / "cache", engine, loader, items, "gallery", fast=fast).folder.name


@pytest.mark.parametrize("change", changes())
def test_whatever_changes_a_feature_makes_another_set(tmp_path, change):
    engine, loader, items = case(tmp_path)
    before = key(tmp_path, engine, loader, items)
    assert key(tmp_path, *case(tmp_path)) == before
    assert key(tmp_path, engine, loader, [(path, 7, 7) for path, *_ in items]) == before  # labels are not kept
    options = changes()[change](engine, loader, items)
    assert key(tmp_path, engine, loader, items, **(options if isinstance(options, dict) else {})) != before


def test_another_version_of_the_library_makes_another_set(tmp_path, monkeypatch):
    before = key(tmp_path, *case(tmp_path))
    monkeypatch.setattr(feature_cache, "version", lambda: "9.9")
    assert key(tmp_path, *case(tmp_path)) != before


def test_an_interrupted_extraction_goes_on_and_a_second_one_reuses(make_engine, tmp_path, small_shards, capsys):
    engine = make_engine("test.evaluate", True, "test.batch_size", 4)
    engine.set_model_mode("eval")
    loader = engine.test_loader[TARGET]["gallery"]
    items = engine.datamanager.test_dataset[TARGET]["gallery"]
    whole = extract(engine, loader, "gallery", items)
    own, seen = engine.extract_features, []

    def watched(images, fail_at=None):
        if fail_at is not None and sum(seen) >= fail_at:
            raise KeyboardInterrupt
        seen.append(len(images))
        return own(images)

    def cached():
        shards = cached_shards(tmp_path / "cache", engine, loader, items, "gallery", fast=False)
        return extract(engine, loader, "gallery", items, shards=shards)

    engine.extract_features = lambda images: watched(images, fail_at=20)
    with pytest.raises(KeyboardInterrupt):
        cached()
    assert sum(seen) == 20
    seen.clear()
    engine.extract_features = watched
    capsys.readouterr()
    made = cached()
    assert sum(seen) == len(items) - 16  # two shards of eight were whole
    assert "16 of them kept from before" in capsys.readouterr().out
    assert torch.equal(made.features, whole.features)
    assert (made.pids == whole.pids).all()
    assert (made.camids == whole.camids).all()
    seen.clear()
    assert torch.equal(cached().features, whole.features)
    assert not seen
    (folder,) = (tmp_path / "cache").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def kept_sets(folder):
    return sorted(json.loads(path.read_text())["set"] for path in folder.glob("*/about.json"))


def test_a_protected_gallery_is_kept_nowhere(make_engine, tmp_path):
    options = ("test.evaluate", True, "privacy.validation.ids_fraction", 0.4)
    for protected, kept in ((False, ["gallery", "query"]), (True, ["query"])):
        cache = tmp_path / f"cache-{protected}"
        engine = make_engine(*options, "test.feature_cache", str(cache), "privacy.gallery.enabled", protected)
        engine.test()
        own = [name.split(" ")[1] for name in kept_sets(cache) if name.startswith(TARGET)]
        assert own == kept
        validation = [name for name in kept_sets(cache) if name.startswith("validation")]
        assert len(validation) == (0 if protected else 2)
        assert (tmp_path / "log").exists()
        first = engine.results[TARGET].clean.mAP
        engine.test()
        assert engine.results[TARGET].clean.mAP == first


def test_the_command_uses_the_cache_and_empties_it(pedestrians, tmp_path, capsys):
    cache = tmp_path / "cache"
    arguments = [
        *("--root", str(pedestrians), "-s", TARGET, "-t", TARGET, "--splits", "query", "gallery", "--overwrite"),
        *("--out", str(tmp_path / "features"), "model.name", "osnet_x0_25", "model.pretrained", "False"),
        *("data.height", "64", "data.width", "32", "data.workers", "0", "data.save_dir", str(tmp_path / "log")),
        *("use_gpu", "False", "test.feature_cache", str(cache)),
    ]
    first = {split: load_arrays(path) for split, path in cli.extract_features(arguments).items()}
    assert kept_sets(cache) == ["gallery", "query"]
    capsys.readouterr()
    second = cli.extract_features(arguments)
    assert capsys.readouterr().out.count("of them kept from before") == 2
    for split, path in second.items():
        for name, array in load_arrays(path).items():
            assert (array == first[split][name]).all()
    assert not (tmp_path / "features" / ".shards").exists()
    (cache / "mine").mkdir()
    (cache / "mine" / "about.json").write_text("{}")
    cli.extract_features([*arguments, "--purge-cache"])
    assert [path.name for path in cache.iterdir()] == ["mine"]
    cli.extract_features([*arguments, "privacy.gallery.enabled", "True"])
    assert kept_sets_but_mine(cache) == ["query"]


def kept_sets_but_mine(folder):
    (folder / "mine" / "about.json").unlink()
    return kept_sets(folder)


def test_what_cannot_be_kept_or_purged_is_said(make_cfg, tmp_path):
    with pytest.raises(config.ConfigError, match=r"video.sample_method 'random'.*Set video.sample_method evenly"):
        config.check_config(
            make_cfg("data.type", "video", "video.sample_method", "random", "test.feature_cache", str(tmp_path))
        )
    with pytest.raises(FileNotFoundError, match="not there: nothing to purge"):
        purge(tmp_path / "nowhere")
    with pytest.raises(config.ConfigError, match="--purge-cache needs the cache's folder"):
        cli.extract_features(["--purge-cache", "--out", str(tmp_path)])


class Strength(DeIDTarget):
    """Keeps its argument under another name."""

    def __init__(self, strength: float = 0.5) -> None:
        self._scale = strength

    def __call__(self, images):
        return images * self._scale


def test_a_transform_is_told_by_what_it_does_and_alike_in_every_process(monkeypatch):
    monkeypatch.setitem(DEID_TARGETS._entries, "strength", Strength)
    shown = [
        repr(ImageTransform(spec, parse_image_transform(spec), fresh=False))
        for spec in ("strength", "strength:strength=0.1", "strength:strength=1.0", "mask", "mask:blocks=4", "pixelate")
    ]
    assert len(set(shown)) == len(shown)
    assert not any(" at 0x" in text for text in shown)
    assert "silhouette_of" in shown[3]
    assert shown[5] == "pixelate(blocks=8)"


def test_what_a_tool_calls_a_set_makes_no_other_one(tmp_path):
    """Evaluation reads what an extraction has kept."""
    named = [
        cached_shards(tmp_path, *case(tmp_path), name, fast=False).folder for name in ("query", "market1501 query")
    ]
    assert named[0] == named[1]
