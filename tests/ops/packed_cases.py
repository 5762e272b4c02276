"""Random problems for packed attention, and an oracle that visits one segment after the other."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.ops.cases import pick
from tokendetr.ops import packed_attention


@dataclass(frozen=True)
class PackedCase:
    query: Tensor
    key: Tensor
    value: Tensor
    segment: Tensor
    scale: float | None = None
    position: Tensor | None = None
    table: Tensor | None = None
    key_bias: Tensor | None = None

    def to(self, dtype: torch.dtype, *, biases: bool = True) -> "PackedCase":
        query, key, value = (x.to(dtype) for x in (self.query, self.key, self.value))
        case = replace(self, query=query, key=key, value=value)
        if not biases:
            return case
        table, key_bias = (None if x is None else x.to(dtype) for x in (self.table, self.key_bias))
        return replace(case, table=table, key_bias=key_bias)

    @property
    def leaves(self) -> list[Tensor]:
        return [
            x
            for x in (self.query, self.key, self.value, self.table, self.key_bias)
            if x is not None
        ]

    def with_leaves(self, leaves: list[Tensor]) -> "PackedCase":
        rest = list(leaves[3:])
        table = None if self.table is None else rest.pop(0)
        key_bias = None if self.key_bias is None else rest.pop(0)
        return PackedCase(*leaves[:3], self.segment, self.scale, self.position, table, key_bias)

    def run(self) -> Tensor:
        return packed_attention(
            self.query,
            self.key,
            self.value,
            self.segment,
            scale=self.scale,
            position_GT2=self.position,
            bias_table_MRR=self.table,
            key_bias_GT=self.key_bias,
        )


def random_segments(g: torch.Generator, containers: int, slots: int, kind: int) -> Tensor:
    """Draw 0: runs, then padding; 1: shuffled, padding anywhere; 2: one segment; 3: padding."""
    if kind == 3:
        return torch.full((containers, slots), -1, dtype=torch.int32)
    if kind == 2:
        return torch.zeros(containers, slots, dtype=torch.int32)
    count = pick(g, 1, max(1, slots // 3))
    segment = torch.randint(0, count, (containers, slots), generator=g).sort().values * 7 + 2
    segment[torch.rand(containers, slots, generator=g) < 0.2] = -1
    if kind == 0:
        real, order = (segment < 0).to(torch.int8).sort(dim=1, stable=True)
        segment = segment.gather(1, order)
    else:
        segment = segment[:, torch.randperm(slots, generator=g)]
    return segment.to(torch.int32)


def random_packed(
    seed: int,
    *,
    slots: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> PackedCase:
    """Draw 1-4 containers (0 for multiples of 16) of 1-70 slots, 1-5 heads of 1-72 channels."""
    g = torch.Generator().manual_seed(seed)
    containers, heads = pick(g, 1, 4) if seed % 16 else 0, pick(g, 1, 5)
    slots, width = slots or pick(g, 1, 70), width or pick(g, 1, 72)
    shape = (containers, slots, heads, width)
    query, key, value = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(3))
    segment = random_segments(g, containers, slots, seed % 4 if seed % 12 else 1)
    position = table = key_bias = None
    if seed % 3 != 0:
        reach = pick(g, 0, 7)
        position = torch.randint(-9, 10, (containers, slots, 2), generator=g, dtype=torch.int32)
        table = torch.randn(heads, 2 * reach + 1, 2 * reach + 1, generator=g, dtype=dtype)
    if seed % 2:
        key_bias = torch.rand(containers, slots, generator=g, dtype=dtype) * 3
    scale = None if seed % 5 else 0.3
    return PackedCase(query, key, value, segment, scale, position, table, key_bias)


def packed_oracle(case: PackedCase) -> Tensor:
    """Apply the definition: dense attention of each segment alone."""
    scale = case.query.shape[-1] ** -0.5 if case.scale is None else case.scale
    rows = []
    for g, segment in enumerate(case.segment):
        output = torch.zeros_like(case.query[g])
        for number in segment.unique().tolist():
            if number < 0:
                continue
            own = (segment == number).nonzero()[:, 0]
            query, key, value = (x[g, own] for x in (case.query, case.key, case.value))
            logits = torch.einsum("qmd,kmd->mqk", query, key) * scale
            if case.table is not None:
                reach = case.table.shape[1] // 2
                place = case.position[g, own].long()
                offset = (place[:, None] - place[None]).clamp(-reach, reach) + reach
                logits = logits + case.table[:, offset[..., 0], offset[..., 1]]
            if case.key_bias is not None:
                logits = logits + case.key_bias[g, own]
            own_output = torch.einsum("mqk,kmd->qmd", logits.softmax(-1), value)
            output = output.index_put((own,), own_output)
        rows.append(output)
    touched = sum(0 * x.sum() for x in case.leaves)  # padding alone has a gradient of 0, not none
    return torch.stack(rows) + touched if rows else torch.zeros_like(case.query) + touched


def incoming(case: PackedCase) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    return torch.randn(case.query.shape, generator=g).to(case.query.dtype)


def packed_gradients(case: PackedCase, grad: torch.Tensor, run=PackedCase.run) -> list:
    leaves = [x.detach().clone().requires_grad_() for x in case.leaves]
    output = run(case.with_leaves(leaves))
    return list(torch.autograd.grad(output, leaves, grad))


def arguments(case: PackedCase) -> tuple:
    tensors = (case.query, case.key, case.value, case.segment)
    return (*tensors, case.scale or 0.25, case.position, case.table, case.key_bias)
