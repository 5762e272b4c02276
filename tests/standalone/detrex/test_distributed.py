"""Losses are averaged over the boxes of all processes."""

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
