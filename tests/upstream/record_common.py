"""Record the names, keys and values of the configs that detrex ships for others to build on.

    cd DETREX && python -m tests.upstream.record_common > upstream_common.json

Runs where detectron2 and detrex are installed, in the root of a detrex checkout. What it prints is
``tests/golden/upstream_common.json``.
"""

import json
from pathlib import Path

from detrex.config import get_config

from tests.projects.upstream_facts import flatten


def main() -> None:
    """Print what each file says, by its path below ``configs``."""
    files = sorted(path.relative_to("configs").as_posix() for path in Path("configs").rglob("*.py"))
    found = {name: dict(flatten(get_config(name))) for name in files}
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
