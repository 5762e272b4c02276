"""Layers: multi-scale deformable attention, the encoder layer, the score head."""

from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention
from tokendetr.layers.encoder_layer import EncoderLayer
from tokendetr.layers.score_head import ScoreHead

__all__ = ["EncoderLayer", "MultiScaleDeformableAttention", "ScoreHead"]
