"""Parameter groups with their own learning rate and weight decay."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["get_default_optimizer_params", "reduce_param_groups"]

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model in groups of equal settings.

    Args:
        model: the model.
        base_lr: learning rate; by default the optimizer's.
        weight_decay: weight decay; by default the optimizer's.
        weight_decay_norm: weight decay of the parameters of norms.
        bias_lr_factor: factor on the learning rate of parameters named ``bias``; needs ``base_lr``.
        weight_decay_bias: weight decay of parameters named ``bias``.
        lr_factor_func: factor on the learning rate by a parameter's full name; needs
            ``base_lr``.
        overrides: settings by a parameter's last name; they override all others.

    Raises:
        ValueError: for a factor without ``base_lr``, or two ways to set the bias.
    """
    defaults: dict[str, float] = {}
    if base_lr is not None:
        defaults["lr"] = base_lr
    if weight_decay is not None:
        defaults["weight_decay"] = weight_decay
    by_name = {name: dict(settings) for name, settings in (overrides or {}).items()}
    bias: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor multiplies base_lr, which is not given")
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias:
        if "bias" in by_name:
            raise ValueError("overrides has 'bias', and so has bias_lr_factor or weight_decay_bias")
        by_name["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func multiplies base_lr, which is not given")

    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings: dict[str, Any] = dict(defaults)
            if isinstance(module, _NORMS) and weight_decay_norm is not None:
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(by_name.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups with equal settings; settings of later groups win for a repeated parameter.

    Few large groups let optimizers update many tensors at once.
    """
    settings_of: dict[Any, dict[str, Any]] = defaultdict(dict)
    for group in params:
        assert "params" in group
        for parameter in group["params"]:
            settings_of[parameter].update({k: v for k, v in group.items() if k != "params"})
    merged: dict[tuple[tuple[str, Any], ...], list[Any]] = defaultdict(list)
    for parameter, settings in settings_of.items():
        merged[tuple(settings.items())].append(parameter)
    return [{**dict(settings), "params": members} for settings, members in merged.items()]
