"""docs/search.md: its commands and program run, and its table of options is the code's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from search_cases import gallery, release

from ppreid_plugin.search import INDEXES, faiss_index, milvus_writer, open_index
from ppreid_plugin.search.command import serve_command

PAGE = (Path(__file__).parents[2] / "docs/search.md").read_text()


@pytest.fixture
def museum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = gallery(people=24, rows=3)
    release(tmp_path / "releases", rows, out="museum", name="museum")
    (tmp_path / "features").mkdir()
    np.savez("features/query.npz", features=np.asarray(rows.features)[::9].astype(np.float32))
    return rows


def test_commands_and_program_run_from_top_to_bottom(museum):
    pytest.importorskip("faiss")
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = block.splitlines()
    assert len(lines) >= 6
    for line in lines:
        program, tool, *words = shlex.split(line)
        assert (program, tool) == ("python", "tools/serve_index.py")
        serve_command(words)
    with open_index("index") as index:
        assert (index.name, index.record.options["ef_search"]) == ("faiss", 200)
        assert index.record.opted_out["pids"] == [8]  # who is in the gallery of README's data, too
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {"features": np.asarray(museum.features)[:2]}
    exec(compile(text, "search.md", "exec"), names)
    assert [len(hits) for hits in names["hits"]] == [10, 10]
    assert len(names["people"][0]) == 10


def test_the_table_of_options_is_that_of_the_code():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]*\|[^|]*\| (.*) \|$", PAGE, re.MULTILINE))
    assert set(INDEXES.names()) <= set(rows)
    for kind, options in faiss_index.OPTIONS.items():
        for name, value in options.items():
            shown = {"lists": "4 √n", "code_bytes": "d / 8"}.get(name, f"{value}")
            assert f"`{name}` ({shown})" in rows["faiss"], (kind, name)
    for name, (_, value, _, _) in milvus_writer.NUMBERS.items():
        assert f"`{name}`" in rows["milvus"]
        if name in ("lists", "probes"):
            assert f"`{name}` ({value:,})" in rows["milvus"]
