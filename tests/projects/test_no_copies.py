"""Detectors share parts instead of repeating them: no block of six equal lines in two detector
folders."""

import itertools
from pathlib import Path

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
BLOCK = 6


def blocks(folder: Path) -> dict[tuple[str, ...], str]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        for start in range(len(lines) - BLOCK + 1):
            found[tuple(lines[start : start + BLOCK])] = f"{path.relative_to(PROJECTS)}"
    return found


def test_no_two_detector_folders_share_a_block():
    folders = sorted(path.parent for path in PROJECTS.glob("*/modeling"))
    assert len(folders) >= 2
    for one, other in itertools.combinations(folders, 2):
        first, second = blocks(one), blocks(other)
        shared = [
            f"{first[block]} and {second[block]} share:\n" + "\n".join(block)
            for block in first.keys() & second.keys()
        ]
        assert not shared, shared[0]
