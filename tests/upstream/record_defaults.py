"""Record the constructor defaults of everything that detrex's own configs instantiate.

    cd DETREX && python -m tests.upstream.record_defaults > upstream_defaults.json

Runs where detectron2 and detrex are installed, in the root of a detrex checkout. What it prints is
``tests/golden/upstream_defaults.json``.
"""

import inspect
import json
from collections.abc import Iterator
from typing import Any

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

from tests.projects.upstream_facts import UPSTREAM, plain, target_name


def targets(node: Any) -> Iterator[Any]:
    """Every ``_target_`` of a config."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node["_target_"]
        for key in node:
            yield from targets(node[key])
    elif isinstance(node, ListConfig):
        for value in node:
            yield from targets(value)


def defaults(target: Any) -> dict[str, Any]:
    """The default values of a callable's parameters, as a JSON file can hold them."""
    target = locate(target) if isinstance(target, str) else target
    parameters = inspect.signature(target).parameters.values()
    return {
        parameter.name: plain(parameter.default)
        for parameter in parameters
        if parameter.default is not parameter.empty
    }


def main() -> None:
    """Print the defaults by the target's name, sorted."""
    found: dict[str, Any] = {}
    for name in UPSTREAM:
        for target in targets(LazyConfig.load(name)):
            found[target_name(target)] = defaults(target)
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
