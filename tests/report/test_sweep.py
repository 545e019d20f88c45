"""Sweeps over budgets: the figures are those of the parts, and rows say what they are."""

import json

import numpy as np
import pytest
import torch

from ppreid_plugin import DPGallery, cli
from ppreid_plugin.evaluation import Extracted
from ppreid_plugin.report.sweep import MechanismSpec, load_split, sweep, sweep_command, table
from ppreid_plugin.retrieval import evaluate


def split(seed, people, first_pid):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, 16)) + 1.0
    pids = np.repeat(np.arange(people) + first_pid, 6)
    features = (centers[pids - first_pid] + 0.3 * rng.normal(size=(len(pids), 16))).astype(np.float32)
    return Extracted(torch.from_numpy(features), pids, np.tile(np.arange(3), 2 * people))


TRAIN, GALLERY = split(0, 30, 1000), split(1, 20, 1)
QUERY = Extracted(GALLERY.features + 0.1, GALLERY.pids, GALLERY.camids)
SUBSET = MechanismSpec("prior_subset", {"codewords": 16, "set_size": 2, "min_people": 2})


def test_a_row_is_what_the_parts_give():
    (row,) = sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[5.0], protocols=["anonymous"], seeds=1)
    gallery = DPGallery("prior_subset", epsilon=5.0, seed=1, options=SUBSET.options).fit(TRAIN.features, TRAIN.pids)
    rows = (gallery.transform(QUERY.features).float(), gallery.protect(GALLERY.features).float())
    wanted = evaluate(*rows, QUERY.pids, GALLERY.pids, QUERY.camids, GALLERY.camids)
    assert (row["rank1"], row["mAP"]) == (wanted.rank1, wanted.mAP)
    assert (row["epsilon"], row["delta"], row["unit"], row["chosen_on"]) == (5.0, 0.0, "image", "nothing")
    assert row["person_epsilon"] == [30.0, 30.0]  # six rows a person, pure
    assert row["prior_cell"] == gallery.prior.people_per_cell


def test_more_budget_helps_and_every_seed_is_another_draw():
    rows = sweep(TRAIN, QUERY, GALLERY, mechanisms=[MechanismSpec("privunit_g", {})], epsilons=[0.5, 50.0], seeds=2)
    assert len(rows) == 8
    figures = {(r["protocol"], r["epsilon"], r["seed"]): r["mAP"] for r in rows}
    for protocol in ("anonymous", "enrolled"):
        assert figures[protocol, 50.0, 1] > figures[protocol, 0.5, 1] + 0.2
    assert figures["anonymous", 0.5, 1] != figures["anonymous", 0.5, 2]
    assert table(rows).count("privunit_g") == 4


def save(path, part, **changes):
    arrays = {"features": part.features.numpy(), "pids": part.pids, "camids": part.camids, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_the_command_writes_json_and_a_table(tmp_path, capsys):
    files = {
        name: save(tmp_path / f"{name}.npz", part)
        for name, part in (("train", TRAIN), ("query", QUERY), ("gallery", GALLERY))
    }
    flags = [word for name, file in files.items() for word in (f"--{name}", file)]
    out = tmp_path / "sweep.json"
    spec = "prior_subset:codewords=16,kind=residual,min_people=2"
    argv = [*flags, "--mechanisms", "gaussian", spec, "--epsilons", "4", "--seeds", "1", "--out", str(out)]
    assert cli.run(sweep_command, argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mechanism"], row["protocol"]) for row in rows] == [
        ("gaussian", "anonymous"),
        ("gaussian", "enrolled"),
        ("prior_subset", "anonymous"),
        ("prior_subset", "enrolled"),
    ]
    assert "kind residual" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MechanismSpec.parse("prior_subset:codewords"), "'codewords' must be NAME=VALUE"),
        (
            lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0], protocols=["anonymus"]),
            "--protocols has 'anonymus'; allowed: anonymous, enrolled",
        ),
        (lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0, -1.0]), "epsilon is -1.0"),
        (lambda: sweep(TRAIN, QUERY, GALLERY, mechanisms=[SUBSET], epsilons=[1.0], seeds=0), "--seeds is 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_files_that_lack_something_are_named(tmp_path):
    with pytest.raises(ValueError, match="lacks camids"):
        load_split(save(tmp_path / "a.npz", TRAIN, camids=None))
    with pytest.raises(ValueError, match="lengths differ"):
        load_split(save(tmp_path / "b.npz", TRAIN, pids=TRAIN.pids[1:]))
