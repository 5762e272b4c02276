"""Two gloo processes, one without boxes; and compiled evaluation."""

from pathlib import Path

import pytest
import torch

from tests.processes import run_two_processes
from tests.small_detectors import record
from tests.sparse_detr.sparse_detectors import sparse

VARIANTS = (("dino", "dam"), ("deformable_two_stage", "objectness"))
PER_PROCESS = [
    [record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]], seed=1)],
    [record(64, 96, [], seed=2)],
]


def step(model, records):
    losses = model([one | {"image": one["image"].double()} for one in records])
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def build(name: str, selection: str):
    detector = {"dn_number": 0} if name == "dino" else {}
    return sparse(name, selection=selection, detector=detector).double().train()


def worker(rank: int, folder: str) -> None:
    for name, selection in VARIANTS:
        model = build(name, selection)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        step(wrapped, PER_PROCESS[rank])
        wrapped.zero_grad()
        step(wrapped, PER_PROCESS[rank])  # raises where a parameter had no gradient before
        if rank == 0:
            grads = {n: p.grad for n, p in model.named_parameters()}
            torch.save(grads, Path(folder) / f"{name}.pth")


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    run_two_processes(worker, tmp_path)
    for name, selection in VARIANTS:
        both = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        alone = step(build(name, selection), [one for records in PER_PROCESS for one in records])
        assert set(both) == set(alone)
        for key, gradient in alone.items():
            torch.testing.assert_close(both[key], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", [pytest.param("dino", marks=pytest.mark.slow), "deformable_two_stage"]
)
def test_compiled_evaluation_gives_the_same_detections(name):
    model = sparse(name).eval()
    records = [record(64, 96, seed=1), record(64, 96, seed=2)]
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        results = compiled(records), model(records)
    for ours, theirs in zip(*results, strict=True):
        ours, theirs = ours["instances"], theirs["instances"]
        torch.testing.assert_close(ours.scores, theirs.scores)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
