"""The laws of packing: nothing is lost, and padding and images stay separate."""

import random

import pytest
import torch

from tests.tokens.naive_windows import shifted_window_order
from tokendetr.tokens import Pack, window_order

TOKENS = 120


def random_counts(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [
        draw.choice([0, 1, 6, 7, 8, draw.randint(0, TOKENS)]) for _ in range(draw.randint(1, 6))
    ]


def random_pack(seed: int, counts: list[int], length: int = 7) -> Pack:
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randperm(TOKENS, generator=generator)[:count] + image * TOKENS
        for image, count in enumerate(counts)
    ]
    return Pack(index_P=torch.cat(rows), counts=counts, num_all=TOKENS, length=length)


@pytest.mark.parametrize("seed", range(25))
def test_unpacking_what_was_packed_changes_nothing(seed):
    counts = random_counts(seed)
    pack = random_pack(seed, counts)
    x = torch.randn(len(counts), TOKENS, 3)
    assert torch.equal(pack.restore(pack.reduce(x), x), x)
    other = pack.restore(pack.reduce(x) + 1, x)
    changed = (other - x).abs().sum(-1).flatten() > 0
    selected = torch.zeros(len(counts) * TOKENS, dtype=torch.bool)
    selected[pack.index_P] = True
    assert torch.equal(changed, selected)


@pytest.mark.parametrize("seed", range(25))
def test_every_token_has_one_slot_with_its_images_number(seed):
    counts = random_counts(seed)
    pack = random_pack(seed, counts)
    segment, index = pack.segment_GT.flatten(), pack.index_GT.flatten()
    assert segment.dtype == torch.int32
    assert sorted(index[segment >= 0].tolist()) == sorted(pack.index_P.tolist())
    assert torch.equal(index[segment >= 0] // TOKENS, segment[segment >= 0].long())
    full = sum(count // 7 for count in counts)
    rests = [count % 7 for count in counts if count % 7]
    assert pack.num_containers >= max(-(-sum(counts) // 7), 1)
    assert pack.num_containers <= max(full + len(rests), 1)


@pytest.mark.parametrize("seed", range(25))
def test_an_images_groups_do_not_depend_on_its_batch(seed):
    counts = random_counts(seed)
    pack = random_pack(seed, counts)
    pieces = pack.index_P.split(counts)
    for image, (count, piece) in enumerate(zip(counts, pieces, strict=True)):
        found = []
        for container, segment in zip(pack.index_GT, pack.segment_GT, strict=True):
            own = container[segment == image].tolist()
            if own:
                found.append(own)
        assert sorted(found) == sorted(part.tolist() for part in piece.split(7)) if count else True
        assert count or not found


def test_an_empty_selection_is_one_container_of_padding():
    pack = random_pack(0, [0, 0])
    x = torch.randn(2, TOKENS, 3, requires_grad=True)
    packed = pack.reduce(x)
    assert packed.shape == (1, 7, 3)
    assert (pack.segment_GT == -1).all()
    restored = pack.restore(packed * 5, x)
    assert torch.equal(restored, x)
    restored.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_the_same_choice_image_by_image():
    pack = random_pack(3, [5, 0, 9])
    assert pack.num_tokens == 9
    assert pack.valid_BK.sum(1).tolist() == [5, 0, 9]
    pieces = pack.index_P.split([5, 0, 9])
    for image, piece in enumerate(pieces):
        anchors = pack.anchor_BK[image]
        assert anchors[: len(piece)].tolist() == (piece - image * TOKENS).tolist()
        assert len(set(anchors.tolist())) == 9


def test_gradients_flow_through_selected_rows_alone():
    pack = random_pack(4, [8, 3])
    x = torch.randn(2, TOKENS, 3, requires_grad=True)
    pack.restore(pack.reduce(x) * 2, torch.zeros_like(x)).sum().backward()
    expected = torch.zeros(2 * TOKENS, 3)
    expected[pack.index_P] = 2
    assert torch.equal(x.grad.flatten(0, 1), expected)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 1 slot"):
        Pack(index_P=torch.arange(3), counts=[3], num_all=9, length=0)
    with pytest.raises(ValueError, match="index_P must be long"):
        Pack(index_P=torch.arange(3), counts=[2], num_all=9, length=4)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_window_order_is_that_of_shifted_windows_and_padding_comes_last(shift):
    grid, sizes = (9, 11), [(9, 11), (5, 8), (1, 1), (9, 3)]
    order = window_order(grid, sizes, window_size=4, shift=shift, device=torch.device("cpu"))
    for row, size in zip(order, sizes, strict=True):
        assert sorted(row.tolist()) == list(range(99))
        assert row[: size[0] * size[1]].tolist() == shifted_window_order(grid, size, 4, shift)
