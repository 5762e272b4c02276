import pytest
import torch
from torch.nn import functional as F

from tests.pyramids import level_shapes
from tokendetr.tokens import LevelLayout

SHAPES = ((6, 8), (3, 4), (2, 2))
REAL = [[(6, 8), (3, 4), (2, 2)], [(4, 5), (2, 3), (1, 2)]]


def padding_masks() -> list[torch.Tensor]:
    masks = []
    for level, (height, width) in enumerate(SHAPES):
        mask = torch.ones(2, height, width, dtype=torch.bool)
        for image in range(2):
            h, w = REAL[image][level]
            mask[image, :h, :w] = False
        masks.append(mask)
    return masks


def loop_reference_points(layout: LevelLayout) -> torch.Tensor:
    """Divide every token's center by the real size of its own level, times each level's ratio."""
    rows = []
    for image in range(layout.batch_size):
        for level, (height, width) in enumerate(layout.level_shapes):
            real_h, real_w = REAL[image][level]
            for y in range(height):
                for x in range(width):
                    for other, (h, w) in enumerate(layout.level_shapes):
                        ratio_h, ratio_w = REAL[image][other][0] / h, REAL[image][other][1] / w
                        rows.append(((x + 0.5) / real_w * ratio_w, (y + 0.5) / real_h * ratio_h))
    return torch.tensor(rows).view(layout.batch_size, layout.num_tokens, layout.num_levels, 2)


def test_the_ways_to_make_a_layout_agree():
    masks = LevelLayout.from_masks(padding_masks())
    sizes = LevelLayout.from_valid_sizes(SHAPES, REAL)
    upstream = [
        LevelLayout.from_upstream(
            spatial_shapes=torch.tensor(SHAPES),
            valid_ratios=ratios,
            query_key_padding_mask=masks.padding_BN,
            like_BNC=torch.zeros(2, masks.num_tokens, 4),
        )
        for ratios in (masks.valid_ratios_BL2, None)
    ]
    for layout in (sizes, *upstream):
        assert layout.level_shapes == masks.level_shapes == SHAPES
        assert torch.equal(layout.valid_BN, masks.valid_BN)
        torch.testing.assert_close(layout.valid_ratios_BL2, masks.valid_ratios_BL2)
        assert layout.valid_counts == ((48, 12, 4), (20, 6, 2))
    assert masks.num_tokens == 64
    assert masks.level_starts == (0, 48, 60)
    assert masks.spatial_shapes().tolist() == [list(shape) for shape in SHAPES]
    assert masks.level_start_index().tolist() == [0, 48, 60]


def test_no_mask_means_no_padding():
    layout = LevelLayout.from_upstream(
        spatial_shapes=torch.tensor(SHAPES),
        valid_ratios=None,
        query_key_padding_mask=None,
        like_BNC=torch.zeros(3, 64, 4),
    )
    assert layout.valid_BN.all() and layout.valid_BN.shape == (3, 64)
    assert not layout.may_have_padding
    assert LevelLayout.from_valid_sizes(SHAPES, REAL).may_have_padding
    assert not LevelLayout.from_valid_sizes(SHAPES, [SHAPES]).may_have_padding


def test_reference_points_equal_a_loop():
    layout = LevelLayout.from_masks(padding_masks())
    expected = loop_reference_points(layout)
    torch.testing.assert_close(layout.reference_points_BNL2(), expected, rtol=1e-6, atol=1e-6)


def test_proposals_are_centered_boxes_of_growing_size_and_skip_padding_and_border():
    layout = LevelLayout.from_masks(padding_masks())
    logits, usable = layout.proposals()
    boxes = logits.sigmoid()
    token = 0
    for level, (height, width) in enumerate(SHAPES):
        for y in range(height):
            for x in range(width):
                for image in range(2):
                    h, w = REAL[image][level]
                    expected = torch.tensor([(x + 0.5) / w, (y + 0.5) / h, *[0.05 * 2**level] * 2])
                    real = y < h and x < w and bool(((expected > 0.01) & (expected < 0.99)).all())
                    assert usable[image, token] == real
                    if real:
                        torch.testing.assert_close(boxes[image, token], expected)
                    else:
                        assert torch.isinf(logits[image, token]).all()
                token += 1


@pytest.mark.parametrize("cells", [1, 49, 50, 51, 100, 150, 250, 334])
def test_tokens_whose_centers_are_not_inside_the_published_limits_are_unusable(cells):
    layout = LevelLayout.from_valid_sizes([(cells, 4)], [[(cells, 4)]])
    center = (torch.arange(cells) + 0.5) / cells  # the published code's float32
    expected = (center > 0.01) & (center < 0.99)
    assert torch.equal(layout.proposals()[1].view(cells, 4), expected[:, None].expand(-1, 4))


def test_split_and_grid_cut_out_levels():
    layout = LevelLayout.from_masks(padding_masks())
    x = torch.arange(2 * 64 * 3).view(2, 64, 3)
    parts = layout.split(x)
    assert [part.shape[1] for part in parts] == [48, 12, 4]
    assert torch.equal(torch.cat(parts, dim=1), x)
    assert torch.equal(layout.grid(x, 1), parts[1].view(2, 3, 4, 3))


def test_masks_from_nearest_interpolation_give_the_same_sizes():
    image = torch.ones(1, 100, 133, dtype=torch.float32)
    image[:, :77, :90] = 0
    shapes = level_shapes(13, 17)
    masks = [F.interpolate(image[None], size=shape)[0].bool() for shape in shapes]
    layout = LevelLayout.from_masks(masks)
    counts = [int((~mask).sum()) for mask in masks]
    assert layout.valid_counts == (tuple(counts),)


@pytest.mark.parametrize(
    ("shapes", "tokens"), [(((2, 3),), 7), (((0, 3),), 0), ((), 0), (((2, 3), (1, 1)), 6)]
)
def test_wrong_sizes_are_named(shapes, tokens):
    with pytest.raises(ValueError, match=r"level.shapes|tokens"):
        LevelLayout(shapes, torch.ones(1, tokens, dtype=torch.bool), torch.ones(1, len(shapes), 2))


def test_wrong_ratios_are_named():
    with pytest.raises(ValueError, match="valid_ratios"):
        LevelLayout(((2, 3),), torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 2, 2))
