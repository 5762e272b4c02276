"""Config files as users of upstream's detectors have them.

Every argument is spelled out, loss weights of the layers are added in a loop, and runs edit the
shared configs and derive from each other.
"""

from pathlib import Path

IMPORTS = """
import copy
import torch.nn as nn
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detrex.layers import PositionEmbeddingSine
from detrex.modeling.matcher import HungarianMatcher
from detrex.modeling.neck import ChannelMapper
from projects.{project}.modeling import (
    {prefix}TransformerDecoder,
    {prefix}TransformerEncoder,
    {prefix}Transformer,
    {detector},
    {criterion},
)
"""
MODEL = """
model = L({detector})(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res3", "res4", "res5"],
        freeze_at=1,
    ),
    position_embedding=L(PositionEmbeddingSine)(
        num_pos_feats=128, temperature=10000, normalize=True, offset=-0.5
    ),
    neck=L(ChannelMapper)(
        input_shapes={{
            "res3": ShapeSpec(channels=512),
            "res4": ShapeSpec(channels=1024),
            "res5": ShapeSpec(channels=2048),
        }},
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        num_outs=4,
        kernel_size=1,
        norm_layer=L(nn.GroupNorm)(num_groups=32, num_channels=256),
    ),
    transformer=L({prefix}Transformer)(
        encoder=L({prefix}TransformerEncoder)(post_norm=False, {layers}),
        decoder=L({prefix}TransformerDecoder)(return_intermediate=True, {layers}{decoder}),
        num_feature_levels=4,
        {transformer}
    ),
    embed_dim=256,
    num_classes=80,
    aux_loss=True,
    criterion=L({criterion})(
        num_classes="${{..num_classes}}",
        matcher=L(HungarianMatcher)(
            cost_class=2.0,
            cost_bbox=5.0,
            cost_giou=2.0,
            cost_class_type="focal_loss_cost",
            alpha=0.25,
            gamma=2.0,
        ),
        weight_dict={weights},
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
        {losses}
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    {model}
)
"""
LAYER_WEIGHTS = """
first = copy.deepcopy(model.criterion.weight_dict)
if model.aux_loss:
    weight_dict = model.criterion.weight_dict
    others = {k + "_enc": v for k, v in first.items()}
    for i in range(model.transformer.decoder.num_layers - 1):
        others.update({k + f"_{i}": v for k, v in first.items()})
    weight_dict.update(others)
    model.criterion.weight_dict = weight_dict
"""
RUN = """
from detrex.config import get_config
from {module} import model

dataloader = get_config("common/data/coco_detr.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_{epochs}ep
train = get_config("common/train.py").train

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/{name}"
train.max_iter = {iterations}
train.eval_period = 5000
train.log_period = 20
train.checkpointer.period = 5000
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.1
train.clip_grad.params.norm_type = 2
train.device = "cuda"
train.seed = {seed}
model.device = train.device
optimizer.lr = 1e-4
optimizer.betas = (0.9, 0.999)
optimizer.weight_decay = 1e-4
optimizer.params.lr_factor_func = lambda module_name: 0.1 if {slow} else 1
dataloader.train.num_workers = 16
dataloader.train.total_batch_size = 16
dataloader.evaluator.output_dir = train.output_dir
"""
LAYERS = (
    "embed_dim=256, num_heads=8, feedforward_dim={width}, attn_dropout={dropout}, "
    'ffn_dropout={dropout}, num_layers=6, num_feature_levels="${{..num_feature_levels}}"'
)
WIDE = LAYERS.format(width=2048, dropout=0.0)
NARROW = LAYERS.format(width=1024, dropout=0.1)
WEIGHTS = {"loss_class": 1, "loss_bbox": 5.0, "loss_giou": 2.0}
BACKBONE = '"backbone" in module_name'
STAGES = 'as_two_stage="${..as_two_stage}", '
BINARY = "two_stage_binary_cls=False,"

_ANCHORS = {"layers": WIDE, "transformer": STAGES + 'two_stage_num_proposals="${..num_queries}"'}
DETECTORS = {
    "dino": {
        "prefix": "DINO",
        "detector": "DINO",
        "criterion": "DINOCriterion",
        "layers": WIDE + ", use_checkpoint=False",
        "transformer": 'two_stage_num_proposals="${..num_queries}"',
        "weights": {**WEIGHTS, **{f"{name}_dn": weight for name, weight in WEIGHTS.items()}},
        "losses": BINARY,
        "model": "num_queries=900, dn_number=100, label_noise_ratio=0.5, box_noise_scale=1.0, "
        'device="cuda"',
    },
    "deformable_detr": {
        **_ANCHORS,
        "prefix": "DeformableDetr",
        "detector": "DeformableDETR",
        "criterion": "DeformableCriterion",
        "layers": NARROW,
        "model": "num_queries=300, with_box_refine=False, as_two_stage=False, "
        'select_box_nums_for_evaluation=300, device="cuda"',
    },
    "dab_deformable_detr": {
        **_ANCHORS,
        "prefix": "DabDeformableDetr",
        "detector": "DabDeformableDETR",
        "criterion": "TwoStageCriterion",
        "losses": BINARY,
        "model": "num_queries=300, as_two_stage=False",
    },
    "dn_deformable_detr": {
        **_ANCHORS,
        "prefix": "DNDeformableDetr",
        "detector": "DNDeformableDETR",
        "criterion": "DNCriterion",
        "weights": {**WEIGHTS, **{f"{name}_dn": weight for name, weight in WEIGHTS.items()}},
        "model": "num_queries=300, as_two_stage=False, denoising_groups=5, label_noise_prob=0.2, "
        "box_noise_scale=0.4, with_indicator=True, select_box_nums_for_evaluation=300, "
        'device="cuda"',
    },
    "h_deformable_detr": {
        "prefix": "HDeformableDetr",
        "detector": "HDeformableDETR",
        "criterion": "DeformableCriterion",
        "layers": WIDE,
        "decoder": ", look_forward_twice=True",
        "transformer": STAGES + "two_stage_num_proposals=1800, mixed_selection=True",
        "weights": {**WEIGHTS, "loss_class": 2.0},
        "model": "num_queries_one2one=300, num_queries_one2many=1500, with_box_refine=False, "
        "as_two_stage=False, select_box_nums_for_evaluation=300, mixed_selection=True, "
        'k_one2many=6, lambda_one2many=1.0, device="cuda"',
    },
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_model(folder: Path, project: str) -> None:
    """Write a detector's ``models/<project>_r50.py``."""
    facts = {"decoder": "", "losses": "", "weights": WEIGHTS, **DETECTORS[project]}
    text = (IMPORTS + MODEL).format(project=project, **facts) + LAYER_WEIGHTS
    write(folder / "models" / f"{project}_r50.py", text)


def write_run(folder: Path, project: str, *, name: str, epochs: int, seed: int = -1) -> Path:
    """Write a whole config of a detector: its model, and a run with the shared fragments."""
    write_model(folder, project)
    text = RUN.format(
        module=f".models.{project}_r50",
        name=name,
        epochs=epochs,
        iterations=7500 * epochs,
        slow=BACKBONE,
        seed=seed,
    )
    return write(folder / f"{name}.py", text)
