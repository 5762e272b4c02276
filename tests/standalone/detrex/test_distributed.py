"""Losses are averaged over the boxes of all processes."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detrex.modeling.criterion.counting import average_num_boxes
from detrex.utils import get_world_size, is_dist_avail_and_initialized


def targets(count):
    return [{"labels": torch.zeros(count, dtype=torch.long)}]


def count_in_two_processes(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    device = torch.device("cpu")
    uneven = average_num_boxes(targets(5 if rank == 0 else 0), device)
    none = average_num_boxes(targets(0), device)
    results[rank] = (get_world_size(), uneven, none)
    dist.destroy_process_group()


def test_one_process_counts_its_own_boxes():
    assert get_world_size() == 1 and not is_dist_avail_and_initialized()
    assert average_num_boxes(targets(5), torch.device("cpu")) == 5.0
    assert average_num_boxes(targets(0), torch.device("cpu")) == 1.0


def test_two_processes_share_the_mean_count(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(count_in_two_processes, (tmp_path / "store", results), nprocs=2)
        assert dict(results) == {0: (2, 2.5, 1.0), 1: (2, 2.5, 1.0)}
