"""Detect a run's distributed environment, and join and leave its process group.

torchrun's and SLURM's environments are supported, and processes that :mod:`launch` starts itself.
"""

import contextlib
import errno
import gc
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

import torch.distributed as dist

# Its functions have the process group at the time of import as a default argument and keep it alive
# forever. DistributedDataParallel would import it while a group exists; here there is none yet.
import torch.distributed.nn.functional  # noqa: F401
from detectron2.utils import comm

from tokendetr.errors import ConfigError, RendezvousError
from tokendetr.train.network import LOOPBACK, listener, use_interface_towards

__all__ = [
    "Environment",
    "Timeouts",
    "detect_environment",
    "first_host",
    "meeting_host",
    "process_group",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timeouts:
    """Time that processes wait for each other, in seconds.

    Attributes:
        rendezvous: until all have joined (``train.distributed.rendezvous_timeout``).
        collective: in one collective operation (``train.distributed.collective_timeout``). It must
            exceed the time that rank 0 takes to compute the metrics of an evaluation, during which
            the others wait in one.
    """

    rendezvous: float = 300.0
    collective: float = 1800.0


@dataclass(frozen=True)
class Environment:
    """This process's place among the processes of a run.

    Attributes:
        rank, world_size: rank and number of processes over all machines.
        local_rank, local_size: rank and number of processes on this machine.
        init_method: rendezvous URL, such as ``tcp://host:port`` or ``env://``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str

    def __post_init__(self) -> None:
        if self.rank >= self.world_size:
            raise ConfigError(f"rank {self.rank} of {self.world_size} processes: 0 is the first")

    @property
    def is_one_per_machine(self) -> bool:
        """True if SLURM started one process per machine, which may start more on its machine.

        torchrun's (``env://``) may not: their rendezvous is for its own number of processes.
        """
        return self.local_size == 1 and self.init_method.startswith("tcp://")


def detect_environment(environ: dict[str, str] | None = None) -> Environment | None:
    """Return the environment of torchrun or of an ``srun`` step with several tasks, else None.

    Args:
        environ: environment variables; default ``os.environ``.

    Raises:
        ConfigError: the environment is incomplete or contradictory.
    """
    env = dict(os.environ) if environ is None else environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        world_size = _number(env, "WORLD_SIZE")
        local_size = _number(env, "LOCAL_WORLD_SIZE", world_size)
        rank, local_rank = _number(env, "RANK"), _number(env, "LOCAL_RANK")
        return Environment(rank, world_size, local_rank, local_size, "env://")
    # Only srun sets the number of tasks of a step; a batch script itself is one process.
    tasks = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    if tasks <= 1:
        return None
    missing = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"} - env.keys()
    if missing:
        raise ConfigError(f"a SLURM step of {tasks} tasks without {', '.join(sorted(missing))}")
    nodes = _number(env, "SLURM_STEP_NUM_NODES", 1)
    if not nodes or tasks % nodes:
        raise ConfigError(f"SLURM gave {tasks} tasks to {nodes} nodes: use --ntasks-per-node")
    host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    # Jobs that share a node must not connect to each other, so the port depends on the job.
    job = _number(env, "SLURM_STEP_ID", 0) + _number(env, "SLURM_JOB_ID", 0)
    port = env.get("MASTER_PORT") or str(20000 + job % 20000)
    return Environment(
        _number(env, "SLURM_PROCID"),
        tasks,
        _number(env, "SLURM_LOCALID"),
        tasks // nodes,
        f"tcp://{host}:{port}",
    )


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a count of the environment."""
    given = env.get(name, default)
    if isinstance(given, int):
        return given
    if given is None or not given.strip().isdecimal():
        raise ConfigError(f"the environment variable {name}={given!r} is not a number")
    return int(given)


def first_host(node_list: str) -> str:
    """Return the first host of SLURM's compressed list: ``gpu[03-07,9],cpu1`` gives ``gpu03``."""
    match = re.match(r"^([^\[,]+)(?:\[([^\]]+)\]([^,]*))?", node_list.strip())
    if match is None:
        raise ConfigError(f"cannot read the SLURM node list {node_list!r}")
    prefix, numbers, suffix = match.groups()
    if numbers is None:
        return prefix
    return f"{prefix}{re.split('[-,]', numbers)[0]}{suffix or ''}"


@contextlib.contextmanager
def process_group(
    backend: str, environment: Environment, timeouts: Timeouts | None = None
) -> Iterator[None]:
    """Join a process group; leave it, and end its threads, at the end of the ``with`` block.

    No reference to the group may outlive the block, so create a model wrapped in
    DistributedDataParallel in a function that returns before the end of the block. A thread of the
    group that is still alive when the interpreter shuts down aborts the process.

    Args:
        backend: "nccl" or "gloo".
        environment: this process's place among the others, and the rendezvous.
        timeouts: how long processes wait for each other.

    Raises:
        RendezvousError: not all processes joined in time, or they cannot reach each other.
    """
    timeouts = timeouts or Timeouts()
    host = meeting_host(environment.init_method)
    use_interface_towards(host)
    store = _meet(environment, timeouts)
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=timeouts.collective),
        )
    except RuntimeError as error:
        raise RendezvousError(
            f"rank {environment.rank} met the others at {host}, but {backend} cannot reach them: "
            f"{str(error).splitlines()[0]}. Set GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) to the "
            "interface between the machines, as `ip address` lists them"
        ) from error
    try:
        yield
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        comm.create_local_process_group.cache_clear()
        comm._get_global_gloo_group.cache_clear()
        # DistributedDataParallel forms reference cycles, which keep the group and its threads
        # alive. The caches above and the second collection release what destroying it lets go.
        gc.collect()
        dist.destroy_process_group()
        gc.collect()


def _meet(environment: Environment, timeouts: Timeouts) -> dist.Store:
    """Wait for all processes of the run, and return the store that they share.

    Raises:
        RendezvousError: not all joined; the message names the address and the timeout.
    """
    url = environment.init_method
    limit = timedelta(seconds=timeouts.rendezvous)
    try:
        if not url.startswith("tcp://"):
            rank, world_size = environment.rank, environment.world_size
            meeting = dist.rendezvous(url, rank, world_size, timeout=limit)
            store: dist.Store = next(meeting)[0]
        else:
            store = _tcp_store(environment, limit)
    except (RuntimeError, OSError, ValueError) as error:  # dist's errors are RuntimeErrors
        raise RendezvousError(
            f"rank {environment.rank} did not meet the {environment.world_size} processes of the "
            f"run at {url} within {timeouts.rendezvous:g} s "
            f"(train.distributed.rendezvous_timeout): {str(error).splitlines()[0]}. Check that all "
            "were started, with the same --dist-url and --num-machines, and that the port is free"
        ) from error
    return store


def _tcp_store(environment: Environment, limit: timedelta) -> dist.Store:
    """Create a store that listens only at the host of the URL.

    PyTorch's own listens at all of the machine's addresses.
    """
    parsed = urlparse(environment.init_method)
    host, port = parsed.hostname or LOOPBACK, int(parsed.port or 0)
    options: dict[str, Any] = {}
    if environment.rank == 0:
        try:
            options["master_listen_fd"] = listener(host, port).detach()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            logger.info("%s is not an address of this machine: listening at all addresses", host)
    return dist.TCPStore(
        host, port, environment.world_size, environment.rank == 0, limit, **options
    )  # fmt: skip


def meeting_host(init_method: str) -> str:
    """Return the host of a rendezvous URL; loopback for a file."""
    if init_method == "env://":
        return os.environ["MASTER_ADDR"]
    return urlparse(init_method).hostname or LOOPBACK
