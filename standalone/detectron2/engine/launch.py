"""Start one process per device, on one machine or several."""

import gc
import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Imported before a group exists: its functions bind the default group of that moment permanently.
import torch.distributed.nn.functional
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)


def _find_free_port() -> int:
    """Return a TCP port of this machine that is free at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in one process per device.

    With one machine and at most one device it runs in this process. Otherwise it runs in spawned
    processes joined in a process group: nccl with GPUs, gloo without (``num_gpus_per_machine`` then
    counts CPU processes).

    Args:
        main_func: importable by name, because the processes are spawned.
        num_gpus_per_machine: processes on each machine.
        num_machines: number of machines; this must be called once on each.
        machine_rank: number of this machine, from 0.
        dist_url: rendezvous address, such as ``"tcp://127.0.0.1:8686"``; ``"auto"`` finds a free
            port of this machine (one machine only).
        args: arguments of ``main_func``.
        timeout: limit of collective operations.

    Raises:
        AssertionError: ``"auto"`` with several machines, no ``dist_url`` for several processes, or
            more processes than GPUs.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    assert dist_url is not None, "launch needs a dist_url (such as 'auto') for several processes"
    if dist_url == "auto":
        assert num_machines == 1, (
            "several machines need a dist_url that all of them reach, not 'auto'"
        )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "A shared file is a fragile meeting point for several machines: use tcp://host:port"
        )
    mp.start_processes(
        _run_process,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        daemon=False,
        start_method="spawn",
    )


def _run_process(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    timeout: timedelta,
) -> None:
    """Join the process group, choose the device, run the function."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert num_gpus_per_machine <= torch.cuda.device_count(), (
            f"{num_gpus_per_machine} processes were requested, but this machine has only "
            f"{torch.cuda.device_count()} GPUs"
        )
    global_rank = machine_rank * num_gpus_per_machine + local_rank
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=global_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error(
            "Process group initialization failed. Process group URL: %s", dist_url
        )
        raise
    try:
        comm.create_local_process_group(num_gpus_per_machine)
        if has_gpu:
            torch.cuda.set_device(local_rank)
        # Wait for all, so that the time-outs of collectives do not include the start.
        comm.synchronize()
        main_func(*args)
    finally:
        # A group that stays alive, in a cache or in a reference cycle of a DDP model, keeps threads
        # that abort the process at the interpreter's end. After an error, the other ranks would
        # wait for their time-out.
        comm._LOCAL_PROCESS_GROUP = None
        comm.create_local_process_group.cache_clear()
        comm._get_global_gloo_group.cache_clear()
        gc.collect()
        dist.destroy_process_group()
        gc.collect()
