"""Sparse DETR in two gloo processes, one without boxes; and compiled evaluation."""

from pathlib import Path

import pytest

from tests.processes import (
    assert_gradients_of_whole_batch,
    run_two_processes,
    save_common_gradients,
)
from tests.small_detectors import ONE_WITHOUT_BOXES, assert_compiled_equals_eager, record
from tests.sparse_detr.sparse_detectors import sparse

VARIANTS = (("dino", "dam"), ("deformable_two_stage", "objectness"))


def build(name: str, selection: str):
    detector = {"dn_number": 0} if name == "dino" else {}
    return sparse(name, selection=selection, detector=detector).double().train()


def worker(rank: int, folder: str) -> None:
    for name, selection in VARIANTS:
        model = build(name, selection)
        save_common_gradients(rank, model, [ONE_WITHOUT_BOXES[rank]], Path(folder, f"{name}.pth"))


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    run_two_processes(worker, tmp_path)
    for name, selection in VARIANTS:
        model = build(name, selection)
        assert_gradients_of_whole_batch(tmp_path / f"{name}.pth", model, ONE_WITHOUT_BOXES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino", "deformable_two_stage"])
def test_compiled_evaluation_gives_the_same_detections(name):
    assert_compiled_equals_eager(sparse(name), [record(64, 96, seed=1), record(64, 96, seed=2)])
