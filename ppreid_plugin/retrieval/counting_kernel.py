"""The rows above each positive, counted on a GPU in one reading of the scores: a Triton kernel.

A program has one query and a segment of its row, and compares them with some positives at a time. Scores become
integers in the same order. With them ``>= score`` and ``> score`` are ``>= key`` and ``>= key + 1``, so left and right
of a positive differ by what is compared with, one number a tile and positive; the tile of a positive itself counts as
right, and rows equal to it and left of it there are counted afterwards. A tile that lies below all these positives is
passed over. Importing this module needs Triton, which torch's CUDA builds for Linux bring along.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

POSITIVES = 8  # at a time; with more, sums take so many registers that fewer programs run at once
TILE = 128  # scores at a time
SEGMENT = 4096  # scores a program, a multiple of TILE
NEAR = 32  # scores at a time of a positive's own tile
WARPS = 1  # with one, no step waits for another warp
STAGES = 1  # tiles that are loaded ahead, from 2 on
OPTIONS = {"maxnreg": 64}  # of Triton's compiler; with 108 registers, its own choice, it took 1.24 times as long (H100)


@triton.jit
def _keys(values, FLIP: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return integers in the order of these floats, -0 as 0, and the least one for NaN."""
    if SHIFT == 63:  # noqa: SIM108 (only one of the two may be compiled)
        bits = values.to(tl.int64, bitcast=True)
    else:
        bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(bits == LEAST, 0, bits)
    keys = bits ^ ((bits >> SHIFT) & FLIP)
    return tl.where(values == values, keys, LEAST)


@triton.jit(do_not_specialize=["columns", "parts"])
def _count(  # type: ignore[no-untyped-def] # Triton would compile them
    scores,
    places,
    starts,
    counts,
    columns,
    parts,
    FLIP: tl.constexpr,
    SHIFT: tl.constexpr,
    LEAST: tl.constexpr,
    POSITIVES: tl.constexpr,
    TILE: tl.constexpr,
    SEGMENT: tl.constexpr,
    NEAR: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)
    query = program // parts
    begin = (program % parts) * SEGMENT
    end = tl.minimum(begin + SEGMENT, columns)
    row = scores + query.to(tl.int64) * columns
    first = tl.load(starts + query)
    stop = tl.load(starts + query + 1)
    within = tl.arange(0, TILE)
    for block in range(first, stop, POSITIVES):
        number = block + tl.arange(0, POSITIVES)
        inside = number < stop
        place = tl.load(places + number, mask=inside, other=0)
        own = _keys(tl.load(row + place, mask=inside, other=float("nan")), FLIP, SHIFT, LEAST)
        own = tl.where(own == LEAST, FLIP - 1, own)  # no score has a key so high: nothing is above
        lowest = tl.min(own, axis=0)
        above = tl.zeros([POSITIVES, TILE], dtype=tl.int32)
        for tile in tl.range(begin, end, TILE, num_stages=STAGES):
            column = tile + within
            keys = _keys(tl.load(row + column, mask=column < columns, other=float("nan")), FLIP, SHIFT, LEAST)
            if tl.max(keys, axis=0) >= lowest:
                bound = tl.where(place < tile + TILE, own + 1, own)
                above += (keys[None, :] >= bound[:, None]).to(tl.int32)
        count = tl.sum(above, axis=1)
        here = inside & (place >= begin) & (place < end)
        if tl.max(here.to(tl.int32), axis=0) > 0:
            tile_of = (place // TILE) * TILE
            for part in range(0, TILE, NEAR):
                column_of = tile_of[:, None] + (part + tl.arange(0, NEAR))[None, :]
                left = here[:, None] & (column_of < place[:, None])
                near = _keys(tl.load(row + column_of, mask=left, other=float("nan")), FLIP, SHIFT, LEAST)
                count += tl.sum((near == own[:, None]).to(tl.int32), axis=1)
        tl.atomic_add(counts + number, count, mask=inside)


def count_above(scores: torch.Tensor, places: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return how many rows a stable descending sort puts above each of these rows.

    Args:
        scores: (q, n), float32 or float64, contiguous, n < 2^31; NaN is above nothing.
        places: (p,), int32, columns of ``scores``, by query.
        starts: (q + 1,), int64: query i has the places ``starts[i]`` to ``starts[i + 1]``.

    Returns:
        (p,), int32; 0 where the score is NaN itself.
    """
    queries, columns = scores.shape
    counts = torch.zeros(len(places), dtype=torch.int32, device=scores.device)
    bits = 8 * scores.element_size()
    parts = triton.cdiv(columns, SEGMENT)
    with torch.cuda.device_of(scores):
        _count[(queries * parts,)](
            scores,
            places,
            starts,
            counts,
            columns,
            parts,
            FLIP=2 ** (bits - 1) - 1,
            SHIFT=bits - 1,
            LEAST=-(2 ** (bits - 1)),
            POSITIVES=POSITIVES,
            TILE=TILE,
            SEGMENT=SEGMENT,
            NEAR=min(TILE, NEAR),
            STAGES=STAGES,
            num_warps=WARPS,
            num_stages=1,
            **OPTIONS,
        )
    return counts
