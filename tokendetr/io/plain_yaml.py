"""Read YAML as plain data: tags that run code and exploding aliases are refused.

The module needs only PyYAML: ``tokendetr`` and, through a symbolic link, the stand-in for
detectron2 read with it, and the stand-in must not import ``tokendetr``.
"""

from typing import Any

import yaml

__all__ = ["load_plain_yaml"]

_MAX_NODES = 1_000_000
_MAX_DEPTH = 100


class _PlainLoader(yaml.SafeLoader):
    """Safe loader that also accepts the tags which detectron2 writes into a run's config.yaml.

    Tuples become lists. ``ShapeSpec`` objects, and names of classes of detectron2, detrex, torch.nn
    or this library, become nodes for :func:`detectron2.config.instantiate`; reading itself imports
    and calls nothing. A key that occurs twice is refused: one of its values would be lost.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping whose keys differ."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            other = first.setdefault((key.tag, key.value), key)
            if other is not key:
                lines = f"lines {other.start_mark.line + 1} and {key.start_mark.line + 1}"
                problem = f"the key {key.value!r} stands in {lines}: remove one of them"
                raise yaml.composer.ComposerError(None, None, problem, None)
        return node


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
_MERGE = "tag:yaml.org,2002:merge"
_PlainLoader.add_constructor(f"{_TAG}object:{_SHAPE_SPEC}", _call_of)
_PlainLoader.add_constructor(f"{_TAG}tuple", yaml.SafeLoader.construct_yaml_seq)
_PlainLoader.add_multi_constructor(f"{_TAG}name:", _name_of)


def load_plain_yaml(text: str, name: str) -> Any:
    """Parse YAML that holds only dicts, lists, numbers and text.

    Args:
        text: the document.
        name: its file, for messages.

    Raises:
        ValueError: the text is not YAML, has a tag that would run code, or has aliases that expand
            to more than a million values.
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
        raise ValueError(f"{name} is not readable YAML: {error}") from error
    if _expanded_size(content, {}, 0) > _MAX_NODES:
        raise ValueError(f"{name}: its aliases expand to more than {_MAX_NODES:,} values")
    return content


def _expanded_size(value: Any, known: dict[int, int], depth: int) -> int:
    """Return the number of values with every alias written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if depth > _MAX_DEPTH:
        return _MAX_NODES + 1  # deeper than any config, or recursive
    if id(value) not in known:
        children = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(child, known, depth + 1) for child in children)
    return known[id(value)]
