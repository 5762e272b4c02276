"""The recorded numbers of upstream's detectors, and the comparison of ours with them."""

import json

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from tests.source_tree import ROOT

GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-3
FAST = (  # one of each family; the others with `-m slow`
    "dino_r50_4scale",
    "deformable_detr_r50_two_stage",
    "dab_deformable_detr_r50_two_stage",
    "dn_deformable_detr_r50",
    "h_deformable_detr_r50_two_stage",
)
SLOW = (
    "dino_swin_tiny_224_4scale",
    "dino_r50_5scale",
    "dino_swin_large_384_4scale",
    "deformable_detr_r50",
    "deformable_detr_r50_with_box_refinement",
    "dab_deformable_detr_r50",
)
# With formula weights many proposals score within float32 rounding of each other, and in DINO a
# proposal's rank chooses its content query. Where two ranks may exchange (Swin-L: 261 and 262 of
# sample 1; the others: on other processors or with another number of threads), that many
# detections may follow, and losses: in Swin-L's second layer a box goes to another query, because
# class costs of thousands leave no digits for the difference of two boxes.
TIED_PROPOSALS = {
    "dino/configs/dino-swin/dino_swin_large_384_4scale_12ep.py": 10,
    "dino/configs/dino-resnet/dino_r50_4scale_12ep.py": 3,
    "dino/configs/dino-swin/dino_swin_tiny_224_4scale_12ep.py": 5,
}


def expected(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def build(name: str) -> nn.Module:
    config = LazyConfig.load(str(ROOT / "projects" / expected(name)["config"]))
    if "dn_number" in config.model:
        config.model.dn_number = 0
    config.model.device = "cpu"
    return instantiate(config.model)


def evaluate(model: nn.Module, records: list[dict]) -> tuple[list, torch.Tensor]:
    memories = []
    hook = model.transformer.encoder.register_forward_hook(
        lambda module, inputs, output: memories.append(output)
    )
    model.eval()
    with torch.no_grad():
        detections = [output["instances"] for output in model(records)]
    hook.remove()
    return detections, memories[0]


def silence_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


def assert_same_detections(found, numbers, prefix: str, allowed: int) -> None:
    """Equal up to the order of detections whose scores are closer than 1e-5."""
    pool = list(range(len(found)))
    boxes = found.pred_boxes.tensor.numpy()
    missing = []
    for score, box, label in zip(
        *(numbers[f"{prefix}_{field}"] for field in ("scores", "boxes", "classes")), strict=True
    ):
        near = TOLERANCE * max(1.0, float(np.abs(box).max()))
        match = next(
            (
                i
                for i in pool
                if abs(float(found.scores[i]) - score) <= max(1e-5, TOLERANCE * score)
                and int(found.pred_classes[i]) == int(label)
                and np.abs(boxes[i] - box).max() <= near
            ),
            None,
        )
        if match is None:
            missing.append(f"score={score} class={label} box={box}")
        else:
            pool.remove(match)
    assert len(missing) <= allowed, f"no detections like {missing}"
    best = numbers[f"{prefix}_scores"][: len(found)]
    if not allowed:
        np.testing.assert_allclose(found.scores[: len(best)], best, rtol=TOLERANCE)
