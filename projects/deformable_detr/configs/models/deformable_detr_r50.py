from detectron2.config import LazyCall as L

from tokendetr.detector import layer_weights
from tokendetr.models.deformable_detr import (
    DeformableCriterion,
    DeformableDETR,
    DeformableDetrTransformer,
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)

from ....common.matching import matcher, weights
from ....common.resnet50 import backbone, neck, pixel_mean, pixel_std, position_embedding
from ....common.transformer import sizes

layers = {
    **sizes,
    "feedforward_dim": 1024,
    "attn_dropout": 0.1,
    "ffn_dropout": 0.1,
    "num_feature_levels": "${..num_feature_levels}",
}

model = L(DeformableDETR)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(DeformableDetrTransformer)(
        encoder=L(DeformableDetrTransformerEncoder)(**layers, post_norm=False),
        decoder=L(DeformableDetrTransformerDecoder)(**layers, return_intermediate=True),
        as_two_stage="${..as_two_stage}",
        two_stage_num_proposals="${..num_queries}",
        num_feature_levels=4,
    ),
    num_classes=80,
    num_queries=300,
    embed_dim=256,
    aux_loss=True,
    with_box_refine=False,
    as_two_stage=False,
    select_box_nums_for_evaluation=300,
    criterion=L(DeformableCriterion)(
        num_classes="${..num_classes}",
        matcher=matcher,
        weight_dict=layer_weights(weights, num_layers=layers["num_layers"], suffixes=["_enc"]),
    ),
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    device="${train.device}",
)
