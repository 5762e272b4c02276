"""Checklists of papers: every equation, hyperparameter, table and figure, and what reproduces it.

A checklist is a JSON file::

    {"title": "Sparse DETR", "source": "arXiv 2111.14330", "rows": [
      {"item": "Equation 1", "what": "the loss of the scores",
       "where": ["sparse_detr/sparsifier.py"],
       "tests": ["tests/sparse_detr/test_sparse_losses.py::test_..."],
       "commands": ["python tools/table.py sparse_detr"]},
      {"item": "Figure 8", "what": "...", "decision": "why not"}]}

A row is covered if it has tests or commands, decided if it has only a decision, and open otherwise.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from tokendetr.config import zoo
from tokendetr.errors import ConfigError

__all__ = ["Checklist", "ChecklistRow", "read_checklist"]


@dataclass(frozen=True)
class ChecklistRow:
    """One item of a paper.

    Attributes:
        item: its name in the paper, such as "Table 3".
        what: its subject.
        where: files that implement it, relative to the repository.
        tests: ``file::function`` of tests that check it.
        commands: command lines that reproduce it.
        decision: why it is not reproduced, or not as printed.
    """

    item: str
    what: str
    where: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    decision: str = ""

    @property
    def state(self) -> str:
        """ "covered", "decided" or "open"."""
        if self.tests or self.commands:
            return "covered"
        return "decided" if self.decision else "open"


@dataclass(frozen=True)
class Checklist:
    """The checklist of a paper.

    Attributes:
        name: stem of the file.
        title: name of the method.
        source: reference of the paper.
        rows: items in the paper's order.
    """

    name: str
    title: str
    source: str
    rows: tuple[ChecklistRow, ...] = field(default=())

    def faults(self, root: Path) -> Iterator[str]:
        """Yield what is wrong: open rows, and files, tests and commands that do not exist.

        Args:
            root: the repository.
        """
        items = [row.item for row in self.rows]
        for item in sorted({item for item in items if items.count(item) > 1}):
            yield f"{self.name}: {item} is listed twice"
        for row in self.rows:
            if row.state == "open":
                yield f"{self.name}: {row.item} has no test, no command and no decision"
            for path in row.where:
                if not (root / path).exists():
                    yield f"{self.name}: {row.item} names {path}, which does not exist"
            for test in row.tests:
                if not _test_exists(root, test):
                    yield f"{self.name}: {row.item} names the test {test}, which does not exist"
            for command in row.commands:
                missing = _missing_of_command(root, command)
                if missing:
                    yield f"{self.name}: {row.item}: `{command}` needs {missing}"

    def markdown(self) -> str:
        """Return the checklist as a page of markdown."""
        states = [row.state for row in self.rows]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("covered", "decided", "open"))
        lines = [
            f"# {self.title}: the paper, row by row",
            "",
            f"What of the paper is implemented. {self.source}. Rows: {counts}.",
            f"[Measurements](measurements/{self.name}.md).",
            "",
            "| in the paper | what | where | tested by | shown by |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            cells = [
                row.item,
                row.what,
                ", ".join(f"`{path}`" for path in row.where),
                "<br>".join(f"`{test.rpartition('::')[2]}`" for test in row.tests),
                "<br>".join(f"`{command}`" for command in row.commands),
            ]
            if row.decision:
                cells[-1] = "; ".join(part for part in (cells[-1], f"*{row.decision}*") if part)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        made = "`python tools/checklist.py --write` makes this page from"
        lines += ["", f"{made} [checklist/{self.name}.json](checklist/{self.name}.json)."]
        return "\n".join(lines) + "\n"


def read_checklist(path: Path) -> Checklist:
    """Read a checklist.

    Raises:
        ValueError: a row has unknown keys or lacks some; the message names file and row.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    known = {each.name for each in fields(ChecklistRow)}
    rows = []
    for number, row in enumerate(found["rows"]):
        if not {"item", "what"} <= set(row) <= known:
            raise ValueError(f"{path}: row {number} has the keys {sorted(row)}, known: {known}")
        rows.append(
            ChecklistRow(
                item=row["item"],
                what=row["what"],
                where=tuple(row.get("where", ())),
                tests=tuple(row.get("tests", ())),
                commands=tuple(row.get("commands", ())),
                decision=row.get("decision", ""),
            )
        )
    return Checklist(path.stem, found["title"], found["source"], tuple(rows))


def _test_exists(root: Path, test: str) -> bool:
    """Return whether ``file::function`` is a test function."""
    file, _, name = test.partition("::")
    path = root / file
    if not (path.is_file() and name.startswith("test_")):
        return False
    functions = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in functions)


def _missing_of_command(root: Path, command: str) -> str:
    """Return what a command line refers to that does not exist, or an empty string."""
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (root / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        missing = [t for t in targets if not re.search(rf"^{re.escape(t)}:", makefile, re.M)]
        return ", ".join(missing)
    if words[0] != "python":
        return "a `python` or `make` command"
    if words[1] == "-m" and not (root / f"{words[2].replace('.', '/')}.py").exists():
        return f"the module {words[2]}"
    for word in words[1:]:
        if word.endswith((".py", ".safetensors", ".json")) and "/" in word.partition("=")[2] + word:
            path = word.partition("=")[2] or word
            if not (root / path).exists() and not path.startswith(("output/", "/path/")):
                return path
    if len(words) > 2 and words[1] in ("tools/table.py", "tools/ablate.py"):
        name = "table.py" if "table" in words[1] else "studies.py"
        if not (root / "projects" / words[2] / name).exists():
            return f"projects/{words[2]}/{name}"
    for word in words:
        if word.startswith("config:"):
            try:
                zoo.get_config_file(word.partition(":")[2])
            except (ConfigError, ValueError, FileNotFoundError) as error:
                return str(error)
    return ""
