"""Config of a sparse detector: a dense detector's config plus a sparsifier and a bypass."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detectron2.config import LazyCall as L
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf, open_dict

from tokendetr.config import zoo
from tokendetr.config.edit import add_bypass, sparsify
from tokendetr.config.load import follow_output_dir, load_config
from tokendetr.config.run_folders import is_run_folder
from tokendetr.errors import NotSparsifiableError, check_choice, check_share
from tokendetr.tokens import MassBudget

__all__ = [
    "BUDGETS",
    "METHODS",
    "Budget",
    "Method",
    "config_file",
    "is_path",
    "sparse_config",
    "sparse_model",
    "sparsifier_node",
]

Method = Literal["sparse", "focus", "random"]
METHODS: tuple[Method, ...] = ("sparse", "focus", "random")
"""How tokens are chosen: one learned set for all layers, a learned cascade, or random tokens."""
Budget = Literal["ratio", "mass"]
BUDGETS: tuple[Budget, ...] = ("ratio", "mass")
"""Every image keeps the same share of its tokens, or easy images fewer, at the same mean."""


def sparsifier_node(
    model: DictConfig, method: Method, keep_ratio: float, budget: Budget = "ratio"
) -> DictConfig:
    """Return a sparsifier for a detector's config that can be fitted without labels.

    Args:
        model: node of a dense detector.
        method: one of :data:`METHODS`.
        keep_ratio: share of an image's tokens that is updated, in (0, 1].
        budget: one of :data:`BUDGETS`; "mass" needs method "sparse".

    Raises:
        NotSparsifiableError: the config has no encoder, or one that already has a sparsifier.
        ValueError: an unknown method or budget, a budget that the method lacks, or a ratio out of
            range.
    """
    check_choice("method", method, METHODS)
    check_choice("budget", budget, BUDGETS)
    if budget == "mass" and method != "sparse":
        raise ValueError(
            "budget 'mass' needs method 'sparse', which scores tokens once for all layers, "
            f"got {method!r}"
        )
    check_share("keep_ratio", keep_ratio)
    encoder = OmegaConf.select(model, "transformer.encoder", default=None)
    if encoder is None or "_target_" not in encoder:
        raise NotSparsifiableError(
            "the config's model has no deformable encoder at transformer.encoder"
        )
    if encoder.get("sparsifier", None) is not None:
        raise NotSparsifiableError(
            "the config's encoder has a sparsifier already: give the config of the dense detector"
        )
    if method == "focus":
        target, options = "focus_detr.FocusSparsifier", _focus_options(model)
    else:
        target, options = "sparse_detr.SparseSparsifier", _sparse_options(model, method)
    if budget == "mass":
        options["mass_budget"] = L(MassBudget)()
    options |= {
        "keep_ratio": keep_ratio,
        "embed_dim": "${..embed_dim}",
        "num_layers": "${..num_layers}",
    }
    # Methods lie below this package in the ladder, so they are found by name.
    node: DictConfig = L(locate(target))(**options)
    return node


def _focus_options(model: DictConfig) -> dict[str, Any]:
    levels = int(model.transformer.get("num_feature_levels", 4))
    options: dict[str, Any] = {
        "num_heads": "${..num_heads}",
        "num_levels": "${..num_feature_levels}",
        "strides": [2 ** (7 - levels + level) for level in range(levels)],  # up to 64 pixels
        "num_objects": 0,  # attention among object tokens would need trained weights
    }
    if not _has_two_stages(model):
        options["num_classes"] = "${....num_classes}"
    return options


def _sparse_options(model: DictConfig, method: Method) -> dict[str, Any]:
    return {
        "selection": "random" if method == "random" else "dam",
        "projection": "detector" if _has_two_stages(model) else "own",
        "auxiliary_heads": False,
        "num_classes": "${....num_classes}",
    }


def _has_two_stages(model: DictConfig) -> bool:
    """Return True if the detector has a two-stage projection and heads, as DINO always has."""
    if "as_two_stage" in model:
        return bool(model.as_two_stage)
    transformer = model.transformer
    if "as_two_stage" in transformer:
        return bool(transformer.as_two_stage)
    return "two_stage_num_proposals" in transformer


def sparse_model(
    model: DictConfig,
    method: Method,
    keep_ratio: float,
    budget: Budget = "ratio",
    *,
    context: bool = False,
) -> DictConfig:
    """Return a copy of a dense detector's config with a sparsifier that has a bypass.

    Args:
        model: the detector's node.
        method: see :func:`sparsifier_node`.
        keep_ratio: see :func:`sparsifier_node`.
        budget: see :func:`sparsifier_node`.
        context: of the bypass, see :class:`tokendetr.encoder.AffineBypass`.

    Raises:
        NotSparsifiableError, ValueError: as :func:`sparsifier_node`.
    """
    model = copy.deepcopy(model)
    node = sparsifier_node(model, method, keep_ratio, budget)
    with open_dict(model):
        add_bypass(sparsify(model, node), context=context)
    return model


def is_path(config: str) -> bool:
    """Return True if a config is given by its file or by the folder of its run, not by its name."""
    path = os.path.expanduser(config)
    return is_run_folder(path) or Path(path).suffix in (".py", ".yaml", ".yml")


def config_file(config: str) -> str:
    """Return the file, or the folder of the run, of a config given by path or by name.

    Raises:
        KeyError: there is no config of that name (``tokendetr.zoo``).
    """
    if is_path(config):
        return os.path.realpath(os.path.expanduser(config))
    return str(zoo.get_config_file(config))


def sparse_config(
    config: str,
    *,
    method: Method,
    keep_ratio: float,
    checkpoint: str,
    overrides: Sequence[str] = (),
    budget: Budget = "ratio",
    context: bool = False,
) -> DictConfig:
    """Return a sparse detector's complete config; the written ``config.py`` calls it.

    Its output folder is that of the checkpoint.

    Args:
        config: name or file of the dense detector's config, or the folder of its run. A name of
            ``tokendetr.zoo`` means the project's config, also beside a folder of that name.
        method: see :func:`sparsifier_node`.
        keep_ratio: see :func:`sparsifier_node`; the override
            ``model.transformer.encoder.sparsifier.keep_ratio=R`` changes it later.
        checkpoint: weights of the sparse detector.
        overrides: of the dense detector's config.
        budget: see :func:`sparsifier_node`.
        context: see :func:`sparse_model`.

    Raises:
        FileNotFoundError, KeyError, ConfigError: of the dense detector's config.
        NotSparsifiableError, ValueError: as :func:`sparsifier_node`.
    """
    is_name = config in zoo.list()
    file = str(zoo.get_config_file(config)) if is_name else config_file(config)
    cfg = load_config(file, overrides, trained=True)
    cfg.model = sparse_model(cfg.model, method, keep_ratio, budget, context=context)
    # Not the dense detector's folder, whose results an evaluation would overwrite.
    dense_folder, cfg.train.output_dir = cfg.train.output_dir, str(Path(checkpoint).parent)
    follow_output_dir(cfg, dense_folder)
    cfg.train.init_checkpoint = checkpoint
    cfg.train.init_checkpoint_strict = True
    return cfg
