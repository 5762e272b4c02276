"""Shrink the model of any listed config to a few channels, and change nothing else."""

import copy

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tokendetr.config import observed, resize, sparsify, target_name

CLASSES = 7
QUERIES = 24
RESNET_CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 24}  # growing: shortcuts are needed
WINDOWED = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
PLAIN = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# Numbers of queries in the detectors' configs; all that a config has are replaced.
COUNTS = {
    "num_queries": QUERIES,
    "num_queries_one2one": QUERIES,
    "num_queries_one2many": 2 * QUERIES,
    "select_box_nums_for_evaluation": QUERIES,
    "dn_number": 6,
}

# Configs of the detectors with changes of the model, for combination with every method.
ONE_STAGE = {"as_two_stage": False}
DETECTORS = {
    "dino": ("dino_shapes", {}),
    "deformable": ("deformable_detr_shapes", {**ONE_STAGE, "with_box_refine": False}),
    "deformable_refine": ("deformable_detr_shapes", ONE_STAGE),
    "deformable_two_stage": ("deformable_detr_shapes", {}),
    "dab": ("dab_deformable_detr_shapes", {}),
    "dab_two_stage": ("dab_deformable_detr_shapes", {"as_two_stage": True}),
    "dn": ("dn_deformable_detr_shapes", {}),
    "dn_two_stage": ("dn_deformable_detr_shapes", {"as_two_stage": True}),
    "h": ("h_deformable_detr_shapes", ONE_STAGE),
    "h_two_stage": ("h_deformable_detr_shapes", {}),
}


class CannotShrinkError(Exception):
    """The config has a part that this module does not know."""


def narrow_resnet(backbone: DictConfig) -> None:
    norm, previous, stages = backbone.stem.norm, RESNET_CHANNELS["res2"], []
    for index, channels in enumerate(RESNET_CHANNELS.values()):
        stages.append(
            L(ResNet.make_stage)(
                block_class=BasicBlock,
                num_blocks=1,
                stride_per_block=[1 if index == 0 else 2],
                in_channels=previous,
                out_channels=channels,
                norm=norm,
            )
        )
        previous = channels
    backbone.stem = L(BasicStem)(in_channels=3, out_channels=RESNET_CHANNELS["res2"], norm=norm)
    backbone.stages = stages


def narrow_backbone(backbone: DictConfig) -> None:
    """Narrow a ResNet, a hierarchy of windows with the arguments of Swin, or a plain ViT."""
    if target_name(backbone["_target_"]).endswith(".ResNet"):
        narrow_resnet(backbone)
    elif backbone.keys() >= {"embed_dim", "depths", "num_heads"}:
        for key, value in WINDOWED.items():
            backbone[key] = value
        if "token_transform" in backbone:
            backbone.token_transform.layers = (2,)  # the third stage's first block
    elif backbone.keys() >= {"embed_dim", "depths", "focal_levels"}:  # FocalNet
        backbone.embed_dim, backbone.depths = WINDOWED["embed_dim"], list(WINDOWED["depths"])
    elif backbone.keys() >= {"core_op", "channels", "groups"}:  # InternImage
        # Its own operator is for CUDA alone, and has 16 channels a group.
        backbone.core_op, backbone.channels = "DCNv3_pytorch", 16
        backbone.depths, backbone.groups = [1, 1, 2, 1], [1, 2, 4, 8]
    elif backbone.keys() >= {"dims", "depths"}:  # ConvNeXt
        backbone.dims, backbone.depths = list(RESNET_CHANNELS.values()), [1, 1, 1, 1]
    elif "net" in backbone and backbone.net.keys() >= PLAIN.keys():
        backbone.net.update(PLAIN)
        backbone.out_channels = 16
        if "window_block_indexes" in backbone.net:  # ViTDet
            backbone.net.window_block_indexes = [0]
            backbone.net.img_size = 64
            backbone.net.drop_path_rate = 0.1
            backbone.square_pad = 0
        if "token_transform" in backbone:
            backbone.token_transform.layers = (0,)
    else:
        raise CannotShrinkError(f"backbone {target_name(backbone['_target_'])}")


def shrink(model: DictConfig) -> DictConfig:
    """Make a detector's model a few channels wide, in place; its device becomes the CPU.

    Raises:
        CannotShrinkError: a part is unknown; the message names it.
    """
    resize(model, width=16, num_heads=2, feedforward_dim=16)
    narrow_backbone(model.backbone)
    shapes = instantiate(model.backbone).output_shape()
    names = model.neck.in_features
    model.neck.input_shapes = {n: ShapeSpec(channels=shapes[n].channels) for n in names}
    model.num_classes = CLASSES
    for key, value in COUNTS.items():
        if key in model:
            model[key] = value
    if "num_queries_one2many" in model:
        model.transformer.two_stage_num_proposals = 3 * QUERIES
    model.device = "cpu"
    return model


def identity(model: DictConfig) -> str:
    """Return a text that two configs share if and only if they describe the same model."""
    return repr(OmegaConf.to_container(model, resolve=True))


def build(model: DictConfig) -> nn.Module:
    """Build a model of a config, with reproducible random weights that make heads differ."""
    torch.manual_seed(0)
    built = instantiate(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in built.named_buffers():
            if name.endswith("sparsifier.is_ready"):  # its teacher has weights
                buffer.fill_(True)
    return built


def has_two_stages(model: DictConfig) -> bool:
    return model.get("as_two_stage", True)  # DINO always has them


def put_into(model: DictConfig, method: DictConfig) -> None:
    """Put the method of one model (its sparsifier or its backbone) into another."""
    sparsifier = method.transformer.encoder.get("sparsifier")
    if sparsifier is None:
        model.backbone = method.backbone
        model.neck.in_features = method.neck.in_features
        observed(model)
        return
    sparsify(model, sparsifier)
    if not has_two_stages(model):
        own = model.transformer.encoder.sparsifier
        if "projection" in own:  # Sparse DETR
            own.projection = "own"
        if "num_objects" in own:  # Focus-DETR
            own.num_classes = "${....num_classes}"
