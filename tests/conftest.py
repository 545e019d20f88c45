"""Shared fixtures: a tiny generated data set, configurations and engines that train in a second on a CPU."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from ppreid_plugin import arguments, build, config
from ppreid_plugin.data import csv_dataset
from ppreid_plugin.data.pedestrians import make_pedestrians
from ppreid_plugin.memory import keep_freed_memory

keep_freed_memory()
torch.set_num_threads(1)  # two processes with two threads each spend their time waiting for each other


def pytest_collection_modifyitems(items):
    root = os.environ.get("REID_DATA")
    skip_data = pytest.mark.skip(reason="REID_DATA names no folder with market1501 in it")
    skip_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("real_data") and not (root and (Path(root) / "market1501").is_dir()):
            item.add_marker(skip_data)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def own_data_of_this_test():
    """Images are called by the CSV file that describes them: one of another test would rename shared ones."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: the test's is undone before what the test's module checks
        patch.setattr(csv_dataset, "_FOLDERS", {})
        yield


@pytest.fixture(scope="session")
def pedestrians(tmp_path_factory):
    """Root folder of a small generated data set: 8 people to train on, 6 to test on."""
    root = tmp_path_factory.mktemp("data")
    make_pedestrians(root, num_train_ids=8, num_test_ids=6, seed=3)
    return root


@pytest.fixture
def make_cfg(pedestrians, tmp_path):
    """Return a function that makes a small configuration; arguments are KEY, VALUE, ... as on a command line."""

    def make(*options):
        cfg = config.get_default_config()
        defaults = {
            "use_gpu": False,
            "model.name": "osnet_x0_25",
            "model.pretrained": False,
            "data.root": str(pedestrians),
            "data.sources": ["synthetic_pedestrians"],
            "data.targets": ["synthetic_pedestrians"],
            "data.height": 64,
            "data.width": 32,
            "data.workers": 0,
            "data.save_dir": str(tmp_path / "log"),
            "train.max_epoch": 1,
            "train.batch_size": 16,
        }
        for key, value in defaults.items():
            config.set_option(cfg, key, value)
        config.merge_options(cfg, [str(option) for option in options])
        return cfg

    return make


@pytest.fixture
def make_engine(make_cfg):
    """Return a function that builds an engine from KEY, VALUE, ... options; ``engine.cfg`` is its configuration."""

    def make(*options):
        cfg = make_cfg(*options)
        engine = build.build_engine(cfg)
        engine.cfg = cfg
        return engine

    return make


@pytest.fixture
def run_engine():
    """Return a function that trains or tests an engine as its configuration says."""
    return lambda engine: engine.run(**arguments.engine_run_arguments(engine.cfg))


@pytest.fixture
def write_plan(tmp_path):
    """Return a function that writes the plan file of an ablation; arguments replace its parts."""
    from ablation_cases import MEASURES, OPTIONS, ROWS  # beside the tests that ask for it

    def write(rows=ROWS, *, seeds=(1,), measures=None, options=None, **others):
        path = tmp_path / "plan.yaml"
        content = {
            "seeds": list(seeds),
            "options": {**OPTIONS, **(options or {})},
            "measures": {**MEASURES, **(measures or {})},
            "rows": rows,
            **others,
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def flags(pedestrians, tmp_path):
    """Return a function from a plan and further words to the words of the ablation's command line."""
    return lambda plan, *more: [
        "--plan", str(plan), "--root", str(pedestrians), "--out", str(tmp_path / "out"), *map(str, more),
    ]  # fmt: skip


@pytest.fixture
def work_of(pedestrians, tmp_path):
    """Return a function from a plan file to what its rows are for the runner, by name (first seed)."""
    from ppreid_plugin.ablation.plan import load_plan
    from ppreid_plugin.ablation.runner import Runner

    def work(plan, *options):
        loaded = load_plan(plan, options=["data.root", str(pedestrians), *map(str, options)])
        return {one.row.name: one for one in reversed(Runner(loaded, tmp_path / "out", loaded.rows).work)}

    return work
