"""Questions about the process group that also have an answer in a single process."""

import torch.distributed as dist


def is_dist_avail_and_initialized() -> bool:
    """Whether ``torch.distributed`` is built in and a default process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the default group, 1 without one."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1
