"""Add up the reports of a suite's pieces, keep them as a result file, and show it in the docs.

    python -m tests.upstream.reports docs/upstream/suite.json    # into docs/upstream_differences.md

Only the last needs more than Python's standard library.
"""

import argparse
import collections
import datetime
import json
import os
import platform
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokendetr.analysis.tables import Table

__all__ = ["added", "counts_of", "line_of", "record", "table"]

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("passed", "failure", "error", "skipped")


def counts_of(report: Path) -> dict[str, Any]:
    """What one JUnit report says.

    Returns:
        how many tests passed, failed, ended in an error and were skipped; ``seconds`` of all;
        ``reasons``, how many were skipped for each; ``failures``, the names of those that failed.
    """
    counts: dict[str, Any] = dict.fromkeys(KINDS, 0)
    reasons: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    root = ElementTree.parse(report).getroot()
    for case in root.iter("testcase"):
        kinds = [child.tag for child in case if child.tag in KINDS]
        counts[kinds[0] if kinds else "passed"] += 1
        skipped = case.find("skipped")
        if skipped is not None:
            reasons[skipped.get("message", "")] += 1
        elif kinds:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    counts["seconds"] = round(seconds, 1)
    return counts | {"reasons": dict(reasons), "failures": failures}


def added(pieces: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all pieces."""
    total: dict[str, Any] = {
        key: sum(piece[key] for piece in pieces.values()) for key in (*KINDS, "seconds")
    }
    reasons: collections.Counter[str] = collections.Counter()
    for piece in pieces.values():
        reasons.update(piece["reasons"])
    failures = [name for piece in pieces.values() for name in piece["failures"]]
    return total | {"reasons": dict(reasons.most_common()), "failures": failures}


def line_of(pieces: Mapping[str, Mapping[str, Any]]) -> str:
    """The line of counts."""
    total = added(pieces)
    return (
        f"{total['passed']:,} passed, {total['failure']} failed, {total['error']} errors, "
        f"{total['skipped']} skipped for {len(total['reasons'])} reasons"
    )


def record(
    file: Path,
    pieces: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    names: Iterable[str],
) -> None:
    """Put the counts of a run into a result file, where other folders keep theirs.

    Counts that were recorded beside other versions, or of a folder that is no more, are dropped.

    Args:
        file: JSON, replaced at once.
        pieces: the counts of each folder of tests that was run, with the commit ``tested``.
        versions: what the tests ran beside, by name.
        names: all folders; those without counts are still to come.
    """
    names = set(names)
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    kept = earlier["pieces"] if earlier.get("versions") == dict(versions) else {}
    pieces = {name: counts for name, counts in {**kept, **pieces}.items() if name in names}
    content = {
        "command": "make test-upstream",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "versions": dict(versions),
        "total": added(pieces),
        "not_run": sorted(names - pieces.keys()),
        "pieces": {name: pieces[name] for name in sorted(pieces)},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(file)


def table(result: Mapping[str, Any]) -> "Table":
    """The counts of a result file, folder by folder."""
    from tokendetr.analysis.tables import Table

    named = [*result["pieces"].items(), ("all", {"tested": "", **result["total"]})]
    rows = [(name, *(piece[kind] for kind in KINDS), piece["tested"]) for name, piece in named]
    columns = ("folder", "passed", "failed", "errors", "skipped", "commit")
    beside = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = [f"`{result['command']}`; {beside}; {result['machine']}; {result['date']}."]
    notes += [f"Skipped {n}: {reason}." for reason, n in result["total"]["reasons"].items()]
    if result["not_run"]:
        notes.append(f"Not run: {', '.join(result['not_run'])}.")
    return Table("upstream_suite", "", columns, rows, notes)


def main() -> None:
    """Write the table of a result file into docs/upstream_differences.md."""
    from tokendetr.analysis.tables import splice

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    result = json.loads(parser.parse_args().file.read_text())
    splice(ROOT / "docs" / "upstream_differences.md", table(result))


if __name__ == "__main__":
    main()
