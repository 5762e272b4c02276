"""Two gloo processes, one without boxes; and compiled evaluation."""

from pathlib import Path

import pytest
import torch

from tests.focus_detr.focus_models import focus_model
from tests.processes import run_two_processes
from tests.small_detectors import CLASSES, record
from tests.sparse_detr.test_sparse_processes import PER_PROCESS, step

VARIANTS = (("dino", None), ("deformable", CLASSES))


def build(name: str, num_classes: int | None):
    model = focus_model(name, num_classes=num_classes).double().train()
    model.dn_number = 0
    return model


def worker(rank: int, folder: str) -> None:
    for name, num_classes in VARIANTS:
        model = build(name, num_classes)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second raises where a parameter had no gradient in the first
            wrapped.zero_grad()
            step(wrapped, PER_PROCESS[rank])
        if rank == 0:
            gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
            torch.save(gradients, Path(folder) / f"{name}.pth")


def test_two_processes_one_without_boxes_equal_one(tmp_path):
    run_two_processes(worker, tmp_path)
    whole_batch = [one for records in PER_PROCESS for one in records]
    for name, num_classes in VARIANTS:
        both = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        for key, gradient in step(build(name, num_classes), whole_batch).items():
            torch.testing.assert_close(both[key], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_compiled_evaluation_gives_the_same_detections():
    model = focus_model("deformable_two_stage").eval()
    records = [record(64, 96, seed=1), record(64, 96, seed=2)]
    with torch.no_grad():
        expected = model(records)
        found = torch.compile(model, backend="aot_eager")(records)
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours["instances"], theirs["instances"]
        torch.testing.assert_close(ours.scores, theirs.scores)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
