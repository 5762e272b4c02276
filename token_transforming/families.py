"""Supported vision transformers, recognized by class name, without importing their libraries.

Supported: Hugging Face transformers' ViT, DeiT, DINOv2 (with and without registers), CLIP's vision
tower, SigLIP's, and DPT, timm's VisionTransformer, and detectron2's ViT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from token_transforming.classes import original_class
from token_transforming.sequence import BlockNames, TransformedReader, part


@dataclass(frozen=True)
class Family:
    """One kind of vision transformer.

    Attributes:
        owner: class name of the model.
        package: prefix of the name of the class's module.
        blocks: dotted name of its list of blocks.
        block: class name of a block.
        names: names of the block's submodules.
        prefix: returns the number of class and register tokens of a model.
        taps: returns the blocks whose outputs are read as dense maps, for which tokens must be
            restored.
        maps: blocks pass on maps [B, H, W, C], whose tokens must be restored by the last block.
        reader: mixin of the model's class while it is transformed, for methods that read blocks'
            outputs.
    """

    owner: str
    package: str
    blocks: str
    block: str
    names: BlockNames
    prefix: Callable[[Any], int]
    taps: Callable[[Any], tuple[int, ...]] | None = None
    maps: bool = False
    reader: type | None = None


_VIT = BlockNames(
    norm="layernorm_before",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    head_width="attention.head_dim",
    scale="attention.scaling",
    dropout="attention.attention_dropout",
    after=("attention.o_proj", "dropout"),
    feed=("layernorm_after", "mlp", "dropout"),
)
_DINOV2 = BlockNames(
    norm="norm1",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    head_width="attention.head_dim",
    scale="attention.scaling",
    dropout="attention.attention_dropout",
    after=("attention.o_proj", "layer_scale1", "drop_path"),
    feed=("norm2", "mlp", "layer_scale2", "drop_path"),
)
_CLIP = BlockNames(
    norm="layer_norm1",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    head_width="self_attn.head_dim",
    scale="self_attn.scale",
    dropout="self_attn.dropout",
    after=("self_attn.out_proj",),
    feed=("layer_norm2", "mlp"),
)
_DPT = BlockNames(
    norm="layernorm_before",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    head_width="attention.attention.attention_head_size",
    scale="attention.attention.scaling",
    dropout="attention.attention.dropout_prob",
    after=("attention.output.dense", "attention.output.dropout"),
    feed=("layernorm_after", "intermediate", "output.dense", "output.dropout"),
)
_TIMM = BlockNames(
    norm="norm1",
    query="attn.qkv",
    key=None,
    value=None,
    head_width="attn.head_dim",
    scale="attn.scale",
    dropout="attn.attn_drop",
    after=("attn.norm", "attn.proj", "attn.proj_drop", "ls1", "drop_path1"),
    feed=("norm2", "mlp", "ls2", "drop_path2"),
    query_norm="attn.q_norm",
    key_norm="attn.k_norm",
)
_DETECTRON2 = BlockNames(
    norm="norm1",
    query="attn.qkv",
    key=None,
    value=None,
    heads="attn.num_heads",
    head_width=None,
    scale="attn.scale",
    dropout=None,
    after=("attn.proj", "drop_path"),
    feed=("norm2", "mlp", "drop_path"),
)


def _every_layer(model: nn.Module) -> tuple[int, ...]:
    return tuple(range(len(part(model, "encoder.layer"))))


def _none(model: nn.Module) -> int:
    return 0


def _one(model: nn.Module) -> int:
    return 1


def _registers(model: nn.Module) -> int:
    return 1 + int(part(model, "config.num_register_tokens"))


FAMILIES: tuple[Family, ...] = (
    Family("ViTModel", "transformers.models.vit.", "layers", "ViTLayer", _VIT, _one),
    Family("DeiTModel", "transformers.models.deit.", "layers", "DeiTLayer", _VIT, lambda model: 2),
    *(
        Family(
            f"Dinov2{kind}{owner}",
            f"transformers.models.dinov2{folder}.",
            "encoder.layer",
            f"Dinov2{kind}Layer",
            _DINOV2,
            prefix,
            _every_layer if owner == "Backbone" else None,
        )
        for kind, folder, prefix in (
            ("", "", _one),
            ("WithRegisters", "_with_registers", _registers),
        )
        for owner in ("Model", "Backbone")
    ),
    *(
        Family(
            f"{kind}VisionModel",
            f"transformers.models.{folder}.",
            "encoder.layers",
            f"{kind}EncoderLayer",
            _CLIP,
            prefix,
        )
        for kind, folder, prefix in (
            ("CLIP", "clip", _one),
            ("Siglip", "siglip", _none),
        )
    ),
    Family(
        "DPTModel",
        "transformers.models.dpt.",
        "encoder.layer",
        "DPTViTLayer",
        _DPT,
        _one,
        lambda model: tuple(model.config.backbone_out_indices),
    ),
    *(
        Family(
            owner,
            "timm.models.",
            "blocks",
            "Block",
            _TIMM,
            lambda model: int(model.num_prefix_tokens),
            reader=TransformedReader,
        )
        for owner in ("VisionTransformer", "VisionTransformerDistilled")
    ),
    Family(
        "ViT",
        "detectron2.modeling.backbone.vit",
        "blocks",
        "Block",
        _DETECTRON2,
        _none,
        maps=True,
    ),
)


def family_of(module: nn.Module) -> Family | None:
    """Return the family of a model; None for other modules."""
    kind = original_class(type(module))
    for family in FAMILIES:
        if kind.__name__ == family.owner and kind.__module__.startswith(family.package):
            return family
    return None
