"""Detectors and methods share parts: no two of them contain the same block of six lines."""

import itertools
from pathlib import Path

from tests.source_tree import METHODS, ROOT, detectors

BLOCK = 6


def blocks(folder: Path) -> dict[tuple[str, ...], str]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        for start in range(len(lines) - BLOCK + 1):
            found[tuple(lines[start : start + BLOCK])] = f"{path.relative_to(ROOT)}"
    return found


def assert_nothing_shared(folders: list[Path]) -> None:
    for one, other in itertools.combinations(folders, 2):
        first, second = blocks(one), blocks(other)
        shared = [
            f"{first[block]} and {second[block]} share:\n" + "\n".join(block)
            for block in first.keys() & second.keys()
        ]
        assert not shared, shared[0]


def test_no_two_detectors_share_a_block():
    folders = [ROOT / "tokendetr" / "models" / name for name in detectors()]
    assert len(folders) >= 5
    assert all(blocks(folder) for folder in folders)
    assert_nothing_shared(folders)


def test_no_two_methods_share_a_block():
    folders = [ROOT / name for name in METHODS if (ROOT / name).is_dir()]
    assert len(folders) >= 2
    assert_nothing_shared(folders)
