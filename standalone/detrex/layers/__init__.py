"""Building blocks of detection transformers."""

from detrex.layers.attention import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MultiheadAttention,
)
from detrex.layers.box_ops import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    masks_to_boxes,
)
from detrex.layers.conv import ConvNorm, ConvNormAct
from detrex.layers.denoising import GenerateDNQueries, apply_box_noise, apply_label_noise
from detrex.layers.layer_norm import LayerNorm
from detrex.layers.mlp import FFN, MLP
from detrex.layers.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attn_pytorch,
)
from detrex.layers.position_embedding import (
    PositionEmbeddingLearned,
    PositionEmbeddingSine,
    get_sine_pos_embed,
)
from detrex.layers.shape_spec import ShapeSpec
from detrex.layers.transformer import BaseTransformerLayer, TransformerLayerSequence

__all__ = [
    "FFN",
    "MLP",
    "BaseTransformerLayer",
    "ConditionalCrossAttention",
    "ConditionalSelfAttention",
    "ConvNorm",
    "ConvNormAct",
    "GenerateDNQueries",
    "LayerNorm",
    "MultiScaleDeformableAttention",
    "MultiheadAttention",
    "PositionEmbeddingLearned",
    "PositionEmbeddingSine",
    "ShapeSpec",
    "TransformerLayerSequence",
    "apply_box_noise",
    "apply_label_noise",
    "box_cxcywh_to_xyxy",
    "box_iou",
    "box_xyxy_to_cxcywh",
    "generalized_box_iou",
    "get_sine_pos_embed",
    "masks_to_boxes",
    "multi_scale_deformable_attn_pytorch",
]
