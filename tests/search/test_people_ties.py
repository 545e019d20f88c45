"""People whose templates are equal, as single rows of one codeword are, come in the order of their pids."""

import numpy as np
import pytest
from search_cases import ArraySource, index_of

from ppreid_plugin.search import search_people


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_equal_templates_come_by_pid(tmp_path, queries):
    rng = np.random.default_rng(0)
    which = rng.integers(0, 6, 37)
    source = ArraySource(rng.normal(size=(6, 64))[which], pids=np.arange(1, 38))
    index = index_of(tmp_path / "i", source)
    for hits in search_people(index, rng.normal(size=(queries, 64)), 37):
        scores = {kind: {score for pid, score in zip(hits.pids, hits.scores, strict=True) if which[pid - 1] == kind}
                  for kind in set(which)}  # fmt: skip
        assert all(len(of_one_kind) == 1 for of_one_kind in scores.values())
        assert hits.pids.tolist() == sorted(hits.pids.tolist(), key=lambda pid: (-max(scores[which[pid - 1]]), pid))
