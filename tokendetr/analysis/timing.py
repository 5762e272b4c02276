"""Measure the time and memory of a model's forward pass and its parts.

On a GPU, events record times in the stream, and a measurement ends only when the device has
finished; on a CPU, work is done when a call returns. The hooks that split a pass cost two clock
readings or two events per call of a part, a few microseconds.
"""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = [
    "PART_MODULES",
    "Summary",
    "peak_memory",
    "peak_tensor_bytes",
    "reset_peak_memory",
    "split_time",
    "take_turns",
    "timed",
    "turn_order",
]

T = TypeVar("T")

PART_MODULES = {
    "backbone": "backbone",
    "encoder": "transformer.encoder",
    "decoder": "transformer.decoder",
}
"""Part of a detector -> module that is timed. Parts that a model lacks are skipped."""

_MEMORY_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Summary:
    """Summary of several measurements of one quantity.

    Attributes:
        median: median.
        p10: 10th percentile.
        p90: 90th percentile.
        count: number of measurements.
    """

    median: float
    p10: float
    p90: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Summary":
        """Summarize measurements.

        Raises:
            ValueError: there are no measurements.
        """
        if not samples:
            raise ValueError("there is no measurement to summarize")
        ordered = sorted(samples)

        def percentile(share: float) -> float:
            position = share * (len(ordered) - 1)
            below = int(position)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (position - below) * (ordered[above] - ordered[below])

        return cls(statistics.median(ordered), percentile(0.1), percentile(0.9), len(ordered))


class _Clock:
    """Time marks of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Any:
        """Mark the time at which all work submitted so far is done."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def finish(self) -> None:
        """Wait until the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks; on a GPU only after :meth:`finish`."""
        if self._device.type == "cuda":
            return float(start.elapsed_time(end)) / 1e3
        return float(end - start)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that ``run()`` takes, including the device's work."""
    clock = _Clock(device)
    clock.finish()
    start = time.perf_counter()
    run()
    clock.finish()
    return time.perf_counter() - start


def turn_order(contenders: Sequence[T], turn: int) -> list[T]:
    """Return the order in which contenders run in a turn: each turn begins with the next one.

    A first pass over new input also pays for what later ones find done, such as kernels that are
    prepared for its shape and memory that is taken from the system. In a fixed order, the same
    contender would always pay.

    Args:
        contenders: at least one.
        turn: number of the turn, from 0.
    """
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def take_turns(
    runs: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time several functions in turns, so that other load on the machine affects all alike.

    Every turn begins with another function (:func:`turn_order`).

    Args:
        runs: name -> function; every call is logged to standard error by this name.
        device: device that the functions run on.
        repeats: number of calls of each that are timed, after one that warms up.

    Returns:
        Name -> milliseconds of each timed call, and name -> result of the first call.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    first: dict[str, Any] = {}
    for turn in range(1 + repeats):
        for name in turn_order(list(runs), turn):
            seconds, result = _timed_result(runs[name], device)
            if turn:
                samples[name].append(1e3 * seconds)
            else:
                first[name] = result
            print(f"{name}: {1e3 * seconds:.0f} ms", file=sys.stderr, flush=True)
    return samples, first


def _timed_result(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    results: list[Any] = []
    seconds = timed(lambda: results.append(run()), device)
    return seconds, results[0]


def split_time(
    model: nn.Module,
    run: Callable[[], Any],
    device: torch.device,
    parts: Mapping[str, str] = PART_MODULES,
) -> dict[str, float]:
    """Run once and return the seconds of each part of the model, of the rest, and in total.

    Args:
        model: the model; the times of a part that runs several times are summed.
        run: performs the forward pass.
        device: the model's device.
        parts: name of a part -> dotted name of its module; parts must not contain each other.

    Returns:
        Seconds of the parts that the model has, "rest" and "total".
    """
    clock = _Clock(device)
    marks: dict[str, list[tuple[Any, Any]]] = {}
    with _marking(model, parts, clock, marks):
        total = timed(run, device)
    seconds = {
        name: sum(clock.seconds(start, end) for start, end in pairs)
        for name, pairs in marks.items()
    }
    return {**seconds, "rest": total - sum(seconds.values()), "total": total}


@contextmanager
def _marking(
    model: nn.Module,
    parts: Mapping[str, str],
    clock: _Clock,
    marks: dict[str, list[tuple[Any, Any]]],
) -> Iterator[None]:
    modules = dict(model.named_modules())
    hooks = []
    for part, name in parts.items():
        if name not in modules:
            continue
        pairs = marks.setdefault(part, [])
        started: list[Any] = []

        def start(*_: Any, started: list[Any] = started) -> None:
            started.append(clock.now())

        def stop(
            *_: Any,
            started: list[Any] = started,
            pairs: list[tuple[Any, Any]] = pairs,
        ) -> None:
            pairs.append((started.pop(), clock.now()))

        hooks.append(modules[name].register_forward_pre_hook(start))
        hooks.append(modules[name].register_forward_hook(stop))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reset_peak_memory(device: torch.device) -> None:
    """Reset :func:`peak_memory`, if the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _MEMORY_PEAK.write_text("5")
    except OSError:
        return  # then peak_memory is the peak since the process started


def peak_memory(device: torch.device) -> int:
    """Return the peak of bytes in use since :func:`reset_peak_memory`.

    These are PyTorch's tensors on a GPU, and the resident memory of the whole process on a CPU.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_tensor_bytes(run: Callable[[], Any]) -> int:
    """Return the peak of bytes of CPU tensors that ``run()`` allocates.

    Unlike the process's resident memory, it does not depend on freed memory that the allocator
    keeps, so implementations can be compared exactly.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        run()
    # The public summaries total the allocations by operator, without their order.
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))
