"""The table: means, Student's intervals and paired differences against scipy, and what stands for missing figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppreid_plugin.ablation.progress import TimeLeft
from ppreid_plugin.ablation.table import render, summarize


def record(mean_ap, *, leakages=(), ssim=None, rank1=None, clean_rank1=0.5, cost=None):
    channels = {"attributes": {f"a{i}": {"leakage": value} for i, value in enumerate(leakages)}}
    if ssim is not None:
        channels["reconstruction"] = {
            "score": ssim, "leakage": 2 * ssim, "others": {"rank1": rank1}, "clean_others": {"rank1": clean_rank1},
        }  # fmt: skip
    figures = {"rank1": 0.9, "rank5": 0.95, "mAP": mean_ap, "mINP": 0.3}
    return {
        "retrieval": {"cosine": figures, "euclidean": {**figures, "mAP": mean_ap / 2}},
        "leakage": {"channels": channels},
        **({} if cost is None else {"step_cost": cost}),
    }


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=6), data=st.data())
def test_intervals_are_students_and_differences_are_paired(values, data):
    others = data.draw(st.lists(st.floats(0, 1), min_size=len(values), max_size=len(values)))
    found = summarize({"base": list(map(record, values)), "row": list(map(record, others))}, "cosine")["rows"]["row"]
    cell = found["mAP (cosine)"]
    for shown, numbers in ((cell, others), (cell["minus_reference"], np.subtract(others, values))):
        assert shown["mean"] == pytest.approx(np.mean(numbers), abs=1e-12)
        error = stats.sem(numbers)
        low, high = (
            stats.t.interval(0.95, len(numbers) - 1, np.mean(numbers), error) if error else [np.mean(numbers)] * 2
        )
        assert (shown["low"], shown["high"]) == pytest.approx((low, high), abs=1e-9)
    assert found["mAP (euclidean)"]["mean"] == pytest.approx(np.mean(others) / 2)


def test_one_seed_has_no_interval_and_missing_figures_are_dashes_or_marked():
    rows = {
        "base": [record(0.5, leakages=(1.0, 1.0, None), ssim=0.4, rank1=0.5, cost=1.0)],
        "row": [record(0.4, leakages=(0.2, 0.6, None), ssim=0.1, rank1=0.125)],
    }
    summary = summarize(rows, "euclidean")
    cells = summary["rows"]["row"]
    assert cells["mAP (euclidean)"]["low"] is None
    assert cells["attributes, mean leakage"]["mean"] == pytest.approx(0.4)
    assert cells["attributes, max leakage"]["mean"] == 0.6
    assert cells["of the reference's"]["mean"] == 0.25
    assert cells["reconstruction leakage"]["mean"] == 0.2
    text = render(summary, "pipe")
    line = next(line for line in text.splitlines() if line.startswith("| row"))
    assert [cell.strip() for cell in text.splitlines()[0].split("|")][1:4] == [
        "row", "rank-1 (euclidean) %", "rank-5 (euclidean) %",
    ]  # fmt: skip
    line = text.splitlines()[3]
    assert [cell.strip() for cell in line.split("|")][1:-1] == [
        "row", "90.0", "95.0", "20.0", "30.0", "40.0", "40.0", "60.0", "0.100", "20.0", "12.5", "25.0", "-",
    ]  # fmt: skip
    lines = render(summary, "pipe", differences=True).splitlines()
    assert len(lines) == 3
    assert [cell.strip() for cell in lines[2].split("|")][4:6] == ["-5.0", "+0.0"]
    nobody = summarize({"base": [record(0.5, ssim=0.1, rank1=0.0)]}, "cosine")["rows"]["base"]
    assert nobody["of the reference's"]["mean"] == 0  # which is no missing figure
    two = summarize({"base": [record(0.5, leakages=(1.0,)), record(0.5, leakages=(None,))]}, "cosine")
    assert "100.0*" in render(two, "simple")  # of one seed only


def test_intervals_are_shown_as_half_widths():
    summary = summarize({"base": [record(0.1), record(0.2)]}, "cosine")
    half = stats.t.ppf(0.975, 1) * stats.sem([10, 20])
    assert f"15.0 ± {half:.1f}" in render(summary, "simple")
    assert "rank-1 of reconstructions" not in {column["name"] for column in summary["columns"]}


def test_time_left_is_what_steps_of_each_kind_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ppreid_plugin.ablation.progress.time.monotonic", lambda: now[0])
    left = TimeLeft()
    for name in "abc":
        left.expect("training", name)
        left.expect("measuring", name)
    left.expect("training", "a")  # shared by two rows
    with left.step("training", "a"):
        now[0] += 100
    assert left.seconds() is None
    with left.step("measuring", "a"):
        now[0] += 10
    assert left.seconds() == 2 * 110
    assert str(left) == "; about 4 min left"
    with left.step("training", "b", count=False):
        now[0] += 1
    assert left.seconds() == 100 + 20
    for kind, name in (("training", "c"), ("measuring", "b")):
        with left.step(kind, name):
            now[0] += 10
    assert str(left) == "; about 10 s left"
