"""``transform(model)`` makes an existing model cheaper; ``restore(model)`` reverts it."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from token_transforming.families import FAMILIES, Family, family_of
from token_transforming.report import TransformReport, UnsupportedModelError
from token_transforming.sequence_model import restore_sequence, transform_sequence
from token_transforming.settings import (
    Method,
    RecoveryKind,
    Reduction,
    Selection,
    Similarity,
    Sizes,
)
from token_transforming.windowed_families import (
    WINDOWED_FAMILIES,
    WindowedFamily,
    windowed_family_of,
)
from token_transforming.windowed_model import restore_windowed, transform_windowed
from token_transforming.windows import WindowBias


def transform(
    model: nn.Module,
    *,
    layers: Sequence[int] = (3, 6, 9),
    keep_ratio: float | Sequence[float] = 0.7,
    threshold: float = 0.5,
    temperature: float = 150.0,
    method: Method = "transforming",
    selection: Selection = "attention",
    sizes: Sizes = "carried",
    scale_attention: bool | None = None,
    recovery: RecoveryKind = "paper",
    similarity: Similarity = "cosine",
    normalize: bool = True,
    removed: int | Sequence[int] | None = None,
    recover: str | int = "auto",
    window_bias: WindowBias = "interpolated",
) -> TransformReport:
    """Reduce the tokens in selected blocks of a pretrained vision transformer, without training.

    In place and reversible: parameters, hooks and state dict are unchanged. Transforming a
    transformed model replaces its options. Gradients flow through similarities and means, so the
    model can also be fine-tuned.

    Args:
        model: a supported model, or one that contains exactly one.
        layers: blocks that reduce tokens between their attention and their feed-forward network,
            from 0, ascending. In Swin they are counted over all stages, and their windows must not
            be shifted.
        keep_ratio: share of tokens kept in each of them, in (0, 1]; one value, or one per layer. In
            windows, the nearest number that forms a smaller window.
        threshold: cosine similarities below it count as 0 (method "transforming").
        temperature: sharpness of the assignment (method "transforming").
        method: "transforming", "pruning", "merging", "fusing" or "clustering".
        selection: the kept tokens: those that receive most "attention" or "class_attention",
            evenly spaced ones ("uniform"), those least similar to others ("distinct", not in the
            paper), or means over a coarse grid instead ("pooled").
        sizes: "carried" or "literal"; see :class:`token_transforming.settings.Reduction`.
        scale_attention: add log sizes to the logits of later attention; None: as in the method's
            paper.
        recovery: a restored token becomes its reduced token ("paper"), or keeps its content and
            adds its reduced token's change ("residual", not in the paper), or that plus an affine
            map ("affine", not in the paper). With "affine", reducing blocks have ``token_recovery``
            parameters in the state dict, zero until they are fitted or loaded.
        similarity: measure of similarity, "cosine" or "euclidean".
        normalize: make each token's shares sum to 1.
        removed: number of tokens that each layer removes, instead of ``keep_ratio``; one number, or
            one per layer such as those of :func:`token_transforming.merging_schedule`.
        recover: "never": the output has fewer tokens; "end": all tokens are restored after the last
            block (Swin: always, at the end of each stage); "every": every block's output has all
            tokens, but the next block continues with fewer; a number: tokens are restored after
            that block, and later blocks continue with all; "auto": "end", with all tokens in
            outputs that are read as maps (DPT, backbones, LLaVA's tower), else "never". timm's
            ``forward_intermediates`` always returns all tokens.
        window_bias: relative position bias of reduced windows, in windowed backbones: the table
            "interpolated" to their size, or looked up at the kept tokens' "positions" on the map.

    Returns:
        A report of the transform.

    Raises:
        UnsupportedModelError: the model is not supported; a TypeError that lists the supported
            classes.
        ValueError: a value is out of range; the message names it.

    Source: Token Transforming, arXiv 2506.05709.
    """
    layers = tuple(layers)
    ratios = _per_layer("keep_ratio", keep_ratio, len(layers))
    numbers = _per_layer("removed", removed, len(layers))
    reductions = tuple(
        Reduction(
            method=method,
            keep_ratio=ratio,
            threshold=threshold,
            temperature=temperature,
            selection=selection,
            sizes=sizes,
            scale_attention=scale_attention,
            recovery=recovery,
            similarity=similarity,
            normalize=normalize,
            removed=number,
        )
        for ratio, number in zip(ratios, numbers, strict=True)
    )
    name, owner, family = find_supported(model)
    _restore_one(owner, family)
    if isinstance(family, WindowedFamily):
        return transform_windowed(owner, family, name, layers, reductions, window_bias)
    read = blocks_read_by(model)
    return transform_sequence(owner, family, name, layers, reductions, recover, read)


def _per_layer(name: str, values: Any, layers: int) -> list[Any]:
    """Return one value for each layer.

    Raises:
        ValueError: another number of values.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        return [values] * layers
    if len(values) != layers:
        raise ValueError(f"{name} has {len(values)} values for {layers} layers")
    return list(values)


def blocks_read_by(model: nn.Module) -> tuple[int, ...]:
    """Return the blocks (negative: from the end) whose outputs an enclosing model reads.

    That is LLaVA's ``vision_feature_layer``; other models have none.
    """
    layers = getattr(getattr(model, "config", None), "vision_feature_layer", None)
    if layers is None:
        return ()
    # Hidden state 0 is the input of the first block.
    return tuple(
        layer if layer < 0 else layer - 1
        for layer in ([layers] if isinstance(layers, int) else layers)
        if layer != 0
    )


def restore(model: nn.Module) -> nn.Module:
    """Revert :func:`transform`; does nothing to other models.

    Returns:
        ``model``.
    """
    for module in list(model.modules()):
        family = family_of(module) or windowed_family_of(module)
        if family is not None:
            _restore_one(module, family)
    return model


def supported() -> tuple[str, ...]:
    """Return the names of the classes that can be transformed."""
    sequence = tuple(f"{family.package.rstrip('.')}: {family.owner}" for family in FAMILIES)
    windowed = (
        f"{family.package.rstrip('.') or 'detectron2'}: {family.owner}"
        for family in WINDOWED_FAMILIES
    )
    return (*sequence, *windowed)


def find_supported(model: nn.Module) -> tuple[str, nn.Module, Family | WindowedFamily]:
    """Return the one module of a model that can be transformed.

    Returns:
        Its name, itself, and its family.

    Raises:
        UnsupportedModelError: there is none, or several.
    """
    found: list[tuple[str, nn.Module, Family | WindowedFamily]] = []
    for name, module in model.named_modules():
        family = family_of(module) or windowed_family_of(module)
        if family is not None:
            found.append((name, module, family))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be transformed, and no submodule of it can. "
            f"Supported: {'; '.join(supported())}"
        )
    names = ", ".join(f"{name or 'itself'} ({type(module).__name__})" for name, module, _ in found)
    raise UnsupportedModelError(
        f"{type(model).__name__} contains several models that can be transformed: {names}. "
        "Give transform() one of them"
    )


def _restore_one(owner: nn.Module, family: Family | WindowedFamily) -> None:
    if isinstance(family, WindowedFamily):
        restore_windowed(owner, family)
    else:
        restore_sequence(owner, family)
