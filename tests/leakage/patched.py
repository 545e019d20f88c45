"""Sets whose images hold a patch that is linear in hidden numbers, somewhere: shared by the tests of patches."""

import numpy as np

from ppreid_plugin.leakage import ArrayImages, FineCues, LeakageSet

LATENT, BITS, SIDE = 4, 5, 8  # SIDE: of a patch, in pixels of the image
_fixed = np.random.default_rng(1)
PATTERNS = np.kron(_fixed.normal(size=(LATENT, 4, 4, 3)), np.ones((1, 2, 2, 1)))
PATTERNS -= PATTERNS.mean(axis=(1, 2), keepdims=True)  # detail alone
GRAY = 12.0  # levels a hidden number moves a pixel by, about


def patched(people, *, seed=0, tells="all", rows_each=5, cameras=3, first_pid=1, hide=4, by_camera=0.0, background=()):
    """Rows whose cue ``badge`` shows a pattern, a color and a code of the person, and whose features ``tell`` of them.

    tells: all, pattern, color, code, product (of two signs, nothing linear), pid, camera or nothing.
    hide: each so many-th row hides the badge.
    """
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows_each)
    pids = np.concatenate([pids, np.asarray(background, dtype=np.int64)])
    camids = np.arange(len(pids)) % cameras
    pattern = rng.normal(size=(len(pids), LATENT))
    signs = rng.choice([-1.0, 1.0], size=(len(pids), 2))
    if tells == "product":
        pattern[:, 0] = 3 * signs.prod(axis=1)
    color = 1.5 * rng.normal(size=(len(pids), 3))
    codes = rng.integers(0, 2, size=(people + len(background), BITS))[
        np.repeat(np.arange(people), rows_each).tolist() + list(range(people, people + len(background)))
    ]
    patches = 127.5 + GRAY * (
        np.einsum("nk,khwc->nhwc", pattern, PATTERNS)
        + color[:, None, None]
        + by_camera * (camids[:, None, None, None] - 1)
    )
    images = rng.integers(0, 256, size=(len(pids), 32, 16, 3))
    corners = np.stack([rng.integers(0, 16 - SIDE + 1, len(pids)), rng.integers(0, 32 - SIDE + 1, len(pids))], axis=1)
    for image, patch, (left, top) in zip(images, patches, corners, strict=True):
        image[top : top + SIDE, left : left + SIDE] = patch.round().clip(0, 255)
    boxes = np.concatenate([corners, corners + SIDE], axis=1)
    boxes[::hide] = -1
    told = {
        "all": np.concatenate([pattern, color, codes], axis=1),
        "pattern": pattern,
        "color": color,
        "code": codes,
        "product": signs,
        "pid": np.eye(people + len(background))[np.unique(pids, return_inverse=True)[1]],
        "camera": np.eye(cameras)[camids],
        "nothing": rng.normal(size=(len(pids), 8)),
    }[tells]
    features = told @ np.random.default_rng(2).normal(size=(told.shape[1], told.shape[1]))
    cues = FineCues({"badge": boxes}, {"badge": codes})
    return LeakageSet(features.astype(np.float32), pids, camids, images=ArrayImages(images.astype(np.uint8), cues))
