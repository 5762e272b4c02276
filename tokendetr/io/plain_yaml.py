"""Read YAML as plain data: no tags that run code, and nothing that grows when it is expanded.

The module needs only PyYAML: it is the reader of ``tokendetr`` and, through a symbolic link, of the
stand-in for detectron2, which must not import ``tokendetr``.
"""

from typing import Any

import yaml

__all__ = ["load_plain_yaml"]

_MAX_NODES = 1_000_000
_MAX_DEPTH = 100


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that also reads what detectron2 itself writes into a run's config.yaml.

    Tuples become lists. The shapes of feature maps, and names of classes of detectron2, detrex,
    torch.nn or this library, become calls that :func:`detectron2.config.instantiate` makes.
    Reading imports and calls nothing.
    """


def _call_of(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return {"_target_": _SHAPE_SPEC, **loader.construct_mapping(node)}


def _name_of(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, str]:
    if not suffix.startswith(_KNOWN_PACKAGES) or not suffix.replace(".", "_").isidentifier():
        problem = f"could not determine a constructor for the tag {node.tag!r}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return {"_target_": "detectron2.utils.registry.locate", "name": suffix}


_SHAPE_SPEC = "detectron2.layers.shape_spec.ShapeSpec"
_KNOWN_PACKAGES = ("detectron2.", "detrex.", "tokendetr.", "torch.nn.")
_TAG = "tag:yaml.org,2002:python/"
_PlainLoader.add_constructor(f"{_TAG}object:{_SHAPE_SPEC}", _call_of)
_PlainLoader.add_constructor(f"{_TAG}tuple", yaml.SafeLoader.construct_yaml_seq)
_PlainLoader.add_multi_constructor(f"{_TAG}name:", _name_of)


def load_plain_yaml(text: str, name: str) -> Any:
    """Parse YAML that holds dicts, lists, numbers and text only.

    Args:
        text: the document.
        name: its file, for messages.

    Raises:
        ValueError: it is no YAML; it has a tag, which would run code; or its aliases expand to more
            than a million values.
    """
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  (a SafeLoader)
    except yaml.constructor.ConstructorError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(
            f"{name}{where}: {error.problem}. A YAML config is plain data; tags (!!python/...) run "
            "code and are refused. Nothing was executed. Write the value as a number or text, or "
            "use a Python config."
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} is no readable YAML: {error}") from error
    if _expanded_size(content, {}, 0) > _MAX_NODES:
        raise ValueError(f"{name}: its aliases expand to more than {_MAX_NODES:,} values")
    return content


def _expanded_size(value: Any, known: dict[int, int], depth: int) -> int:
    """Number of values once everything that is shared is written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if depth > _MAX_DEPTH:
        return _MAX_NODES + 1  # deeper than any config, or within itself
    if id(value) not in known:
        children = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(child, known, depth + 1) for child in children)
    return known[id(value)]
