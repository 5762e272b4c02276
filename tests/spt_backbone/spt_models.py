"""Small SPT backbones, a detector around one, and annotated images for it."""

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from spt_backbone import SPT
from tokendetr.encoder.forward_context import record_tokens

SMALL = dict(
    embed_dim=12,
    depths=(1, 1, 2, 2),
    num_heads=(1, 2, 2, 3),
    window_size=4,
    out_indices=(1, 2, 3),
    drop_path_rate=0.0,
)
SIZES = [(96, 64), (64, 120)]
BOXES = [[[3.0, 5.0, 20.0, 31.0], [40.0, 60.0, 63.0, 90.0]], [[100.0, 10.0, 118.0, 12.0]]]


def small_spt(seed: int = 0, **options) -> SPT:
    torch.manual_seed(seed)
    model = SPT(**{**SMALL, **options})
    for name, parameter in model.named_parameters():
        if "gate.weight" in name or "position" in name:
            nn.init.normal_(parameter, std=0.7)
    return model.eval()


def maps_of(model: SPT, images) -> list:
    with record_tokens() as trace:
        model(images)
    return [layer.token_map for forward in trace.forwards for layer in forward.layers]


def half_selecting(seed: int = 0, **options) -> SPT:
    """Build a model whose gates select about half of the tokens."""
    return small_spt(seed, threshold=0.5, **options)


class Detector(nn.Module):
    """A minimal detectron2 model: pads a batch, runs its backbone once."""

    def __init__(self, backbone: SPT) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batched_inputs):
        images = [record["image"] for record in batched_inputs]
        height, width = (max(i.shape[side] for i in images) for side in (1, 2))
        canvas = torch.stack(
            [nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        )
        features = self.backbone(canvas)
        if self.training:
            return {"loss_own": sum(value.square().mean() for value in features.values())}
        return [{"instances": image} for image in range(len(images))]


def records(*, masks=None, annotated: bool = True) -> list[dict]:
    found = []
    for index, ((height, width), boxes) in enumerate(zip(SIZES, BOXES, strict=True)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
        if masks is not None:
            instances.gt_masks = masks[index]
        generator = torch.Generator().manual_seed(index)
        record = {"image": torch.randn(3, height, width, generator=generator), "image_id": index}
        found.append({**record, "instances": instances} if annotated else record)
    return found
