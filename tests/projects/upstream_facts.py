"""Values of detrex's own configs, and their comparison with this project's configs.

    python -m tests.projects.upstream_facts

Values are effective ones: defaults of constructors are filled in on both sides, learning-rate
factors are the factor function's results for names of modules, and classes of the detectors have
the name under which ``projects/<name>/modeling`` exports them.
"""

import dataclasses
import functools
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

from tests.source_tree import ROOT

TABLE = ROOT / "docs" / "upstream_differences.md"
FACTOR = "lr_factor_func"
MISSING = "(not there)"
FOREIGN = "(?:detectron2|detrex|fvcore|torch)"
CONFIG = ("model.", "dataloader.", "optimizer.", "lr_multiplier.", "train.")
DETECTORS = (
    "dino",
    "deformable_detr",
    "dab_deformable_detr",
    "dn_deformable_detr",
    "h_deformable_detr",
)


def _read(name: str) -> Any:
    return json.loads((ROOT / "tests" / "golden" / name).read_text())


def _facts() -> dict[str, dict[str, Any]]:
    """Return key -> value by config; the file stores differences between configs."""
    facts: dict[str, dict[str, Any]] = {}
    for name, fact in _read("upstream_configs.json").items():
        like = facts.get(fact["like"], {})
        kept = {key: value for key, value in like.items() if key not in fact["without"]}
        facts[name] = kept | fact["values"]
    return facts


UPSTREAM = _facts()
"""detrex's configs by path: dotted key -> value."""


@functools.cache
def _defaults() -> dict[str, dict[str, Any]]:
    return {target_name(name): values for name, values in _read("upstream_defaults.json").items()}


@functools.cache
def _exported() -> dict[Any, str]:
    """Return the detectors' classes by their names under ``projects``."""
    names = {}
    for project in DETECTORS:
        module = importlib.import_module(f"projects.{project}.modeling")
        for name in getattr(module, "__all__", vars(module)):
            if inspect.isclass(kind := getattr(module, name)):
                names[kind] = f"{module.__name__}.{name}"
    return names


def target_name(target: Any) -> str:
    """Return the name of a class or function that both sides use.

    Modules may be split differently here: only the package (``detectron2.data``) and the name
    count.
    """
    if not isinstance(target, str):
        if target in _exported():
            return _exported()[target]
        target = f"{target.__module__}.{target.__qualname__}"
    # A class that a config's folder defines is loaded under a random name.
    target = re.sub(r"detectron2\._cfg_loader\w+\.(\w+)\.py\.", r"\1.", target)
    target = re.sub(r"^(projects\.\w+\.modeling)\.[\w.]*?(\w+)$", r"\1.\2", target)
    return re.sub(rf"^({FOREIGN}\.\w+)\.(?:[a-z]\w*\.)+(?=\w)", r"\1.", target)


def plain(value: Any) -> Any:
    """Return a config's value as JSON represents it."""
    if isinstance(value, ListConfig | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, DictConfig | dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return f"functools.{value!r}"
    if callable(value):
        return target_name(value)
    return value


def flatten(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of a config."""
    prefix = f"{key}." if key else ""
    if isinstance(node, DictConfig):
        for name in node:
            yield from flatten(node[name], f"{prefix}{name}")
    elif isinstance(node, ListConfig) and any(isinstance(item, DictConfig) for item in node):
        for index, item in enumerate(node):
            yield from flatten(item, f"{prefix}{index}")
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        for field in dataclasses.fields(node):
            yield f"{prefix}{field.name}", getattr(node, field.name)
    else:
        yield key, target_name(node) if key.endswith("_target_") else plain(node)


def load(name: str, root: Path = ROOT) -> dict[str, Any]:
    """Return the keys and values of one of this project's configs, factors evaluated."""
    config = LazyConfig.load(str(root / name))
    factor = config.optimizer.params.pop(FACTOR, None)
    values = dict(flatten(config))
    if factor is not None:
        factor = instantiate(factor)
        names = UPSTREAM[name][f"optimizer.params.{FACTOR}@"]
        values[f"optimizer.params.{FACTOR}@"] = {module: factor(module) for module in names}
    return values


def effective(values: Mapping[str, Any], *, ours: bool) -> dict[str, Any]:
    """Return the values, completed by the constructors' defaults.

    The defaults are those that detectron2 and detrex have; of this project's own classes, its own.
    """
    filled = {key: value for key, value in values.items() if not key.endswith(FACTOR)}
    for key, target in values.items():
        if not key.endswith("_target_"):
            continue
        filled[key] = target = target_name(target)
        prefix = key.removesuffix("_target_")
        of_our_own = ours and not re.match(rf"{FOREIGN}\.", target)
        defaults = _signature(target) if of_our_own else _defaults().get(target, {})
        for name, value in defaults.items():
            place = f"{prefix}{name}"
            if name != FACTOR and not any(k == place or k.startswith(f"{place}.") for k in values):
                filled[place] = value
    return filled


def _signature(target: str) -> dict[str, Any]:
    return {
        name: plain(parameter.default)
        for name, parameter in inspect.signature(locate(target)).parameters.items()
        if parameter.default is not parameter.empty
    }


def differences(name: str, root: Path = ROOT) -> dict[str, tuple[Any, Any]]:
    """Return the differences between detrex's config of a path and this project's.

    A parameter that only this project's class has and that the config does not set is ignored.

    Returns:
        Upstream's value and ours, by key. A part that one side lacks is one difference, under the
        key of its topmost node.
    """
    theirs, said = UPSTREAM[name], load(name, root)
    theirs, ours = effective(theirs, ours=False), effective(said, ours=True)
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(theirs.keys() | said.keys()):
        pair = theirs.get(key, MISSING), ours.get(key, MISSING)
        if pair[0] == pair[1] or not key.startswith(CONFIG) or key.endswith(FACTOR):
            continue
        other = ours if pair[1] == MISSING else theirs
        place = _topmost(key, other) if MISSING in pair else key
        found.setdefault(place, pair)
    return found


def _topmost(key: str, other: Mapping[str, Any]) -> str:
    """Return the shortest prefix of a key that ``other`` has nothing under."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        place = ".".join(parts[:length])
        if place not in other and not any(known.startswith(f"{place}.") for known in other):
            return place
    return key


def deliberate(table: Path = TABLE) -> dict[str, set[str]]:
    """Return the differences that the docs' table gives reasons for: key -> paths of configs."""
    found: dict[str, set[str]] = {}
    for line in table.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`[\w.@]+`", cells[0]):
            found[cells[0].strip("`")] = set().union(*map(_configs, cells[1].split(", ")))
    return found


def _configs(text: str) -> set[str]:
    """Return the configs that a cell of the table names: one, or all of a folder."""
    text = text.strip("`")
    paths = {path for path in UPSTREAM if text in ("all", Path(path).stem, *path.split("/"))}
    if not paths:
        raise ValueError(f"{TABLE}: detrex has no config or project {text!r}")
    return paths


def main() -> None:
    """Print the differences beyond the table, and the number of equal configs."""
    allowed, agreeing = deliberate(), 0
    for name in UPSTREAM:
        try:
            found = differences(name)
        except FileNotFoundError:
            print(f"{name}: not there")
            continue
        odd = {key: pair for key, pair in found.items() if name not in allowed.get(key, ())}
        agreeing += not odd
        for key, (theirs, ours) in odd.items():
            print(f"{name}: {key}: upstream {theirs!r}, here {ours!r}")
    print(f"{agreeing} of {len(UPSTREAM)} configs have upstream's values ({len(allowed)} rows)")
    sys.exit(agreeing != len(UPSTREAM))


if __name__ == "__main__":
    main()
