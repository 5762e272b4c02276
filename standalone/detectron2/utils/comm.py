"""Communication between the processes of a training run.

Everything also works without a process group.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
"""Group of the processes on this machine; made by :func:`create_local_process_group`."""


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes in the run."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Return the number of this process in the run, from 0."""
    return dist.get_rank() if _initialized() else 0


@functools.lru_cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the groups of processes on the same machine.

    Every process must call this once, with the same argument.

    Args:
        num_workers_per_machine: processes on each machine; ranks are assigned to machines in
            consecutive runs.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None
    assert get_world_size() % num_workers_per_machine == 0
    machines = get_world_size() // num_workers_per_machine
    own = get_rank() // num_workers_per_machine
    for machine in range(machines):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == own:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the processes on this machine.

    :func:`create_local_process_group` must have been called.
    """
    assert _LOCAL_PROCESS_GROUP is not None, (
        "Local process group is not created! Please use launch() to spawn processes!"
    )
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    if not _initialized():
        return 0
    return dist.get_rank(group=get_local_process_group())


def get_local_size() -> int:
    """Return the number of processes on this machine."""
    if not _initialized():
        return 1
    return dist.get_world_size(group=get_local_process_group())


def is_main_process() -> bool:
    """Return True in the process with rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has reached this point."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _get_global_gloo_group() -> Any:
    """Return a group of all processes that exchanges CPU data."""
    if dist.get_backend() == "nccl":
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Collect one picklable object from every process.

    Args:
        data: any picklable object; sizes may differ.
        group: a process group; by default all processes, over gloo.

    Returns:
        The objects in the order of the ranks.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    collected: list[Any] = [None] * world_size
    dist.all_gather_object(collected, data, group=group)
    return collected


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Collect one picklable object from every process on one of them.

    Args:
        data: any picklable object; sizes may differ.
        dst: rank that receives.
        group: a process group; by default all processes, over gloo.

    Returns:
        On ``dst`` the objects in the order of the ranks, elsewhere an empty list.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    if dist.get_rank(group=group) != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    collected: list[Any] = [None] * world_size
    dist.gather_object(data, collected, dst=dst, group=group)
    return collected


def shared_random_seed() -> int:
    """Return a random number, equal in all processes; all of them must call this."""
    return int(all_gather(int(np.random.randint(2**31)))[0])


def reduce_dict(input_dict: Mapping[str, Tensor], average: bool = True) -> Mapping[str, Tensor]:
    """Sum or average the values of a dict over all processes, so that rank 0 holds the result.

    Args:
        input_dict: scalar tensors under the same keys in every process.
        average: divide by the number of processes.

    Returns:
        A dict with the same keys; complete on rank 0 alone.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if dist.get_rank() == 0 and average:
            values /= world_size
        return dict(zip(names, values, strict=True))
