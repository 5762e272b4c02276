"""``LazyCall`` describes a call; ``LazyConfig`` loads, changes and saves whole configs."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import ast
import builtins
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, cast

import cloudpickle
import yaml
from detectron2.config._plain_yaml import load_plain_yaml
from detectron2.config.instantiate import dump_dataclass
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

__all__ = ["LazyCall", "LazyConfig"]

_CFG_PACKAGE_NAME = "detectron2._cfg_loader"
"""Package name given to files executed as configs.

Relative imports inside it are redirected to config files.
"""

_OBJECTS_ALLOWED = {"allow_objects": True}


class LazyCall:
    """Record a call instead of making it.

    ``LazyCall(f)(a=1)`` gives a config node with ``_target_: f`` and ``a: 1``, which
    :func:`detectron2.config.instantiate` turns into ``f(a=1)``. Arguments are keywords only.
    """

    def __init__(self, target: Any) -> None:
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall() takes a callable or the dotted name of one, not {target}")
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        """Return the node that describes the call with these keyword arguments."""
        target = self._target
        if is_dataclass(target):
            # omegaconf would take a dataclass for the schema of the node
            target = _convert_target_to_string(target)
        kwargs["_target_"] = target
        return DictConfig(content=kwargs, flags=_OBJECTS_ALLOWED)


def _visit_dict_config(cfg: Any, func: Callable[[DictConfig], None]) -> None:
    """Call ``func`` on every dict node of a config, parents first."""
    if isinstance(cfg, DictConfig):
        func(cfg)
        for key in list(cfg):
            if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(
                cfg, cast(str, key)
            ):
                _visit_dict_config(cfg[key], func)
    elif isinstance(cfg, ListConfig):
        for item in cfg:
            _visit_dict_config(item, func)


def _validate_py_syntax(filename: str) -> str:
    """Return the text of a Python config after checking that it parses."""
    with PathManager.open(filename, "rb") as file:
        raw = file.read()
    try:
        # As the import system does: respect a byte order mark and a declared encoding.
        content = importlib.util.decode_source(raw)
        ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise SyntaxError(f"Config file {filename} has syntax error!") from error
    return content


def _cast_to_config(obj: Any) -> Any:
    """Turn dicts into configs that may hold any Python object; return anything else unchanged."""
    return DictConfig(obj, flags=_OBJECTS_ALLOWED) if isinstance(obj, dict) else obj


def _random_package_name(filename: str) -> str:
    return f"{_CFG_PACKAGE_NAME}{uuid.uuid4().hex[:8]}.{os.path.basename(filename)}"


def _find_relative_file(original_file: str, relative_import_path: str, level: int) -> str:
    """Return the file that ``from ..a.b import x`` means inside ``original_file``.

    Args:
        original_file: the config with the import.
        relative_import_path: what follows the dots, here "a.b".
        level: the number of dots, here 2.
    """
    hint = (
        "This is inside a config file, where relative imports load other config files by path; "
        "to import from a Python package use an absolute import."
    )
    if not relative_import_path:
        raise ImportError(
            f"'from {'.' * level} import ...' in {original_file} names no file. {hint}"
        )
    folder = os.path.dirname(original_file)
    for _ in range(level - 1):
        folder = os.path.dirname(folder)
    stem = os.path.join(folder, *relative_import_path.split("."))
    found = stem + ".py"
    if PathManager.isfile(found):
        return found
    if PathManager.isdir(stem):
        raise ImportError(f"{stem}, of a relative import, is a directory. {hint}")
    raise ImportError(
        f"{original_file} imports {relative_import_path}, but {found} does not exist. {hint}"
    )


@contextmanager
def _patch_import() -> Iterator[None]:
    """Within the context, load the relative imports of config files as config files.

    They are found by their path relative to the importing file, need no package, and run again at
    every import, so that a config changed by its importer does not leak into the next load. The
    imported dicts become configs.
    """
    original_import = builtins.__import__

    def import_config(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        package = (globals or {}).get("__package__") or ""
        if level == 0 or globals is None or not package.startswith(_CFG_PACKAGE_NAME):
            return original_import(name, globals, locals, fromlist or (), level)
        filename = _find_relative_file(globals["__file__"], name, level)
        content = _validate_py_syntax(filename)
        package_name = _random_package_name(filename)
        spec = importlib.machinery.ModuleSpec(package_name, None, origin=filename)
        module = importlib.util.module_from_spec(spec)
        module.__file__ = filename
        module.__package__ = package_name
        exec(compile(content, filename, "exec"), module.__dict__)  # noqa: S102
        for wanted in fromlist or ():
            if wanted == "*":
                raise ImportError(f"Cannot import * from {filename}: name what a config imports.")
            if wanted not in module.__dict__:
                raise ImportError(
                    f"{filename} does not define {wanted}, which is imported from it."
                )
            module.__dict__[wanted] = _cast_to_config(module.__dict__[wanted])
        return module

    builtins.__import__ = import_config
    try:
        yield
    finally:
        builtins.__import__ = original_import


def _load_py(filename: str) -> dict[str, Any]:
    """Execute a Python config and return its global names."""
    content = _validate_py_syntax(filename)
    namespace: dict[str, Any] = {
        "__file__": filename,
        "__package__": _random_package_name(filename),
    }
    with _patch_import():
        exec(compile(content, filename, "exec"), namespace)  # noqa: S102
    return namespace


def _load_yaml(filename: str) -> DictConfig:
    """Read a config saved by :meth:`LazyConfig.save`.

    Tags are refused, so that reading runs no code. (Instantiating a node still calls its
    ``_target_``.)

    Raises:
        ValueError: the file has a tag, is not YAML, or grows too large when its aliases are
            expanded.
    """
    with PathManager.open(filename, "r", encoding="utf-8-sig") as file:
        content = load_plain_yaml(file.read(), filename)
    return OmegaConf.create(content if content is not None else {}, flags=_OBJECTS_ALLOWED)


def _write_atomically(filename: str, content: bytes) -> None:
    """Write a whole file or nothing: local files go through a temporary name in the same folder."""
    if "://" in filename:
        with PathManager.open(filename, "wb") as file:
            file.write(content)
        return
    temporary = f"{filename}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, filename)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _name_targets(cfg: DictConfig) -> None:
    """Replace the callable of a node by its dotted name, if it has one."""
    target = cfg.get("_target_", None)
    if callable(target):
        try:
            cfg["_target_"] = _convert_target_to_string(target)
        except AttributeError:
            return


def _without_objects(content: Any) -> Any:
    """Replace dataclasses, classes and functions, which YAML cannot hold, by calls."""
    if isinstance(content, dict):
        return {key: _without_objects(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_objects(value) for value in content]
    if is_dataclass(content) and not isinstance(content, type):
        return dump_dataclass(content)
    if isinstance(content, (type, FunctionType)):
        name = f"{content.__module__}.{content.__qualname__}"
        if "<" not in name:  # neither a lambda nor local to a function: it is found by its name
            return {"_target_": "detectron2.utils.registry.locate", "name": name}
    return content


def _delete_key(cfg: Any, key: str, expected: Any, expects_value: bool) -> None:
    """Carry out the override ``~key`` (or ``~key=value``, which deletes only that value)."""
    parent_key, _, last = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    if not OmegaConf.is_dict(parent) or last not in parent:
        raise KeyError(f"Trying to delete key {key}, but the config has no such key.")
    if expects_value and parent[last] != expected:
        raise KeyError(
            f"Trying to delete key {key}={expected!r}, but its value is {parent[last]!r}."
        )
    del parent[last]


def _update_key(cfg: Any, key: str, value: Any) -> None:
    """Carry out the override ``key=value``, creating missing parents."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length])
        node = OmegaConf.select(cfg, prefix, default=None)
        if node is None:
            break
        if not OmegaConf.is_config(node):
            raise KeyError(
                f"{key} cannot be set: {prefix} holds a {type(node).__name__}, "
                "where a config would have to be."
            )
    OmegaConf.update(cfg, key, value, merge=True)


class LazyConfig:
    """Load, override, save and print lazy configs."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Like :meth:`load`, with ``filename`` relative to the file of the caller."""
        caller = inspect.stack()[1].frame.f_code.co_filename
        assert caller != "<string>", "load_rel() needs a calling file"
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Read the config that a file holds.

        Args:
            filename: a ``.py`` file that defines configs as global names, or a ``.yaml`` / ``.yml``
                file.
            keys: load only this key, or these keys. Otherwise all global dicts and configs are
                loaded.

        Returns:
            A config; for a tuple of keys, a tuple of values.

        Raises:
            ValueError: for another kind of file.
            FileNotFoundError: there is no such file.
            KeyError: a requested key is missing.
        """
        filename = str(filename).replace("/./", "/")
        extension = os.path.splitext(filename)[1]
        if extension not in (".py", ".yaml", ".yml"):
            raise ValueError(f"{filename} is neither a .py nor a .yaml file, which configs are.")
        if not PathManager.isfile(filename):
            raise FileNotFoundError(f"Config file {filename} does not exist.")
        loaded = _load_py(filename) if extension == ".py" else _load_yaml(filename)

        if keys is not None:
            wanted = (keys,) if isinstance(keys, str) else tuple(keys)
            for key in wanted:
                if key not in loaded:
                    raise KeyError(f"Config file {filename} has no key '{key}'.")
            values = tuple(_cast_to_config(loaded[key]) for key in wanted)
            return values[0] if isinstance(keys, str) else values
        if extension != ".py":
            return loaded
        configs = {
            name: _cast_to_config(value)
            for name, value in loaded.items()
            if isinstance(value, (DictConfig, ListConfig, dict)) and not str(name).startswith("_")
        }
        return DictConfig(configs, flags=_OBJECTS_ALLOWED)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Save a config as YAML, and also as ``.pkl`` if the YAML cannot be loaded again.

        Each file appears whole or not at all.

        Args:
            cfg: an omegaconf config. Callables under ``_target_`` are saved by name.
            filename: the YAML file to write.
        """
        logger = logging.getLogger(__name__)
        try:
            cfg = deepcopy(cfg)
        except Exception:
            logger.debug("The config cannot be copied; saving it without naming its targets.")
        else:
            _visit_dict_config(cfg, _name_targets)

        loadable = False
        try:
            content = OmegaConf.to_container(
                cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE
            )
            dumped = yaml.dump(
                _without_objects(content), default_flow_style=None, allow_unicode=True, width=9999
            )
        except Exception:
            logger.exception(f"{filename} was not written: YAML cannot hold this config")
        else:
            _write_atomically(filename, dumped.encode("utf-8"))
            try:
                yaml.safe_load(dumped)
                loadable = True
            except Exception:
                logger.warning(
                    f"{filename} is for reading alone: it has objects that YAML cannot hold, "
                    "and cannot be loaded."
                )
        if loadable:
            return
        try:
            pickled = cloudpickle.dumps(cfg)
        except Exception:
            logger.warning(
                f"The config can be saved neither as yaml nor by cloudpickle: {filename}"
            )
            return
        _write_atomically(filename + ".pkl", pickled)
        logger.warning(f"{filename}.pkl has the whole config, pickled by cloudpickle.")

    @staticmethod
    def apply_overrides(cfg: Any, overrides: Sequence[str]) -> Any:
        """Change a config in place by strings in hydra's override grammar.

        ``a.b=1`` sets (and creates) a key, as does ``+a.b=1``; ``~a.b`` deletes one. Values are
        numbers, booleans, ``null``, strings (quoted where needed), ``[lists]`` and ``{dicts}``.

        Returns:
            The same config.

        Raises:
            hydra.errors.OverrideParseException: for a malformed override.
            KeyError: for a path through something that is not a config, or deletion of a missing
                key.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                raise ValueError(
                    f"'{override.input_line}' is a sweep over several values; give one value."
                )
            key, value = override.key_or_group, override.value()
            if override.is_delete():
                _delete_key(cfg, key, value, override._value is not None)
            else:
                _update_key(cfg, key, value)
        return cfg

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """Print a config as readable pseudo-code, one ``prefix + key = value`` per line.

        The text is for reading; it need not run.

        Args:
            cfg: an omegaconf config; interpolations are resolved.
            prefix: text in front of every top-level key.
        """
        text = _render(OmegaConf.to_container(cfg, resolve=True), [prefix])
        try:
            import black
        except ImportError:
            return text
        try:
            return str(black.format_str(text, mode=black.Mode()))
        except black.InvalidInput:
            return text


def _render(obj: Any, prefix: Sequence[str] = (), inside_call: bool = False) -> str:
    """Render one value for :meth:`LazyConfig.to_py`."""
    if isinstance(obj, Mapping) and "_target_" in obj:
        target = obj["_target_"]
        name = target if isinstance(target, str) else _convert_target_to_string(target)
        arguments = ", ".join(
            f"{key}={_render(value, inside_call=True)}"
            for key, value in sorted(obj.items())
            if key != "_target_"
        )
        return f"{''.join(prefix)}{name}({arguments})"
    if isinstance(obj, Mapping) and not inside_call:
        lines = []
        for key, value in sorted(obj.items(), key=lambda item: str(item[0])):
            if isinstance(value, Mapping) and "_target_" not in value:
                lines.append(_render(value, [*prefix, f"{key}."]))
            else:
                lines.append(f"{''.join(prefix)}{key}={_render(value, inside_call=True)}")
        return "\n".join(lines)
    if isinstance(obj, Mapping):
        inner = ", ".join(f"{key!r}: {_render(v, inside_call=True)}" for key, v in obj.items())
        return "{" + inner + "}"
    if isinstance(obj, list):
        return "[" + ", ".join(_render(item, inside_call=True) for item in obj) + "]"
    return repr(obj)
