"""Every fenced command and program of README, CONTRIBUTING and two of docs/ runs; large data are made small."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppreid_plugin.data.pedestrians import make_pedestrians
from ppreid_plugin.options import options_markdown
from ppreid_plugin.toolbox import models

REPOSITORY = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md"))]
# appended to every training command: the same command, small
SMALL = "train.max_epoch 1 train.batch_size 16 data.height 64 data.width 32 data.workers 0 train.fixbase_epoch 0"


def fenced(file, language):
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (REPOSITORY / file).read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks]


def commands(file):
    lines = [line for block in fenced(file, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is in the repository, with a small data set, small weights and this environment as ``.venv``."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    make_pedestrians(folder / "reid-data", num_train_ids=20, num_test_ids=20, seed=1)
    torch.save(models.build_model("osnet_x0_25", 20, pretrained=False).state_dict(), folder / "weights.pth")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / ".venv/.installed").touch()
    return folder


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def adapt(command, folder):
    """The command as it is run here: this Python, generated people for Market-1501, tiny models and budgets of time."""
    if command.startswith("pip install"):
        target = folder.parent / "installed"
        rest = command.removeprefix("pip install ")
        return f"{sys.executable} -m pip install --quiet --no-deps --no-build-isolation --target {target} {rest}"
    if command.startswith("make demo"):
        return f'{command} DEMO_ARGS="--epochs 1 --num-train-ids 6 --num-test-ids 4"'
    if command.startswith("make "):
        return f"make --dry-run {command.removeprefix('make ')}"
    command = command.replace("python ", f"{sys.executable} ", 1).replace("zoo:osnet_x0_25_market1501", "weights.pth")
    if "tools/measure_leakage.py" in command:
        command = command.replace("--seeds 2", "--seeds 1")
    if "tools/train.py" in command:
        command += f" {SMALL} -s synthetic_pedestrians -t synthetic_pedestrians"
    return command


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "docs/privacy.md"])
def test_every_fenced_command_runs(checkout, file):
    found = commands(file)
    assert len(found) >= 4
    for command in found:
        run(adapt(command, checkout), checkout)


def test_the_programs_of_the_readme_run(checkout):
    programs = fenced("README.md", "python")
    assert len(programs) >= 3
    for number, program in enumerate(programs):
        file = checkout / f"program{number}.py"
        file.write_text(program)
        out = run(f"{sys.executable} {file}", checkout)
        if "rank-1 {result" in program:
            assert re.search(r"rank-1 \d+\.\d%, mAP \d+\.\d%, mINP \d+\.\d%", out)


def test_the_page_on_leakage_runs_from_top_to_bottom(checkout):
    text = (REPOSITORY / "docs/leakage.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "bash", "python"]
    for language, block in blocks:
        if language == "python":
            (checkout / "block.py").write_text(block)
        for command in block.splitlines() if language == "bash" else ["python block.py"]:
            out = run(adapt(command, checkout), checkout)
    assert re.search(r"^bag +nearest mean", out, re.MULTILINE)  # the attack that the page adds


def test_the_demo_writes_what_it_promises(checkout):
    run('make demo EPSILON=8 DEMO_ARGS="--epochs 1 --num-train-ids 6 --num-test-ids 4 --out eight"', checkout)
    record = json.loads((checkout / "eight/metrics.json").read_text())
    for gallery in ("clean", "protected"):
        figures = record["utility"][gallery]
        assert figures.keys() == {"rank1", "mAP", "mINP"}
        assert all(0 <= value <= 1 for value in figures.values())
    privacy = record["privacy"]
    assert [privacy[key] for key in ("mechanism", "epsilon", "delta", "unit")] == ["gaussian", 8, 1e-5, "image"]
    # sensitivity 2, delta 1e-5: Balle and Wang 2018 give 1.200
    assert privacy["sigma"] == pytest.approx(1.200, abs=1e-3)
    assert record["seed"] == 1
    assert record["seconds"] > 0
    pictures = sorted(path.name for path in (checkout / "eight").glob("*.png"))
    assert pictures == ["deid_targets.png", "reconstructions.png", "tsne.png"]


def test_the_environment_is_made_once_and_the_tree_stays_clean(checkout):
    lines = subprocess.run(
        ["make", "--dry-run", "test"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" not in lines
    assert "pytest" in lines
    (checkout / ".venv/.installed").unlink()
    fresh = subprocess.run(["make", "--dry-run", "demo"], cwd=checkout, capture_output=True, text=True, check=True)
    assert "-m venv" in fresh.stdout
    assert "tools/demo.py --epsilon 16" in fresh.stdout
    (checkout / ".venv/.installed").touch()


def test_the_configuration_page_is_made_from_the_code():
    assert (REPOSITORY / "docs/configuration.md").read_text() == options_markdown()


@pytest.mark.parametrize("file", PAGES)
def test_links_and_named_files_exist(file):
    text = (REPOSITORY / file).read_text()
    folder = (REPOSITORY / file).parent
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (folder / target).exists(), target
    for path in re.findall(r"(?:configs|tools|tests)/[\w./-]+\.(?:yaml|py)", text):
        assert (REPOSITORY / path).is_file(), path


def test_the_version_is_one():
    import ppreid_plugin

    version = ppreid_plugin.__version__
    assert f'version="{version}"' in (REPOSITORY / "setup.py").read_text()
    assert f"version: {version}" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"## {version}" in (REPOSITORY / "CHANGELOG.md").read_text()
