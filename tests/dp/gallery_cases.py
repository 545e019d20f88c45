"""A small gallery, a ledger and one call to release it: shared by the tests of releases and of the ledger."""

import numpy as np

from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows

DIM = 16
PIDS = [0, 1, 1, 1, 2, 2, 3, 3, -1, 4]  # background, four people of 3, 2, 2 and 1 rows, one junk row


def gallery(rows=len(PIDS), *, seed=0, prefix="r"):
    features = np.random.default_rng(seed).normal(size=(rows, DIM))
    row_ids = [f"{prefix}{index}" for index in range(rows)]
    return GalleryRows(features, row_ids, np.array(PIDS[:rows]), np.arange(rows) % 3)


def transform(name="center", seed=9):
    return build_transform(name).fit(np.random.default_rng(seed).normal(size=(50, DIM)))


def subset(epsilon=4.0, **kwargs):
    codebook = np.random.default_rng(5).normal(size=(20, DIM))
    return build_mechanism("prior_subset", epsilon=epsilon, codebook=codebook, set_size=3, **kwargs)


def release(
    folder,
    rows=None,
    *,
    out="release",
    ledger=None,
    epsilon=8.0,
    delta=1e-5,
    mechanism=None,
    center=None,
    truth_out=None,
    append=False,
    new_release=False,
    **terms,
):
    """Release ``rows`` into ``folder/out``; the ledger lies in ``folder/ledger``, scope ``market`` of 16 at 1e-5."""
    return release_gallery(
        gallery() if rows is None else rows,
        folder / out,
        ledger=ledger or open_ledger(folder),
        mechanism=mechanism or build_mechanism("gaussian", epsilon=epsilon, delta=delta),
        transform=center or transform(),
        terms=ReleaseTerms(**{"name": "a", "model": "model-1", **terms}),
        truth_out=truth_out and folder / truth_out,
        append=append,
        new_release=new_release,
    )


def open_ledger(folder, *, scope="market", epsilon=16.0, **terms):
    return Ledger(folder / "ledger", scope, epsilon=epsilon, **terms)
