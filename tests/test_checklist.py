"""Every equation, hyper-parameter, table and figure of the papers is held or decided against."""

import json
import re

import pytest

from tokendetr.analysis.checklist import ChecklistRow, read_checklist
from tokendetr.cli.checklist import PAGES, ROOT, checklists

pytestmark = pytest.mark.checkout
CHECKLISTS = {checklist.name: checklist for checklist in checklists()}
NUMBERED = {  # how many each paper has
    "dynamic_detr": {"Equation": 12, "Table": 7, "Figure": 6},
    "focus_detr": {"Equation": 7, "Table": 6, "Figure": 7},
    "sparse_detr": {"Equation": 2, "Table": 7, "Figure": 15},
    "spt_backbone": {"Equation": 12, "Table": 8, "Figure": 6},
    "token_transforming": {"Equation": 10, "Table": 8, "Figure": 5},
}


def test_the_papers_are_there():
    assert {"dynamic_detr", "focus_detr", "sparse_detr"} <= set(CHECKLISTS)


@pytest.mark.parametrize("name", CHECKLISTS)
def test_rows_are_held_and_what_they_name_exists(name):
    assert not list(CHECKLISTS[name].faults(ROOT))


def numbered(kind: str, item: str) -> set[int]:
    """Return the numbers that an item names: "Tables 1 and 2", "Equations 3 to 6", "Figure 1"."""
    found: set[int] = set()
    for text in re.findall(rf"{kind}s? (\d+(?:(?: to |, | and )\d+)*)", item):
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        found |= set(range(numbers[0], numbers[1] + 1)) if " to " in text else set(numbers)
    return found


@pytest.mark.parametrize("name", NUMBERED)
def test_every_equation_table_and_figure_has_a_row(name):
    items = [row.item for row in CHECKLISTS[name].rows]
    for kind, count in NUMBERED[name].items():
        named = set().union(*(numbered(kind, item) for item in items))
        assert named == set(range(1, count + 1)), kind


@pytest.mark.parametrize("name", CHECKLISTS)
def test_pages_are_up_to_date(name):
    written = (PAGES / f"{name}.md").read_text()
    assert written == CHECKLISTS[name].markdown(), "run python tools/checklist.py --write"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "no test, no command and no decision"),
        ({"tests": ["tests/test_checklist.py::test_nothing"]}, "test_nothing"),
        ({"tests": ["tests/none.py::test_it"]}, "none.py"),
        ({"commands": ["python tools/none.py"]}, "tools/none.py"),
        ({"commands": ["python tools/table.py none"]}, "projects/none/table.py"),
        ({"commands": ["python tools/ablate.py dino"]}, "projects/dino/studies.py"),
        ({"commands": ["make nothing"]}, "nothing"),
        ({"commands": ["python -m benchmarks.none"]}, "the module benchmarks.none"),
        ({"commands": ["ls"]}, "python"),
        ({"where": ["nowhere.py"], "decision": "no"}, "nowhere.py"),
        ({"tests": ["tests/test_checklist.py::test_the_papers_are_there"]}, None),
        ({"commands": ["python tools/table.py dynamic_detr", "make test"]}, None),
        ({"decision": "because"}, None),
    ],
)
def test_what_is_missing_is_named(tmp_path, row, fault):
    path = tmp_path / "paper.json"
    rows = [{"item": "Table 1", "what": "results", **row}]
    path.write_text(json.dumps({"title": "P", "source": "S", "rows": rows}))
    found = list(read_checklist(path).faults(ROOT))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "paper.json"
    path.write_text(json.dumps({"title": "P", "source": "S", "rows": [{"item": "a", "why": "b"}]}))
    with pytest.raises(ValueError, match="why"):
        read_checklist(path)


def test_a_row_with_a_test_is_covered_whatever_else_was_decided():
    assert ChecklistRow("a", "b", tests=("c",), decision="d").state == "covered"
    assert ChecklistRow("a", "b", decision="d").state == "decided"
    assert ChecklistRow("a", "b").state == "open"
