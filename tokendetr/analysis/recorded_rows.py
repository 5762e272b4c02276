"""Record the rows of a table that are measured at different times, each with date and machine."""

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokendetr.io.atomic import write_atomically
from tokendetr.io.json_files import read_json

__all__ = ["machine", "measured_notes", "processor", "record_rows"]


def processor() -> str:
    """Return the processor's name; the architecture if the system does not report it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> str:
    """Return the processor's name and PyTorch's version, as recorded measurements state them."""
    return f"{processor()}, torch {torch.__version__}"


def record_rows(
    file: Path, rows: Mapping[str, Mapping[str, float]], *, timed: bool
) -> dict[str, dict[str, Any]]:
    """Merge new measurements into a file and return its contents.

    Args:
        file: a JSON file; created if missing.
        rows: row -> name -> number; recorded numbers that a row lacks are kept.
        timed: the rows include times, which depend on the machine and its load.
    """
    recorded: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
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
    """Return notes on when and where rows were measured, and timed if that differs."""
    notes = []
    for key, verb in (("measured", "Measured"), ("timed", "Times")):
        groups: dict[str, list[str]] = {}
        for name, row in recorded.items():
            if key == "measured" or row.get("timed") != row["measured"]:
                groups.setdefault(row.get(key, ""), []).append(name)
        notes += [f"{verb} {when}: {'; '.join(names)}." for when, names in groups.items() if when]
    return notes
