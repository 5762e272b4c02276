"""The pages of the project, their Python blocks and the commands that they show."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from sybil.document import Document
from sybil.example import Example
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.source_tree import ROOT

# Pages that only list things, with commands inside tables.
_CHECKLISTS = (ROOT / "docs" / "reproduction" / "checklist").glob("*.json")
NOT_READ = {"CHANGELOG.md", *(f"docs/reproduction/{path.stem}.md" for path in _CHECKLISTS)}
REASONS = ("COCO", "a GPU")
"""The only reasons for which a block may be left out: ``<!-- skip: needs COCO -->`` before it."""

_PROGRAMS = (
    *("tokendetr", "python", "make", "pip", "pytest", "torchrun", "srun"),
    *("git", "cp", "cd", "unzip"),
)
_SKIP = re.compile(r"<!-- skip: needs (.+?) -->\s*$")
_ASSIGNED = re.compile(r"(?:^|[\s`;])([A-Z]+)=(\"[^\"]*\"|[^\s`;]+)")
_OVERRIDE = re.compile(r"(?:\+{0,2}|~)(?:model|train|dataloader|optimizer|lr_multiplier)\.[^\s=]+=")


@dataclass(frozen=True)
class ShownCommand:
    """A command shown on a page.

    Attributes:
        page: the page's file.
        text: the command, variables filled in, without comments.
        words: the command split into words.
        is_mentioned: it is part of a sentence, so required arguments may be missing.
    """

    page: str
    text: str
    words: tuple[str, ...]
    is_mentioned: bool = False


def pages() -> list[str]:
    """Return the Markdown files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    names = sorted(set(listed.splitlines()))
    return [name for name in names if name not in NOT_READ and (ROOT / name).exists()]


def python_blocks(page: str) -> list[Example]:
    """Return the page's Python blocks, which share a namespace."""
    return list(Document.parse(str(ROOT / page), PythonCodeBlockParser()).examples())


def skipped(page: str) -> list[str]:
    """Return the reasons for skipped blocks of a page, one per block."""
    lines = (ROOT / page).read_text().splitlines()
    return [found[1] for line in lines if (found := _SKIP.match(line))]


def is_skipped(example: Example) -> bool:
    """Return True if a comment before a block skips it."""
    before = example.document.text[: example.region.start].rstrip()
    return _SKIP.search(before) is not None


def shown_commands(page: str) -> Iterator[ShownCommand]:
    """Return every command of a page: in shell blocks, in indented blocks, and in backticks."""
    text = (ROOT / page).read_text()
    variables = {name: value.strip('"') for name, value in _ASSIGNED.findall(text)}
    for line, is_mentioned in _lines(text):
        filled = re.sub(r"\$\{?([A-Z]+)\}?", lambda found: variables.get(found[1], found[0]), line)
        filled = re.sub(r"^([A-Z_]+=\S+ )+(?=\S)", "", filled)
        try:
            words = tuple(shlex.split(filled, comments=True))
        except ValueError:  # prose with an apostrophe
            continue
        if words and (words[0] in _PROGRAMS or _OVERRIDE.match(words[0])):
            yield ShownCommand(page, filled, words, is_mentioned)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield lines that may be commands, and True for those mentioned in a sentence."""
    fence = re.compile(r"(<!-- skip: needs .+? -->\s*)?^```([\w{}-]*)\n(.*?)^```", re.M | re.S)
    shells = ("bash", "console", "sh", "shell")
    blocks = [body for skip, kind, body in fence.findall(text) if kind in shells and not skip]
    prose = fence.sub("", text)
    for block in [*blocks, *re.findall(r"(?:^    .*\n?)+", prose, flags=re.M)]:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield line.strip().removeprefix("$ "), False
    for quoted in re.findall(r"`((?:tokendetr|python|make) [^`\n]+)`", prose):
        yield quoted, True
