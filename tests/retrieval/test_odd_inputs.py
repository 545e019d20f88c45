"""Ranking functions and their command line with inputs of every odd kind: a clear error, or the ordinary figures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ppreid_plugin import cli
from ppreid_plugin.report.evaluate_command import evaluate_command
from ppreid_plugin.retrieval import (
    KReciprocal,
    evaluate,
    evaluate_distances,
    evaluate_enrolled,
    evaluate_open_set,
    re_rank,
    re_rank_distances,
)

RNG = np.random.default_rng(0)
QUERY, GALLERY = (RNG.normal(size=(rows, 8)).astype(np.float32) for rows in (6, 20))
Q_PIDS, G_PIDS = np.arange(6) % 4 + 1, np.arange(20) % 5
Q_CAMIDS, G_CAMIDS = np.zeros(6, dtype=int), np.arange(20) % 3
LABELS = Q_PIDS, G_PIDS, Q_CAMIDS, G_CAMIDS
DISTANCES = (1 - QUERY @ GALLERY.T).astype(np.float32)

FUNCTIONS = {
    "evaluate": evaluate,
    "enrolled": evaluate_enrolled,
    "open set": evaluate_open_set,
    "re_rank": lambda query, gallery, *labels: re_rank(query, gallery),
}
REFUSED = {
    "0-d": (np.array(3.0), r"query_features has shape \(\)"),
    "3-d": (QUERY[None], r"query_features has shape \(1, 6, 8\)"),
    "empty": (QUERY[:0], r"query_features has shape \(0, 8\)"),
    "NaN": (QUERY * np.nan, "query_features rows 0, 1, .* hold NaN or infinity"),
    "narrow": (QUERY[:, :7], "query_features have 7 columns and gallery_features 8, must be equal"),
    "int": (QUERY.astype(int), "query_features is of type int64"),
    "object": (QUERY.astype(object), "query_features is of type object"),
    "ragged": ([[1.0], [1.0, 2.0]], "query_features cannot be made an array"),
    "sparse": (torch.from_numpy(QUERY).to_sparse(), "query_features is no dense tensor"),
    "masked": (np.ma.masked_array(QUERY, mask=QUERY > 1), "query_features has masked entries"),
}
TAKEN = {
    "read-only": np.frombuffer(QUERY.tobytes(), dtype=np.float32).reshape(6, 8),
    "column order": np.asfortranarray(QUERY),
    "every second": np.repeat(QUERY, 2, axis=1)[:, ::2],
    "backwards": QUERY[::-1].copy()[::-1],
    "big-endian": QUERY.astype(">f4"),
    "tensor with grad": torch.tensor(QUERY, requires_grad=True),
    "transposed tensor": torch.from_numpy(QUERY.T.copy()).T,
}
ODD_LABELS = {
    "floats": (Q_PIDS.astype(float), "is of type float64, must be whole numbers"),
    "text": (Q_PIDS.astype(str), "must be whole numbers"),
    "bool": (Q_PIDS > 1, "is of type bool, must be whole numbers"),
    "short": (Q_PIDS[:5], r"has shape \(5,\), must be \(6,\)"),
    "2-d": (Q_PIDS[:, None], r"has shape \(6, 1\), must be \(6,\)"),
    "a number": (3, r"has shape \(\), must be \(6,\)"),
    "None": (None, r"has shape \(\), must be \(6,\)"),
    "ragged": ([[1], [1, 2]], "cannot be made an array"),
    "masked": (np.ma.masked_array(Q_PIDS, mask=Q_PIDS > 2), "has masked entries"),
    "too large": (np.full(6, 2**64 - 1, dtype=np.uint64), "has 18446744073709551615, must be below 2.63"),
    "float tensor": (torch.from_numpy(Q_PIDS).float(), "is of type float32, must be whole numbers"),
}


def figures(function, query):
    found = function(query, GALLERY, *LABELS)
    if isinstance(found, np.ndarray):
        return found.tolist()
    plain = {name: getattr(found, name) for name in vars(found)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_are_no_features_is_refused_by_name(name, kind):
    features, message = REFUSED[kind]
    with pytest.raises(ValueError, match=f"^{message}"):
        FUNCTIONS[name](features, GALLERY, *LABELS)
    if kind not in ("narrow", "ragged"):
        swapped = [LABELS[1], LABELS[0], LABELS[3], LABELS[2]]
        with pytest.raises(ValueError, match="^" + message.replace("query", "gallery")):
            FUNCTIONS[name](GALLERY, features, *swapped)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", TAKEN)
def test_how_features_lie_in_memory_changes_no_digit(name, kind):
    assert figures(FUNCTIONS[name], TAKEN[kind]) == figures(FUNCTIONS[name], QUERY)


@pytest.mark.parametrize("kind", ODD_LABELS)
def test_what_are_no_labels_is_refused_by_name(kind):
    labels, message = ODD_LABELS[kind]
    for function, *first in (
        (evaluate, QUERY, GALLERY), (evaluate_enrolled, QUERY, GALLERY), (evaluate_open_set, QUERY, GALLERY),
        (evaluate_distances, DISTANCES),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^query_pids .*{message}|^query_pids {message}"):
            function(*first, labels, G_PIDS, Q_CAMIDS, G_CAMIDS)
        with pytest.raises(ValueError, match=f"^query_camids .*{message}|^query_camids {message}"):
            function(*first, Q_PIDS, G_PIDS, labels, G_CAMIDS)


ODD_CALLS = {
    "max_rank 0": (lambda: evaluate(QUERY, GALLERY, *LABELS, max_rank=0), "max_rank is 0, must be a whole number"),
    "max_rank huge": (lambda: evaluate(QUERY, GALLERY, *LABELS, max_rank=10**11), "must be at most 10000000"),
    "enrolled huge": (lambda: evaluate_enrolled(QUERY, GALLERY, *LABELS, max_rank=10**11), "must be at most 10000000"),
    "no memory": (
        lambda: evaluate(QUERY, GALLERY, *LABELS, memory_mb=0),
        "memory_mb is 0, must be a finite number > 0",
    ),
    "all memory": (lambda: evaluate(QUERY, GALLERY, *LABELS, memory_mb=float("inf")), "memory_mb is inf, must be"),
    "rerank": (lambda: evaluate(QUERY, GALLERY, *LABELS, rerank=True), "rerank is True, must be a KReciprocal or None"),
    "k1": (lambda: re_rank(QUERY, GALLERY, k1=0), "k1 is 0, must be a whole number >= 1"),
    "lambda": (lambda: re_rank(QUERY, GALLERY, lambda_value="x"), "lambda_value is 'x', must lie in"),
    "matrices": (lambda: re_rank_distances(DISTANCES, DISTANCES, DISTANCES), "q_q_dist has shape"),
    "fpirs": (lambda: evaluate_open_set(QUERY, GALLERY, *LABELS, fpirs=0.1), "fpirs is 0.1, must be rates"),
    "fpirs text": (lambda: evaluate_open_set(QUERY, GALLERY, *LABELS, fpirs=["x"]), "must be rates"),
    "fraction": (lambda: evaluate_open_set(QUERY, GALLERY, *LABELS, listed_fraction="x"), "listed_fraction is 'x'"),
    "background": (
        lambda: evaluate_open_set(QUERY, GALLERY, *LABELS, background_features=np.array(3.0), background_camids=[0]),
        r"background_features has shape \(\)",
    ),
    "pids too large": (
        lambda: evaluate_enrolled(QUERY, GALLERY, *LABELS, background_pids=[2**63]),
        r"background_pids has 9223372036854775808, must be below 2\^63",
    ),
    "pids half": (lambda: evaluate_enrolled(QUERY, GALLERY, *LABELS, background_pids=[0.5]), "background_pids is"),
    "pids text": (lambda: evaluate_open_set(QUERY, GALLERY, *LABELS, background_pids="x"), "background_pids is 'x'"),
    "pids 0": (lambda: evaluate_enrolled(QUERY, GALLERY, *LABELS, background_pids=0), "background_pids is 0, must be"),
}


@pytest.mark.parametrize("kind", ODD_CALLS)
def test_odd_options_are_refused_by_name(kind):
    call, message = ODD_CALLS[kind]
    with pytest.raises(ValueError, match=message):
        call()


def test_options_may_be_numbers_of_numpy_and_pids_a_set():
    expected = evaluate(QUERY, GALLERY, *LABELS, max_rank=5, rerank=KReciprocal(3, 2, 0.5))
    options = KReciprocal(np.int64(3), np.uint8(2), np.float32(0.5))
    found = evaluate(QUERY, GALLERY, *LABELS, max_rank=np.uint8(5), rerank=options, memory_mb=np.float32(1))
    assert (found.mAP, found.cmc.tolist()) == (expected.mAP, expected.cmc.tolist())
    assert re_rank(QUERY, GALLERY, k1=np.uint8(255)).shape == (6, 20)
    by_set = evaluate_enrolled(QUERY, GALLERY, *LABELS, background_pids={0, 3})
    assert by_set.mrr == evaluate_enrolled(QUERY, GALLERY, *LABELS, background_pids=[0, 3]).mrr


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok = {"features": QUERY, "pids": Q_PIDS, "camids": np.arange(6) // 3}
    np.savez("ok.npz", **ok)
    np.savez("zero.npz", **ok | {"features": np.array(3.0)})
    np.savez("float.npz", **ok | {"pids": Q_PIDS.astype(float)})
    np.save("f.npy", QUERY)
    Path("junk.npz").write_bytes(b"PK junk")
    Path("large.csv").write_text("pid,camid\n" + f"{2**70},0\n" * 6)
    Path("latin.csv").write_bytes(b"pid,camid,name\n1,0,\xfc\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--query", "zero.npz"], "'zero.npz': features have shape () and type float64, must be (n, d)"),
        (["--query", "float.npz"], "query_pids of 'float.npz' is of type float64, must be whole numbers"),
        (["--query", "junk.npz"], "'junk.npz' cannot be read as .npz: it is no archive of arrays, or was cut off"),
        (["--query", "missing.npz"], "'missing.npz' is not there"),
        (["--query", "f.npy", "--query-labels", "large.csv"], f"'large.csv' line 2: pid '{2**70}'"),
        (["--query", "f.npy", "--query-labels", "latin.csv"], "'latin.csv' is no text in UTF-8. Save it"),
        (["--query", "ok.npz", "--memory-mb", "0"], "--memory-mb is 0.0, must be a finite number > 0"),
        (["--query", "ok.npz", "--memory-mb", "inf"], "--memory-mb is inf, must be a finite number > 0"),
        (
            ["--query", "ok.npz", "--max-rank", "99999999999"],
            "--max-rank is 99999999999, must be at most 10000000",
        ),
        (["--query", "ok.npz", "--ranks", "0"], "--ranks has 0, must be 1 to --max-rank, 50.\n"),
        (["--query", "ok.npz", "--out", "."], "--out is '.', which is a folder. Name a file"),
        (["--query", "ok.npz", "--background-pids", str(2**70)], "must be whole numbers (below 2^63)"),
    ],
)
def test_odd_files_and_words_are_one_line(files, capsys, words, message):
    assert cli.run(evaluate_command, [*words, "--gallery", "ok.npz"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_folder_that_cannot_be_written_is_told_first(files, capsys, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    assert cli.run(evaluate_command, ["--query", "none.npz", "--gallery", "ok.npz", "--out", "out.json"]) == 2
    assert "--out is 'out.json', but nothing can be written into '.'" in capsys.readouterr().err
