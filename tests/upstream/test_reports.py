"""The counts of a run beside detectron2 and detrex."""

import json

from tests.upstream.reports import counts_of, line_of, record, table

BESIDE = {"detrex": "e244e6c", "torch": "2.14.1"}
REPORT = """<testsuites><testsuite time="1.5">
<testcase classname="tests.a" name="passes"/>
<testcase classname="tests.a" name="fails"><failure message="no"/></testcase>
<testcase classname="tests.a" name="breaks"><error message="no"/></testcase>
<testcase classname="tests.a" name="waits"><skipped message="needs a GPU"/></testcase>
</testsuite></testsuites>"""


def test_reports_are_added_up_and_shown(tmp_path):
    (tmp_path / "a.xml").write_text(REPORT)
    counts = counts_of(tmp_path / "a.xml")
    assert counts["failures"] == ["tests.a::fails", "tests.a::breaks"]
    pieces = {"tests/b": {"tested": "1a2b", **counts}, "tests/a": {"tested": "3c4d", **counts}}
    assert line_of(pieces) == "2 passed, 2 failed, 2 errors, 2 skipped for 1 reasons"
    file = tmp_path / "kept" / "suite.json"
    record(file, pieces, BESIDE, ["tests/a", "tests/b", "tests/c"])
    result = json.loads(file.read_text())
    assert result["total"]["seconds"] == 3.0
    text = table(result).markdown()
    assert text.index("| tests/a |") < text.index("| tests/b |") < text.index("| all |")
    assert "detrex e244e6c, torch 2.14.1" in text and "Skipped 2: needs a GPU." in text
    assert "Not run: tests/c." in text


def test_a_run_of_some_folders_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "a.xml").write_text(REPORT)
    counts = counts_of(tmp_path / "a.xml")
    file = tmp_path / "suite.json"
    pieces = {name: {"tested": "1a2b", **counts} for name in ("tests/a", "tests/b", "tests/gone")}
    record(file, pieces, BESIDE, pieces)
    again = {"tests/a": {"tested": "3c4d", **counts, "passed": 7}}
    record(file, again, BESIDE, ["tests/a", "tests/b"])
    result = json.loads(file.read_text())
    assert list(result["pieces"]) == ["tests/a", "tests/b"] and result["total"]["passed"] == 8
    assert [piece["tested"] for piece in result["pieces"].values()] == ["3c4d", "1a2b"]
    record(file, again, {**BESIDE, "torch": "2.15.0"}, ["tests/a", "tests/b"])
    assert json.loads(file.read_text())["not_run"] == ["tests/b"], "it ran beside another torch"
