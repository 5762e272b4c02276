"""Packed attention against scaled_dot_product_attention with a mask, interleaved in one run.

python benchmarks/packed_attention.py [--cases full three] [--dtypes float32] [--json FILE]

22,223 tokens (800 x 1333 pixels, four levels) in containers of 49. PyTorch gets the best form that
it has for them: one dense mask per container, boolean where only segments count, and with biases
their sum as numbers for each pair and head, made beforehand. Per line: the kernels' minimum, median
and spread (90th - 10th percentile) in milliseconds, PyTorch's median, the ratio of the medians.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.ops import extension_available, packed_attention, relative_position_bias

TOKENS, SLOTS, WINDOW, WIDTH = 22_223, 49, 7, 32
CASES = {  # short name: description, heads, segments per container, biases
    "full": ("one segment, 8 heads", 8, 1, False),
    "three": ("three segments, 8 heads", 8, 3, False),
    "bias": ("one segment, 8 heads, biases", 8, 1, True),
    "stage1": ("Swin-T stage 1, 3 heads", 3, 1, False),
    "stage2": ("Swin-T stage 2, 6 heads", 6, 1, False),
    "stage3": ("Swin-T stage 3, 12 heads", 12, 1, False),
    "stage4": ("Swin-T stage 4, 24 heads", 24, 1, False),
}


@dataclass(frozen=True)
class Row:
    """One line, in milliseconds; spread: 90th - 10th percentile; ratio: of the medians."""

    case: str
    dtype: str
    passes: str
    kernel_min: float
    kernel_median: float
    kernel_spread: float
    dense_min: float
    dense_median: float
    dense_spread: float
    ratio: float


def segments(count: int) -> Tensor:
    """Return [G, T] int32: `count` segments of unlike sizes per container, the last one padded."""
    containers = -(-TOKENS // SLOTS)
    generator = torch.Generator().manual_seed(0)
    segment = torch.randint(0, count, (containers, SLOTS), generator=generator).sort().values
    segment.view(-1)[TOKENS:] = -1
    return segment.to(torch.int32)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Run PyTorch's form: tensors [G, T, M, D], a mask that broadcasts to [G, M, T, T]."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)


@dataclass
class Problem:
    """Inputs of one case, for both forms."""

    tensors: list[Tensor]
    incoming: Tensor
    segment: Tensor
    biases: dict[str, Tensor]
    mask: Tensor

    @classmethod
    def of(cls, heads: int, count: int, biased: bool, dtype: torch.dtype) -> "Problem":
        """Draw a case; biases are learnable in the packed form, fixed numbers in the dense one."""
        generator = torch.Generator().manual_seed(1)
        segment = segments(count)
        shape = (*segment.shape, heads, WIDTH)
        drawn = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
        together = (segment[:, :, None] == segment[:, None])[:, None]
        if not biased:
            return cls([x.requires_grad_() for x in drawn[:3]], drawn[3], segment, {}, together)
        side = torch.arange(WINDOW, dtype=torch.int32)
        window = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).flatten(0, 1)
        position = window.expand(len(segment), -1, -1).contiguous()
        table = torch.randn(heads, 2 * WINDOW - 1, 2 * WINDOW - 1, generator=generator)
        key_bias = torch.rand(segment.shape, generator=generator)
        logits = relative_position_bias(position, table).transpose(0, 1) + key_bias[:, None, None]
        mask = logits.masked_fill(~together, -torch.inf).to(dtype)
        biases = {"bias_table_MRR": table.requires_grad_(), "key_bias_GT": key_bias}
        biases["key_bias_GT"].requires_grad_()
        biases["position_GT2"] = position
        return cls([x.requires_grad_() for x in drawn[:3]], drawn[3], segment, biases, mask)

    def packed(self) -> Tensor:
        """Run the operator."""
        return packed_attention(*self.tensors, self.segment, **self.biases)

    def dense(self) -> Tensor:
        """Run PyTorch."""
        return dense_attention(*self.tensors, self.mask)

    def check(self) -> None:
        """Stop where the two forms disagree on a real token."""
        with torch.no_grad():
            real = self.segment >= 0
            ours, theirs = self.packed()[real].float(), self.dense()[real].float()
        bound = 1e-5 if self.incoming.dtype == torch.float32 else 4e-2
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)

    def passes(self) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
        """Return forward and forward+backward of both forms as functions."""
        learnable = [x for x in self.biases.values() if x.requires_grad]

        def forward(form: Callable[[], Tensor]) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    form()

            return run

        def both(form: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
            def run() -> None:
                torch.autograd.grad(form(), leaves, self.incoming)

            return run

        return {
            "forward": (forward(self.packed), forward(self.dense)),
            "forward+backward": (
                both(self.packed, [*self.tensors, *learnable]),
                both(self.dense, self.tensors),
            ),
        }


def timed(function: Callable[[], None]) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def spread(times: list[float]) -> float:
    """Return the 90th minus the 10th percentile."""
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return tenths[-1] - tenths[0]


def measure(name: str, dtype: str, label: str, functions: tuple, repeats: int) -> Row:
    """Time both forms in turns, after one warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in functions:
        function()
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            own.append(timed(function))
    ours, theirs = times
    return Row(
        case=name,
        dtype=dtype,
        passes=label,
        kernel_min=min(ours),
        kernel_median=statistics.median(ours),
        kernel_spread=spread(ours),
        dense_min=min(theirs),
        dense_median=statistics.median(theirs),
        dense_spread=spread(theirs),
        ratio=statistics.median(theirs) / statistics.median(ours),
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=["float64", "float32", "bfloat16", "float16"],
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=20, help="runs of each form per line")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be at least 2")
    return options


def main() -> None:
    """Run the cases and print the table."""
    options = arguments()
    if not extension_available():
        sys.exit("the extension is not built: run `make build`")
    setting = {
        "device": "cpu",
        "instruction set": importlib.import_module("tokendetr._C").cpu_isa,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(
        f"{'case':30}{'dtype':10}{'pass':18}{'ms (min / median / spread)':>28}"
        f"{'masked SDPA':>13}{'ratio':>7}"
    )
    rows = []
    for short in options.cases:
        name, heads, count, biased = CASES[short]
        for dtype in options.dtypes:
            problem = Problem.of(heads, count, biased, getattr(torch, dtype))
            problem.check()
            for label, functions in problem.passes().items():
                row = measure(name, dtype, label, functions, options.repeats)
                rows.append(row)
                times = f"{row.kernel_min:.2f} / {row.kernel_median:.2f} / {row.kernel_spread:.2f}"
                print(
                    f"{name:30}{dtype:10}{label:18}{times:>28}{row.dense_median:13.1f}"
                    f"{row.ratio:7.1f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(
            json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
