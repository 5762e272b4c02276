"""The ranking of levels against plain loops, and the command that writes it."""

import runpy

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from dynamic_detr import DynamicSparsifier
from dynamic_detr.importance import STATISTICS, LevelImportance, record_level_importance
from tests.pyramids import make_batch
from tests.tools.configs import write_config
from tokendetr.cli import importance_ranking
from tokendetr.config import zoo
from tokendetr.config.overrides import apply_overrides
from tokendetr.encoder import TokenEncoder

CHANNELS = 16


def make_encoder(*, layers=2, seed=0, **options) -> TokenEncoder:
    torch.manual_seed(seed)
    encoder = TokenEncoder(
        embed_dim=CHANNELS,
        num_heads=2,
        feedforward_dim=8,
        num_layers=layers,
        num_points=2,
        **options,
    )
    for layer in encoder.layers:
        attention = layer.attentions[0]
        torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
        torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    return encoder.double().eval()


def prefer_level(attention, level: int) -> None:
    """Let all heads attend to one level, at their own position."""
    with torch.no_grad():
        for part in (attention.attention_weights, attention.sampling_offsets):
            part.weight.zero_()
            part.bias.zero_()
        attention.attention_weights.bias.view(2, 4, 2)[:, level] = 20.0


def loop_mass(attention, query, reference, shapes):
    """Sum the attention on every token of one image, by plain loops."""
    heads, levels, points = attention.num_heads, len(shapes), attention.num_points
    offsets = attention.sampling_offsets(query).view(-1, heads, levels, points, 2)
    weights = attention.attention_weights(query).view(-1, heads, levels * points).softmax(-1)
    weights = weights.view(-1, heads, levels, points)
    mass = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for q, m, level, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = shapes[level]
        x = reference[q, level, 0] * width + offsets[q, m, level, p, 0] - 0.5
        y = reference[q, level, 1] * height + offsets[q, m, level, p, 1] - 0.5
        share_y = (1 - (y - torch.arange(height)).abs()).clamp(min=0)
        share_x = (1 - (x - torch.arange(width)).abs()).clamp(min=0)
        mass[level] += weights[q, m, level, p] * share_y[:, None] * share_x
    return mass


def loop_scores(mass, fraction, statistic):
    """Return each level's part of the heaviest tokens that carry a fraction, one at a time."""
    if statistic == "mass":
        return [float(grid.sum() / sum(g.sum() for g in mass)) for grid in mass]
    tokens = [(float(m), level) for level, grid in enumerate(mass) for m in grid.flatten()]
    goal, carried = fraction * sum(m for m, _ in tokens), 0.0
    chosen = [0] * len(mass)
    for m, level in sorted(tokens, key=lambda token: -token[0]):
        if carried >= goal:
            break
        carried += m
        chosen[level] += 1
    if statistic == "set_share":
        return [count / sum(chosen) for count in chosen]
    return [count / grid.numel() for count, grid in zip(chosen, mass, strict=True)]


def measured(encoder, *pyramids, **options):
    with torch.no_grad(), record_level_importance(encoder, **options) as importance:
        for pyramid in pyramids:
            encoder(**pyramid.inputs)
    return importance


@pytest.mark.parametrize("statistic", STATISTICS)
def test_scores_of_the_first_layer_are_those_of_plain_loops(statistic):
    encoder = make_encoder()
    _, (pyramid,) = make_batch([(6, 9)], CHANNELS, dtype=torch.float64)
    scores = measured(encoder, pyramid, statistic=statistic).layer_scores()
    layout = pyramid.layout
    with torch.no_grad():
        mass = loop_mass(
            encoder.layers[0].attentions[0],
            (pyramid.x_BNC + pyramid.pos_BNC)[0],
            layout.reference_points_BNL2()[0].double(),
            layout.level_shapes,
        )
    assert scores[0] == pytest.approx(loop_scores(mass, 0.75, statistic))
    assert scores[1] != pytest.approx(scores[0])


def test_the_level_that_is_looked_at_comes_first():
    encoder = make_encoder(layers=4)
    for layer, level in enumerate((0, 2, 3, 3)):
        prefer_level(encoder.layers[layer].attentions[0], level)
    _, pyramids = make_batch([(16, 16), (9, 20)], CHANNELS, dtype=torch.float64)
    importance = measured(encoder, *pyramids)
    assert importance.num_images == 2
    orders = importance.level_orders((1, 1, 2))
    assert [order[0] for order in orders] == [1, 3, 4]
    assert all(sorted(order) == [1, 2, 3, 4] for order in orders)
    assert orders[0] == [1, 2, 3, 4], "levels without attention tie: the finer one first"


def test_padding_neither_looks_nor_counts():
    encoder = make_encoder()
    batch, alone = make_batch([(6, 9), (8, 5)], CHANNELS, dtype=torch.float64)
    together, separately = measured(encoder, batch), measured(encoder, *alone)
    for one, other in zip(together.layer_scores(), separately.layer_scores(), strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_more_of_the_mass_needs_no_fewer_tokens():
    encoder = make_encoder()
    _, pyramids = make_batch([(6, 9)], CHANNELS, dtype=torch.float64)
    small, large = (
        measured(encoder, *pyramids, mass=mass, statistic="own_share").layer_scores()
        for mass in (0.3, 0.95)
    )
    for fewer, more in zip(small, large, strict=True):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


def test_the_level_that_gets_the_attention_comes_first_however_many_tokens_it_has():
    """Level 2 comes first only if attention is counted as a share of a level's own tokens.

    Level 1 gets 70 % of the attention on its 12 tokens; the one token of level 2 is one of few that
    get much.
    """
    mass = torch.tensor([[1.0] * 4 + [0.75] * 4 + [0.0] * 4 + [3.0]])
    orders = {}
    for statistic in STATISTICS:
        importance = LevelImportance(1, statistic=statistic)
        importance.add(0, mass, ((3, 4), (1, 1)))
        (orders[statistic],) = importance.level_orders((1,))
    assert orders == {"set_share": [1, 2], "mass": [1, 2], "own_share": [2, 1]}
    with pytest.raises(ValueError, match="statistic"):
        LevelImportance(1, statistic="count")


def test_stages_average_their_layers():
    importance = LevelImportance(3)
    for layer, mass in enumerate(([9.0, 1, 1, 1], [1.0, 9, 9, 9], [1.0, 1, 1, 9])):
        importance.add(layer, torch.tensor([mass]), ((1, 1), (1, 3)))
    first, second, third = importance.layer_scores()
    stages = importance.stage_scores((1, 2))
    assert stages[0] == first
    assert stages[1] == pytest.approx([(a + b) / 2 for a, b in zip(second, third, strict=True)])
    for lengths in ((1, 1), (1, 0, 2), (4,)):
        with pytest.raises(ValueError, match="3 layers"):
            importance.stage_scores(lengths)
    with pytest.raises(ValueError, match="layer 1"):
        LevelImportance(2).layer_scores()


def test_hooks_are_gone_afterwards_and_other_encoders_are_refused():
    encoder = make_encoder()
    _, pyramids = make_batch([(6, 9)], CHANNELS, dtype=torch.float64)
    importance = measured(encoder, *pyramids)
    encoder(**pyramids[0].inputs)
    assert importance.num_images == 1
    budget = {
        "keep_ratios": (0.5,) * 4,
        "level_orders": ((1, 2, 3, 4),),
        "stage_lengths": (2,),
        "window_sizes": (2, 2, 2),
    }
    sparse = make_encoder(sparsifier=DynamicSparsifier(**budget))
    for wrong, message in ((sparse, "DynamicSparsifier"), (torch.nn.Linear(1, 1), "Linear")):
        with pytest.raises(ValueError, match=message), record_level_importance(wrong):
            pass


def test_the_command_writes_orders_that_a_config_takes(tmp_path, capsys):
    config, weights = write_config(tmp_path), tmp_path / "weights.pth"
    model = instantiate(LazyConfig.load(config).model)
    torch.save({"model": model.state_dict()}, weights)
    arguments = ["--config-file", config, "--num-images", "2", "--output", str(tmp_path / "o.py")]
    arguments += ["--stage-lengths", "1,1", f"train.init_checkpoint={weights}"]
    importance_ranking.main(arguments)
    printed = capsys.readouterr().out
    assert "mean of 2 images" in printed

    names = runpy.run_path(str(tmp_path / "o.py"))
    assert names["stage_lengths"] == [1, 1]
    orders = names["level_orders"]
    assert len(orders) == 2
    assert all(sorted(order) == [1, 2, 3] for order in orders)
    override = printed.strip().splitlines()[-1]
    cfg = zoo.get_config("dynamic_dino_r50_4scale_12ep")
    apply_overrides(cfg, [override])
    assert [list(o) for o in cfg.model.transformer.encoder.sparsifier.level_orders] == orders
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage-lengths", "1,1"], "train.init_checkpoint"),
        (["--stage-lengths", "1,1", "train.init_checkpoint=/none.pth"], "/none.pth"),
    ],
)
def test_mistakes_are_explained(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        importance_ranking.main(["--config-file", write_config(tmp_path), *arguments])
