"""Tables of what the rows of a release show: names, labels and images, from either kind of file."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppreid_plugin.leakage.inputs import read_truth_table

PIDS, CAMIDS = np.array([4, 5]), np.array([0, 1])


def test_names_are_text_in_either_kind_of_file(tmp_path):
    """safetensors holds no text: there names are bytes, padded with zeros."""
    labels = {"pids": PIDS, "camids": CAMIDS, "attr_hat": np.array([1, -1])}
    np.savez(tmp_path / "t.npz", row_ids=np.array(["a1", "b"]), paths=np.array(["x/a.jpg", "x/b.jpg"]), **labels)
    save_file({"row_ids": np.array([[97, 49], [98, 0]], dtype=np.uint8), **labels}, tmp_path / "t.safetensors")
    table, other = (read_truth_table(str(tmp_path / f"t.{kind}")) for kind in ("npz", "safetensors"))
    assert table.rows == other.rows == {"a1": (4, 0), "b": (5, 1)}
    assert table.attributes == other.attributes == {"a1": {"hat": 1}, "b": {"hat": -1}}
    assert table.sources == {"a1": "x/a.jpg", "b": "x/b.jpg"}
    assert other.sources == {"a1": "a1", "b": "b"}


def test_paths_are_one_a_row(tmp_path):
    np.savez(tmp_path / "t.npz", row_ids=np.array(["a", "b"]), pids=PIDS, camids=CAMIDS, paths=np.array(["a.jpg"]))
    with pytest.raises(ValueError, match=r"t.npz' holds 2 row_ids and 1 paths: one a row"):
        read_truth_table(str(tmp_path / "t.npz"))
