"""Slow and plain versions of what the package computes, written from the definitions with loops."""

from __future__ import annotations

import itertools
import math

import numpy as np


def rank_metrics(distances, q_pids, g_pids, q_camids, g_camids, *, same_camera_dropped=True, max_rank=50):
    """CMC, mAP, mINP and the number of valid queries; a list is sorted by (distance, gallery index)."""
    hits, precisions, inverse_penalties = [], [], []
    for q in range(len(q_pids)):
        ranked = sorted(range(len(g_pids)), key=lambda g: (distances[q][g], g))
        if same_camera_dropped:
            ranked = [g for g in ranked if not (g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])]
        matches = [rank for rank, g in enumerate(ranked, start=1) if g_pids[g] == q_pids[q]]
        if not matches:
            continue
        precisions.append(sum(k / rank for k, rank in enumerate(matches, start=1)) / len(matches))
        inverse_penalties.append(len(matches) / matches[-1])
        hits.append([1.0 if matches[0] <= k else 0.0 for k in range(1, max_rank + 1)])
    if not hits:
        return None
    return np.mean(hits, axis=0), float(np.mean(precisions)), float(np.mean(inverse_penalties)), len(hits)


def unit(row):
    """The row divided by its norm, as a list; a zero row as it is."""
    norm = math.sqrt(math.fsum(float(value) ** 2 for value in row))
    return [float(value) / norm if norm else 0.0 for value in row]


def enrolled_ranks(query, gallery, q_pids, g_pids, q_camids, g_camids, *, background=(0,), same_camera_dropped=True):
    """Rank of each valid query's own person; ties by the lower pid."""
    ranks = []
    for q in range(len(q_pids)):
        templates = {}
        for pid in sorted(set(g_pids)):
            rows = [
                unit(gallery[g])
                for g in range(len(g_pids))
                if g_pids[g] == pid and not (same_camera_dropped and g_camids[g] == q_camids[q])
            ]
            if rows and pid not in background:
                templates[pid] = unit([math.fsum(column) / len(rows) for column in zip(*rows, strict=True)])
        if q_pids[q] not in templates:
            continue
        probe = unit(query[q])
        score = {pid: math.fsum(a * b for a, b in zip(probe, row, strict=True)) for pid, row in templates.items()}
        ranks.append(1 + sorted(templates, key=lambda pid: (-score[pid], pid)).index(q_pids[q]))
    return ranks


def k_reciprocal(distances, num_query, k1=20, k2=6, lambda_value=0.3):
    """Re-ranked distances of queries to gallery, from the matrix of all items' distances; neighbors by (d, item)."""
    items = range(len(distances))
    squares = [[float(d) ** 2 for d in row] for row in distances]
    largest = [max(row) or 1.0 for row in squares]
    nearest = [sorted(items, key=lambda j, row=row: (row[j], j)) for row in squares]

    def reciprocal(i, count):
        return {j for j in nearest[i][:count] if i in nearest[j][:count]}

    codes = []
    for i in items:
        near = reciprocal(i, k1 + 1)
        members = set(near)
        for candidate in near:
            others = reciprocal(candidate, round(k1 / 2) + 1)
            if 3 * len(others & near) > 2 * len(others):
                members |= others
        weights = {j: math.exp(-squares[i][j] / largest[i]) for j in members}
        codes.append([weights.get(j, 0.0) / math.fsum(weights.values()) if weights else 0.0 for j in items])
    if k2 > 1:
        codes = [np.mean([codes[j] for j in nearest[i][:k2]], axis=0).tolist() for i in items]
    out = []
    for q in range(num_query):
        out.append([])
        for g in items[num_query:]:
            shared = math.fsum(map(min, codes[q], codes[g]))
            jaccard = 1 - shared / (2 - shared)
            out[-1].append((1 - lambda_value) * jaccard + lambda_value * squares[q][g] / largest[q])
    return np.array(out)


def single_shot_cmc(distances, q_pids, g_pids, q_camids, g_camids, *, max_rank=50):
    """CMC of galleries with one image a person, the mean over every choice of images; ties by gallery index."""
    curves = []
    for q in range(len(q_pids)):
        kept = [g for g in range(len(g_pids)) if not (g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])]
        if not any(g_pids[g] == q_pids[q] for g in kept):
            continue
        choices = [[g for g in kept if g_pids[g] == pid] for pid in sorted({g_pids[g] for g in kept})]
        hits = np.zeros(max_rank)
        for shown in itertools.product(*choices):
            ranked = sorted(shown, key=lambda g: (distances[q][g], g))
            rank = 1 + [g_pids[g] for g in ranked].index(q_pids[q])
            hits[rank - 1 :] += 1
        curves.append(hits / math.prod(map(len, choices)))
    return np.mean(curves, axis=0) if curves else None
