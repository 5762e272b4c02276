"""Dynamic DETR against a float64 re-implementation with loops, and its laws."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from dynamic_detr import DynamicSparsifier
from tests.dynamic_detr.dynamic_encoders import OPTIONS, SIZES, dynamic_encoder
from tests.plain_encoder import CHANNELS, make_encoder, plain_layer
from tests.pyramids import make_batch, valid_rows
from tests.tokens.naive_windows import cosine, naive_coherence, naive_windows
from tokendetr.encoder import record_tokens
from tokendetr.tokens import Identity, Keep, spread_order


def naive_merges(x, height, width, ratio, window):
    """Choose the windows of one level that merge: the most similar ones of each size."""
    by_shape = {}
    for cells in naive_windows(height, width, window):
        shape = (cells[-1] // width - cells[0] // width, cells[-1] % width - cells[0] % width)
        by_shape.setdefault(shape, []).append(cells)
    merges, to_save = [], 0.0
    for shape in sorted(by_shape):
        windows = sorted(by_shape[shape], key=lambda cells: -naive_coherence(x[cells]))
        saves = len(windows[0]) - 1
        to_save += len(windows) * len(windows[0]) * (1 - ratio)
        number = min(len(windows), math.floor(to_save / saves + 1e-9)) if saves else 0
        to_save -= number * saves
        merges += windows[:number]
    return merges


def naive_stage(x, shapes, ratios, windows, neighbors=3, min_cosine=0.01):
    """Follow the paper's text for one image: place of each query -> tokens it is the mean of."""
    groups, start = {}, 0
    for level, (height, width) in enumerate(shapes[:-1]):
        tokens = height * width
        rows = x[start : start + tokens]
        gone = set()
        for cells in naive_merges(rows, height, width, ratios[level], windows[level]):
            cells = [start + cell for cell in cells]
            groups[cells[-1]] = cells
            gone.update(cells)
        for token in range(start, start + tokens):
            if token not in gone:
                groups[token] = [token]
        start += tokens
    last = range(start, len(x))
    rarity = {i: sum(1 / max(cosine(x[i], x[j]), min_cosine) for j in last if j != i) for i in last}
    count = max(1, math.floor(len(last) * ratios[-1] + 0.5))
    spread = [start + int(i) for i in spread_order(*shapes[-1])[::-1]]
    important = sorted(spread, key=lambda i: -rarity[i])[:count]
    groups.update({v: [v] for v in important})
    for u in last:
        if u not in important:
            others = sorted((j for j in last if j != u), key=lambda j: (-cosine(x[u], x[j]), j))
            for v in others[:neighbors]:
                if v in important:
                    groups[v].append(u)
    return groups


def naive_encoder(encoder, pyramid, options):
    """Run the whole encoder on one image, stage by stage."""
    layout, budget = pyramid.layout, encoder.sparsifier.budget
    memory, pos = pyramid.x_BNC[0], pyramid.pos_BNC[0]
    reference = layout.reference_points_BNL2()[0].to(memory.dtype)
    valid, layer = torch.ones(len(memory), dtype=memory.dtype), 0
    for stage, length in enumerate(budget.stage_lengths):
        groups = naive_stage(
            memory, layout.level_shapes, budget.level_ratios(stage), options["window_sizes"]
        )
        index = torch.tensor(sorted(groups))
        tokens = torch.stack([memory[groups[i]].mean(dim=0) for i in index.tolist()])
        for _ in range(length):
            tokens = plain_layer(
                encoder.layers[layer],
                tokens,
                memory,
                pos[index],
                reference[index],
                valid,
                layout.level_shapes,
            )
            memory = memory.clone()
            memory[index] = tokens
            layer += 1
    return memory


def test_it_equals_the_naive_encoder_also_in_a_padded_batch():
    batch, alone = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    encoder = dynamic_encoder().double()
    with torch.no_grad():
        memory = encoder(**batch.inputs)
        for image, single in enumerate(alone):
            expected = naive_encoder(encoder, single, OPTIONS)
            got = valid_rows(batch.layout, memory, image)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_keep_ratio_one_is_bitwise_the_dense_encoder(training):
    batch, _ = make_batch(SIZES, CHANNELS)
    ones = make_encoder(DynamicSparsifier(keep_ratios=(1.0,) * 4), num_layers=6, attn_dropout=0.1)
    dense = make_encoder(num_layers=6, attn_dropout=0.1)
    results = []
    for encoder in (ones, dense):
        torch.manual_seed(3)
        memory = encoder.train(training)(**batch.inputs)
        memory.square().sum().backward()
        results.append([memory, *(parameter.grad for parameter in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "max", "window_update": "broadcast"},
        {"merge": "sum", "anchor": "center"},
        {"merge": "retain", "affinity_matching": False},
        {"ratio_order": "gather", "num_neighbors": 7, "value_policy": "initial"},
        {"window_sizes": (8, 4, 2)},
        {"window_sizes": (4, 2, 1)},
        {"keep_ratios": (0.05, 0.05, 0.05, 0.05)},
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_an_images_result_does_not_depend_on_its_batch_nor_on_padding(options, seed):
    batch, alone = make_batch(SIZES, CHANNELS, seed=seed, dtype=torch.float64)
    encoder = dynamic_encoder(**options).double()
    with torch.no_grad():
        memory = encoder(**batch.inputs)
        assert torch.equal(memory, encoder(**batch.inputs))
        for image, single in enumerate(alone):
            torch.testing.assert_close(
                valid_rows(batch.layout, memory, image),
                encoder(**single.inputs)[0],
                rtol=1e-6,
                atol=1e-6,
            )


def test_kept_counts_are_the_budgets_and_padding_is_never_chosen_or_merged():
    batch, alone = make_batch(SIZES, CHANNELS)
    encoder = dynamic_encoder()
    budget = encoder.sparsifier.budget
    with record_tokens() as trace:
        encoder(**batch.inputs)
    layers = trace.forwards[0].layers
    assert [layer.token_map is layers[index - 1].token_map for index, layer in enumerate(layers)][
        1:
    ] == [True, False, True, True, False]
    for index, layer in enumerate(layers):
        token_map, stage = layer.token_map, budget.stage(index)
        valid = token_map.valid_BK
        for image, single in enumerate(alone):
            assert valid[image].sum() == budget.kept_tokens(stage, single.layout.level_shapes)
            own = token_map.anchor_BK[image][valid[image]]
            assert batch.layout.valid_BN[image][own].all()
        weights = token_map.weights_BKN()
        assert not weights.masked_select(~batch.layout.valid_BN[:, None, :]).any()
        torch.testing.assert_close(weights.sum(dim=2), valid.float())
    assert set(layers[0].scores) == {f"coherence_level{n}" for n in (1, 2, 3)} | {"rarity_level4"}


def test_layouts_from_masks_give_the_same_memory():
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder, layout = dynamic_encoder(), batch.layout
    expected = encoder(**batch.inputs)
    got = encoder(
        query=batch.x_BNC,
        query_pos=batch.pos_BNC,
        query_key_padding_mask=layout.padding_BN,
        spatial_shapes=layout.spatial_shapes(),
        reference_points=layout.reference_points_BNL2(),
        valid_ratios=layout.valid_ratios_BL2,
    )
    assert torch.equal(got, expected)


def test_there_is_nothing_to_learn_and_dense_weights_fit():
    assert not list(DynamicSparsifier().parameters()) and not DynamicSparsifier().state_dict()
    dense, dynamic = make_encoder(num_layers=6, seed=1), dynamic_encoder()
    result = dynamic.load_state_dict(dense.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


def test_gradients_reach_features_and_all_weights():
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = dynamic_encoder()
    x = batch.x_BNC.clone().requires_grad_()
    valid = batch.layout.valid_BN
    encoder(**{**batch.inputs, "query": x})[valid].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert not x.grad[~valid].any()
    assert (x.grad[valid].abs().sum(dim=1) > 0).all()


def test_random_selection_keeps_the_same_number():
    batch, _ = make_batch(SIZES, CHANNELS)
    maps = []
    for selection in ("coherence", "random"):
        torch.manual_seed(0)
        with record_tokens() as trace:
            dynamic_encoder(selection=selection)(**batch.inputs)
        maps.append(trace.forwards[0].layers[0].token_map)
    assert maps[0].num_tokens == maps[1].num_tokens
    assert not torch.equal(maps[0].anchor_BK, maps[1].anchor_BK)


def test_random_tokens_are_not_merged_at_each_levels_ratio():
    batch, alone = make_batch(SIZES, CHANNELS)
    encoder = dynamic_encoder(selection="random_tokens")
    with record_tokens() as trace:
        encoder(**batch.inputs)
    budget = encoder.sparsifier.budget
    for layer, stage in ((0, 0), (2, 1), (5, 2)):
        token_map = trace.forwards[0].layers[layer].token_map
        assert isinstance(token_map, Keep)
        for image, single in enumerate(alone):
            kept = torch.zeros(batch.layout.num_tokens, dtype=torch.bool)
            kept[token_map.anchor_BK[image][token_map.valid_BK[image]]] = True
            assert not (kept & ~batch.layout.valid_BN[image]).any()
            levels = [int(part.sum()) for part in batch.layout.split(kept[None])]
            sizes = single.layout.level_sizes
            ratios = budget.level_ratios(stage)
            assert levels == [max(1, int(n * r + 0.5)) for n, r in zip(sizes, ratios, strict=True)]
    maps = [trace.forwards[0].layers[layer].token_map for layer in (0, 2)]
    assert not torch.equal(maps[0].anchor_BK[:, :20], maps[1].anchor_BK[:, :20])


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_only_the_configured_number_of_stages_chooses_again(stages):
    batch, _ = make_batch(SIZES, CHANNELS)
    with record_tokens() as trace:
        encoder = dynamic_encoder(stages=stages)
        encoder(**batch.inputs)
    maps = [layer.token_map for layer in trace.forwards[0].layers]
    changes = [layer for layer in range(1, 6) if maps[layer] is not maps[layer - 1]]
    assert changes == [2, 5][: stages - 1]
    assert encoder.sparsifier.budget.num_layers == 6
    with record_tokens() as all_stages:
        dynamic_encoder()(**batch.inputs)
    first = all_stages.forwards[0].layers[0].token_map
    assert torch.equal(maps[0].anchor_BK, first.anchor_BK)


def test_tiny_images_and_single_tokens_work():
    for sizes in ([(1, 1)], [(1, 5), (3, 2)]):
        batch, _ = make_batch(sizes, CHANNELS)
        memory = dynamic_encoder()(**batch.inputs)
        assert memory[batch.layout.valid_BN].isfinite().all()


def test_stages_of_ratio_one_are_dense():
    batch, _ = make_batch(SIZES, CHANNELS)
    five = DynamicSparsifier(
        keep_ratios=(1.0, 1.0, 1.0, 1.0), stage_lengths=(1, 5), level_orders=((1, 2, 3, 4),) * 2
    )
    with record_tokens() as trace:
        make_encoder(five, num_layers=6)(**batch.inputs)
    assert all(isinstance(layer.token_map, Identity) for layer in trace.forwards[0].layers)


def test_copies_do_not_share_options():
    encoder = dynamic_encoder()
    twin = copy.deepcopy(encoder)
    assert twin.sparsifier.budget == encoder.sparsifier.budget
    assert twin.sparsifier is not encoder.sparsifier


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"merge": "median"}, "merge"),
        ({"window_update": "zero"}, "window_update"),
        ({"cells": "zero"}, "cells"),
        ({"anchor": "top_left"}, "anchor"),
        ({"selection": "norm"}, "selection"),
        ({"alignment": "pupil"}, "alignment"),
        ({"alignment": "teacher"}, "needs a teacher"),
        ({"stages": 0}, "stages"),
        ({"stages": 4}, "stages"),
        ({"num_neighbors": 0}, "num_neighbors"),
        ({"min_cosine": 0.0}, "min_cosine"),
        ({"alignment_weight": -1.0}, "alignment_weight"),
    ],
)
def test_wrong_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        DynamicSparsifier(**options)


@pytest.mark.parametrize(("former", "name"), [("stale", "anchor_only"), ("broadcast", "broadcast")])
def test_the_former_name_of_window_update_is_read_with_a_warning(former, name):
    with pytest.warns(FutureWarning, match=f"window_update='{name}'"):
        assert DynamicSparsifier(cells=former).window_update == name


def test_an_encoder_that_does_not_fit_is_named():
    batch, _ = make_batch(SIZES, CHANNELS)
    with pytest.raises(ValueError, match="stage_lengths"):
        make_encoder(DynamicSparsifier(), num_layers=5)(**batch.inputs)
    three = DynamicSparsifier(
        keep_ratios=(0.5, 0.4, 0.3), window_sizes=(4, 2), level_orders=((1, 2, 3),) * 3
    )
    with pytest.raises(ValueError, match="levels"):
        make_encoder(three, num_layers=6)(**batch.inputs)


def test_importing_the_method_imports_no_detector():
    code = "import sys, dynamic_detr; print([m for m in sys.modules if m.startswith('projects')])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_keep_ratio_is_that_of_the_most_important_level():
    sparsifier = DynamicSparsifier()
    sparsifier.set_keep_ratio(0.25)
    assert sparsifier.budget.keep_ratios == pytest.approx((0.25, 0.2, 0.15, 0.1))
    sparsifier.set_keep_ratio(1)
    assert sparsifier.budget.keeps_all
    sparsifier.set_keep_ratio(0.5)
    assert sparsifier.budget.keep_ratios == pytest.approx((0.5, 0.4, 0.3, 0.2))
    sparsifier.keep_ratio = 0.25
    assert sparsifier.keep_ratio == 0.25
    assert sparsifier.budget.keep_ratios == pytest.approx((0.25, 0.2, 0.15, 0.1))
    for wrong in (0.0, "0.5"):
        with pytest.raises(ValueError, match=r"keep_ratio must lie in \(0, 1\], got"):
            sparsifier.keep_ratio = wrong
