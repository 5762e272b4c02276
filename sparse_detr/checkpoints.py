"""Rename the keys of published Sparse DETR checkpoints (github.com/kakaobrain/sparse-detr).

=============================================  =================================================
published                                      here
=============================================  =================================================
``backbone.0.body.conv1``, ``bn1``             ``backbone.stem.conv1``, ``.norm``
``backbone.0.body.layer<n>``                   ``backbone.res<n + 1>``
``...bn<i>``                                   ``...conv<i>.norm``
``...downsample.0``, ``.1``                    ``...shortcut``, ``.norm``
``input_proj.<i>.0``, ``.1``                   ``neck.convs.<i>.conv``, ``.norm``; the last one
                                               ``neck.extra_convs.0``
``transformer.level_embed``                    ``transformer.level_embeds``
``transformer.enc_mask_predictor``             ``transformer.encoder.sparsifier.score_head``
``...self_attn`` of the encoder                ``...attentions.0``
``...self_attn``, ``cross_attn`` (decoder)     ``...attentions.0.attn``, ``...attentions.1``
``...linear1``, ``linear2``                    ``...ffns.0.layers.0.0``, ``...ffns.0.layers.1``
``...norm1``, ``norm2`` of the encoder         ``...norms.0``, ``.1``
``...norm2``, ``norm1``, ``norm3`` (decoder)   ``...norms.0``, ``.1``, ``.2``
``class_embed.<i>``, ``bbox_embed.<i>``        the same for the decoder's layers and the proposals;
                                               the others become
                                               ``transformer.encoder.sparsifier.class_embed.<j>``
``transformer.<part>.class_embed.<i>``, ...    dropped: aliases of the same heads
=============================================  =================================================

Detectors with :class:`sparse_detr.SparseSparsifier` rename the keys when they load such a file. To
convert a file once:

    tokendetr export-weights --input sparse_detr_r50_10.pth --dtype float32 \\
        --output sparse_detr_r50_10.safetensors --convert sparse_detr.from_published

Residual networks are covered, not Swin Transformers.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_SPARSIFIER = "transformer.encoder.sparsifier"
_ALIASES = re.compile(r"transformer\.(encoder|decoder)\.(class|bbox)_embed\.")
_HEAD = re.compile(r"(class|bbox)_embed\.(\d+)\.")
_NECK = re.compile(r"input_proj\.(\d+)\.([01])\.")
_STAGE = re.compile(r"backbone\.0\.body\.layer(\d+)\.")
_RULES = (
    (r"^backbone\.0\.body\.conv1\.", "backbone.stem.conv1."),
    (r"^backbone\.0\.body\.bn1\.", "backbone.stem.conv1.norm."),
    (r"^(backbone\.res.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"^(backbone\.res.*)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(backbone\.res.*)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^transformer\.level_embed$", "transformer.level_embeds"),
    (r"^transformer\.enc_mask_predictor\.", f"{_SPARSIFIER}.score_head."),
    (r"^(transformer\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"^(transformer\.encoder\.layers\.\d+)\.norm1\.", r"\1.norms.0."),
    (r"^(transformer\.encoder\.layers\.\d+)\.norm2\.", r"\1.norms.1."),
    (r"^(transformer\.decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0.attn."),
    (r"^(transformer\.decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.1."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norm2\.", r"\1.norms.0."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norm1\.", r"\1.norms.1."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norm3\.", r"\1.norms.2."),
    (r"^(transformer\..*)\.linear1\.", r"\1.ffns.0.layers.0.0."),
    (r"^(transformer\..*)\.linear2\.", r"\1.ffns.0.layers.1."),
)


def is_published(weights: Mapping[str, object]) -> bool:
    """Return True for a state dict of the published code with a residual network."""
    return "transformer.level_embed" in weights and any(map(_STAGE.match, weights))


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published model to this project's keys.

    Args:
        weights: ``model`` of a published checkpoint.

    Raises:
        ValueError: there are no decoder layers, so it is another kind of file.
    """
    layers = [re.match(r"transformer\.decoder\.layers\.(\d+)\.", name) for name in weights]
    indices = [int(match[1]) for match in layers if match]
    if not indices:
        raise ValueError(
            "these are not weights of Sparse DETR: transformer.decoder.layers is missing"
        )
    pairs = [int(match[1]) for name in weights if (match := _NECK.match(name))]
    return {
        _renamed(name, max(indices) + 1, max(pairs, default=0)): value
        for name, value in weights.items()
        if not _ALIASES.match(name)
    }


def _renamed(name: str, decoder_layers: int, last_projection: int) -> str:
    """Return the new key of one weight.

    Heads are numbered: the decoder's layers first, then the proposals', then those that are trained
    on the encoder's layers.
    """
    head, projection = _HEAD.match(name), _NECK.match(name)
    if head is not None and int(head[2]) > decoder_layers:
        layer = int(head[2]) - decoder_layers - 1
        return f"{_SPARSIFIER}.{head[1]}_embed.{layer}.{name[head.end() :]}"
    if projection is not None:
        index, part = int(projection[1]), ("conv", "norm")[int(projection[2])]
        stem = "extra_convs.0" if index == last_projection else f"convs.{index}"
        return f"neck.{stem}.{part}.{name[projection.end() :]}"
    name = _STAGE.sub(lambda match: f"backbone.res{int(match[1]) + 1}.", name)
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
