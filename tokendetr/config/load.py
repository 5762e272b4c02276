"""Load a lazy config with strict overrides, and check it before anything is built."""

import copy
import difflib
import logging
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from detrex.config import get_config
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokendetr.config.data_folder import (
    count_classes,
    register_recorded_files,
    use_data_folder,
)
from tokendetr.config.files import RENAMED, config_files, shipped_weights
from tokendetr.config.origin import warn_of_foreign_projects
from tokendetr.config.overrides import apply_overrides
from tokendetr.config.registration import load_repeatably
from tokendetr.config.run_folders import is_run_folder, run_config, run_weights
from tokendetr.config.settings import check_settings
from tokendetr.config.targets import check_targets, source_of
from tokendetr.errors import ConfigError, DatasetError
from tokendetr.io.plain_yaml import load_plain_yaml

__all__ = [
    "fill_defaults",
    "load_config",
    "resolve_config",
    "resolve_trained",
    "result_writers",
]

ADDED_TRAIN_DEFAULTS: dict[str, Any] = {
    # False: missing, unexpected and wrongly shaped weights are reported and skipped.
    "init_checkpoint_strict": True,
    # "float16" (with loss scaling) or "bfloat16".
    "amp": {"dtype": "float16"},
    # Seconds to wait: for all processes to join, and in one collective operation.
    "distributed": {"rendezvous_timeout": 300, "collective_timeout": 1800},
    # Micro-batches whose gradients are accumulated for each optimizer update.
    "grad_accum_steps": 1,
    # Weighting of the losses of an update's micro-batches: by "boxes" or "images".
    "grad_accum_weighting": "boxes",
    # Metric that selects model_best.pth; null: box AP, of the moving average if only that is
    # evaluated.
    "best_metric": None,
    # Total batch size for which the config's learning rate and iterations were chosen.
    "reference_batch_size": 16,
    # Checks of annotations before training: "strict", "warn" or "off".
    "validate_data": "strict",
    # Folder with COCO, Pascal VOC or YOLO labels that replaces the config's data sets.
    "data_folder": "",
    # Data set -> (annotations, image folder), recorded in a run's config.yaml.
    "data_files": {},
    # Further folders that symbolic links in a data set's image folder may lead to.
    "image_roots": [],
}
"""Keys of ``train`` that the trainer reads beyond detrex's, which are in ``common/train.py``."""


logger = logging.getLogger(__name__)

_PARTS = ("train", "model", "dataloader", "optimizer", "lr_multiplier")
_DATA_KEYS = ("train.data_folder=", "train.data_files=", "train.output_dir=")


def load_config(
    config_file: str | os.PathLike[str], overrides: Sequence[str] = (), *, trained: bool = False
) -> DictConfig:
    """Load a lazy config, fill in the defaults of ``train`` and apply overrides.

    In this project's configs ``model.device`` and ``dataloader.evaluator.output_dir`` are
    interpolations of ``train``. In configs that copy the values, an override of ``train.device`` or
    ``train.output_dir`` is applied to the copy too, unless the copy is overridden itself.

    ``train.data_folder=FOLDER`` replaces the data sets (:mod:`tokendetr.config.data_folder`), and
    ``model.num_classes=auto`` counts the categories of the training data.

    Args:
        config_file: path of a ``.py`` or ``.yaml`` config, or the name of one of the project's
            (:mod:`tokendetr.config.zoo`); a file of that name takes precedence. With ``trained``,
            also the folder of a run.
        overrides: in hydra's grammar: ``key=value`` (the key must exist), ``+key=value`` (adds a
            key), ``~key`` (removes it).
        trained: for programs that use a detector rather than train it: set
            ``train.init_checkpoint`` to the trained weights that come with the config
            (:func:`resolve_trained`), if there are any and no override names others.

    Raises:
        FileNotFoundError: no such file; the message names similar ones.
        ConfigError: no config is given; an override is malformed, unknown or of the wrong type; a
            value would silently spoil a run; or the installed detectron2 or detrex lacks a class.
        DatasetError: the labels of ``train.data_folder`` cannot be used.
    """
    given = os.fspath(config_file)
    path, weights = resolve_trained(given) if trained else (resolve_config(given), None)
    try:
        return _load(path, overrides, weights)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def _load(path: str, overrides: Sequence[str], weights: str | None) -> DictConfig:
    cfg = _load_file(path)
    _check_parts(cfg, path)
    has_settings = "train" in cfg
    fill_defaults(cfg)
    if not has_settings:
        _say_defaults(path, str(cfg.train.output_dir), int(cfg.train.max_iter))
    folder = cfg.train.output_dir
    if weights is not None:
        cfg.train.init_checkpoint = weights
    # First what says where the data is: other overrides may change what follows from it.
    apply_overrides(cfg, [o for o in overrides if o.startswith(_DATA_KEYS)])
    use_data_folder(cfg, shipped_weights(path))
    register_recorded_files(cfg)
    apply_overrides(cfg, [*_for_device(cfg, overrides), *overrides])
    _check_parts(cfg, path)
    fill_defaults(cfg)  # a key that an override deletes is left at its default
    count_classes(cfg)
    if not any(re.match(r"\+*dataloader\.evaluator\.(.*\.)?output_dir=", o) for o in overrides):
        follow_output_dir(cfg, folder)
    check_settings(cfg)
    check_targets(cfg)
    warn_of_foreign_projects(cfg)
    return cfg


def _check_parts(cfg: DictConfig, path: str) -> None:
    """Refuse a config whose parts are not groups of keys."""
    for name in _PARTS:
        if name in cfg and not OmegaConf.is_interpolation(cfg, name):
            value = "???" if OmegaConf.is_missing(cfg, name) else cfg[name]
            if not OmegaConf.is_dict(value):
                raise ConfigError(f"{path}: {name} must be a group of keys, not {value!r}")


def resolve_trained(config_file: str) -> tuple[str, str | None]:
    """Return the config and the trained weights of a detector; None if the config names them.

    Args:
        config_file: the folder of a run, whose best weights are taken, else its last ones; or a
            config, as of :func:`resolve_config`, with the weights that come with it.

    Raises:
        FileNotFoundError, ConfigError: as of :func:`resolve_config`; or the folder has no config.
    """
    if is_run_folder(config_file):
        folder = Path(config_file)
        return str(run_config(folder)), run_weights(folder)
    path = resolve_config(config_file)
    return path, shipped_weights(path)


def resolve_config(config_file: str) -> str:
    """Return the path or URL of a config that is given by path, URL or name.

    Raises:
        FileNotFoundError: there is no such file or name; the message names similar ones.
        ConfigError: the argument is empty or a folder.
    """
    if not config_file:
        raise ConfigError("no config given: use --config-file FILE")
    if "://" in config_file or os.path.isfile(config_file):
        return config_file
    if is_run_folder(config_file):
        raise ConfigError(f"config {config_file!r} is a folder: give the file in it")
    named = config_files()
    if (name := RENAMED.get(config_file, config_file)) in named:
        return str(named[name])
    stem = os.path.splitext(os.path.basename(config_file))[0]
    hint = f"; tokendetr's own is named {stem}" if stem in named else _similar(config_file)
    if os.path.basename(config_file) == config_file and not config_file.endswith(".py"):
        near = difflib.get_close_matches(config_file, named, n=3)
        hint = f" and is not a config's name; did you mean {' or '.join(near)}?" if near else hint
    raise FileNotFoundError(f"config file {config_file!r} does not exist{hint}")


def _load_file(config_file: str) -> DictConfig:
    """Load a config without overrides; YAML is always read as plain data, with any detectron2."""
    if config_file.endswith((".yaml", ".yml")):
        with PathManager.open(config_file, "r", encoding="utf-8-sig") as file:
            try:
                content = load_plain_yaml(file.read(), config_file)
            except UnicodeDecodeError as error:
                raise ConfigError(f"{config_file} is not UTF-8 text: {error}") from error
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{config_file} holds a {type(content).__name__}, not a config")
        return OmegaConf.create(content, flags={"allow_objects": True})
    if not config_file.endswith(".py"):
        raise ConfigError(f"{config_file} is not a config: its name ends in neither .py nor .yaml")
    try:
        return load_repeatably(config_file)
    except SyntaxError as error:
        raise ConfigError(f"{config_file} is not Python: {error.__cause__ or error}") from error
    except ImportError as error:
        needs = source_of(error.name or "")
        hint = f"; this config needs {needs}" if needs else ""
        raise ConfigError(f"{config_file} imports something missing: {error}{hint}") from error
    except (ConfigError, DatasetError):
        raise
    except RecursionError as error:
        place = _line(error, config_file)
        raise ConfigError(f"{config_file}{place} loads itself, or does not end") from error
    except (Exception, SystemExit) as error:  # a config runs any code
        if not (place := _line(error, config_file)):
            raise
        raise ConfigError(f"{config_file}{place} raised {error!r}") from error


def _line(error: BaseException, config_file: str) -> str:
    """Return the line of the last config in an error's traceback, empty if no config raised it.

    Args:
        error: what loading raised.
        config_file: the config that was loaded; another one that it reads is named.
    """
    frames = traceback.extract_tb(error.__traceback__)
    configs = [f for f in frames if f.name == "<module>" and f.filename.endswith(".py")]
    if not configs:
        return ""
    last = configs[-1]
    own = os.path.abspath(last.filename) == os.path.abspath(config_file)
    return f" (line {last.lineno})" if own else f" (line {last.lineno} of {last.filename})"


def fill_defaults(cfg: DictConfig) -> None:
    """Add the keys of ``train`` that a config lacks, in place."""
    if "train" not in cfg:
        cfg.train = {}
    _add_missing(cfg.train, OmegaConf.to_container(get_config("common/train.py").train))
    _add_missing(cfg.train, ADDED_TRAIN_DEFAULTS)


@cache  # programs load a config more than once
def _say_defaults(path: str, output_dir: str, max_iter: int) -> None:
    logger.warning(
        "%s has no train: detrex's defaults apply unless overridden (train.output_dir=%s, "
        "train.max_iter=%d)",
        path,
        output_dir,
        max_iter,
    )


def follow_output_dir(cfg: DictConfig, before: str) -> None:
    """Move the folders of evaluators' results along with ``train.output_dir``, in place.

    Args:
        cfg: the whole config, with the new ``train.output_dir``.
        before: the old ``train.output_dir``; folders outside of it are left alone.
    """
    if not before or not cfg.train.output_dir:
        return
    for node in result_writers(cfg):
        if OmegaConf.is_interpolation(node, "output_dir"):
            continue  # follows already
        inside = os.path.relpath(str(node.output_dir), str(before))
        if inside.split(os.sep)[0] != os.pardir:
            node.output_dir = os.path.normpath(os.path.join(str(cfg.train.output_dir), inside))


def result_writers(cfg: DictConfig) -> Iterator[DictConfig]:
    """Yield the nodes of ``dataloader.evaluator``, at any depth, that have an ``output_dir``."""
    found = [OmegaConf.select(cfg, "dataloader.evaluator", default=None)]
    while found:
        node = found.pop()
        if isinstance(node, DictConfig):
            if node.get("output_dir", None):
                yield node
            found += [node[key] for key in node if OmegaConf.is_config(node._get_node(key))]
        elif isinstance(node, ListConfig):
            found += list(node)


def _add_missing(node: DictConfig, defaults: Any) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = copy.deepcopy(value)
        # ``params`` are passed on as keyword arguments, so nothing is added to a config's own.
        elif isinstance(value, dict) and OmegaConf.is_dict(node[key]) and key != "params":
            _add_missing(node[key], value)


def _for_device(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return an override for the model's copy of ``train.device``, if that is overridden."""
    overridden = any(text.startswith("train.device=") for text in overrides)
    has_copy = overridden and OmegaConf.select(cfg, "model.device") is not None
    return ["model.device=${train.device}"] if has_copy else []


def _similar(path: str) -> str:
    """Return a hint that names files with names similar to ``path``'s."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" (there is no folder {folder!r})"
    near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), n=3)
    return f"; did you mean {' or '.join(os.path.join(folder, n) for n in near)}?" if near else ""
