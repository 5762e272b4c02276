"""Two gloo processes train like one on the whole batch, even if one of them has no box."""

from pathlib import Path

from torch.nn.parallel import DistributedDataParallel

from tests.processes import (
    assert_gradients_of_whole_batch,
    gradients,
    run_two_processes,
    save_common_gradients,
)
from tests.small_detectors import ONE_WITHOUT_BOXES, build

DETECTORS = ("dino", "deformable_two_stage")


def worker(rank: int, folder: str) -> None:
    records = [ONE_WITHOUT_BOXES[rank]]
    for name in DETECTORS:
        model = build(name).double().train()
        if name == "dino":  # first with denoising, which only the first process has boxes for
            gradients(DistributedDataParallel(model), records)
            model.dn_number = 0
        save_common_gradients(rank, model, records, Path(folder, f"{name}.pth"))


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    run_two_processes(worker, tmp_path)
    for name in DETECTORS:
        model = build(name).double().train()
        if name == "dino":
            model.dn_number = 0
        assert_gradients_of_whole_batch(tmp_path / f"{name}.pth", model, ONE_WITHOUT_BOXES)
