from detectron2.config import LazyCall as L

from tokendetr.detector import layer_weights
from tokendetr.models.dn_deformable_detr import (
    DNCriterion,
    DNDeformableDETR,
    DNDeformableDetrTransformer,
    DNDeformableDetrTransformerDecoder,
    DNDeformableDetrTransformerEncoder,
)

from ....common.matching import denoising_weights, matcher, weights
from ....common.resnet50 import backbone, neck, pixel_mean, pixel_std, position_embedding
from ....common.transformer import sizes

layers = {**sizes, "num_feature_levels": "${..num_feature_levels}"}

model = L(DNDeformableDETR)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(DNDeformableDetrTransformer)(
        encoder=L(DNDeformableDetrTransformerEncoder)(**layers, post_norm=False),
        decoder=L(DNDeformableDetrTransformerDecoder)(**layers, return_intermediate=True),
        as_two_stage="${..as_two_stage}",
        num_feature_levels=4,
        two_stage_num_proposals="${..num_queries}",
    ),
    num_classes=80,
    num_queries=300,
    embed_dim=256,
    aux_loss=True,
    as_two_stage=False,
    criterion=L(DNCriterion)(
        num_classes="${..num_classes}",
        matcher=matcher,
        weight_dict={
            **layer_weights(denoising_weights, num_layers=layers["num_layers"]),
            **{f"{name}_enc": weight for name, weight in weights.items()},
        },
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
    ),
    denoising_groups=5,
    label_noise_prob=0.2,
    box_noise_scale=0.4,
    with_indicator=True,
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    select_box_nums_for_evaluation=300,
    device="${train.device}",
)
