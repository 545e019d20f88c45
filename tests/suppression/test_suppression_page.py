"""The page on suppression: its tables name what is registered, its YAML works, its picture can be made again."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from ppreid_plugin import build
from ppreid_plugin.config import check_config, get_default_config, merge_file
from ppreid_plugin.report.deid_pictures import write_deid_targets
from ppreid_plugin.report.pictures import GENERATED, PEOPLE, read_mark
from ppreid_plugin.suppression import DECODERS, DEID_TARGETS, build_deid_target

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/suppression.md").read_text(encoding="utf-8")
PICTURE = REPOSITORY / "docs/images/deid_targets.png"


def section(title):
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def ours(registry):
    return {name for name in registry.names() if registry.get(name).__module__.startswith("ppreid_plugin.")}


def test_the_tables_name_every_target_and_decoder_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.+) \|$", section("De-ID targets"), re.MULTILINE)
    assert {name for name, _ in rows} == ours(DEID_TARGETS)
    for name, strength in rows:
        for argument, value in re.findall(r"`(\w+)`[^`]*?\(([\d.]+)[^`]*?\)", strength):
            assert float(value) == getattr(build_deid_target(name), argument), (name, argument)
    assert set(re.findall(r"^\| `(\w+)` \|", section("Decoders"), re.MULTILINE)) == ours(DECODERS)


def test_the_tables_costs_are_measured():
    for name, size in (("light", (64, 32)), ("hdr", (256, 128))):
        (stated,) = re.findall(rf"^\| `{name}` \|.*\| (\d+) MMAC", section("Decoders"), re.MULTILINE)
        with FlopCounterMode(display=False) as counter:
            DECODERS.get(name)((512,), 3, *size)(torch.randn(1, 512))
        assert counter.get_total_flops() / 2e6 == pytest.approx(float(stated), abs=0.5)


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_every_yaml_block_is_a_configuration(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("market_attribute.mat").touch()  # that it is there is all that is asked before training
    file = tmp_path / "block.yaml"
    file.write_text(block)
    cfg = get_default_config()
    merge_file(cfg, file)
    check_config(cfg)
    enables = any(part.get("enabled") for part in yaml.safe_load(block).get("privacy", {}).values())
    assert bool(build.build_components(cfg)) == enables


def test_the_picture_is_small_marked_and_made_by_the_command_that_it_names(tmp_path):
    assert PICTURE.stat().st_size < 300_000
    assert read_mark(PICTURE)[PEOPLE] == GENERATED
    assert "`python tools/write_docs.py --pictures`" in PAGE
    assert read_mark(PICTURE)["ppreid_command"] == "python tools/write_docs.py --pictures"
    again = tmp_path / "again.png"
    write_deid_targets(again)
    with Image.open(again) as made, Image.open(PICTURE) as kept:
        shapes = made.size, kept.size
        # another matplotlib may set titles a little differently: compare the pictures coarsely
        small = [np.asarray(one.convert("L").resize((32, 64)), float) for one in (made, kept)]
    assert shapes[0] == pytest.approx(shapes[1], rel=0.03)
    assert np.abs(small[0] - small[1]).mean() < 8
