"""Names of rows are read without their features."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppreid_plugin.dp.feature_files import load_arrays

ARRAYS = {"features": np.eye(3, dtype=np.float32), "pids": np.arange(3), "row_ids": np.arange(3)}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_only_the_arrays_that_are_asked_for_are_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    np.savez(path, **ARRAYS) if suffix == ".npz" else save_file(ARRAYS, path)
    for asked, there in ((["row_ids"], {"row_ids"}), (["paths"], set()), (None, set(ARRAYS))):
        found = load_arrays(path, asked)
        assert set(found) == there
        assert all(np.array_equal(found[name], ARRAYS[name]) for name in there)
