"""Fixtures: plans, and command lines that run them on the tiny generated data set."""

import pytest
import yaml
from ablation_cases import MEASURES, OPTIONS, ROWS

from ppreid_plugin.ablation.plan import load_plan
from ppreid_plugin.ablation.runner import Runner


@pytest.fixture
def write_plan(tmp_path):
    """Return a function that writes a plan file; arguments replace its parts."""

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
def arguments(pedestrians, tmp_path):
    """Return a function from a plan and further words to the command line's words."""
    return lambda plan, *more: [
        "--plan", str(plan), "--root", str(pedestrians), "--out", str(tmp_path / "out"), *map(str, more),
    ]  # fmt: skip


@pytest.fixture
def work_of(pedestrians, tmp_path):
    """Return a function from a plan file to what its rows are for the runner, by name (first seed)."""

    def work(plan, *options):
        loaded = load_plan(plan, options=["data.root", str(pedestrians), *map(str, options)])
        return {one.row.name: one for one in reversed(Runner(loaded, tmp_path / "out", loaded.rows).work)}

    return work
