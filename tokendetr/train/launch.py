"""Start processes: torchrun's or SLURM's environment, or processes of our own.

They talk by nccl on GPUs and by gloo on CPUs, and start, fail and stop by the same code.
"""

import contextlib
import copy
import errno
import gc
import logging
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist

# Its functions keep the group of the moment of their import as a default argument, for ever.
# DistributedDataParallel imports it when a group exists; imported here it finds none.
import torch.distributed.nn.functional
from detectron2.utils import comm

from tokendetr.errors import RendezvousError
from tokendetr.train.failures import Failure
from tokendetr.train.stop import TrainingInterrupted
from tokendetr.train.watch import Hub, Watch, end_process

__all__ = [
    "Environment",
    "ProcessFailedError",
    "Timeouts",
    "detect_environment",
    "launch",
    "process_group",
]

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_FAREWELL_SECONDS = 6.0


class ProcessFailedError(SystemExit):
    """A process of the run failed and has shown why; carries the run's exit code."""


@dataclass(frozen=True)
class Timeouts:
    """How long processes wait for each other, in seconds.

    Attributes:
        rendezvous: until all have joined (``train.distributed.rendezvous_timeout``).
        collective: in one collective operation (``train.distributed.collective_timeout``); while
            rank 0 computes the metrics of an evaluation the others wait in one.
    """

    rendezvous: float = 300.0
    collective: float = 1800.0


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
    timeouts: Timeouts | None = None,
) -> None:
    """Run ``main(args)`` in every process of the run.

    Inside torchrun or an srun step this process is one of them; a step with one task per machine
    may start ``--num-gpus`` processes on each, as machines without SLURM do. Otherwise
    ``--num-gpus`` processes are started on this machine. They meet over loopback unless
    ``--dist-url`` names a host, and talk by nccl on GPUs and by gloo on CPUs.

    When one process fails, all of them end within seconds, with its error and its exit code.

    Args:
        main: importable by name. Where several processes run it, it may take the process's
            :class:`~tokendetr.train.watch.Watch` from ``args.watch``.
        args: command line as of ``detectron2.engine.default_argument_parser``.
        device: ``train.device``.
        default_dist_url: value of ``--dist-url`` that means that none was given; then processes of
            one machine meet at a free port.
        timeouts: how long processes wait for each other.

    Raises:
        ProcessFailedError: a process failed; it has shown its error.
        TrainingInterrupted: all processes were asked to stop and did.
    """
    timeouts = timeouts or Timeouts()
    environment = detect_environment()
    if environment is not None and environment.world_size > 1:
        if not (environment.is_one_per_machine and args.num_gpus > 1):
            if args.num_gpus not in (1, environment.local_size):
                logger.warning(
                    "--num-gpus %d is not used: %d processes were started on this machine already",
                    args.num_gpus,
                    environment.local_size,
                )
            _join(environment, main, args, device, timeouts)
            return
        # One task per machine that starts the machine's processes itself.
        args = copy.copy(args)
        args.num_machines, args.machine_rank = environment.world_size, environment.rank
        args.dist_url = environment.init_method
    if args.num_gpus < 0 or not 0 <= args.machine_rank < args.num_machines:
        raise RendezvousError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank "
            f"{args.machine_rank}: machines are numbered from 0 to one less than there are"
        )
    if args.num_gpus * args.num_machines <= 1:
        main(args)
        return
    url = args.dist_url
    if args.num_machines == 1 and url in (default_dist_url, "auto"):
        url = f"tcp://{_LOOPBACK}:{_free_port()}"
    _supervise(args.num_gpus, (main, args, url, device, timeouts))


def _supervise(count: int, arguments: tuple[Any, ...]) -> None:
    """Start this machine's processes, hand signals on to them, and see that all of them end."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    ends: list[Connection] = []
    for local_rank in range(count):
        own, other = context.Pipe()
        process = context.Process(target=_child, args=(local_rank, other, *arguments))
        process.start()
        other.close()
        processes.append(process)
        ends.append(own)
    with _handed_on(ends) as received:
        codes = _wait_for(processes)
    for end in ends:
        end.close()
    killed = [128 - code for code in codes if code < 0]
    code = next(iter(killed), None) or max(codes)
    if received and code == 128 + received[0]:
        raise TrainingInterrupted(received[0], is_agreed=True)
    if code:
        raise ProcessFailedError(code)


def _wait_for(processes: list[BaseProcess]) -> list[int]:
    """The exit codes, that of a process that had to be killed here as 0.

    After a failure the others end by themselves; one that cannot (it waits for the first one to
    join, or hangs in a driver) is killed.
    """
    killed_here: set[int] = set()
    deadline: float | None = None
    while running := [p for p in processes if p.exitcode is None]:
        limit = None if deadline is None else max(0.0, deadline - time.monotonic())
        wait([p.sentinel for p in running], limit)
        for process in running:
            process.join(0)
        if deadline is None and any(p.exitcode for p in processes):
            deadline = time.monotonic() + _FAREWELL_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            for process in processes:
                if process.exitcode is None and process.pid is not None:
                    killed_here.add(process.pid)
                    process.kill()
    return [0 if p.pid in killed_here else int(p.exitcode or 0) for p in processes]


@contextlib.contextmanager
def _handed_on(ends: list[Connection]) -> Iterator[list[int]]:
    """Hand SIGTERM and SIGINT on to the processes; yields the list of those that came."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not received:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.send(number)
        received.append(number)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals are left alone
        for stop in (signal.SIGTERM, signal.SIGINT):
            previous[stop] = signal.signal(stop, hand_on)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _child(
    local_rank: int,
    launcher: Connection,
    main: Callable[..., Any],
    args: Any,
    url: str,
    device: str,
    timeouts: Timeouts,
) -> None:
    rank = args.machine_rank * args.num_gpus + local_rank
    world_size = args.num_machines * args.num_gpus
    environment = Environment(rank, world_size, local_rank, args.num_gpus, url)
    _join(environment, main, args, device, timeouts, launcher)


def _join(
    environment: Environment,
    main: Callable[..., Any],
    args: Any,
    device: str,
    timeouts: Timeouts,
    launcher: Connection | None = None,
) -> None:
    """Join the process group, run, leave the group; a failure ends this process here."""
    on_gpu = device.startswith("cuda")
    watch: Watch | None = None
    try:
        _choose_device(environment, on_gpu)
        with process_group("nccl" if on_gpu else "gloo", environment, timeouts):
            comm.create_local_process_group(environment.local_size)
            watch = _start_watch(environment, launcher)
            args = copy.copy(args)
            args.watch = watch
            try:
                main(args)
            except TrainingInterrupted as error:
                if not error.is_agreed:
                    raise
                watch.close()
                raise
            except BaseException as error:
                # Before the group is left: the others must hear of this error first.
                watch.leave(_reported(watch, error))
            watch.close()
    except TrainingInterrupted as error:
        if not error.is_agreed and watch is not None:
            watch.leave(_reported(watch, error))
        raise
    except BaseException as error:
        failure = Failure.of(error, environment.rank)
        failure.show()
        end_process(failure.code)


def _reported(watch: Watch, error: BaseException) -> int:
    """Report an error, show it if it is the run's first, and return the run's exit code."""
    first = watch.report(error)
    if first.rank == watch.rank:
        first.show()
    return first.code


def _choose_device(environment: Environment, on_gpu: bool) -> None:
    if not on_gpu:
        threads = (os.cpu_count() or 1) // environment.local_size
        torch.set_num_threads(max(1, min(torch.get_num_threads(), threads)))
        return
    if environment.local_rank >= torch.cuda.device_count():
        raise RendezvousError(
            f"process {environment.local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}"
        )
    torch.cuda.set_device(environment.local_rank)


def _start_watch(environment: Environment, launcher: Connection | None) -> Watch:
    """Let rank 0 listen where the processes met, and every rank connect to it."""
    hub = (
        Hub(_host(environment.init_method), environment.world_size) if not comm.get_rank() else None
    )
    offer = None if hub is None else (hub.address, hub.secret)
    address, secret = comm.all_gather(offer)[0]
    watch = Watch(environment.rank, tuple(address), secret, hub, launcher)
    comm.synchronize()
    return watch


def _host(init_method: str) -> str:
    """The host at which the processes meet; loopback for a file."""
    if init_method == "env://":
        return os.environ["MASTER_ADDR"]
    return urlparse(init_method).hostname or _LOOPBACK


@contextlib.contextmanager
def process_group(
    backend: str, environment: Environment, timeouts: Timeouts | None = None
) -> Iterator[None]:
    """Join a process group; leave it, and end its threads, at the end of the ``with`` block.

    What the block leaves behind must not refer to the group: a model wrapped in
    DistributedDataParallel belongs in a function that has returned. A thread of a group that is
    still alive when the interpreter shuts down would abort the process.

    Args:
        backend: "nccl" or "gloo".
        environment: this process's place among the others, and where they meet.
        timeouts: how long they wait for each other.

    Raises:
        RendezvousError: they did not meet in time.
    """
    timeouts = timeouts or Timeouts()
    store = _meet(environment, timeouts)
    dist.init_process_group(
        backend,
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=timeouts.collective),
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


def _meet(environment: Environment, timeouts: Timeouts) -> dist.Store:
    """Wait for all processes of the run; the store over which they talk at first.

    Raises:
        RendezvousError: they did not meet; the message names the address and the time-out.
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
            f"(train.distributed.rendezvous_timeout): {str(error).splitlines()[0]}. Are all of "
            "them started, with the same --dist-url and --num-machines, and is the port free?"
        ) from error
    return store


def _tcp_store(environment: Environment, limit: timedelta) -> dist.Store:
    """A store that listens at the host of the address alone, not at every one of the machine."""
    parsed = urlparse(environment.init_method)
    host, port = parsed.hostname or _LOOPBACK, int(parsed.port or 0)
    _keep_to_loopback(host)
    listener: int | None = None
    if environment.rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family).detach()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            logger.info("%s is no address of this machine: listening at all of them", host)
    options: dict[str, Any] = {} if listener is None else {"master_listen_fd": listener}
    return dist.TCPStore(
        host, port, environment.world_size, environment.rank == 0, limit, **options
    )  # fmt: skip


def _keep_to_loopback(host: str) -> None:
    """Let gloo and nccl use the loopback interface where the processes meet there."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    if host in (_LOOPBACK, "localhost", "::1"):
        for name in names:
            if name in ("lo", "lo0"):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
