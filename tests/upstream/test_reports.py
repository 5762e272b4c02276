"""The counts of a run beside detectron2 and detrex."""

import json

from tests.upstream.reports import counts_of, line_of, record, table

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
    pieces = {"tests/b": counts, "tests/a": counts}
    assert line_of(pieces) == "2 passed, 2 failed, 2 errors, 2 skipped for 1 reasons"
    file = tmp_path / "kept" / "suite.json"
    record(file, pieces, {"detrex": "e244e6c", "torch": "2.14.1"}, {"tests/c"})
    result = json.loads(file.read_text())
    assert result["total"]["seconds"] == 3.0
    text = table(result).markdown()
    assert text.index("| tests/a |") < text.index("| tests/b |") < text.index("| all |")
    assert "detrex e244e6c, torch 2.14.1" in text and "Skipped 2: needs a GPU." in text
    assert "Not run: tests/c." in text
