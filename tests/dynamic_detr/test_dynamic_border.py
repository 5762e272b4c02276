"""Border cells get their share of the queries, at the image sizes of detectors."""

import pytest
import torch

from dynamic_detr import DynamicSparsifier
from tests.plain_encoder import CHANNELS, make_encoder
from tokendetr.analysis.flops import pyramid_shapes
from tokendetr.encoder import EncoderContext, record_tokens
from tokendetr.tokens import LevelLayout

SIZES = [(800, 1066), (750, 1333), (800, 800), (480, 640)]
RATIOS = [(0.5, 0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)]


def border(height: int, width: int, cells: int) -> torch.Tensor:
    """Return the cells of the outermost rows and columns, on each side, bool [H, W]."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[cells : height - cells, cells : width - cells] = True
    return ~inside


def corner_strip(height: int, width: int, cells: int) -> torch.Tensor:
    """Return the cells of the last rows and columns."""
    strip = torch.zeros(height, width, dtype=torch.bool)
    strip[height - cells :] = True
    strip[:, width - cells :] = True
    return strip


def context_of(layout: LevelLayout, x: torch.Tensor) -> EncoderContext:
    return EncoderContext(
        layout=layout,
        memory_BNC=x,
        query_pos_BNC=None,
        reference_points_BNL2=layout.reference_points_BNL2(),
        num_layers=6,
        run_dense=lambda: x,
    )


def query_shares(shapes, sizes, features, options, regions, images=1, seed=0):
    """Return per stage, level and region: (share of queries, share of tokens) of real cells.

    ``sizes`` are the real sizes of the images of a batch; the shares are those of the first one.
    """
    torch.manual_seed(seed)
    layout = LevelLayout.from_valid_sizes(shapes, sizes)
    sparsifier = DynamicSparsifier(alignment="off", **options)
    counts: dict = {}
    for _ in range(images):
        x = torch.ones(len(sizes), layout.num_tokens, CHANNELS)
        if features == "noise":
            x = torch.randn_like(x)
        plan = sparsifier.plan(context_of(layout, x))
        for stage, layer in enumerate((0, 2, 5)):
            token_map = plan.token_map(layer, x)
            chosen = torch.zeros(layout.num_tokens, dtype=torch.bool)
            own = token_map.anchor_BK[0]
            if token_map.valid_BK is not None:
                own = own[token_map.valid_BK[0]]
            chosen[own] = True
            for level, (height, width) in enumerate(sizes[0]):
                query = layout.grid(chosen[None], level)[0, :height, :width]
                window = (*sparsifier.budget.window_sizes, 1)[level]
                for name, region in regions.items():
                    here = region(height, width, window)
                    seen = counts.setdefault((stage, level, name), torch.zeros(4))
                    seen += torch.tensor(
                        [(query & here).sum(), query.sum(), here.sum(), here.numel()]
                    )
    return {key: (float(a / b), float(c / d)) for key, (a, b, c, d) in counts.items()}


@pytest.mark.parametrize("features", ["constant", "noise"])
@pytest.mark.parametrize("ratios", RATIOS, ids=lambda ratios: f"{ratios[0]}")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_border_has_its_share_of_the_queries(size, ratios, features):
    shapes = pyramid_shapes(*size)
    shares = query_shares(
        shapes,
        [shapes],
        features,
        {"keep_ratios": ratios},
        {"border": border, "last rows and columns": corner_strip},
        images=4 if features == "noise" else 1,
    )
    for (stage, level, name), (queries, tokens) in shares.items():
        assert queries <= 1.25 * tokens, (stage, level, name, queries / tokens)


def test_padding_draws_no_queries_to_itself():
    shapes, real = pyramid_shapes(800, 1066), pyramid_shapes(480, 640)
    options = {"keep_ratios": RATIOS[0]}
    regions = {"border": border, "last": corner_strip}
    alone = query_shares(real, [real], "constant", options, regions)
    padded = query_shares(shapes, [real, shapes], "constant", options, regions)
    assert padded == alone


def test_a_level_smaller_than_its_window_is_one_window():
    shapes = ((5, 6), (3, 3), (2, 2), (1, 1))
    layout = LevelLayout.from_valid_sizes(shapes, [shapes])
    encoder = make_encoder(
        DynamicSparsifier(alignment="off", keep_ratios=(0.01,) * 4), num_layers=6
    )
    x = torch.randn(1, layout.num_tokens, CHANNELS)
    with record_tokens() as trace:
        encoder(query=x, query_pos=torch.zeros_like(x), layout=layout)
    token_map = trace.forwards[0].layers[0].token_map
    # 30 cells at ratio .01 save 29.7: one window of 29 fewer; likewise 8 and 3 of the others.
    assert token_map.anchor_BK[0].tolist() == [29, 38, 42, 43]
