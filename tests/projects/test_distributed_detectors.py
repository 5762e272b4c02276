"""Two gloo processes train like one on the whole batch, also when one of them has no box."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import tokendetr  # noqa: F401  (for the spawned processes)
from tests.small_detectors import build, record

RECORDS = [
    record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]], seed=1),
    record(64, 96, [], seed=2),
]


def gradients(model, records) -> dict[str, torch.Tensor]:
    records = [r | {"image": r["image"].double()} for r in records]
    sum(model(records).values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def worker(rank: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    options = {"dn_number": 6} if name == "dino" else {}
    model = build(name, **options).double().train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    sum(wrapped([RECORDS[rank] | {"image": RECORDS[rank]["image"].double()}]).values()).backward()
    wrapped.zero_grad()
    if name == "dino":
        model.dn_number = 0
    sum(wrapped([RECORDS[rank] | {"image": RECORDS[rank]["image"].double()}]).values()).backward()
    if rank == 0:
        torch.save({n: p.grad for n, p in model.named_parameters()}, Path(folder) / "grads.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["dino", "deformable_two_stage"])
def test_two_processes_equal_one(name, tmp_path):
    mp.spawn(worker, args=(name, str(tmp_path)), nprocs=2, join=True)
    both = torch.load(tmp_path / "grads.pth", weights_only=True)
    options = {"dn_number": 0} if name == "dino" else {}
    alone = gradients(build(name, **options).double().train(), RECORDS)
    assert set(both) == set(alone)
    for key, gradient in alone.items():
        torch.testing.assert_close(both[key], gradient, rtol=1e-9, atol=1e-12)
