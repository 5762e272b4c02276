"""YAML configs that try to run code, read files or grow: read as plain data, or refused by name."""

from pathlib import Path

import yaml
from detectron2.config import LazyConfig

from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.config.load import load_config
from tokendetr.errors import ConfigError

__all__ = ["REFUSED", "hostile_configs"]

_BASE = "train: {max_iter: 1}\nmodel: {}\n"
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "apply": "x: !!python/object/apply:os.system ['touch TRAP']",
    "apply_mapping": "x: !!python/object/apply:os.system {args: ['touch TRAP']}",
    "new": "x: !!python/object/new:os.system ['touch TRAP']",
    "exec": "x: !!python/object/apply:builtins.exec [\"open('TRAP', 'w')\"]",
    "eval": "x: !!python/object/apply:eval [\"open('TRAP', 'w')\"]",
    "popen": "x: !!python/object/apply:subprocess.Popen [['touch', 'TRAP']]",
    "object": "x: !!python/object:argparse.Namespace {a: 1}",
    "name": "x: !!python/name:os.system",
    "name_in_disguise": "x: !!python/name:detectron2.../os.system",
    "module": "x: !!python/module:antigravity",
    "key": "? !!python/object/apply:os.system ['touch TRAP']\n: 1",
    "nested": "x: {y: [1, {z: !!python/object/apply:os.system ['touch TRAP']}]}",
    "target": "x: {_target_: !!python/name:os.system}",
    "include": "x: !include /etc/passwd",
    "own_tag": "x: !thing {a: 1}",
    "full_name": "x: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch TRAP']",
    "state": (
        "x: !!python/object/new:type {args: [z, !!python/tuple [], "
        "{extend: !!python/name:exec }], listitems: \"open('TRAP', 'w')\"}"
    ),
    "second_document": "x: 1\n---\ny: !!python/object/apply:os.system ['touch TRAP']",
    "laughs": _LAUGHS,
    "itself": "x: &x [*x]",
    "deep": "x: " + "[" * 5000 + "]" * 5000,
    "no_yaml": "x: [1, 2",
    "list": "- 1\n- 2",
    "bytes": "x: \x00",
}  # fmt: skip
_PLAIN = {
    "environment": "x: ${oc.env:HOME}",
    "unknown_resolver": "x: ${sh:touch TRAP}",
    "text": "x: \"!!python/object/apply:os.system ['touch TRAP']\"",
    "call": "x: {_target_: os.system, command: touch TRAP}",
    "byte_order_mark": "\ufeffx: 1",
}


def hostile_configs(seed: int, folder: Path) -> int:
    """Load every config; returns their number.

    Raises:
        AssertionError: something was executed, or an error does not name the file.
    """
    trap = folder / "executed"
    for name, text in {**REFUSED, **_PLAIN}.items():
        text = text.replace("TRAP", str(trap))
        if not text.startswith(("- ", "\ufeff")):
            text = _BASE + text
        path = folder / f"{name}.yaml"
        path.write_text(text)
        readers = [(load_config, ConfigError)]
        # A list is plain data, if no config of a run; detectron2's own reader runs what YAML says.
        if name != "list" and is_stand_in("detectron2"):
            readers.append((LazyConfig.load, ValueError))
        for load, error_class in readers:
            try:
                load(str(path))
                accepted = True
            except error_class as error:
                assert str(path) in str(error), f"{name}: {error}"
                accepted = False
            assert accepted == (name in _PLAIN), f"{name}: accepted={accepted}"
            assert not trap.exists(), f"{name} was executed"
    assert yaml.safe_load(_BASE)["train"] == {"max_iter": 1}
    return len(REFUSED) + len(_PLAIN)
