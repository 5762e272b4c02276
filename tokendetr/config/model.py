"""Build a config's model on a device that this machine has."""

from collections.abc import Sequence

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tokendetr.config.load import load_config
from tokendetr.config.parts import built_from
from tokendetr.errors import ConfigError

__all__ = ["check_device", "model_of", "model_on_cpu"]


def model_of(cfg: DictConfig) -> nn.Module:
    """Build a config's model on ``train.device``; its weights are random.

    Raises:
        ConfigError: there is no such device, or a constructor refused a value of the config.
    """
    check_device(cfg.train.device)
    if OmegaConf.select(cfg, "model", default=None) is None:
        raise ConfigError("the config has no model")
    with built_from("model"):
        model: nn.Module = instantiate(cfg.model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model builds a {type(model).__name__}, not a torch.nn.Module")
    return model.to(cfg.train.device)


def model_on_cpu(config: str, overrides: Sequence[str] = ()) -> nn.Module:
    """Build the model of a config's file or name on the CPU, to compare weights with it.

    Raises:
        ConfigError: of the config or the overrides.
        KeyError: there is no config of that name.
    """
    cfg = load_config(config, list(overrides))
    cfg.train.device = cfg.model.device = "cpu"
    return model_of(cfg)


def check_device(device: str, key: str = "train.device") -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: as torch names it.
        key: of the config, for messages.

    Raises:
        ConfigError: there is no such device; the message says how to run on the CPU.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{key} is {device!r}, which is not a device: use cuda or cpu") from error
    if wanted.type != "cuda":
        _check_other_device(wanted, key)
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{key} is {device!r}, but no CUDA device is available. To run on the CPU add "
            "train.device=cpu (model.device follows it)."
        )
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{key} is {device!r}, but this machine has {torch.cuda.device_count()} GPUs"
        )


def _check_other_device(wanted: torch.device, key: str) -> None:
    """Refuse a device that cannot hold a tensor here.

    Raises:
        ConfigError: it cannot.
    """
    reason = "holds no values" if wanted.type == "meta" else ""
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
    if reason:
        raise ConfigError(
            f"{key} is {str(wanted)!r}, which cannot be used ({reason}): use cuda or cpu"
        )
