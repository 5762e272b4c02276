from detectron2.config import LazyCall as L

from tokendetr.detector import layer_weights
from tokendetr.models.dino import (
    DINO,
    DINOCriterion,
    DINOTransformer,
    DINOTransformerDecoder,
    DINOTransformerEncoder,
)

from ....common.matching import denoising_weights, matcher
from ....common.resnet50 import backbone, neck, pixel_mean, pixel_std, position_embedding
from ....common.transformer import sizes

layers = {**sizes, "num_feature_levels": "${..num_feature_levels}"}

model = L(DINO)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(DINOTransformer)(
        encoder=L(DINOTransformerEncoder)(**layers, post_norm=False),
        decoder=L(DINOTransformerDecoder)(
            **layers, return_intermediate=True, look_forward_twice=True, use_checkpoint=False
        ),
        num_feature_levels=4,
        two_stage_num_proposals="${..num_queries}",
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=900,
    aux_loss=True,
    select_box_nums_for_evaluation=300,
    criterion=L(DINOCriterion)(
        num_classes="${..num_classes}",
        matcher=matcher,
        weight_dict=layer_weights(
            denoising_weights, num_layers=layers["num_layers"], suffixes=["_enc"]
        ),
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
        two_stage_binary_cls=False,
    ),
    dn_number=100,
    label_noise_ratio=0.5,
    box_noise_scale=1.0,
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    device="${train.device}",
)
