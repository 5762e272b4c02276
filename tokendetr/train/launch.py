"""Launch a run's processes: join those of torchrun or SLURM, or start them on this machine.

They communicate by nccl on GPUs and by gloo on CPUs. However they were started, they share the code
for joining, failing and stopping.
"""

import contextlib
import copy
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from detectron2.utils import comm

from tokendetr.compat.resource_tracker import start_resource_tracker
from tokendetr.errors import RendezvousError
from tokendetr.io.signals import handle_signals, restore_signals
from tokendetr.train.failures import Failure
from tokendetr.train.network import LOOPBACK, free_port
from tokendetr.train.process_group import (
    Environment,
    Timeouts,
    detect_environment,
    meeting_host,
    process_group,
)
from tokendetr.train.stop import TrainingInterrupted
from tokendetr.train.watch import Hub, Watch, end_process

__all__ = ["ProcessFailedError", "launch"]

logger = logging.getLogger(__name__)

_FAREWELL_SECONDS = 6.0


class ProcessFailedError(SystemExit):
    """A process of the run failed and has printed its error; carries the run's exit code."""


def launch(
    main: Callable[..., Any],
    args: Any,
    *,
    device: str,
    default_dist_url: str | None = None,
    timeouts: Timeouts | None = None,
) -> None:
    """Run ``main(args)`` in every process of the run.

    Under torchrun or in an srun step this process is one of the run's. Otherwise, or in a step with
    one task per machine, it starts ``--num-gpus`` processes on its machine. These connect over
    loopback unless ``--dist-url`` names a host.

    If one process fails, all end within seconds, with its error and its exit code.

    Args:
        main: a function that can be imported by name. If the run has several processes,
            ``args.watch`` is the process's :class:`~tokendetr.train.watch.Watch`.
        args: command line, as of ``detectron2.engine.default_argument_parser``.
        device: ``train.device``.
        default_dist_url: value of ``--dist-url`` that stands for none; processes of one machine
            then use a free port.
        timeouts: how long processes wait for each other.

    Raises:
        ProcessFailedError: a process failed; it has printed its error.
        RendezvousError: the numbers of processes and machines contradict each other.
        TrainingInterrupted: all processes were asked to stop and did.
    """
    timeouts = timeouts or Timeouts()
    environment = detect_environment()
    if environment is not None and environment.world_size > 1:
        if not (environment.is_one_per_machine and args.num_gpus > 1):
            if args.num_gpus not in (1, environment.local_size):
                logger.warning(
                    "--num-gpus %d is ignored: %d processes were started on this machine already",
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
        url = f"tcp://{LOOPBACK}:{free_port()}"
    _supervise(args.num_gpus, (main, args, url, device, timeouts))


def _supervise(count: int, arguments: tuple[Any, ...]) -> None:
    """Start this machine's processes, forward signals to them, and wait until all have ended."""
    start_resource_tracker()
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    ends: list[Connection] = []
    try:
        for local_rank in range(count):
            own, other = context.Pipe()
            process = context.Process(target=_child, args=(local_rank, other, *arguments))
            process.start()
            other.close()
            processes.append(process)
            ends.append(own)
    except BaseException:
        for started in processes:
            started.kill()
        raise
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
    """Wait for the processes and return their exit codes, 0 for those that were killed here.

    After a failure the others end on their own. Those that cannot, because they wait for the failed
    one to join or hang in a driver, are killed after some seconds.
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
    """Forward the first stop signal to the processes; yield the list of those received.

    They are forwarded over pipes, not as signals: a terminal's Ctrl-C has reached the processes
    already, and a second SIGINT could be taken for the request to stop at once.
    """
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not received:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.send(number)
        received.append(number)

    previous = handle_signals(hand_on)
    try:
        yield received
    finally:
        restore_signals(previous)


def _child(
    local_rank: int,
    launcher: Connection,
    main: Callable[..., Any],
    args: Any,
    url: str,
    device: str,
    timeouts: Timeouts,
) -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    rank = args.machine_rank * args.num_gpus + local_rank
    world_size = args.num_machines * args.num_gpus
    environment = Environment(rank, world_size, local_rank, args.num_gpus, url)
    _join(environment, main, args, device, timeouts, launcher)


def _end_with_parent() -> None:
    """End this process with the one that started it, also while it waits for others to join."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    logger.error("The program that started process %d is gone: ending", os.getpid())
    end_process(1)


def _join(
    environment: Environment,
    main: Callable[..., Any],
    args: Any,
    device: str,
    timeouts: Timeouts,
    launcher: Connection | None = None,
) -> None:
    """Join the process group, run, and leave the group; a failure ends this process here.

    There are two orderly ways out: the end of ``main``, and a stop that all ranks agreed on at the
    same iteration. In both, no rank waits for another in a collective operation, so each closes its
    watch and leaves the group. Any other exception means that the others may be waiting for this
    rank, so it reports the error first, and :meth:`Watch.leave` ends the process without leaving
    the group.
    """
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
                # Before the group is left: that breaks the others' connections, and they would
                # report those errors instead of this one.
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
    """Report an error, print it if it is the run's first, and return the run's exit code."""
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
    """Make rank 0 listen at the rendezvous host, and connect every rank to it."""
    host = meeting_host(environment.init_method)
    hub = None if comm.get_rank() else Hub(host, environment.world_size)
    offer = None if hub is None else (hub.address, hub.secret)
    address, secret = comm.all_gather(offer)[0]
    watch = Watch(environment.rank, tuple(address), secret, hub, launcher)
    comm.synchronize()
    return watch
