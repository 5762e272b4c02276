"""Packed attention against scaled_dot_product_attention with a mask, interleaved in one run.

python benchmarks/packed_attention.py [--cases full three] [--device cuda] [--json FILE] [--record]

22,223 tokens (800 x 1333 pixels, four levels) in containers of 49. PyTorch gets the best form that
it has for them: one dense mask per container, boolean where only segments count, and with biases
their sum as numbers for each pair and head, made beforehand. Per line: the kernels' minimum, median
and spread (90th - 10th percentile) in milliseconds, PyTorch's median, the ratio of the medians.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from reporting import Line, Report, milliseconds, operator_parser
from torch import Tensor
from torch.nn import functional as F

from tokendetr.ops import packed_attention, relative_position_bias

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
    def of(
        cls, heads: int, count: int, biased: bool, dtype: torch.dtype, device: torch.device
    ) -> "Problem":
        """Draw a case; biases are learnable in the packed form, fixed numbers in the dense one."""
        generator = torch.Generator().manual_seed(1)
        segment = segments(count).to(device)
        shape = (*segment.shape, heads, WIDTH)
        drawn = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
        together = (segment[:, :, None] == segment[:, None])[:, None]
        if not biased:
            return cls([x.requires_grad_() for x in drawn[:3]], drawn[3], segment, {}, together)
        side = torch.arange(WINDOW, dtype=torch.int32)
        window = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).flatten(0, 1).to(device)
        position = window.expand(len(segment), -1, -1).contiguous()
        table = torch.randn(heads, 2 * WINDOW - 1, 2 * WINDOW - 1, generator=generator).to(device)
        key_bias = torch.rand(segment.shape, generator=generator).to(device)
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


def measure(
    functions: tuple[Callable[[], None], Callable[[], None]], device: torch.device, repeats: int
) -> tuple[list[float], list[float]]:
    """Time both forms in turns, after one warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in functions:
        function()
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            own.append(milliseconds(function, device))
    return times


def main() -> None:
    """Run the cases and print the table."""
    parser = operator_parser(__doc__, CASES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    device = torch.device(options.device)
    report = Report("masked SDPA", device=device)
    for short in options.cases:
        name, heads, count, biased = CASES[short]
        for dtype in options.dtypes:
            problem = Problem.of(heads, count, biased, getattr(torch, dtype), device)
            problem.check()
            for label, functions in problem.passes().items():
                ours, theirs = measure(functions, device, options.repeats)
                report.add(Line.of(name, dtype, label, ours, theirs))
    report.write(options.json)
    if options.record:
        report.record(options.record)


if __name__ == "__main__":
    main()
