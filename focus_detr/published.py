"""Published checkpoints of Focus-DETR under this project's keys."""

import re
from collections.abc import Mapping
from typing import TypeVar

Weight = TypeVar("Weight")

_MARK = "transformer.enc_mask_predictor."
_ENCODER = "transformer.encoder"
_SPARSIFIER = f"{_ENCODER}.sparsifier"
_RENAMED: tuple[tuple[str, str], ...] = (
    (r"transformer\.alpha$", f"{_SPARSIFIER}.selector.level_scales"),
    (r"transformer\.enc_mask_predictor\.", f"{_SPARSIFIER}.selector.score_head."),
    (
        r"transformer\.encoder\.layers\.(\d+)\.attentions\.0\.attn\.",
        rf"{_SPARSIFIER}.object_attentions.\1.attention.attn.",
    ),
    (
        r"transformer\.encoder\.layers\.(\d+)\.norm2\.",
        rf"{_SPARSIFIER}.object_attentions.\1.norm.",
    ),
    (
        r"transformer\.encoder\.layers\.(\d+)\.attentions\.1\.",
        rf"{_ENCODER}.layers.\1.attentions.0.",
    ),
)
_ALIASES = ("transformer.encoder.enhance_MCSP.", "enhance_MCSP_layerlist.")
"""Aliases of the two-stage class head, which the file also has under its own name."""


def is_published(weights: Mapping[str, object]) -> bool:
    """Return True for a state dict of the published code (detrex or noah-research)."""
    return any(name.startswith(_MARK) for name in weights)


def from_published(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Rename a published state dict to this project's keys; return others unchanged.

    =====================================================  =========================================
    published                                              here, in ``transformer.encoder``
    =====================================================  =========================================
    ``transformer.alpha``                                  ``sparsifier.selector.level_scales``
    ``transformer.enc_mask_predictor.*``                   ``sparsifier.selector.score_head.*``
    ``transformer.encoder.layers.I.attentions.0.attn.*``   ``sparsifier.object_attentions.I
                                                           .attention.attn.*``
    ``transformer.encoder.layers.I.norm2.*``               ``sparsifier.object_attentions.I.norm.*``
    ``transformer.encoder.layers.I.attentions.1.*``        ``layers.I.attentions.0.*``
    ``transformer.encoder.enhance_MCSP.I.*`` and           dropped: aliases of ``class_embed.6.*``
    ``enhance_MCSP_layerlist.I.*``
    =====================================================  =========================================

    Everything else, including the decoder and the heads, has the same key.
    """
    if not is_published(weights):
        return dict(weights)
    renamed = {}
    for name, weight in weights.items():
        if name.startswith(_ALIASES):
            continue
        for pattern, ours in _RENAMED:
            changed, times = re.subn(f"^{pattern}", ours, name)
            if times:
                name = changed
                break
        renamed[name] = weight
    return renamed
