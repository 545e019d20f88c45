"""Files of features: names are read without their rows, and what is stopped leaves nothing half-written."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppreid_plugin.dp.feature_files import load_arrays, save_features
from ppreid_plugin.report.record import write_json

ARRAYS = {"features": np.eye(3, dtype=np.float32), "pids": np.arange(3), "row_ids": np.arange(3)}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_only_the_arrays_that_are_asked_for_are_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    np.savez(path, **ARRAYS) if suffix == ".npz" else save_file(ARRAYS, path)
    for asked, there in ((["row_ids"], {"row_ids"}), (["paths"], set()), (None, set(ARRAYS))):
        found = load_arrays(path, asked)
        assert set(found) == there
        assert all(np.array_equal(found[name], ARRAYS[name]) for name in there)


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, OSError])
def test_a_write_that_is_stopped_leaves_what_was_there_and_no_hidden_rest(tmp_path, monkeypatch, stopped_by):
    """What it would leave behind may be clean features, under a name that nobody looks for."""
    features, record = tmp_path / "gallery.npz", tmp_path / "record.json"
    for path in (features, record):
        path.write_bytes(b"before")

    def stop(_):
        raise stopped_by

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(stopped_by):
        save_features(features, {"features": np.eye(2)})
    with pytest.raises(stopped_by):
        write_json({"a": 1}, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.npz", "record.json"]
    assert {path.read_bytes() for path in (features, record)} == {b"before"}
