"""Sets with images that are linear in hidden numbers of people and rows: shared by the tests of reconstruction."""

import numpy as np

from ppreid_plugin.leakage import ArrayImages, LeakageSet

LATENT, COLUMNS = 6, 16
_fixed = np.random.default_rng(0)
PATTERNS = np.kron(_fixed.normal(size=(LATENT, 8, 4, 3)), np.ones((1, 8, 8, 1)))  # blocks of 8 x 8 pixels
PROJECTION = _fixed.normal(size=(LATENT, COLUMNS))


def pictured(people, *, seed=0, noise=0.0, independent=False, rows_each=5, cameras=3, first_pid=1, marked=False):
    """Rows whose features are a random projection of what their images are made of, with noise, or independent of it.

    ``marked``: the first pixel of an image is its pid.
    """
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows_each)
    hidden = np.repeat(rng.normal(size=(people, LATENT)), rows_each, axis=0) + 0.5 * rng.normal(
        size=(len(pids), LATENT)
    )
    images = 127.5 + 25 * np.einsum("nk,khwc->nhwc", hidden, PATTERNS)
    pixels = (images + 3 * rng.normal(size=images.shape)).clip(0, 255).astype(np.uint8)
    if marked:
        pixels[:, 0, 0, :] = pids[:, None]
    known = rng.normal(size=hidden.shape) if independent else hidden
    features = known @ PROJECTION + noise * rng.normal(size=(len(pids), COLUMNS))
    camids = np.tile(np.arange(rows_each) % cameras, people)
    names = tuple(
        f"{pid:04d}_c{camera + 1}s1_{place:06d}_00.jpg"
        for place, (pid, camera) in enumerate(zip(pids, camids, strict=True))
    )
    return LeakageSet(features.astype(np.float32), pids, camids, row_ids=names, images=ArrayImages(pixels))
