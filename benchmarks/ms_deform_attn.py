"""Deformable attention: the kernels against the grid_sample form, interleaved in one run.

On a GPU also against the plain kernel with one thread per channel (cuda/baseline.cu).

python benchmarks/ms_deform_attn.py [--device cuda] [--dtypes float32 bfloat16] [--json FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokendetr.ops import extension_available, ms_deform_attn, use_reference

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
HEADS, WIDTH, POINTS = 8, 32, 4
TOKENS = sum(h * w for h, w in LEVELS)
CASES = (
    ("encoder, ring offsets", "ring", TOKENS),
    ("encoder, N(0, 3 px)", "normal", TOKENS),
    ("encoder, uniform", "uniform", TOKENS),
    ("30 % queries", "normal", 6666),
    ("10 % queries", "normal", 2222),
    ("900 decoder queries", "uniform", 900),
)


@dataclass(frozen=True)
class Row:
    """One measured line: milliseconds, minimum, median and spread (90th - 10th percentile)."""

    case: str
    dtype: str
    passes: str
    kernel_min: float
    kernel_median: float
    kernel_spread: float
    reference_min: float
    reference_median: float
    ratio: float
    baseline_min: float | None


def pixel_centres() -> Tensor:
    """Return the normalised centres of all tokens, [N, 2]."""
    centres = []
    for height, width in LEVELS:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).flatten(0, 1))
    return torch.cat(centres)


def sampling_locations(kind: str, queries: int) -> Tensor:
    """Draw the locations of a case, [1, Q, M, L, P, 2]."""
    shape = (queries, HEADS, len(LEVELS), POINTS, 2)
    if kind == "uniform":
        return torch.rand(1, *shape)
    if kind == "ring":
        angle = torch.arange(HEADS) * (2 * torch.pi / HEADS)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        offsets = direction[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
        offsets = offsets.expand(shape)
    else:
        offsets = torch.randn(shape) * 3
    chosen = torch.randperm(TOKENS)[:queries].sort().values
    sizes = torch.tensor([(w, h) for h, w in LEVELS])[:, None]
    return (pixel_centres()[chosen][:, None, None, None] + offsets / sizes)[None].contiguous()


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call; on a GPU the mean of ten in a row, by its own clock."""
    if device.type == "cuda":
        calls = 10
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def passes(
    kind: str,
    queries: int,
    dtype: torch.dtype,
    device: torch.device,
    attention: Callable[..., Tensor] = ms_deform_attn,
) -> dict[str, Callable]:
    """Return the forward and the forward+backward of a case as functions."""
    torch.manual_seed(0)
    value = torch.randn(1, TOKENS, HEADS, WIDTH).to(device, dtype).requires_grad_()
    locations = sampling_locations(kind, queries).to(device).requires_grad_()
    weights = torch.rand(1, queries, HEADS, len(LEVELS) * POINTS).softmax(-1)
    weights = weights.view(locations.shape[:-1]).to(device).requires_grad_()
    incoming = torch.randn(1, queries, HEADS * WIDTH).to(device, dtype)

    def forward() -> None:
        with torch.no_grad():
            attention(value, LEVELS, locations, weights)

    def both() -> None:
        output = attention(value, LEVELS, locations, weights)
        torch.autograd.grad(output, (value, locations, weights), incoming)

    return {"forward": forward, "forward+backward": both}


def measure(
    function: Callable[[], object], device: torch.device, repeats: int, reference_repeats: int
) -> tuple[list[float], list[float]]:
    """Time kernel and reference, interleaved after one warm-up of each."""
    with use_reference():
        function()
    function()
    kernel, reference = [], []
    for _ in range(reference_repeats):
        with use_reference():
            reference.append(timed(function, device))
        kernel += [timed(function, device) for _ in range(max(1, repeats // reference_repeats))]
    return kernel, reference


def measure_baseline(
    case: tuple[str, str, int], dtype: str, device: torch.device, repeats: int
) -> dict[str, float | None]:
    """Return the shortest time of each pass of the plain CUDA kernel; None without a GPU."""
    _, kind, queries = case
    if device.type != "cuda":
        return {"forward": None, "forward+backward": None}
    from cuda_baseline import ms_deform_attn_baseline

    functions = passes(kind, queries, getattr(torch, dtype), device, ms_deform_attn_baseline)
    for function in functions.values():
        function()
    return {
        label: min(timed(function, device) for _ in range(repeats))
        for label, function in functions.items()
    }


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=20, help="runs of the kernel per line")
    parser.add_argument(
        "--reference-repeats", type=int, default=4, help="runs of the grid_sample form"
    )
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    options = parser.parse_args()
    if not extension_available():
        sys.exit("the extension is not built: run `make build`")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("not run: no CUDA device")
    device = torch.device(options.device)
    rows = []
    print(
        f"{'case':24}{'dtype':10}{'pass':18}{'ms (min / median / spread)':>30}"
        f"{'grid_sample':>13}{'ratio':>8}{'plain CUDA':>12}"
    )
    for name, kind, queries in CASES:
        for dtype in options.dtypes:
            baseline = measure_baseline((name, kind, queries), dtype, device, options.repeats)
            for label, function in passes(kind, queries, getattr(torch, dtype), device).items():
                ours, theirs = measure(function, device, options.repeats, options.reference_repeats)
                tenths = statistics.quantiles(ours, n=10)
                row = Row(
                    case=name,
                    dtype=dtype,
                    passes=label,
                    kernel_min=min(ours),
                    kernel_median=statistics.median(ours),
                    kernel_spread=tenths[-1] - tenths[0],
                    reference_min=min(theirs),
                    reference_median=statistics.median(theirs),
                    ratio=min(theirs) / min(ours),
                    baseline_min=baseline[label],
                )
                rows.append(row)
                digits = 3 if device.type == "cuda" else 2
                times = " / ".join(
                    f"{value:.{digits}f}"
                    for value in (row.kernel_min, row.kernel_median, row.kernel_spread)
                )
                plain = "not run" if row.baseline_min is None else f"{row.baseline_min:.3f}"
                print(
                    f"{name:24}{dtype:10}{label:18}{times:>30}"
                    f"{row.reference_min:13.{digits - 1}f}{row.ratio:8.1f}{plain:>12}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
