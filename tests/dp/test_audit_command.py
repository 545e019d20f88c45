"""The audit's command line: what it plans, writes and prints, and that it fails when a mechanism does."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from gallery_cases import DIM, release, subset

from ppreid_plugin import cli
from ppreid_plugin.dp.audit_command import audit_command
from ppreid_plugin.dp.audit_release import ReleaseAudit, release_mechanisms
from ppreid_plugin.dp.calibration import gaussian_epsilon
from ppreid_plugin.dp.mechanisms import MECHANISMS, GaussianMechanism, build_mechanism
from ppreid_plugin.dp.prior import fit_prior
from ppreid_plugin.dp.stored import load_release
from ppreid_plugin.dp.subset import CodebookMechanism

TOOL = Path(__file__).parents[2] / "tools" / "audit.py"
FEW = ["--trials", "2000"]


class HalfSigma(GaussianMechanism):
    """What a third party may register: it says 8 and adds half of the noise."""

    name = "half_sigma"

    def __init__(self, epsilon, delta=1e-5, clip_norm=1.0):
        super().__init__(epsilon, delta, clip_norm)
        self.sigma /= 2


class CodebookOfGallery(CodebookMechanism):
    name = "codebook_of_gallery"

    def privatize(self, features, *, generator=None):
        changed = CodebookMechanism(self.epsilon, codebook=self.codebook + features.mean(axis=0))
        return changed.privatize(features, generator=generator)


@pytest.fixture
def registered(monkeypatch):
    for kind in (HalfSigma, CodebookOfGallery):
        monkeypatch.setitem(MECHANISMS._entries, kind.name, kind)


def run(capsys, *argv):
    code = cli.run(audit_command, [str(word) for word in argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def rows_of(path):
    return json.loads(Path(path).read_text())["rows"]


def test_json_and_table(tmp_path, capsys):
    out = tmp_path / "audit.json"
    specs = ["gaussian", "privunit", "codebook:codewords=8|9", "prior_subset:set_size=64"]
    argv = ["--mechanisms", *specs, "--epsilons", 1, 4, "--delta", 1e-6, "--dimension", 3, "--out", out, *FEW]
    code, printed, err = run(capsys, *argv)
    assert code == 0, err
    record = json.loads(out.read_text())
    assert record["command"] == ["tools/audit.py", *map(str, argv)]
    assert "torch" in record["environment"]
    rows = record["rows"]
    assert [(row["mechanism"], row["epsilon"]) for row in rows] == [
        (name, epsilon)
        for name in ("gaussian", "privunit", "codebook", "codebook", "prior_subset")
        for epsilon in (1.0, 4.0)
    ]
    assert all(row["passed"] and row["trials"] == 2000 and row["dimension"] == 3 for row in rows)
    assert [row["delta"] for row in rows] == [1e-6] * 2 + [0.0] * 8
    assert all(row["epsilon_lower"] <= row["epsilon_lower_95"] for row in rows)
    assert [row["epsilon_exact"] for row in rows] == [None] * 2 + [pytest.approx(e) for e in (1.0, 4.0)] * 4
    assert all(row["tight"] == row["epsilon_lower_95"] / row["epsilon"] for row in rows)
    lines = [line.split() for line in printed.splitlines()]
    assert sum(line[-1:] == ["yes"] for line in lines) == 10
    assert sum(line[:3] == ["codebook", "codewords", "8"] for line in lines) == 2
    assert "gaussian: mu from both error rates at threshold 0, converted once; assumes Gaussian noise." in printed


def test_a_registered_mechanism_with_half_of_the_noise_fails_after_all_is_written(registered, tmp_path, capsys):
    out = tmp_path / "audit.json"
    argv = ["--mechanisms", "gaussian", "half_sigma", "--epsilons", 8, "--out", out, "--trials", 20_000]
    code, printed, err = run(capsys, *argv)
    assert code == 2
    honest, broken = rows_of(out)
    assert (honest["passed"], broken["passed"]) == (True, False)
    assert broken["epsilon_lower"] > 12
    assert [line.split()[-1] for line in printed.splitlines() if "1e-05" in line] == ["yes", "NO"]
    errors = [line for line in err.splitlines() if line.startswith("Error:")]
    assert errors == [
        f"Error: 1 of 2 audits failed: half_sigma at epsilon 8 shows epsilon {broken['epsilon_lower']:.4g} or more."
    ]


def test_a_mechanism_that_looks_at_other_rows_fails(registered, tmp_path, capsys):
    argv = ["--mechanisms", "codebook_of_gallery:codewords=32", "--epsilons", 16, *FEW, "--out", tmp_path / "a.json"]
    code, _, err = run(capsys, *argv)
    (row,) = rows_of(tmp_path / "a.json")
    assert code == 2
    assert row["rows_changed"] > 0
    assert f"at epsilon 16 changes {row['rows_changed']} rows when another one is swapped." in err


def test_codebooks_are_fitted_on_features(tmp_path, capsys):
    features = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    np.savez(tmp_path / "train.npz", features=features, pids=np.arange(60) % 20)
    specs = ["prior_subset:codewords=4,set_size=2,min_people=2", "codebook:codewords=6,kind=residual,min_people=2"]
    argv = ["--mechanisms", *specs, "--epsilons", 1, 2, "--train", tmp_path / "train.npz", *FEW]
    code, _, err = run(capsys, *argv, "--out", tmp_path / "a.json")
    assert code == 0, err
    assert [(row["epsilon"], row["dimension"]) for row in rows_of(tmp_path / "a.json")] == [(1, 5), (2, 5)] * 2


def test_release_noise(tmp_path, capsys):
    argv = ["--mechanisms", "gaussian", "codebook:codewords=8", "--epsilons", 8, "--noise", "release"]
    code, _, err = run(capsys, *argv, "--dimension", 1, *FEW, "--out", tmp_path / "a.json")
    assert code == 0, err
    assert [(row["noise"], row["rows_changed"]) for row in rows_of(tmp_path / "a.json")] == [("release", None)] * 2


def test_a_stored_release(tmp_path, capsys):
    release(tmp_path, epsilon=8.0)
    argv = ["--release", tmp_path / "release", "--dimension", 1, *FEW, "--out", tmp_path / "a.json"]
    code, _, err = run(capsys, *argv)
    assert code == 0, err
    (row,) = rows_of(tmp_path / "a.json")
    assert (row["mechanism"], row["noise"], row["parameters"]) == ("gaussian", "release", {"release": "a-0001"})
    stated = load_release(tmp_path / "release").manifest["mechanism"]
    assert row["epsilon_exact"] == gaussian_epsilon(stated["sigma"], 1e-5, 2.0) <= 8.0


def test_a_stored_finite_release(tmp_path, capsys):
    decoder = np.random.default_rng(6).normal(size=(20, DIM))
    release(tmp_path, mechanism=subset(epsilon=4.0, decoder=decoder))
    (mechanism,) = release_mechanisms(load_release(tmp_path / "release"))
    rows = np.random.default_rng(3).normal(size=(20, DIM))
    np.testing.assert_array_equal(mechanism.symbol_probabilities(rows), subset(epsilon=4.0).symbol_probabilities(rows))
    np.testing.assert_array_equal(mechanism.decoder, decoder.astype(np.float32))
    code, _, err = run(capsys, "--release", tmp_path / "release", *FEW, "--out", tmp_path / "a.json")
    assert code == 0, err
    (row,) = rows_of(tmp_path / "a.json")
    assert (row["mechanism"], row["dimension"]) == ("prior_subset", DIM)
    assert row["epsilon_exact"] == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("kind", ["residual", "gaussian"])
def test_a_release_with_a_structured_codebook(tmp_path, capsys, kind):
    rng = np.random.default_rng(4)
    prior = fit_prior(rng.normal(size=(200, DIM)), np.arange(200) % 20, codewords=36, set_size=2, kind=kind, rank=2)
    release(tmp_path, mechanism=build_mechanism("prior_subset", epsilon=3.0, **prior.options()))
    (mechanism,) = release_mechanisms(load_release(tmp_path / "release"))
    np.testing.assert_array_equal(mechanism.codebook, prior.codebook)
    code, _, err = run(capsys, "--release", tmp_path / "release", *FEW, "--out", tmp_path / "a.json")
    assert code == 0, err
    (row,) = rows_of(tmp_path / "a.json")
    assert row["epsilon_exact"] == pytest.approx(3.0, rel=1e-12)


def test_every_budget_of_a_release_is_audited_and_a_manifest_that_states_too_little_noise_fails(tmp_path):
    stored = release(tmp_path, epsilon=8.0, protocol="enrolled", budgets={1: 2.0})
    assert [one.epsilon for one in release_mechanisms(stored)] == [2.0, 8.0]
    low, common = (ReleaseAudit(one, stored, trials=1000, dimension=1).run() for one in release_mechanisms(stored))
    assert low.epsilon_exact is None
    assert low.passed
    assert common.passed
    stored.manifest["mechanism"]["sigma"] *= 0.99
    common = ReleaseAudit(release_mechanisms(stored)[1], stored, trials=1000, dimension=1).run()
    assert common.epsilon_exact > 8.05
    assert not common.passed
    del stored.manifest["mechanism"]["clip_norm"]
    with pytest.raises(ValueError, match=r"is malformed \(KeyError\('clip_norm'\)\)"):
        release_mechanisms(stored)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mechanisms", "gausian"], "--mechanisms is 'gausian'; registered:"),
        (["--mechanisms", "none"], "mechanism 'none' claims no epsilon"),
        (["--mechanisms", "gaussian:codewords"], "'codewords' must be NAME=VALUE"),
        (["--mechanisms", "gaussian:codewords=3"], "--mechanisms has 'codewords'; allowed: clip_norm."),
        (["--mechanisms", "gaussian:epsilon=3"], "--mechanisms has 'epsilon'; allowed: clip_norm."),
        (["--mechanisms", "privunit_g:delta=0"], "--mechanisms has 'delta'; allowed: clip_norm, dimension."),
        (["--mechanisms", "gaussian:clip_norm=0"], "clip_norm of --mechanisms is 0, must be a finite number > 0"),
        (
            ["--mechanisms", "prior_subset:codebook=x"],
            "--mechanisms has 'codebook'; allowed: clip_norm, codewords, set",
        ),
        (["--mechanisms", "prior_subset:set_size=256"], "set_size of --mechanisms is 256, must be 1 to 255"),
        (["--mechanisms", "privunit_g", "--epsilons", "5e-324"], "--epsilons is 5e-324, privunit_g is computed from"),
        (["--mechanisms", "codebook:codewords=1"], "codewords of --mechanisms is 1, must be a whole number >= 2"),
        (["--mechanisms", "codebook:codewords=many"], "codewords of --mechanisms is 'many', must be a whole"),
        (["--mechanisms", "prior_subset:kind=raw"], "--mechanisms has 'kind'; allowed: clip_norm, codewords"),
        (
            ["--train", "few.npz", "--mechanisms", "codebook:epsilon=3"],
            "--mechanisms has 'epsilon'; allowed: clip_norm",
        ),
        (
            ["--train", "few.npz", "--mechanisms", "codebook:codewords=1"],
            "codewords of --mechanisms is 1, must be a whole number >= 2",
        ),
        (["--train", "few.npz", "--mechanisms", "codebook:codewords=4,seed=x"], "seed of --mechanisms is 'x', must be"),
        (["--train", "few.npz", "--mechanisms", "codebook:clip_norm=0"], "clip_norm of --mechanisms is 0, must be"),
        (["--epsilons", "4", "-1"], "--epsilons is -1.0, must be a finite number > 0"),
        (["--delta", "2"], "--delta is 2.0, gaussian needs 0 < delta < 1"),
        (["--mechanisms", "privunit_g", "--delta", "1e-6"], "--delta is 1e-06, and the mechanisms are pure"),
        (["--trials", "10"], "--trials is 10, must be a whole number >= 1000"),
        (["--dimension", "0"], "--dimension is 0, must be a whole number >= 1"),
        (["--noise", "release"], "mechanism 'privunit_g' is research only"),
        (["--train", "no.npz"], "'no.npz' is not there"),
        (["--train", "nopids.npz", "--mechanisms", "codebook:codewords=4"], "a codebook needs the pids"),
        (["--out", "no/audit.json"], "--out is 'no/audit.json', but 'no' is no folder"),
        (["--release", "no"], "'no' holds no manifest.json"),
        (["--release", "no", "--epsilons", "4"], "--epsilons is given beside --release, whose manifest tells it"),
        (["--release", "no", "--noise", "research"], "--noise is 'research', but a release is drawn with release"),
    ],
)
def test_errors_come_before_anything_is_drawn(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("nopids.npz", features=np.eye(8))
    np.savez("few.npz", features=np.eye(8), pids=np.arange(8))
    monkeypatch.setattr("ppreid_plugin.dp.audit.play", lambda *_: pytest.fail("drawn"))
    code, printed, err = run(capsys, *argv)
    assert code == 2
    assert message in err
    assert "privacy." not in err
    assert not printed


def test_the_tool_runs_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audit.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stopped.value.code == 0
    assert "--mechanisms" in capsys.readouterr().out
