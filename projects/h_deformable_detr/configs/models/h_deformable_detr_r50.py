from detectron2.config import LazyCall as L

from tokendetr.detector import layer_weights
from tokendetr.models.h_deformable_detr import (
    DeformableCriterion,
    HDeformableDETR,
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

from ....common.matching import matcher, weights
from ....common.resnet50 import backbone, neck, pixel_mean, pixel_std, position_embedding
from ....common.transformer import sizes

hybrid_weights = {**weights, "loss_class": 2.0}
layers = {**sizes, "num_feature_levels": "${..num_feature_levels}"}

model = L(HDeformableDETR)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(HDeformableDetrTransformer)(
        encoder=L(HDeformableDetrTransformerEncoder)(**layers, post_norm=False),
        decoder=L(HDeformableDetrTransformerDecoder)(
            **layers, return_intermediate=True, look_forward_twice=True
        ),
        as_two_stage="${..as_two_stage}",
        num_feature_levels=4,
        two_stage_num_proposals=1800,  # one2one + one2many
        mixed_selection="${..mixed_selection}",
    ),
    embed_dim=256,
    num_classes=80,
    num_queries_one2one=300,
    num_queries_one2many=1500,
    aux_loss=True,
    with_box_refine=False,
    as_two_stage=False,
    criterion=L(DeformableCriterion)(
        num_classes="${..num_classes}",
        matcher=matcher,
        weight_dict=layer_weights(
            hybrid_weights, num_layers=layers["num_layers"], suffixes=["_enc"]
        ),
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
    ),
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    select_box_nums_for_evaluation=300,
    device="${train.device}",
    mixed_selection=True,
    k_one2many=6,
    lambda_one2many=1.0,
)
