"""Focus-DETR in two gloo processes, one without boxes; and compiled evaluation."""

from pathlib import Path

import pytest

from tests.focus_detr.focus_models import focus_model
from tests.processes import (
    assert_gradients_of_whole_batch,
    run_two_processes,
    save_common_gradients,
)
from tests.small_detectors import (
    CLASSES,
    ONE_WITHOUT_BOXES,
    assert_compiled_equals_eager,
    record,
)

VARIANTS = (("dino", None), ("deformable", CLASSES))


def build(name: str, num_classes: int | None):
    model = focus_model(name, num_classes=num_classes).double().train()
    model.dn_number = 0
    return model


def worker(rank: int, folder: str) -> None:
    for name, num_classes in VARIANTS:
        model = build(name, num_classes)
        save_common_gradients(rank, model, [ONE_WITHOUT_BOXES[rank]], Path(folder, f"{name}.pth"))


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    run_two_processes(worker, tmp_path)
    for name, num_classes in VARIANTS:
        model = build(name, num_classes)
        file = tmp_path / f"{name}.pth"  # a part of the loss is computed in float32
        assert_gradients_of_whole_batch(file, model, ONE_WITHOUT_BOXES, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_compiled_evaluation_gives_the_same_detections():
    model = focus_model("deformable_two_stage")
    assert_compiled_equals_eager(model, [record(64, 96, seed=1), record(64, 96, seed=2)])
