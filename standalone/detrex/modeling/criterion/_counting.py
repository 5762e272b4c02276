"""Count the ground-truth boxes that losses are averaged over."""

from collections.abc import Mapping, Sequence

import torch
from detrex.utils import get_world_size, is_dist_avail_and_initialized


def average_num_boxes(targets: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> float:
    """Return the boxes per process, averaged over all processes, at least 1.

    Args:
        targets: per image "labels" [G].
        device: device of the exchange between processes.
    """
    num_boxes = float(sum(len(target["labels"]) for target in targets))
    if is_dist_avail_and_initialized():
        total = torch.as_tensor([num_boxes], dtype=torch.float, device=device)
        torch.distributed.all_reduce(total)
        num_boxes = total.item()
    return max(num_boxes / get_world_size(), 1.0)
