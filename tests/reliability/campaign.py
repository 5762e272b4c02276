"""Seeded campaigns: rows of many cases each, a few in every test run, all of them at night.

A row is a function of a seed and an empty folder that raises where the product fails. ``row``
registers it; ``python -m tests.reliability`` runs rows for figures.
"""

import datetime
import importlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokendetr.analysis.tables import Table, splice
from tokendetr.io.atomic import write_atomically

__all__ = [
    "ROWS",
    "Outcome",
    "Row",
    "Unavailable",
    "load_rows",
    "record",
    "replay_command",
    "row",
    "run_row",
]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "reliability" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
ROW_SECONDS = 20 * 60.0

Case = Callable[[int, Path], Any]


class Unavailable(Exception):
    """A row cannot run on this machine; the message says what it needs."""


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Attributes:
        name: such as "TR1".
        what: what is tried, in a few words.
        target: what must come out.
        default, nightly: number of cases in every test run, and for the figures.
        case: raises where the product fails; it may return the number of events it tried (kills,
            files), 1 where it returns None.
        unit: what those events are.
    """

    name: str
    what: str
    target: str
    default: int
    nightly: int
    case: Case
    unit: str = "cases"


@dataclass
class Outcome:
    """What a run of a row gave.

    Attributes:
        cases: run; events: tried in them; failures: seed -> the error's first line.
        seconds: of all cases.
        is_complete: whether all nightly cases fitted into the time.
        unavailable: what the row needs and this machine lacks.
    """

    row: Row
    cases: int = 0
    events: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    is_complete: bool = True
    unavailable: str = ""


ROWS: dict[str, Row] = {}


def row(
    name: str, what: str, *, target: str, default: int, nightly: int, unit: str = "cases"
) -> Callable[[Case], Case]:
    """Register a case function ``(seed, folder)`` as a row.

    Raises:
        ValueError: there is a row of this name.
    """

    def register(case: Case) -> Case:
        if name in ROWS:
            raise ValueError(f"there are two rows {name}")
        ROWS[name] = Row(name, what, target, default, nightly, case, unit)
        return case

    return register


def load_rows() -> dict[str, Row]:
    """Import every ``rows_*.py`` beside this file, and return the rows by name, sorted."""
    for path in sorted(Path(__file__).parent.glob("rows_*.py")):
        importlib.import_module(f"tests.reliability.{path.stem}")
    return dict(sorted(ROWS.items()))


def replay_command(name: str, seed: int) -> str:
    """The command that runs one case again."""
    return f"python -m tests.reliability --rows {name} --case {seed}"


def run_case(chosen: Row, seed: int, *, keep: bool = False) -> int:
    """Run one case in a fresh folder; returns the number of its events.

    Raises:
        Exception: whatever the case raises; its folder is kept then.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{chosen.name}-{seed}-"))
    events = chosen.case(seed, folder)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if events is None else int(events)


def run_row(chosen: Row, seeds: Iterable[int], seconds: float = ROW_SECONDS) -> Outcome:
    """Run cases until they or the time are used up; a failing one does not stop the others."""
    outcome = Outcome(chosen)
    start = time.monotonic()
    for seed in seeds:
        if time.monotonic() - start > seconds:
            outcome.is_complete = False
            break
        outcome.cases += 1
        try:
            outcome.events += run_case(chosen, seed)
        except KeyboardInterrupt:
            raise
        except Unavailable as error:
            outcome.cases -= 1
            outcome.unavailable = str(error)
            outcome.is_complete = False
            break
        except BaseException as error:
            traceback.print_exc()
            outcome.failures[seed] = _first_line(error)
            print(f"{chosen.name} case {seed} failed; again with: "
                  f"{replay_command(chosen.name, seed)}", flush=True)  # fmt: skip
    outcome.seconds = time.monotonic() - start
    return outcome


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]


def open_failures(name: str) -> list[int]:
    """Seeds that failed the last time that they were run."""
    recorded = read_results().get(name, {})
    return sorted(int(seed) for seed in recorded.get("failures", {}))


def read_results() -> dict[str, Any]:
    """The recorded figures by row."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def recorded_cases(name: str) -> int:
    """How many cases of a row are recorded for the present commit."""
    entry = read_results().get(name, {})
    return int(entry["cases"]) if entry.get("commit") == commit() else 0


def record(outcome: Outcome, *, more: bool = False) -> None:
    """Put a row's figures into the results, in place of older ones or (``more``) added to them."""
    results = read_results()
    chosen = outcome.row
    if more and recorded_cases(chosen.name):
        before = results[chosen.name]
        outcome.cases += before["cases"]
        outcome.events += before["events"]
        outcome.seconds += before["seconds"]
        outcome.failures |= {int(seed): text for seed, text in before["failures"].items()}
    results[chosen.name] = {
        "what": chosen.what,
        "target": chosen.target,
        "unit": chosen.unit,
        "cases": outcome.cases,
        "events": outcome.events,
        "planned": chosen.nightly,
        "is_complete": outcome.is_complete,
        "unavailable": outcome.unavailable,
        "failures": {str(seed): text for seed, text in sorted(outcome.failures.items())},
        "seconds": round(outcome.seconds, 1),
        "first_seed": 0,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dict(sorted(results.items())), indent=1) + "\n"
    write_atomically(str(RESULTS), content.encode())


def commit() -> str:
    """The commit that was tested, with ``+`` where the tree differs from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output(
            [*git, "status", "--porcelain", "-uno", "--", ".", ":!docs/reliability*"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed.strip() else "")


def outcome_in_words(entry: dict[str, Any]) -> str:
    """What became of a recorded row's cases."""
    if lacks := entry.get("unavailable"):
        return f"not run: {lacks}"
    cases, failures = entry["cases"], len(entry["failures"])
    state = f"**{failures} of {cases} failed**" if failures else "passed"
    if not entry["is_complete"]:
        state += f"; {cases} of {entry['planned']} cases run before the time was up"
    return state


def results_table() -> Table:
    """All recorded rows; a row with a failure, or one that never ran, says so."""
    recorded = read_results()
    lines = []
    for name, chosen in load_rows().items():
        entry = recorded.get(name)
        if entry is None:
            lines.append((name, chosen.what, chosen.target, "not run", None, None, None))
            continue
        state = outcome_in_words(entry)
        count = f"{entry['cases']}"
        if entry["events"] != entry["cases"]:
            count += f" ({entry['events']} {entry['unit']})"
        measured = (count, f"{entry['seconds']:.0f}", f"{entry['commit']}, {entry['date']}")
        lines.append((name, entry["what"], entry["target"], state, *measured))
    failing = [
        f"{name}: {text} (`{replay_command(name, int(seed))}`)"
        for name, entry in sorted(recorded.items())
        for seed, text in entry["failures"].items()
    ]
    return Table(
        "reliability",
        "",
        ("row", "what", "must give", "outcome", "cases", "seconds", "commit, date"),
        lines,
        notes=failing,
    )


def splice_page() -> None:
    """Write the recorded figures into ``docs/reliability.md``."""
    splice(PAGE, results_table())
