"""Packed attention against one dense attention per segment in float64, and its laws."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.ops.cases import relative
from tests.ops.packed_cases import PackedCase, packed_oracle, random_packed
from tokendetr.ops import packed_attention, use_reference

SHAPES = [(1, 1), (16, 16), (17, 31), (49, 32), (64, 64), (65, 24), (130, 8), (200, 40)]


def check_against_oracle(case: PackedCase) -> None:
    expected = packed_oracle(case)
    assert relative(case.run(), expected) <= 1e-12
    with use_reference():
        assert relative(case.run(), expected) <= 1e-12
    assert relative(case.to(torch.float32).run(), expected) <= 2e-5


@pytest.mark.parametrize("first", [1, 33])
def test_matches_oracle(first: int) -> None:
    for seed in range(first, first + 32):
        check_against_oracle(random_packed(seed))


def test_matches_oracle_for_long_containers_and_whole_vectors() -> None:
    for seed, (slots, width) in enumerate(SHAPES, 1):
        check_against_oracle(random_packed(seed, slots=slots, width=width))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_pytorch(dtype: torch.dtype) -> None:
    for seed in range(1, 33):
        case = random_packed(seed).to(torch.float32).to(dtype, biases=False)
        exact = packed_oracle(case.to(torch.float64))
        output = case.run()
        assert output.dtype == dtype
        rounded = relative(exact.to(dtype), exact)
        assert relative(output, exact) <= 2 * rounded + 1e-6


@pytest.mark.parametrize("width", [32, 64, 96])
def test_heads_of_whole_tiles_in_bfloat16_are_as_good_as_pytorch(width: int) -> None:
    for seed, slots in enumerate((1, 3, 16, 17, 31, 49, 52, 64, 65, 130, 200), 1):
        case = random_packed(seed, slots=slots, width=width).to(torch.float32)
        case = case.to(torch.bfloat16, biases=False)
        odd = torch.cat([case.query.new_zeros(1), case.query.flatten()])[1:].view_as(case.query)
        exact = packed_oracle(case.to(torch.float64))
        output = replace(case, query=odd).run()
        assert torch.equal(output, case.run())
        rounded = relative(exact.to(torch.bfloat16), exact)
        assert relative(output, exact) <= 2 * rounded + 1e-6


def image_case(seed: int, slots: int = 49) -> PackedCase:
    """Full containers of one segment, no biases."""
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(3, slots, 4, 32, generator=g) for _ in range(3)]
    return PackedCase(*tensors, torch.zeros(3, slots, dtype=torch.int32))


def test_one_full_segment_is_dense_attention() -> None:
    case = image_case(0)
    query, key, value = (x.transpose(1, 2) for x in (case.query, case.key, case.value))
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(case.run(), expected, rtol=1e-5, atol=1e-6)


def test_bias_table_is_the_relative_position_bias_of_windows() -> None:
    case, side = image_case(1), 7
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    position = torch.stack([y, x], -1).flatten(0, 1).to(torch.int32)
    table = torch.randn(4, 2 * side - 1, 2 * side - 1, generator=torch.Generator().manual_seed(2))
    place = position.long()
    offset = place[:, None] - place[None] + side - 1
    bias = table[:, offset[..., 0], offset[..., 1]]
    query, key, value = (x.transpose(1, 2) for x in (case.query, case.key, case.value))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    shifted = (position + torch.tensor([100, -40])).expand(3, -1, -1).to(torch.int32)
    actual = replace(case, position=shifted, table=table).run()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_offsets_beyond_the_table_and_beyond_32_bits_are_clipped() -> None:
    ends = torch.iinfo(torch.int32)
    far = torch.tensor([ends.min, ends.max, 0, 3, -3, ends.max - 1], dtype=torch.int32)
    for seed in (1, 2):
        case = random_packed(seed, slots=36, width=8)
        position = torch.stack(torch.meshgrid(far, far, indexing="ij"), -1).view(1, 36, 2)
        case = replace(case, position=position.expand(len(case.query), -1, -1))
        assert relative(case.run(), packed_oracle(case)) <= 1e-12


def test_logarithms_of_sizes_stand_for_repeated_keys() -> None:
    case = image_case(3, slots=12)
    sizes = torch.arange(1, 13) % 4 + 1
    weighted = replace(case, key_bias=sizes.float().log().expand(3, -1)).run()
    repeat = torch.repeat_interleave(torch.arange(12), sizes)
    padding = len(repeat) - 12
    long = PackedCase(
        F.pad(case.query, (0, 0, 0, 0, 0, padding)),
        case.key[:, repeat],
        case.value[:, repeat],
        torch.zeros(3, len(repeat), dtype=torch.int32),
    )
    torch.testing.assert_close(weighted, long.run()[:, :12], rtol=1e-5, atol=1e-6)


def test_containers_of_other_content_change_no_bit() -> None:
    for seed in (1, 2, 5, 13):
        case = random_packed(seed, dtype=torch.float32)
        output = case.run()
        for g in range(len(output)):
            alone = replace(
                case,
                **{
                    name: getattr(case, name)[g : g + 1]
                    for name in ("query", "key", "value", "segment", "position", "key_bias")
                    if getattr(case, name) is not None
                },
            )
            assert torch.equal(alone.run(), output[g : g + 1])


def test_a_segment_is_the_same_anywhere_in_any_container() -> None:
    for seed in (1, 5, 7, 9):
        case = random_packed(seed, slots=40, dtype=torch.float32)
        output = case.run()
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        moved = {
            name: getattr(case, name)[:, order]
            for name in ("query", "key", "value", "segment", "position", "key_bias")
            if getattr(case, name) is not None
        }
        torch.testing.assert_close(replace(case, **moved).run(), output[:, order])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_segment(odd: float) -> None:
    for seed in (1, 5, 9, 13, 17):
        case = random_packed(seed, slots=30, dtype=torch.float32)
        clean = case.run()
        numbers = case.segment.unique()
        poisoned = (case.segment == numbers[-1]) | (case.segment < 0)
        dirty = [x.masked_fill(poisoned[..., None, None], odd) for x in case.leaves[:3]]
        output = case.with_leaves([*dirty, *case.leaves[3:]]).run()
        assert torch.equal(output[~poisoned], clean[~poisoned])
        assert (output[case.segment < 0] == 0).all()
        if bool((case.segment == numbers[-1]).any()) and int(numbers[-1]) >= 0:
            assert output[case.segment == numbers[-1]].isnan().any()


def test_extreme_logits() -> None:
    for seed in (1, 2, 5, 6):
        case = random_packed(seed)
        case = replace(case, query=case.query * 100, key=case.key * 100, scale=1.0)
        largest = torch.einsum("gqmd,gkmd->gmqk", case.query, case.key).abs().max()
        case = replace(case, scale=1e4 / float(largest))
        assert relative(case.run(), packed_oracle(case)) <= 1e-11
        single = case.to(torch.float32).run()
        assert single.isfinite().all()
        assert relative(single, packed_oracle(case)) <= 2e-2  # a logit of 1e4 is rounded by 1e-3


def test_keys_of_no_weight() -> None:
    case = replace(image_case(4), key_bias=torch.zeros(3, 49))
    case.key_bias[0, :30] = -torch.inf
    case.key_bias[1] = -torch.inf
    output = case.run()
    with use_reference():
        torch.testing.assert_close(case.run(), output, rtol=1e-5, atol=1e-6)
    assert (output[1] == 0).all()
    kept = [x[:1, 30:] for x in (case.query, case.key, case.value, case.segment)]
    torch.testing.assert_close(output[:1, 30:], PackedCase(*kept).run(), rtol=1e-5, atol=1e-6)


def test_nothing_to_do() -> None:
    for containers, slots in ((0, 49), (3, 0), (0, 0)):
        empty = torch.zeros(containers, slots, 2, 8, requires_grad=True)
        output = packed_attention(
            empty, empty, empty, torch.zeros(containers, slots, dtype=torch.int32)
        )
        assert output.shape == empty.shape
        output.sum().backward()
    case = replace(image_case(5), segment=torch.full((3, 49), -1, dtype=torch.int32))
    assert (case.run() == 0).all()


def test_views_of_one_projection_and_other_strides() -> None:
    g = torch.Generator().manual_seed(0)
    projected = torch.randn(5, 49, 3, 4, 24, generator=g)
    segment = torch.arange(49, dtype=torch.int32).div(20, rounding_mode="floor").expand(5, -1)
    views = projected.unbind(2)
    dense = packed_attention(*[x.contiguous() for x in views], segment.contiguous())
    assert torch.equal(packed_attention(*views, segment), dense)
    odd = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in views]
    assert torch.equal(packed_attention(*odd, segment), dense)
    expanded = views[0][:1].expand(5, -1, -1, -1)
    assert torch.equal(
        packed_attention(expanded, expanded, expanded, segment)[4],
        packed_attention(views[0], views[0], views[0], segment)[0],
    )


def test_autocast_keeps_biases_in_float32() -> None:
    case = random_packed(1, dtype=torch.float32)
    outputs = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(case.run())
            with use_reference():
                outputs.append(case.run())
    low = case.to(torch.bfloat16, biases=False)
    assert all(x.dtype == torch.bfloat16 for x in outputs)
    assert torch.equal(outputs[0], low.run())
    assert relative(outputs[1], low.run()) <= 2**-7
