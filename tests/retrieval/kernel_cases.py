"""Cases for the counting kernel; run as a program, with TRITON_INTERPRET=1, they go through Triton's interpreter."""

import torch

LEVELS = {"few": 2.0, "tiny": 1e-45, "huge": 1e38}  # times -2 ... 2: ties, denormal numbers, infinity


def naive_count(scores, places, starts):
    """What is above each place, by the definition: larger, or equal and further left."""
    counts = []
    for row, start, stop in zip(scores, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for place in places[start:stop].tolist():
            counts.append(int((row[:place] >= row[place]).sum() + (row[place:] > row[place]).sum()))
    return torch.tensor(counts, dtype=torch.int32, device=scores.device)


def random_scores(seed, queries, columns, most, *, level="few", dtype=torch.float32):
    """Scores with ties, infinities, both zeros and NaN (rows out of the list), and up to ``most`` places a query."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, queries, columns, generator=generator)
    scores = torch.randint(-2, 3, (queries, columns), generator=generator).to(dtype) * LEVELS[level]
    if seed % 2:
        scores = scores + draw[1].to(dtype)
    for edge, value in ((0.05, torch.inf), (0.1, -torch.inf), (0.2, torch.nan), (0.3, -0.0)):
        scores[(draw[0] < edge) & (draw[0] >= edge - 0.05)] = value
    own = torch.randint(0, min(columns, most) + 1, (queries,), generator=generator).tolist()
    places = [torch.randperm(columns, generator=generator)[:count].sort().values for count in own]
    starts = torch.tensor([0, *own]).cumsum(0)
    return scores, torch.cat(places).int(), starts


def main():
    from ppreid_plugin.retrieval import counting_kernel

    for seed in range(30):
        positives, tile, queries, columns = [(2, 4, 3, 29), (4, 8, 2, 77), (8, 64, 1, 300), (16, 32, 3, 1)][seed % 4]
        counting_kernel.POSITIVES, counting_kernel.TILE, counting_kernel.SEGMENT = positives, tile, 2 * tile
        dtype, level = (torch.float32, torch.float64)[seed // 4 % 2], list(LEVELS)[seed % 3]
        case = random_scores(seed, queries, columns, 3 * positives, level=level, dtype=dtype)
        found, expected = counting_kernel.count_above(*case), naive_count(*case)
        assert torch.equal(found, expected), f"seed {seed}: {found.tolist()} instead of {expected.tolist()}"
    print("equal")


if __name__ == "__main__":
    main()
