"""Queries of the process group that also work in a single process."""

import torch.distributed as dist


def is_dist_avail_and_initialized() -> bool:
    """Return True if ``torch.distributed`` is built in and a default process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes in the default group, 1 without one."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1
