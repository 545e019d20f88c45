"""Small releases and indexes for the tests of search."""

import numpy as np
import torch

from array_index import ArraySource, index_of
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows

__all__ = ["ArraySource", "gallery", "index_of", "naive", "release", "subset", "transform", "unit"]

DIM = 12


def gallery(people=6, rows=4, *, seed=0, first_pid=0):
    """Rows of people of three cameras; pid 0 is background."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows)
    features = rng.normal(size=(people, DIM))[pids - first_pid] + 0.3 * rng.normal(size=(len(pids), DIM))
    names = [f"p{pid}_{number % rows}" for number, pid in enumerate(pids)]
    return GalleryRows(features, names, pids, np.arange(len(pids)) % 3)


def transform():
    return build_transform("center").fit(np.random.default_rng(9).normal(size=(50, DIM)))


def subset(epsilon=4.0, size=20, decoder=True):
    codebook = np.random.default_rng(5).normal(size=(size, DIM))
    stands_for = np.random.default_rng(6).normal(size=(size, DIM)) if decoder else None
    return build_mechanism("prior_subset", epsilon=epsilon, codebook=codebook, set_size=3, decoder=stands_for)


def release(folder, rows=None, *, out="release", name="a", mechanism=None, protocol="enrolled", **terms):
    """Draw a release into ``folder/out``; the ledger has room for many."""
    draw = {key: terms.pop(key) for key in ("truth_out", "append", "new_release") if key in terms}
    return release_gallery(
        gallery() if rows is None else rows,
        folder / out,
        ledger=Ledger(folder / "ledger", "site", epsilon=1000.0),
        mechanism=mechanism or build_mechanism("gaussian", epsilon=16.0, delta=1e-5),
        transform=transform(),
        terms=ReleaseTerms(name=name, model="model-1", protocol=protocol, **terms),
        **draw,
    )


def naive(rows, queries, top):
    """Row numbers and cosines of each query's best rows: float64, one at a time, a stable sort."""
    rows = np.asarray(rows, dtype=np.float64)
    found = []
    for query in np.asarray(queries, dtype=np.float64):
        query = query / (np.linalg.norm(query) or 1.0)
        scores = np.array([float(np.dot(row, query)) for row in rows])
        order = sorted(range(len(rows)), key=lambda number: (-scores[number], number))[:top]
        found.append((order, scores[order]))
    return found


def unit(rows):
    return torch.nn.functional.normalize(torch.as_tensor(rows, dtype=torch.float64), dim=1).numpy()
