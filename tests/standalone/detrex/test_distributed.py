"""Losses are averaged over the boxes of all processes."""

import os

import pytest
import torch
from detrex.utils import get_world_size, is_dist_avail_and_initialized

from tests.processes import run_two_processes

pytestmark = pytest.mark.stand_ins


def targets(count):
    return [{"labels": torch.zeros(count, dtype=torch.long)}]


def count_in_two_processes(rank, folder):
    from detrex.modeling.criterion._counting import average_num_boxes

    device = torch.device("cpu")
    uneven = average_num_boxes(targets(5 if rank == 0 else 0), device)
    none = average_num_boxes(targets(0), device)
    torch.save((get_world_size(), uneven, none), f"{folder}/{rank}.pth")


def test_one_process_counts_its_own_boxes():
    from detrex.modeling.criterion._counting import average_num_boxes

    assert get_world_size() == 1 and not is_dist_avail_and_initialized()
    assert average_num_boxes(targets(5), torch.device("cpu")) == 5.0
    assert average_num_boxes(targets(0), torch.device("cpu")) == 1.0


def test_two_processes_share_the_mean_count(tmp_path):
    run_two_processes(count_in_two_processes, tmp_path)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pth", weights_only=True) == (2, 2.5, 1.0)


def join_as_slurm_would(rank, folder):
    """One of two processes of a job on one machine, as detrex's hydra_train_net.py joins them."""
    from types import SimpleNamespace

    import detectron2.utils.comm as comm
    from detrex.utils.dist import slurm_init_distributed_mode

    os.environ["SLURM_PROCID"] = str(rank)
    slurm = SimpleNamespace(ddp_comm_mode="file", ngpus=2)
    args = SimpleNamespace(slurm=slurm, world_size=2, dist_url=f"file://{folder}/slurm")
    slurm_init_distributed_mode(args)
    sizes = torch.tensor([args.rank, args.gpu, comm.get_local_size(), get_world_size()])
    torch.save(sizes, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def test_processes_of_a_slurm_job_join(tmp_path):
    torch.multiprocessing.spawn(join_as_slurm_would, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert found.tolist() == [rank, rank, 2, 2]


def test_a_process_that_slurm_did_not_start_is_told(monkeypatch):
    from detrex.utils.dist import slurm_init_distributed_mode

    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(AssertionError, match="SLURM_PROCID is not set"):
        slurm_init_distributed_mode(None)
