"""A set of images through the model: features with their labels, as torchreid's own loop gives them, or faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from .data.raw_images import RawImages
from .data.validation import loader_like
from .evaluation import Extracted
from .feature_shards import FeatureShards
from .progress import track


class FeatureError(ValueError):
    """Extracted features that cannot be used; the message names the images."""


def extract(
    engine: Any,
    loader: Any,
    description: str,
    items: Sequence[Any] = (),
    *,
    fast: bool = False,
    shards: FeatureShards | None = None,
) -> Extracted:
    """Extract a set with the engine's own ``parse_data_for_eval`` and ``extract_features``.

    Args:
        engine: a torchreid engine in evaluation mode (with a `fast_model`, where that is wanted).
        loader: torchreid data loader, in the data set's order.
        description: what it is, for progress and errors.
        items: tuples (path(s), pid, camid, ...) in the loader's order, to name images in errors; ``shards`` need them.
        fast: images as bytes to the device and no autograd bookkeeping; the same values.
        shards: what is there already is not extracted again; this process adds its share of the rest and, if it is
            not alone, waits for the others.

    Raises:
        FeatureError: a feature holds NaN or infinity; the images are named.
    """
    start = time.perf_counter()
    rows = None if shards is None else shards.missing_rows()
    raw = RawImages.of(getattr(loader, "dataset", None)) if fast else None
    if raw is not None or rows is not None:
        dataset = loader.dataset if raw is None else raw.dataset
        loader = loader_like(loader, dataset if rows is None else Subset(dataset, rows), generator=loader.generator)
    features, pids, camids = [], [], []
    size = getattr(loader, "batch_size", 1) or 1
    batches = track(loader, f"Extracting {description}", per_item=size, unit="images") if rows != [] else ()
    for data in batches:
        with torch.inference_mode() if fast else torch.no_grad():  # inference_mode(False) would record gradients
            images, batch_pids, batch_camids = engine.parse_data_for_eval(data)
            if engine.use_gpu:
                images = images.cuda(non_blocking=fast)
            if raw is not None:
                images = raw.normalized(images)
            made = engine.extract_features(images).float().cpu()
        if shards is not None:
            shards.add(made)
        else:
            features.append(made)
            pids.extend(batch_pids.tolist())
            camids.extend(batch_camids.tolist())
    if shards is not None:
        joined = shards.join()
        extracted = Extracted(joined, np.array([i[1] for i in items]), np.array([i[2] for i in items]))
    else:
        extracted = Extracted(torch.cat(features), np.asarray(pids), np.asarray(camids))
    seconds = time.perf_counter() - start
    count, dim = extracted.features.shape
    made_here = count if rows is None else len(rows)
    whence = "" if made_here == count else f", {count - made_here} of them kept from before or made by other processes,"
    print(
        f"Extracted {description}: {count} x {dim}{whence} in {seconds:.1f} s "
        f"({made_here / max(seconds, 1e-9):.0f} a second)"
    )
    _check_finite(extracted.features, description, items)
    return extracted


def _check_finite(features: Tensor, description: str, items: Sequence[Any]) -> None:
    bad = (~torch.isfinite(features).all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    named = [str(items[row][0]) if len(items) == len(features) else f"row {row}" for row in bad[:3]]
    raise FeatureError(
        f"features of {description}: {len(bad)} of {len(features)} rows hold NaN or infinity, such as those of "
        f"{', '.join(named)}. Check the weights (did training diverge?) and these images."
    )
