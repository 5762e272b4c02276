"""Progress is a bar on a terminal and lines in a log."""

import sys

from tokendetr.io.progress import Progress


def test_outside_a_terminal_each_tenth_gets_a_line(capsys):
    for _ in Progress(range(200), desc="reading", unit="image", mininterval=0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and "\r" not in "".join(lines)
    assert lines[0].startswith("reading 10% (20 of 200 image)")
    assert lines[-1].startswith("reading 100% (200 of 200 image)")


def test_a_bar_that_is_updated_by_hand_ends_with_a_line(capsys):
    with Progress(total=3, unit="batch", mininterval=0) as bar:
        bar.set_postfix_str("starting")
        bar.update(3)
    assert "(3 of 3 batch)" in capsys.readouterr().err.splitlines()[-1]


def test_a_disabled_one_is_silent(capsys):
    assert list(Progress(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in Progress(range(5), mininterval=0):
        pass
    assert "\r" in capsys.readouterr().err


def test_without_a_total_lines_come_by_the_clock(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("tokendetr.io.progress.time.monotonic", lambda: next(clock))
    with Progress(unit="frame", mininterval=0) as bar:
        for _ in range(6):
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 6 and "frame" in lines[0]
