"""Damaged and malicious checkpoints and configs."""

from pathlib import Path

from tests.reliability.campaign import row
from tests.reliability.hostile_checkpoints import damaged_checkpoints, malicious_checkpoints
from tests.reliability.hostile_configs import hostile_configs


@row(
    "SE1",
    "damaged checkpoints of every format; pickles and headers that attack their reader",
    target="read right, or one error class that names the file; 0 executions",
    default=1,
    nightly=30,
    unit="files",
)
def _checkpoints(seed: int, folder: Path) -> int:
    return malicious_checkpoints(seed, folder) + damaged_checkpoints(seed, folder)


row(
    "SE2",
    "YAML configs with tags, aliases, includes and interpolations",
    target="0 executions; plain data, or refused by file and line",
    default=1,
    nightly=1,
    unit="files",
)(hostile_configs)
