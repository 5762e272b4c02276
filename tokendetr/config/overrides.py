"""Apply overrides in hydra's grammar, with strict checks of keys and types."""

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.config.data_folder import AUTO
from tokendetr.config.required_values import check_required
from tokendetr.config.targets import parameters_of
from tokendetr.errors import ConfigError

__all__ = ["apply_overrides"]

_NAMES = ("output_dir", "names", "dataset_name", "root", "image_root")


def apply_overrides(cfg: Any, overrides: Sequence[str]) -> Any:
    """Apply overrides in hydra's grammar, refusing keys that the config does not have.

    A key exists if it is in the config or is a parameter of the node's target; ``+key=value`` adds
    any other, and ``++key=value`` sets or adds one. A value that the grammar cannot parse
    (``x.pth?a=True``, non-ASCII names) is taken as plain text, and a leading ``~/`` is expanded to
    the home folder. ``~key=value`` deletes the key only if it has this value.

    Args:
        cfg: changed in place.
        overrides: one string per override.

    Returns:
        ``cfg``.

    Raises:
        ConfigError: an override is malformed; a key is unknown (the message names the nearest
            ones); a number or boolean would become text; or a part that its owner needs is left
            without a value.
    """
    removed: dict[str, tuple[str, Any]] = {}
    for text in overrides:
        override, written = _parse(text)
        value = override.value()
        key = override.key_or_group
        is_leaf = isinstance(value, (bool, int, float)) and not override.is_delete()
        if is_leaf and _is_text(cfg, key):
            # Of a path such as 2024, or a name such as 1e3.
            value = text.partition("=")[2].strip()
            written = f"{key}='{value}'"
        if override.is_sweep_override():
            raise ConfigError(f"override {text!r} gives several values; give one")
        if not override.is_add() and not override.is_force_add():
            _check_known(cfg, key)
        before = OmegaConf.select(cfg, key, default=None)
        if before is not None and (override.is_delete() or value is None):
            removed[text] = (key, before)
        if override.is_delete():
            _delete(cfg, key, value, has_value="=" in text)
            continue
        if not override.is_add():
            _check_type(cfg, key, value)
        try:
            LazyConfig.apply_overrides(cfg, [written])
        except (KeyError, AssertionError) as error:  # below a value that is not a group
            raise ConfigError(f"override {text!r}: {error.args[0]}") from error
        is_count = isinstance(before, int) and not isinstance(before, bool)
        if is_count and isinstance(value, float) and value.is_integer():
            # Such as max_iter=1e4, which the grammar reads as a float.
            parent, last = _parent(cfg, key)
            parent[last] = int(value)
    for text, (key, before) in removed.items():
        check_required(cfg, key, before, text)
    return cfg


def _parse(text: str) -> tuple[Any, str]:
    """Return the parsed override, and the text that it was parsed from, quoted if necessary.

    Raises:
        ConfigError: the text is not of the form of an override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    key, sign, value = text.partition("=")
    if sign and value.startswith("~/"):
        value = os.path.expanduser(value)
        text = f"{key}={value}"
    try:
        return parser.parse_override(text), text
    except HydraException as error:
        is_structure = value[:1] in ("[", "{", "'", '"') or re.fullmatch(r"\w+\(.*\)", value)
        wrong = _spelling(text)
        if wrong or is_structure or not re.fullmatch(r"(\+\+?|~)?[\w.@/-]+", key):
            why = wrong or str(error).splitlines()[0]
            raise ConfigError(f"override {text!r} is not of the form key=value: {why}") from error
    escaped = value.replace("'", "\\'")
    written = f"{key}='{escaped}'"
    try:
        return parser.parse_override(written), written
    except HydraException as error:
        raise ConfigError(f"override {text!r}: {str(error).splitlines()[0]}") from error


def _spelling(text: str) -> str:
    """Return what is wrong with an override that is written as in other programs, else ""."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign:
        return f"it has no '='; write {text.lstrip('-')}=VALUE, without spaces"
    if key.startswith("-"):
        return f"write {key.lstrip('-')}={value}; options such as --resume come before overrides"
    return f"write {key}={value}, without spaces" if key != text.partition("=")[0] else ""


def _check_known(cfg: Any, key: str) -> None:
    node = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig) and part.lstrip("-").isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, DictConfig) and part in node:
            node = None if OmegaConf.is_missing(node, part) else node[part]
        elif depth == len(parts) - 1 and _is_parameter(node, part):
            return
        else:
            raise ConfigError(_unknown_key(cfg, key))


def _is_parameter(node: Any, name: str) -> bool:
    """Return whether the target of a ``LazyCall`` node has a named parameter ``name``."""
    parameter = parameters_of(node).get(name)
    return parameter is not None and parameter.kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def _unknown_key(cfg: Any, key: str) -> str:
    keys = list(_dotted_keys(cfg))
    # First by the whole dotted key; if none is near, any key with the same last part.
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    if not near:
        last = key.rpartition(".")[2]
        near = [k for k in keys if k.rpartition(".")[2] == last][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"the config has no key {key!r}{hint} (to add a new key write +{key}=value)"


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in list[Any](node):
            if key == "_target_":
                continue
            name = f"{prefix}{key}"
            yield name
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from _dotted_keys(node[key], f"{name}.")
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _dotted_keys(item, f"{prefix}{index}.")


def _check_type(cfg: Any, key: str, value: Any) -> None:
    """Refuse a value of another kind than the config's that nothing could use."""
    old = OmegaConf.select(cfg, key, default=None)
    old = _default(cfg, key) if old is None else old
    if value == "???":
        raise ConfigError(f"{key}=??? would leave {key} without a value: give one")
    is_reference = isinstance(value, str) and value.startswith("${")
    if is_reference or (value == AUTO and key.endswith("num_classes")):
        return
    shown = f"the text {str(value)!r}" if isinstance(value, str) else repr(value)
    is_leaf = isinstance(value, (bool, int, float))
    # Null would count as false, whatever the default is.
    is_unset = isinstance(old, bool) and value is None and key.startswith("train.")
    if is_unset or (isinstance(old, (bool, int, float)) and not _may_replace(old, value)):
        raise ConfigError(
            f"{key} is {old!r} in the config and cannot become {shown}: give "
            f"a value of type {type(old).__name__}"
        )
    if isinstance(old, str) and key.startswith("train.") and isinstance(value, (list, dict)):
        raise ConfigError(f"{key} is text in the config and cannot become {shown}")
    if key.endswith(".short_edge_length") and type(value) is int:
        return  # ResizeShortestEdge takes one length or several
    if isinstance(old, ListConfig) and (is_leaf or isinstance(value, dict)):
        raise ConfigError(f"{key} is a list in the config and cannot become {shown}")
    is_part = "." not in key and value is None
    if isinstance(old, DictConfig) and (is_part or is_leaf or isinstance(value, (str, list))):
        raise ConfigError(
            f"{key} is a group of keys in the config and cannot become {shown}: set one of them "
            f"with {key}.KEY=VALUE"
        )


def _default(cfg: Any, key: str) -> Any:
    """Return the number or boolean that a parameter is where the config has no value for it."""
    parent, _, name = key.rpartition(".")
    parameter = parameters_of(OmegaConf.select(cfg, parent, default=None)).get(name)
    default = None if parameter is None else parameter.default
    return default if isinstance(default, (bool, int, float)) else None


def _may_replace(old: float, value: Any) -> bool:
    """Return whether a value can replace a number or boolean."""
    if value is None or isinstance(old, bool):
        return value in (None, False, True)  # 0 and 1 among them
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(cfg: Any, key: str) -> bool:
    """Return whether a key holds a name or path, which may look like a number."""
    is_named = key.startswith("train.") or key.rpartition(".")[2] in _NAMES
    return is_named and isinstance(OmegaConf.select(cfg, key, default=None), str)


def _parent(cfg: Any, key: str) -> tuple[Any, Any]:
    """Return the node that holds a key, and the last part of the key: an index in a list."""
    path, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, path) if path else cfg
    return node, int(last) if isinstance(node, ListConfig) else last


def _delete(cfg: Any, key: str, value: Any, *, has_value: bool) -> None:
    parent, last = _parent(cfg, key)
    if has_value and parent[last] != value:
        raise ConfigError(
            f"~{key}={value}: it is {parent[last]!r} in the config, so it was not deleted; "
            f"write ~{key} to delete it whatever its value"
        )
    del parent[last]
