"""Progress bars and the log: what is printed reaches both, the bar only the terminal."""

import io
import sys

import pytest

from ppreid_plugin import progress
from ppreid_plugin.progress import Tee, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_log_has_what_is_printed_and_nothing_of_the_bar(monkeypatch):
    terminal, log = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", Tee(terminal, log))
    for number in track([1, 2, 3], "counting", per_item=2, unit="images"):
        print(f"line {number}")
    print("after")
    monkeypatch.undo()
    assert log.getvalue() == "line 1\nline 2\nline 3\nafter\n"
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "counting" in shown
    assert shown.index("line 1") < shown.index("line 2") < shown.index("after")


def test_the_terminal_is_given_back_after_an_error(monkeypatch):
    terminal, log = Terminal(), io.StringIO()
    tee = Tee(terminal, log)
    monkeypatch.setattr(sys, "stdout", tee)
    iterator = iter(track([1, 2], "x"))
    next(iterator)
    with pytest.raises(KeyError):
        iterator.throw(KeyError("stop"))
    assert tee.console is terminal


def test_without_a_terminal_it_prints_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    assert list(track("abc", "reading", per_item=10, unit="images")) == ["a", "b", "c"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["reading: 1/3", "reading: 2/3", "reading: 3/3"]
    assert all("images/s" in line for line in lines)


def test_it_stands_for_the_loader_it_wraps():
    class Loader(list):
        batch_size = 7

    wrapped = track(Loader([1, 2]), "x")
    assert len(wrapped) == 2
    assert wrapped.batch_size == 7


def test_what_is_slower_than_one_a_second_is_told_in_seconds(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress.time, "perf_counter", iter(range(0, 1000, 40)).__next__)
    assert list(track(range(3), "Attacks", unit="attacks")) == [0, 1, 2]
    assert "Attacks: 1/3, 40 s each, 80 s left" in capsys.readouterr().out
