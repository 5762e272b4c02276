"""Start processes: torchrun's or SLURM's environment, detectron2's launch, or gloo on CPUs."""

import contextlib
import copy
import gc
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# Its functions keep the group of the moment of their import as a default argument, for ever.
# DistributedDataParallel imports it when a group exists; imported here it finds none.
import torch.distributed.nn.functional
import torch.multiprocessing as mp
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

__all__ = ["Environment", "detect_environment", "launch", "process_group"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Environment:
    """What another program that started this process says about the processes of the run.

    Attributes:
        rank, world_size: of this process, over all machines.
        local_rank, local_size: of this process, on its machine.
        init_method: where the processes meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str

    @property
    def is_one_per_machine(self) -> bool:
        """Whether SLURM started one process on each machine; torchrun's keep their rendezvous."""
        return self.local_size == 1 and self.init_method.startswith("tcp://")


def detect_environment(environ: dict[str, str] | None = None) -> Environment | None:
    """The environment of torchrun or of an ``srun`` step with several tasks, else None.

    Raises:
        ValueError: the environment is incomplete or contradicts itself.
    """
    env = dict(os.environ) if environ is None else environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        world_size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
        return Environment(
            int(env["RANK"]), world_size, int(env["LOCAL_RANK"]), local_size, "env://"
        )
    # Only a step started by srun sets the number of its tasks; a batch script is one process.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks <= 1:
        return None
    missing = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"} - env.keys()
    if missing:
        raise ValueError(f"a SLURM step of {tasks} tasks without {', '.join(sorted(missing))}")
    nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks % nodes:
        raise ValueError(f"SLURM gave {tasks} tasks to {nodes} nodes: use --ntasks-per-node")
    host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    # Jobs that share a node must not meet: each takes a port of its own.
    job = int(env.get("SLURM_STEP_ID", "0")) + int(env.get("SLURM_JOB_ID", "0"))
    port = env.get("MASTER_PORT") or str(20000 + job % 20000)
    return Environment(
        int(env["SLURM_PROCID"]),
        tasks,
        int(env["SLURM_LOCALID"]),
        tasks // nodes,
        f"tcp://{host}:{port}",
    )


def first_host(node_list: str) -> str:
    """The first host of SLURM's compressed list: ``gpu[03-07,9],cpu1`` gives ``gpu03``."""
    match = re.match(r"^([^\[,]+)(?:\[([^\]]+)\]([^,]*))?", node_list.strip())
    if match is None:
        raise ValueError(f"cannot read the SLURM node list {node_list!r}")
    prefix, numbers, suffix = match.groups()
    if numbers is None:
        return prefix
    return f"{prefix}{re.split('[-,]', numbers)[0]}{suffix or ''}"


def launch(
    main: Callable[..., Any],
    args: Any,
    *,
    device: str,
    default_dist_url: str | None = None,
) -> None:
    """Run ``main(args)`` in every process of the run.

    Inside torchrun or an srun step this process is one of them; a step with one task per machine
    may start ``--num-gpus`` processes on each, as machines without SLURM do. Otherwise
    ``--num-gpus`` processes are started on this machine: by detectron2 on GPUs, over gloo where
    ``device`` is a CPU.

    Args:
        main: importable by name.
        args: command line as of ``detectron2.engine.default_argument_parser``.
        device: ``train.device``.
        default_dist_url: value of ``--dist-url`` that means that none was given; then processes of
            one machine meet at a free port.
    """
    environment = detect_environment()
    if environment is not None and environment.world_size > 1:
        if not (environment.is_one_per_machine and args.num_gpus > 1):
            if args.num_gpus not in (1, environment.local_size):
                logger.warning(
                    "--num-gpus %d is not used: %d processes were started on this machine already",
                    args.num_gpus,
                    environment.local_size,
                )
            _join(environment, main, args, device)
            return
        # One task per machine that starts the machine's processes itself.
        args = copy.copy(args)
        args.num_machines, args.machine_rank = environment.world_size, environment.rank
        args.dist_url = environment.init_method
    if args.num_gpus * args.num_machines <= 1:
        main(args)
        return
    url = args.dist_url
    if args.num_machines == 1 and url in (default_dist_url, "auto"):
        url = f"tcp://127.0.0.1:{_free_port()}"
    if device.startswith("cuda"):
        detectron2_launch(
            main, args.num_gpus, args.num_machines, args.machine_rank, url, args=(args,)
        )
        return
    mp.start_processes(
        _cpu_process,
        nprocs=args.num_gpus,
        args=(main, args, url, device),
        daemon=False,
        start_method="spawn",
    )


def _cpu_process(
    local_rank: int, main: Callable[..., Any], args: Any, url: str, device: str
) -> None:
    rank = args.machine_rank * args.num_gpus + local_rank
    world_size = args.num_machines * args.num_gpus
    _join(Environment(rank, world_size, local_rank, args.num_gpus, url), main, args, device)


def _join(environment: Environment, main: Callable[..., Any], args: Any, device: str) -> None:
    """Join the process group, run, leave the group."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        if environment.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {environment.local_rank} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(environment.local_rank)
    else:
        threads = (os.cpu_count() or 1) // environment.local_size
        torch.set_num_threads(max(1, min(torch.get_num_threads(), threads)))
    with process_group("nccl" if on_gpu else "gloo", environment):
        comm.create_local_process_group(environment.local_size)
        comm.synchronize()
        main(args)


@contextlib.contextmanager
def process_group(backend: str, environment: Environment) -> Iterator[None]:
    """Join a process group; leave it, and end its threads, at the end of the ``with`` block.

    What the block leaves behind must not refer to the group: a model wrapped in
    DistributedDataParallel belongs in a function that has returned. A thread of a group that is
    still alive when the interpreter shuts down would abort the process.

    Args:
        backend: "nccl" or "gloo".
        environment: this process's place among the others, and where they meet.
    """
    dist.init_process_group(
        backend,
        init_method=environment.init_method,
        rank=environment.rank,
        world_size=environment.world_size,
    )
    try:
        yield
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        comm.create_local_process_group.cache_clear()
        comm._get_global_gloo_group.cache_clear()
        gc.collect()  # cycles of DistributedDataParallel
        dist.destroy_process_group()
        gc.collect()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
