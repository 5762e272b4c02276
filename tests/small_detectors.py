"""Detectors of a few thousand parameters with all parts of real ones, for fast tests."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detrex.layers import PositionEmbeddingSine
from detrex.modeling.matcher import HungarianMatcher
from detrex.modeling.neck import ChannelMapper
from torch import Tensor, nn

from tokendetr.detector import layer_weights
from tokendetr.models.dab_deformable_detr import (
    DabDeformableDETR,
    DabDeformableDetrTransformer,
    DabDeformableDetrTransformerDecoder,
    DabDeformableDetrTransformerEncoder,
    TwoStageCriterion,
)
from tokendetr.models.deformable_detr import (
    DeformableCriterion,
    DeformableDETR,
    DeformableDetrTransformer,
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)
from tokendetr.models.dino import (
    DINO,
    DINOCriterion,
    DINOTransformer,
    DINOTransformerDecoder,
    DINOTransformerEncoder,
)
from tokendetr.models.dn_deformable_detr import (
    DNCriterion,
    DNDeformableDETR,
    DNDeformableDetrTransformer,
    DNDeformableDetrTransformerDecoder,
    DNDeformableDetrTransformerEncoder,
)
from tokendetr.models.h_deformable_detr import (
    HDeformableDETR,
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

WIDTH, CLASSES, LEVELS, LAYERS = 16, 5, 3, 2
WEIGHTS = {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
NAMES = (
    "dino",
    "deformable",
    "deformable_refine",
    "deformable_two_stage",
    "dab",
    "dab_two_stage",
    "dn",
    "dn_two_stage",
    "h",
    "h_two_stage",
)


class StridedBackbone(nn.Module):
    """Two maps of stride 8 and 16 with zero padding at the borders, as in real backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.next = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images).relu()
        return {"fine": fine, "coarse": self.next(fine).relu()}


def neck() -> nn.Module:
    return ChannelMapper(
        input_shapes={"fine": ShapeSpec(channels=8), "coarse": ShapeSpec(channels=16)},
        in_features=["fine", "coarse"],
        out_channels=WIDTH,
        num_outs=LEVELS,
        kernel_size=1,
        norm_layer=nn.GroupNorm(4, WIDTH),
    )


def sizes() -> dict:
    return {
        "embed_dim": WIDTH,
        "num_heads": 2,
        "feedforward_dim": 32,
        "attn_dropout": 0.0,
        "ffn_dropout": 0.0,
        "num_layers": LAYERS,
        "num_feature_levels": LEVELS,
    }


def shared(num_queries: int) -> dict:
    return {
        "backbone": StridedBackbone(),
        "position_embedding": PositionEmbeddingSine(
            num_pos_feats=WIDTH // 2, normalize=True, offset=-0.5
        ),
        "neck": neck(),
        "embed_dim": WIDTH,
        "num_classes": CLASSES,
        "num_queries": num_queries,
        "pixel_mean": [123.675, 116.280, 103.530],
        "pixel_std": [58.395, 57.120, 57.375],
        "select_box_nums_for_evaluation": 20,
        "device": "cpu",
    }


def matcher() -> HungarianMatcher:
    return HungarianMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)


DENOISED = WEIGHTS | {f"{name}_dn": weight for name, weight in WEIGHTS.items()}


def criterion_parts(weights: dict[str, float] = WEIGHTS) -> dict:
    return {
        "num_classes": CLASSES,
        "matcher": matcher(),
        "weight_dict": layer_weights(weights, num_layers=LAYERS, suffixes=["_enc"]),
    }


def dino(num_queries: int = 12, *, use_checkpoint: bool = False, **options) -> DINO:
    transformer = DINOTransformer(
        encoder=DINOTransformerEncoder(**sizes()),
        decoder=DINOTransformerDecoder(**sizes(), use_checkpoint=use_checkpoint),
        num_feature_levels=LEVELS,
        two_stage_num_proposals=num_queries,
    )
    criterion = DINOCriterion(**criterion_parts(DENOISED))
    options = {"dn_number": 6, **options}
    return DINO(**shared(num_queries), transformer=transformer, criterion=criterion, **options)


def deformable(num_queries: int = 12, *, refine: bool = False, two_stage: bool = False):
    transformer = DeformableDetrTransformer(
        encoder=DeformableDetrTransformerEncoder(**sizes()),
        decoder=DeformableDetrTransformerDecoder(**sizes()),
        num_feature_levels=LEVELS,
        as_two_stage=two_stage,
        two_stage_num_proposals=num_queries,
    )
    return DeformableDETR(
        **shared(num_queries),
        transformer=transformer,
        criterion=DeformableCriterion(**criterion_parts()),
        with_box_refine=refine,
        as_two_stage=two_stage,
    )


def dab(num_queries: int = 12, *, two_stage: bool = False) -> DabDeformableDETR:
    transformer = DabDeformableDetrTransformer(
        encoder=DabDeformableDetrTransformerEncoder(**sizes()),
        decoder=DabDeformableDetrTransformerDecoder(**sizes()),
        as_two_stage=two_stage,
        num_feature_levels=LEVELS,
        two_stage_num_proposals=num_queries,
    )
    criterion = TwoStageCriterion(**criterion_parts())
    return DabDeformableDETR(
        **shared(num_queries), transformer=transformer, criterion=criterion, as_two_stage=two_stage
    )


def dn(num_queries: int = 12, *, two_stage: bool = False, **options) -> DNDeformableDETR:
    transformer = DNDeformableDetrTransformer(
        encoder=DNDeformableDetrTransformerEncoder(**sizes()),
        decoder=DNDeformableDetrTransformerDecoder(**sizes()),
        as_two_stage=two_stage,
        num_feature_levels=LEVELS,
        two_stage_num_proposals=num_queries,
    )
    return DNDeformableDETR(
        **shared(num_queries),
        transformer=transformer,
        criterion=DNCriterion(**criterion_parts(DENOISED)),
        as_two_stage=two_stage,
        **{"denoising_groups": 3, **options},
    )


def h(num_queries: int = 12, *, two_stage: bool = False, one2many: int = 24, **options):
    transformer = HDeformableDetrTransformer(
        encoder=HDeformableDetrTransformerEncoder(**sizes()),
        decoder=HDeformableDetrTransformerDecoder(**sizes()),
        num_feature_levels=LEVELS,
        as_two_stage=two_stage,
        two_stage_num_proposals=num_queries + one2many,
        mixed_selection=options.get("mixed_selection", True),
    )
    parts = shared(num_queries)
    del parts["num_queries"]
    return HDeformableDETR(
        **parts,
        num_queries_one2one=num_queries,
        num_queries_one2many=one2many,
        transformer=transformer,
        criterion=DeformableCriterion(**criterion_parts()),
        with_box_refine=True,
        as_two_stage=two_stage,
        **{"k_one2many": 3, **options},
    )


FAMILIES = {"dab": dab, "dn": dn, "h": h}


def build(name: str, num_queries: int = 12, **options) -> nn.Module:
    """Build a detector by name, with reproducible random weights that make heads differ."""
    torch.manual_seed(0)
    if name == "dino":
        model = dino(num_queries, **options)
    elif name.split("_")[0] in FAMILIES:
        family = FAMILIES[name.split("_")[0]]
        model = family(num_queries, two_stage=name.endswith("_two_stage"), **options)
    else:
        model = deformable(
            num_queries,
            refine=name != "deformable",
            two_stage=name == "deformable_two_stage",
            **options,
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def record(height: int, width: int, boxes=(), *, seed: int = 0) -> dict:
    """Make an input of noise with the given boxes (xyxy pixels); class i for box i."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % CLASSES
    image = torch.rand(3, height, width, generator=generator) * 255
    return {"image": image, "height": height, "width": width, "instances": instances}


ONE_WITHOUT_BOXES = [
    record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]], seed=1),
    record(64, 96, [], seed=2),
]


def detections(model: nn.Module, records: list[dict]) -> list[Instances]:
    model.eval()
    torch.manual_seed(0)  # for methods that select at random
    with torch.no_grad():
        return [output["instances"] for output in model(records)]


def assert_same(one: Instances, other: Instances, atol_px: float = 1e-2) -> None:
    assert len(one) == len(other)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-3, atol=atol_px
    )
    assert torch.equal(one.pred_classes, other.pred_classes)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values())


def trained_parameters(model: nn.Module, records: list[dict]) -> set[str]:
    """Names of the parameters that get a gradient in one training step."""
    model.train()
    model.zero_grad(set_to_none=True)
    total(model(records)).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None}


def assert_compiled_equals_eager(model: nn.Module, records: list[dict]) -> None:
    """Compare the detections of ``torch.compile`` with those of the model itself."""
    compiled = torch.compile(model, backend="aot_eager")
    for one, other in zip(detections(compiled, records), detections(model, records), strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
