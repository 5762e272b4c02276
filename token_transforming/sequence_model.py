"""Transform, and restore, models whose blocks work on one sequence."""

from torch import nn

from token_transforming.classes import original_class, transformed_class
from token_transforming.families import Family
from token_transforming.recovery import add_maps, remove_maps
from token_transforming.report import TransformReport, UnsupportedModelError, check_layers
from token_transforming.sequence import (
    BlockPlan,
    Output,
    TransformedBlock,
    TransformedMapBlock,
    part,
)
from token_transforming.settings import Reduction

RECOVER = ("auto", "never", "end", "every")


def transform_sequence(
    model: nn.Module,
    family: Family,
    name: str,
    layers: tuple[int, ...],
    reductions: tuple[Reduction, ...],
    recover: str | int,
    read: tuple[int, ...] = (),
) -> TransformReport:
    """Make a model's blocks reduce tokens.

    Args:
        model: the model.
        family: its family.
        name: its name for the report.
        layers: blocks that reduce, from 0.
        reductions: one for each layer.
        recover: see :func:`token_transforming.transform`.
        read: blocks whose outputs the enclosing model reads with all tokens.

    Raises:
        ValueError: layers or ``recover`` that the model does not have.
        UnsupportedModelError: its blocks are not those of the family.
    """
    blocks = list(part(model, family.blocks))
    check_layers(layers, len(blocks), model)
    _check_blocks(blocks, family)
    outputs = _outputs(model, family, len(blocks), layers, recover, read)
    by_layer = dict(zip(layers, reductions, strict=True))
    if family.maps:
        _check_maps(blocks, family, layers, outputs)
    restores = any(output != "reduced" for output in outputs)
    mixin = TransformedMapBlock if family.maps else TransformedBlock
    for index, block in enumerate(blocks):
        block.token_plan = BlockPlan(
            index=index,
            last=index == len(blocks) - 1,
            names=family.names,
            prefix=family.prefix(model),
            reduction=by_layer.get(index),
            recover=restores and any(output != "reduced" for output in outputs[index:]),
            output=outputs[index],
        )
        if block.token_plan.recover:
            add_maps(block, part(block, family.names.norm), by_layer.get(index))
        block.__class__ = transformed_class(type(block), mixin)
    if family.reader is not None:
        model.__class__ = transformed_class(type(model), family.reader)
    return TransformReport(
        model=original_class(type(model)).__name__,
        name=name,
        num_layers=len(blocks),
        layers=layers,
        reductions=reductions,
        prefix=family.prefix(model),
        restored=outputs[-1] != "reduced",
    )


def restore_sequence(model: nn.Module, family: Family) -> None:
    """Restore the classes of a model's blocks."""
    for block in part(model, family.blocks):
        if isinstance(block, TransformedBlock):
            del block.token_plan
            remove_maps(block)
            block.__class__ = original_class(type(block))
    model.__class__ = original_class(type(model))


def _check_blocks(blocks: list[nn.Module], family: Family) -> None:
    for index, block in enumerate(blocks):
        if type(block).__name__ != family.block:
            raise UnsupportedModelError(
                f"block {index} of {family.owner} is a {type(block).__name__}; "
                f"only {family.block} can be transformed"
            )
        if "forward" in vars(block):
            raise UnsupportedModelError(
                f"block {index} of {family.owner} has a forward of its own instead of its class's "
                "(a wrapper for checkpointing or offloading?): unwrap it first"
            )
        if getattr(getattr(block, "attn", None), "gate", None) is not None:
            raise UnsupportedModelError(f"block {index} of {family.owner} has gated attention")


def _check_maps(
    blocks: list[nn.Module], family: Family, layers: tuple[int, ...], outputs: list[Output]
) -> None:
    """Check that blocks which need whole maps get them.

    Raises:
        ValueError: tokens are never restored.
        UnsupportedModelError: a reduction in a block with windows, or a convolution between a
            reduction and the block that restores.
    """
    whole = [index for index, block in enumerate(blocks) if not getattr(block, "window_size", 0)]
    if outputs[-1] == "reduced" and "restored" not in outputs[layers[-1] :]:
        raise ValueError(f"{family.owner} outputs a map: recover cannot be 'never'")
    reduced = False
    for index, block in enumerate(blocks):
        reduced = reduced or index in layers
        if index in layers and index not in whole:
            others = ", ".join(map(str, whole)) or "it has none"
            raise UnsupportedModelError(
                f"block {index} of {family.owner} attends in windows, and tokens are chosen among "
                f"those of the whole map: reduce at blocks without windows ({others})"
            )
        if reduced and getattr(block, "use_residual_block", False):
            raise UnsupportedModelError(
                f"block {index} of {family.owner} ends with a convolution, which needs all tokens: "
                f"reduce after it, or restore before it (recover={index - 1})"
            )
        reduced = reduced and outputs[index] != "restored"


def _outputs(
    model: nn.Module,
    family: Family,
    count: int,
    layers: tuple[int, ...],
    recover: str | int,
    read: tuple[int, ...],
) -> list[Output]:
    """Return the kind of output of each block."""
    taps: tuple[int, ...] = ()
    if recover == "auto":
        taps = () if family.taps is None else family.taps(model)
        taps = (*taps, *(block % count for block in read))
        recover = "end" if family.maps or family.taps is not None or read else "never"
    outputs: list[Output] = ["view" if index in taps else "reduced" for index in range(count)]
    if isinstance(recover, int):
        if not layers[0] <= recover < count:
            raise ValueError(
                f"recover={recover} must be a block from the first reduction, {layers[0]}, to the "
                f"last block, {count - 1}"
            )
        outputs[recover] = "restored"
    elif recover == "end":
        outputs[-1] = "restored"
    elif recover == "every":
        outputs = ["view" for _ in range(count)]
        outputs[-1] = "restored"
    elif recover != "never":
        raise ValueError(f"recover must be one of {', '.join(RECOVER)} or a block, got {recover!r}")
    return outputs
