"""Tables of results: markdown, markers in a README, the command."""

from pathlib import Path

import pytest

from tests.source_tree import ROOT
from tokendetr.analysis.recorded_tables import RecordedTables, read_recorded, write_recorded
from tokendetr.analysis.tables import Table, splice
from tokendetr.cli import table

TABLE = Table(
    name="gflops",
    title="What it costs.",
    columns=("config", "ours", "the paper's"),
    rows=(("a|b", 12.34, 12), ("c\nd", None, "141.70")),
    notes=("counted once", "counted twice"),
)
MARKED = "# Title\n\n<!-- table: gflops -->\nold\n<!-- end of table: gflops -->\nafter\n"


def rendered_cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_markdown_keeps_title_cells_and_notes_and_sets_numbers_to_the_right():
    markdown = TABLE.markdown()
    assert markdown.startswith("What it costs.\n\n| config | ours | the paper's |\n")
    header, aligned, first, second = rendered_cells(markdown)
    assert aligned == ["---", "---:", "---:"]
    assert first == [r"a\|b", "12.3", "12"]
    assert second == ["c d", "–", "141.70"]
    assert markdown.endswith("\n\n* counted once\n* counted twice\n")


def test_a_table_without_title_and_notes_is_its_rows():
    bare = Table(name="t", title="", columns=("a",), rows=[["b"]])
    assert bare.markdown() == "| a |\n| --- |\n| b |\n"


def test_a_table_without_rows_is_its_title_and_notes():
    empty = Table(name="t", title="What it costs.", columns=("a",), rows=(), notes=("not yet",))
    assert empty.markdown() == "What it costs.\n\n* not yet\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "two words"}, "two words"),
        ({"columns": (), "rows": ()}, "no columns"),
        ({"rows": (("a", 1.0, 2), ("b", 1.0))}, "row 2.*2 cells for 3 columns"),
    ],
)
def test_a_malformed_table_is_refused_by_name(changes, message):
    fields = {"name": "gflops", "title": "", "columns": TABLE.columns, "rows": TABLE.rows}
    with pytest.raises(ValueError, match=message):
        Table(**{**fields, **changes})


def test_splice_replaces_what_is_between_the_markers_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    assert splice(readme, TABLE)
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- table: gflops -->\nWhat it costs.")
    assert text.endswith("* counted twice\n<!-- end of table: gflops -->\nafter\n")
    assert "old" not in text
    assert not splice(readme, TABLE), "a second time changes nothing"
    assert readme.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    "text",
    [
        "nothing\n",
        "<!-- table: gflops -->\n",
        "<!-- end of table: gflops -->\n<!-- table: gflops -->\n",
        MARKED + MARKED,
        MARKED.replace("gflops", "other"),
    ],
)
def test_without_one_pair_of_markers_the_file_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md.*table: gflops"):
        splice(readme, TABLE)
    assert readme.read_text() == text


def make_project(root: Path) -> Path:
    """One project that has two tables."""
    project = root / "projects" / "some_method"
    project.mkdir(parents=True)
    (project / "table.py").write_text(
        "from tokendetr.analysis.tables import Table\n"
        "def tables():\n"
        "    yield Table('gflops', 'Costs.', ('a',), ((1.25,),))\n"
        "    yield Table('time', '', ('a',), ((2,),))\n"
    )
    readme = project / "README.md"
    readme.write_text(MARKED + MARKED.replace("gflops", "time"))
    return readme


def test_the_command_prints_and_writes_a_projects_tables(tmp_path, monkeypatch, capsys):
    readme = make_project(tmp_path)
    monkeypatch.setattr(table, "PROJECTS_DIR", tmp_path / "projects")
    table.main(["some_method", "--write"])
    assert "| 1.2 |" in capsys.readouterr().out
    assert "| 1.2 |" in readme.read_text()
    assert "| 2 |" in readme.read_text()
    assert "old" not in readme.read_text()


def test_only_one_table_is_printed_on_request(monkeypatch, capsys):
    other = Table("time", "", ("ms",), ((2,),))
    monkeypatch.setattr(table, "tables_of", lambda method, projects: (TABLE, other))
    table.main(["some_method", "--only", "time"])
    assert capsys.readouterr().out == other.markdown() + "\n"


def test_result_files_that_were_not_installed_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PROJECTS_DIR", tmp_path / "projects")
    with pytest.raises(SystemExit, match="has no result files: they come with a checkout"):
        table.main(["recorded"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dynamic_detrs",), "projects/dynamic_detrs/table.py"),
        (("some_method", "--only", "memory"), "only gflops"),
    ],
)
def test_the_command_names_what_does_not_exist(monkeypatch, arguments, message):
    if "--only" in arguments:
        monkeypatch.setattr(table, "tables_of", lambda method, projects: (TABLE,))
    with pytest.raises(SystemExit, match=message):
        table.main(arguments)


RECORD_FILES = sorted((ROOT / "docs" / "records").glob("*.json"))


@pytest.mark.parametrize("file", RECORD_FILES, ids=lambda path: path.stem)
def test_pages_show_what_is_recorded(file):
    recorded = read_recorded(file)
    page = (ROOT / recorded.page).read_text()
    for shown in recorded.shown():
        assert shown.markdown() in page, "run tokendetr table recorded --write"


def test_a_result_file_keeps_tables_and_shows_where_they_come_from(tmp_path):
    file = tmp_path / "records" / "results.json"
    kept = RecordedTables("README.md", "2026-01-31", "a CPU", ["make demo"], [TABLE])
    write_recorded(file, kept)
    (shown,) = read_recorded(file).shown()
    assert shown.markdown() == TABLE.markdown() + "* `make demo`; a CPU; 2026-01-31.\n"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"page": "README.md", "rows": []}'])
def test_a_malformed_result_file_is_named(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not a result file"):
        read_recorded(file)


def test_a_table_goes_to_the_page_of_its_project_that_has_its_markers(tmp_path, monkeypatch):
    make_project(tmp_path).write_text(MARKED)
    other = tmp_path / "docs" / "reproduction" / "measurements" / "some_method.md"
    other.parent.mkdir(parents=True)
    other.write_text(MARKED.replace("gflops", "time"))
    monkeypatch.setattr(table, "PROJECTS_DIR", tmp_path / "projects")
    table.main(["some_method", "--write"])
    assert "| 2 |" in other.read_text() and "| 1.2 |" not in other.read_text()
