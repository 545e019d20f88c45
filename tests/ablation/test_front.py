"""The front: against its definition, and what is drawn of it."""

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ppreid_plugin.ablation import front
from ppreid_plugin.ablation.front import front_picture, fronts, undominated
from ppreid_plugin.ablation.table import summarize

# of the records below: every leakage of the table, and no L_deid, which falls where more is seen
LEAKAGES = {
    "identification leakage",
    "attributes, mean leakage",
    "attributes, max leakage",
    "reconstruction leakage",
    "face leakage",
    "camera leakage",
    "of the reference's",
}
POINT = st.tuples(st.integers(0, 4), st.integers(0, 4))


def record(mean_ap, leakage, judged=None):
    figures = {"rank1": 0.9, "rank5": 0.95, "mAP": mean_ap, "mINP": 0.3}
    reconstruction = {"score": 0.3, "leakage": leakage, "others": {"rank1": judged}, "clean_others": {"rank1": 0.5}}
    channels = {
        "attributes": {"a": {"leakage": leakage}},
        "identification": {"score": 0.5, "leakage": leakage},
        "reconstruction": reconstruction,
        "patches": {"face": {"score": 0.2, "leakage": leakage}},
        "camera": {"score": 0.6, "leakage": leakage},
    }
    return {
        "retrieval": {"cosine": figures, "euclidean": None},
        "leakage": {"channels": channels},
        "deid": {"ratio": leakage},
    }


def summary(**rows):
    return summarize({name: [record(*figures)] for name, figures in rows.items()}, "cosine")


@given(points=st.lists(POINT, min_size=1, max_size=12))
def test_a_point_is_on_the_front_if_walking_down_in_utility_it_lowers_leakage(points):
    best, wanted = float("inf"), set()
    for utility in sorted({u for u, _ in points}, reverse=True):
        lowest = min(k for u, k in points if u == utility)
        if lowest < best:
            wanted.add((utility, lowest))
            best = lowest
    found = undominated([u for u, _ in points], [k for _, k in points])
    assert [point in wanted for point in points] == found


def test_fronts_are_named_by_row_and_rows_without_a_figure_are_none():
    rows = {"base": (0.77, 1.0, 0.5), "mild": (0.75, 0.6, None), "worse": (0.74, 0.7, 0.1), "strong": (0.6, 0.2, 0.2)}
    made = summary(**rows)
    found = fronts(made, "cosine")
    assert found["attributes, mean leakage"] == ["base", "mild", "strong"]
    assert found["of the reference's"] == ["base", "worse"]
    assert set(found) == LEAKAGES
    assert fronts(made, "euclidean") == {}


def test_the_picture_has_every_row_in_every_panel_and_no_date():
    made = summary(base=(0.77, 1.0, 0.5), mild=(0.75, 0.6, 0.3), worse=(0.74, 0.7, 0.1))
    picture = front_picture(made, "cosine")
    ElementTree.fromstring(picture)
    assert b"<dc:date>" not in picture
    assert picture.count(b"<!-- mild -->") == len(LEAKAGES)
    assert front_picture(summary(base=(0.77, 1.0), mild=(0.75, 0.6)), "cosine") is None


def test_the_picture_joins_the_front_over_leakage_and_marks_who_is_not_on_it(monkeypatch):
    rows = {"worse": (0.74, 0.7, 0.4), "base": (0.77, 1.0, 0.5), "strong": (0.6, 0.2, 0.1), "mild": (0.75, 0.6, 0.3)}
    monkeypatch.setattr(front, "svg", lambda figure: figure)
    axis = front_picture(summary(**rows), "cosine").axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("attributes, mean leakage (%)", "mAP, cosine (%)")
    *points, joined = axis.lines
    drawn = {text.get_text(): (text.xy, point) for text, point in zip(axis.texts, points, strict=True)}
    for name, (mean_ap, leakage, _) in rows.items():
        place, point = drawn[name]
        assert place == (point.get_xdata()[0], point.get_ydata()[0]) == (100 * leakage, 100 * mean_ap)
    on_front = ["strong", "mild", "base"]
    assert joined.get_xydata().tolist() == [list(drawn[name][0]) for name in on_front]
    looks = {name: (point.get_color(), point.get_marker()) for name, (_, point) in drawn.items()}
    assert {looks[name] for name in on_front} == {looks["base"]}
    assert looks["base"][0] == joined.get_color() != looks["worse"][0]
