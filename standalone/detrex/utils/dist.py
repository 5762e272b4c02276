"""Queries of the process group that also work in a single process, and Slurm jobs' groups."""

import os
import subprocess
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm


def is_dist_avail_and_initialized() -> bool:
    """Return True if ``torch.distributed`` is built in and a default process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes in the default group, 1 without one."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1


def slurm_init_distributed_mode(args: Any) -> None:
    """Join the process group of a Slurm job, one process per GPU.

    Args:
        args: has ``world_size`` and ``slurm`` with ``ngpus`` (processes per machine),
            ``ddp_comm_mode`` ("tcp": the first machine of the job at ``slurm.master_port``;
            otherwise ``dist_url`` as it is). ``rank``, ``gpu`` and ``dist_url`` are set.

    Raises:
        AssertionError: this process was not started by Slurm, or ``args`` has no ``slurm``.
    """
    assert "SLURM_PROCID" in os.environ, "SLURM_PROCID is not set: Slurm did not start this process"
    assert hasattr(args, "slurm"), "args.slurm is missing: say +slurm=NAME_OF_CONFIG"
    if args.slurm.ddp_comm_mode == "tcp":
        args.dist_url = f"tcp://{_first_machine()}:{args.slurm.master_port}"
    args.rank = int(os.environ["SLURM_PROCID"])
    args.gpu = args.rank % args.slurm.ngpus
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(args.gpu)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=args.dist_url,
        world_size=args.world_size,
        rank=args.rank,
    )
    comm.create_local_process_group(args.slurm.ngpus)
    comm.synchronize()


def _first_machine() -> str:
    """Return the name of the job's first machine."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return done.stdout.split()[0]
