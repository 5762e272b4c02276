"""SPT inside an observed model: labels, loss, metrics, evaluation, several processes."""

import json
import os

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spt_backbone import SPT
from spt_backbone.config import watch_selection
from spt_backbone.labels import box_cells, mask_cells, object_cells
from tests.processes import run_two_processes
from tests.spt_backbone.spt_models import (
    BOXES,
    SIZES,
    SMALL,
    Detector,
    records,
    small_spt,
)
from tokendetr.encoder.aux_losses import ImageTargets
from tokendetr.encoder.forward_context import observe, record_tokens


def cells_by_hand(boxes, grid, stride):
    """Mark the cells that any box covers in part, on a raster of quarter pixels."""
    fine = torch.zeros(grid[0] * stride * 4, grid[1] * stride * 4, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        fine[int(y1 * 4) : int(y2 * 4), int(x1 * 4) : int(x2 * 4)] = True
    blocks = fine.view(grid[0], stride * 4, grid[1], stride * 4)
    return blocks.any(3).any(1)


@pytest.mark.parametrize("seed", range(5))
def test_cells_of_boxes_and_masks_are_those_with_any_overlap(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 4 * 60, (4, 2, 2), generator=generator) / 4
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 0.25], dim=1)
    for stride in (4, 16):
        wanted = cells_by_hand(boxes.tolist(), (64 // stride, 80 // stride), stride)
        assert torch.equal(box_cells(boxes, (64 // stride, 80 // stride), stride), wanted)
    union = torch.rand(50, 70, generator=generator) > 0.995
    wanted = nn.functional.pad(union, (0, 10, 0, 14)).view(4, 16, 5, 16).any(3).any(1)
    assert torch.equal(mask_cells(union, (4, 5), 16), wanted)


def test_a_box_that_ends_on_a_cells_edge_does_not_reach_the_next():
    for width in (96, 100, 333):  # normalizing and back must not move the edge
        boxes = torch.tensor([[16.0, 16.0, 32.0, 48.0]])
        size = torch.tensor([width, 64.0, width, 64.0])
        cells = box_cells(boxes / size * size, (4, 6), 16)
        assert cells.nonzero().tolist() == [[1, 1], [2, 1]]


def target(masks=None, boxes=((0.5, 0.5, 0.25, 0.25),)) -> ImageTargets:
    return ImageTargets(
        torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes)).long(), (64, 64), masks
    )


def test_masks_are_read_in_both_of_detectron2s_kinds():
    square = [[20.0, 20.0, 40.0, 20.0, 40.0, 40.0, 20.0, 40.0]]
    polygons = PolygonMasks([[square[0]]])
    bitmap = torch.zeros(1, 64, 64, dtype=torch.bool)
    bitmap[0, 20:40, 20:40] = True
    for masks in (polygons, BitMasks(bitmap)):
        (cells,) = object_cells([target(masks)], (4, 4), [16], kind="masks")
        assert cells.view(4, 4).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    with pytest.raises(ValueError, match="gt_masks"):
        object_cells([target()], (4, 4), [16], kind="masks")
    (cells,) = object_cells([target(boxes=())], (4, 4), [16], kind="masks")
    assert not cells.any()


def traced(model, batch):
    with record_tokens() as trace:
        losses = model(batch)
    return losses, trace


def test_the_loss_is_cross_entropy_of_every_block_and_of_the_first_gate():
    model = observe(Detector(small_spt(selection_loss_weight=0.5).train()))
    kept = {}
    model.backbone.gate.register_forward_hook(lambda m, i, o: kept.update(first=o[..., 0]))
    losses, trace = traced(model, records())
    assert set(losses) == {"loss_own", "loss_selection"}
    maps = [(8, kept["first"].detach())]
    for forward, stride in zip(trace.forwards, (16, 32), strict=True):
        maps += [(stride, layer.scores["gate"]) for layer in forward.layers]
    total = 0.0
    for stride, logit in maps:
        grid = (-(-96 // stride), -(-120 // stride))
        terms = []
        for image, (height, width) in enumerate(SIZES):
            label = cells_by_hand(BOXES[image], grid, stride)
            for row in range(-(-height // stride)):
                for column in range(-(-width // stride)):
                    share = logit[image].double().view(grid)[row, column].sigmoid()
                    terms.append(-(share if label[row, column] else 1 - share).log())
        total += torch.stack(terms).mean()
    torch.testing.assert_close(losses["loss_selection"].detach().double(), 0.5 * total)
    losses["loss_selection"].backward()
    gates = [p for name, p in model.named_parameters() if "gate" in name]
    assert len(gates) == 10 and all(p.grad is not None for p in gates)


def test_without_the_loss_no_annotations_are_needed():
    model = observe(Detector(small_spt(selection_loss_weight=0.0).train()))
    assert set(model(records(annotated=False))) == {"loss_own"}
    model = observe(Detector(small_spt().train()))
    with pytest.raises(KeyError, match="has no 'instances'"):
        model(records(annotated=False))


def test_metrics_of_a_step_are_written():
    model = observe(Detector(small_spt(threshold=0.0).train()))
    with EventStorage() as storage:
        model(records())
        latest = {name: value for name, (value, _) in storage.latest().items()}
    for stage in (3, 4):
        assert latest[f"select_ratio/stage{stage}"] == 1.0
        assert latest[f"object_token_retention/stage{stage}"] == 1.0
    labels = [cells_by_hand(b, (6, 8), 16) for b in BOXES]
    tokens = sum(-(-h // 16) * -(-w // 16) for h, w in SIZES)
    density = sum(int(label.sum()) for label in labels) / tokens
    assert latest["object_token_density/stage3"] == pytest.approx(density)
    model = observe(Detector(small_spt(threshold=1.0, selection_loss_weight=0.0).train()))
    with EventStorage() as storage:
        model(records(annotated=False))
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["select_ratio_max/stage3"] == 0.0
    assert "object_token_retention/stage3" not in latest


class Count(DatasetEvaluator):
    def __init__(self, dataset_name, output_dir=None, extra=0):
        self.extra, self.output_dir = extra, output_dir

    def evaluate(self):
        return {"bbox": {"AP": float(self.extra)}}


def register_images(name: str) -> None:
    """Register the images of ``records()`` at twice the size as a data set."""
    DatasetCatalog.register(
        name,
        lambda: [
            {
                "image_id": image,
                "height": 2 * height,
                "width": 2 * width,
                "annotations": [
                    {"bbox": [2 * x for x in box], "bbox_mode": BoxMode.XYXY_ABS} for box in boxes
                ]
                + [{"bbox": [0, 0, 128, 128], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}],
            }
            for image, ((height, width), boxes) in enumerate(zip(SIZES, BOXES, strict=True))
        ],
    )


def test_evaluation_reports_ratio_and_retention_beside_the_evaluators_results(tmp_path):
    register_images("spt_test_data")
    node = L(Count)(dataset_name="spt_test_data", extra=7)
    watch_selection(node)
    node.output_dir = str(tmp_path)
    evaluator = instantiate(watch_selection(node))
    DatasetCatalog.get("spt_test_data")
    model = observe(Detector(small_spt(threshold=0.5))).eval()
    evaluator.reset()
    hits = selected = objects = 0.0
    ratios = []
    for record in records(annotated=False):
        (output,) = model([record])
        assert output["instances"] == 0
        evaluator.process([record], [output])
        mask = output["token_selection"][16].float().mean(0)
        label = cells_by_hand(BOXES[record["image_id"]], tuple(mask.shape), 16)
        hits += float((mask * label).sum())
        selected, objects = selected + float(mask.sum()), objects + int(label.sum())
        ratios.append(float(mask.mean()))
    results = evaluator.evaluate()
    DatasetCatalog.remove("spt_test_data")
    assert results["bbox"] == {"AP": 7.0}
    figures = results["selection"]
    assert 0 < figures["select_ratio_stride16"] == pytest.approx(sum(ratios) / 2)
    assert figures["select_ratio_min_stride16"] == pytest.approx(min(ratios))
    assert figures["object_token_retention_stride16"] == pytest.approx(hits / objects)
    assert figures["object_token_density_stride16"] == pytest.approx(hits / selected)
    lines = json.loads((tmp_path / "token_selection.json").read_text())
    assert len(lines) == 4 and {line["image_id"] for line in lines} == {0, 1}


def test_a_batch_of_unequal_images_reports_each_images_own_tokens():
    model = observe(Detector(small_spt(threshold=0.0))).eval()
    outputs = model(records(annotated=False))
    shapes = [tuple(output["token_selection"][16].shape) for output in outputs]
    assert shapes == [(2, 6, 4), (2, 4, 8)]
    assert all(output["token_selection"][32].all() for output in outputs)


NOTHING, HALF = 1.0, 0.5
"""Thresholds by which a fresh backbone selects no token, and about half of them."""


def train_in_process(rank: int, folder: str) -> None:
    batch = records()
    if rank == 1:  # a rank without objects
        batch = [{**record, "instances": record["instances"][:0]} for record in batch]
    for threshold in (NOTHING, HALF):
        model = observe(Detector(small_spt(threshold=threshold).train()))
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # a second step fails if the first left parameters without gradients
            losses = wrapped(batch)
            sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save(gradients, os.path.join(folder, f"{threshold}_{rank}.pt"))


def test_two_processes_train_alike_also_with_nothing_selected(tmp_path):
    run_two_processes(train_in_process, tmp_path)
    for threshold in (NOTHING, HALF):
        first, second = (torch.load(tmp_path / f"{threshold}_{rank}.pt") for rank in (0, 1))
        for name, gradient in first.items():
            assert gradient is not None and torch.isfinite(gradient).all(), name
            torch.testing.assert_close(gradient, second[name])
        qkv = first["backbone.layers.2.blocks.0.attn.qkv.weight"]
        assert (qkv.abs().max() == 0) == (threshold == NOTHING)


def test_the_options_reach_the_model_from_a_config():
    node = L(SPT)(**SMALL, keep_ratio=0.25, start_stage=4)
    model = instantiate(node)
    assert model.layers[3].blocks[0].options.rule.keep_ratio == 0.25
    assert not hasattr(model.layers[2].blocks[0], "gate")
