"""Both torchreids: the package index's and upstream."""

import importlib

import pytest

from ppreid_plugin import toolbox


def test_every_part_is_torchreids_own():
    root = "torchreid.reid" if toolbox.IS_REPACKAGED else "torchreid"
    for name in ("data", "engine", "losses", "metrics", "models", "optim", "utils"):
        assert getattr(toolbox, name) is importlib.import_module(f"{root}.{name}")
    assert toolbox.submodule("metrics.rank").__name__ == f"{root}.metrics.rank"


def test_the_tables_are_the_ones_torchreid_reads():
    assert "osnet_x0_25" in toolbox.model_factory()
    assert len(toolbox.model_factory()) == 49
    assert {"market1501", "dukemtmcreid", "msmt17", "cuhk03", "synthetic_pedestrians"} <= set(toolbox.image_datasets())
    assert {"mars", "dukemtmcvidreid"} <= set(toolbox.video_datasets())


@pytest.mark.skipif(not toolbox.IS_REPACKAGED, reason="the package index's torchreid is not installed")
def test_the_package_index_version_is_named():
    assert toolbox.version().startswith("1.4.0 (torchreid 0.2.5")


@pytest.mark.skipif(toolbox.IS_REPACKAGED, reason="upstream torchreid is not installed; the whole suite runs on it too")
def test_the_upstream_version_is_named():
    assert toolbox.version() == "1.4.0"
