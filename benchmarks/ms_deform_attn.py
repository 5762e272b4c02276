"""Deformable attention: the kernels against the grid_sample form, interleaved in one run.

On a GPU also against the plain kernel with one thread per channel (cuda/baseline.cu).

    python benchmarks/ms_deform_attn.py [--cases 3px 10%] [--quick] [--json FILE] [--form fused] ...

Per line: the kernels' minimum, median and spread (90th - 10th percentile) in milliseconds, the
median of the grid_sample form, and the ratio of the medians.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from reporting import Line, Report, milliseconds, operator_parser
from torch import Tensor

from tokendetr.ops import ms_deform_attn, ms_deform_attn_fused, use_reference

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
HEADS, WIDTH, POINTS = 8, 32, 4
TOKENS = sum(h * w for h, w in LEVELS)


class Case(NamedTuple):
    """A call of an encoder or decoder.

    Attributes:
        name: in the table.
        offsets: where queries sample. "ring": at the distances that upstream initializes,
            "normal": at a standard deviation of 3 pixels, "uniform": anywhere in a level.
        queries: number of queries.
    """

    name: str
    offsets: Literal["ring", "normal", "uniform"]
    queries: int


CASES = {
    "ring": Case("encoder, ring offsets", "ring", TOKENS),
    "3px": Case("encoder, N(0, 3 px)", "normal", TOKENS),
    "uniform": Case("encoder, uniform", "uniform", TOKENS),
    "30%": Case("30 % queries", "normal", 6666),
    "10%": Case("10 % queries", "normal", 2222),
    "900": Case("900 decoder queries", "uniform", 900),
}


def pixel_centers() -> Tensor:
    """Return the normalized centers of all tokens, [N, 2]."""
    centers = []
    for height, width in LEVELS:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).flatten(0, 1))
    return torch.cat(centers)


def samples(case: Case) -> tuple[Tensor, Tensor]:
    """Draw reference points [1, Q, L, 2] and offsets in pixels [1, Q, M, L, P, 2]."""
    queries = case.queries
    shape = (queries, HEADS, len(LEVELS), POINTS, 2)
    chosen = torch.randperm(TOKENS)[:queries].sort().values
    reference = pixel_centers()[chosen][:, None].expand(queries, len(LEVELS), 2)
    sizes = torch.tensor([(w, h) for h, w in LEVELS])[:, None]
    if case.offsets == "ring":
        angle = torch.arange(HEADS) * (2 * torch.pi / HEADS)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        offsets = direction[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
        offsets = offsets.expand(shape)
    elif case.offsets == "uniform":
        offsets = (torch.rand(shape) - reference[:, None, :, None]) * sizes
    else:
        offsets = torch.randn(shape) * 3
    return reference[None].contiguous(), offsets[None].contiguous()


def passes(
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    attention: Callable[..., Tensor] = ms_deform_attn,
) -> dict[str, Callable[[], None]]:
    """Return the forward and the forward+backward of a case as functions."""
    torch.manual_seed(0)
    value = torch.randn(1, TOKENS, HEADS, WIDTH).to(device, dtype).requires_grad_()
    reference, offsets = samples(case)
    logits = torch.rand(1, case.queries, HEADS, len(LEVELS), POINTS)
    incoming = torch.randn(1, case.queries, HEADS * WIDTH).to(device, dtype)
    coordinates = [offsets, logits]
    fixed = [reference.to(device)]
    if attention is not ms_deform_attn_fused:
        sizes = torch.tensor([(w, h) for h, w in LEVELS])[:, None]
        locations = reference[:, :, None, :, None] + offsets / sizes
        coordinates = [locations, logits.flatten(-2).softmax(-1).view(logits.shape)]
        fixed = []
    coordinates = [x.to(device).requires_grad_() for x in coordinates]

    def forward() -> None:
        with torch.no_grad():
            attention(value, LEVELS, *fixed, *coordinates)

    def both() -> None:
        output = attention(value, LEVELS, *fixed, *coordinates)
        torch.autograd.grad(output, (value, *coordinates), incoming)

    return {"forward": forward, "forward+backward": both}


def measure(
    function: Callable[[], object], device: torch.device, repeats: int, reference_repeats: int
) -> tuple[list[float], list[float]]:
    """Time kernel and reference in turns, after one warm-up of each."""
    with use_reference():
        function()
    function()
    kernel, reference = [], []
    for _ in range(reference_repeats):
        with use_reference():
            reference.append(milliseconds(function, device))
        for _ in range(max(1, repeats // reference_repeats)):
            kernel.append(milliseconds(function, device))
    return kernel, reference


def measure_baseline(
    case: Case, dtype: str, device: torch.device, repeats: int
) -> dict[str, float | None]:
    """Return the shortest time of each pass of the plain CUDA kernel; None without a GPU."""
    if device.type != "cuda":
        return {"forward": None, "forward+backward": None}
    from cuda_baseline import ms_deform_attn_baseline

    functions = passes(case, getattr(torch, dtype), device, ms_deform_attn_baseline)
    for function in functions.values():
        function()
    return {
        label: min(milliseconds(function, device) for _ in range(repeats))
        for label, function in functions.items()
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = operator_parser(__doc__, CASES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--form", default="plain", choices=["plain", "fused"])
    parser.add_argument(
        "--reference-repeats", type=int, default=4, help="runs of the grid_sample form"
    )
    parser.add_argument("--quick", action="store_true", help="6 and 2 runs, float32")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.reference_repeats, options.dtypes = 6, 2, ["float32"]
    if options.reference_repeats < 2 or options.repeats < options.reference_repeats:
        parser.error("--reference-repeats must be at least 2 and --repeats at least as many")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("not run: no CUDA device")
    return options


def main() -> None:
    """Run the cases and print the table."""
    options = arguments()
    device = torch.device(options.device)
    attention = ms_deform_attn_fused if options.form == "fused" else ms_deform_attn
    report = Report(
        "grid_sample", baseline="plain CUDA", device=device, setting={"form": options.form}
    )
    for short in options.cases:
        case = CASES[short]
        for dtype in options.dtypes:
            baseline = measure_baseline(case, dtype, device, options.repeats)
            functions = passes(case, getattr(torch, dtype), device, attention)
            for label, function in functions.items():
                ours, theirs = measure(function, device, options.repeats, options.reference_repeats)
                report.add(Line.of(case.name, dtype, label, ours, theirs, baseline[label]))
    report.write(options.json)
    if options.record:
        report.record(options.record)


if __name__ == "__main__":
    main()
