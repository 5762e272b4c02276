"""Rows of a table that are measured at different times: one file keeps them, each with when and
where it was measured."""

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokendetr.io.atomic import write_atomically

__all__ = ["machine", "measured_notes", "record_rows"]


def machine() -> str:
    """Return the processor's name and PyTorch's version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, torch {torch.__version__}"


def record_rows(
    file: Path, rows: Mapping[str, Mapping[str, float]], *, timed: bool
) -> dict[str, dict[str, Any]]:
    """Put newly measured rows into a file and return all that it holds.

    Args:
        file: JSON; made if it is not there.
        rows: numbers by name; those that a row does not have stay as they were recorded.
        timed: whether they hold times, which depend on the machine and what else it does.
    """
    recorded: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for name, numbers in rows.items():
        row = recorded.setdefault(name, {})
        row |= {**numbers, "measured": f"{today} on {machine()}"}
        if timed:
            row["timed"] = row["measured"]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(file), (json.dumps(recorded, indent=1) + "\n").encode())
    return recorded


def measured_notes(recorded: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return when and where rows were measured, and timed where that differs."""
    notes = []
    for key, verb in (("measured", "Measured"), ("timed", "Times")):
        groups: dict[str, list[str]] = {}
        for name, row in recorded.items():
            if key == "measured" or row.get("timed") != row["measured"]:
                groups.setdefault(row.get(key, ""), []).append(name)
        notes += [f"{verb} {when}: {'; '.join(names)}." for when, names in groups.items() if when]
    return notes
