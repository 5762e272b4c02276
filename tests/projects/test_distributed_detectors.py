"""Two gloo processes train like one on the whole batch, also when one of them has no box."""

from pathlib import Path

import torch

from tests.processes import run_two_processes
from tests.small_detectors import build, record

DETECTORS = ("dino", "deformable_two_stage")
RECORDS = [
    record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]], seed=1),
    record(64, 96, [], seed=2),
]


def gradients(model, records) -> dict[str, torch.Tensor]:
    records = [r | {"image": r["image"].double()} for r in records]
    sum(model(records).values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def worker(rank: int, folder: str) -> None:
    batch = [RECORDS[rank] | {"image": RECORDS[rank]["image"].double()}]
    for name in DETECTORS:
        model = build(name).double().train()
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        if name == "dino":  # first with denoising, which only the first process has boxes for
            sum(wrapped(batch).values()).backward()
            wrapped.zero_grad()
            model.dn_number = 0
        sum(wrapped(batch).values()).backward()
        if rank == 0:
            grads = {n: p.grad for n, p in model.named_parameters()}
            torch.save(grads, Path(folder) / f"{name}.pth")


def test_two_processes_equal_one(tmp_path):
    run_two_processes(worker, tmp_path)
    for name in DETECTORS:
        both = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        model = build(name).double().train()
        if name == "dino":
            model.dn_number = 0
        alone = gradients(model, RECORDS)
        assert set(both) == set(alone)
        for key, gradient in alone.items():
            torch.testing.assert_close(both[key], gradient, rtol=1e-9, atol=1e-12)
