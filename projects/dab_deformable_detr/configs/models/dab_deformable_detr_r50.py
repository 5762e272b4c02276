from detectron2.config import LazyCall as L

from tokendetr.detector import layer_weights
from tokendetr.models.dab_deformable_detr import (
    DabDeformableDETR,
    DabDeformableDetrTransformer,
    DabDeformableDetrTransformerDecoder,
    DabDeformableDetrTransformerEncoder,
    TwoStageCriterion,
)

from ....common.matching import matcher, weights
from ....common.resnet50 import backbone, neck, pixel_mean, pixel_std, position_embedding
from ....common.transformer import sizes

layers = {**sizes, "num_feature_levels": "${..num_feature_levels}"}

model = L(DabDeformableDETR)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(DabDeformableDetrTransformer)(
        encoder=L(DabDeformableDetrTransformerEncoder)(**layers, post_norm=False),
        decoder=L(DabDeformableDetrTransformerDecoder)(**layers, return_intermediate=True),
        as_two_stage="${..as_two_stage}",
        num_feature_levels=4,
        two_stage_num_proposals="${..num_queries}",
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=300,
    aux_loss=True,
    as_two_stage=False,
    criterion=L(TwoStageCriterion)(
        num_classes="${..num_classes}",
        matcher=matcher,
        weight_dict=layer_weights(weights, num_layers=layers["num_layers"], suffixes=["_enc"]),
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
        two_stage_binary_cls=False,
    ),
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    select_box_nums_for_evaluation=300,
    device="${train.device}",
)
