"""Maps of a bypass by least squares, against plain regressions and maps that are known."""

import pytest
import torch
from torch import nn

from tests.small_detectors import LAYERS, LEVELS, WIDTH
from tests.sparsification.twins import RECORDS, twins
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.sparsification.bypass_maps import add_pass, empty_sums, fit_maps
from tokendetr.sparsification.least_squares import RIDGES, relative_error, solve
from tokendetr.sparsification.teacher import DensePass, DenseTeacher
from tokendetr.tokens import LevelLayout

SHAPES = [(12, 13), (6, 7), (3, 4)]


def bypass_of(*, context):
    return AffineBypass(embed_dim=WIDTH, num_layers=LAYERS, num_levels=LEVELS, context=context)


def moved_pass(bypass, layout, seed):
    """Return a pass whose tokens move as a bypass says."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.batch_size, layout.num_tokens, WIDTH)
    input_BNC = torch.randn(shape, generator=generator, dtype=torch.float64)
    dense = DensePass(layout, input_BNC, None, layout.reference_points_BNL2())
    with torch.no_grad():
        levels = layout.split(bypass.entry(layout, input_BNC))
        for layer in range(LAYERS):
            moved = [bypass.moved(layer, level, x) for level, x in enumerate(levels)]
            dense.memories.append(torch.cat(moved, dim=1))
    return dense


def naive_rows(teacher, level):
    """Return inputs and movements per layer of the level's real tokens, each record run alone."""
    inputs, moved = [], []
    for single in RECORDS:
        dense = teacher([single])
        start, size = dense.layout.level_starts[level], dense.layout.level_sizes[level]
        span = slice(start, start + size)
        inputs.append(dense.input_BNC[0, span].double())
        moved.append([(m[0, span] - dense.input_BNC[0, span]).double() for m in dense.memories])
    return torch.cat(inputs), [torch.cat(rows) for rows in zip(*moved, strict=True)]


def test_maps_are_the_ridge_regression_of_all_real_tokens():
    dense, _ = twins()
    teacher = DenseTeacher(dense)
    sums = empty_sums(bypass_of(context=False))
    add_pass(sums, teacher(RECORDS))  # one padded batch
    maps = fit_maps(sums, sums).maps  # nothing held back: the smallest penalty wins
    unexplained = total = 0.0
    for level in range(LEVELS):
        x_RC, moved = naive_rows(teacher, level)
        assert sums.tokens(level) == len(x_RC)
        x_RE = torch.cat([x_RC, torch.ones(len(x_RC), 1, dtype=torch.float64)], dim=1)
        strength = RIDGES[0] * x_RC.square().sum(dim=0).mean()
        penalty_EE = torch.eye(WIDTH + 1, dtype=torch.float64) * strength.sqrt()
        penalty_EE[-1, -1] = 0
        for layer, target_RC in enumerate(moved):
            rows = torch.cat([x_RE, penalty_EE])
            wanted = torch.cat([target_RC, target_RC.new_zeros(WIDTH + 1, WIDTH)])
            expected = torch.linalg.lstsq(rows, wanted).solution
            torch.testing.assert_close(maps[layer, level], expected, rtol=1e-3, atol=1e-3)
            unexplained += float((target_RC - x_RE @ expected).square().sum())
            total += float(target_RC.square().sum())
    assert relative_error(maps, sums) == pytest.approx(unexplained / total, rel=1e-3)
    assert relative_error(torch.zeros_like(maps), sums) == pytest.approx(1)


@pytest.mark.parametrize("context", [False, True])
@torch.no_grad()
def test_written_maps_move_tokens_to_the_fitted_places(context):
    dense, student = twins(context=context)
    dense_pass = DenseTeacher(dense)(RECORDS)
    bypass = student.transformer.encoder.sparsifier.bypass
    sums = empty_sums(bypass)
    add_pass(sums, dense_pass)
    maps = fit_maps(sums, sums)
    maps.write(bypass)
    layout = dense_pass.layout
    entry_BNC = bypass.entry(layout, dense_pass.input_BNC)
    unexplained = total = 0.0
    for level, valid_BN in enumerate(layout.split(layout.valid_BN)):
        x_RC, entry_RC = (
            layout.split(x)[level][valid_BN] for x in (dense_pass.input_BNC, entry_BNC)
        )
        for layer, memory_BNC in enumerate(dense_pass.memories):
            memory_RC = layout.split(memory_BNC)[level][valid_BN]
            unexplained += float((memory_RC - bypass.moved(layer, level, entry_RC)).square().sum())
            total += float((memory_RC - x_RC).square().sum())
    assert relative_error(maps.of_inputs(), sums) == pytest.approx(unexplained / total, rel=1e-3)


def test_tokens_that_moved_on_a_bypass_give_its_maps_back():
    layout = LevelLayout.from_valid_sizes(SHAPES, [SHAPES, [(7, 12), (4, 6), (2, 3)]])
    true = bypass_of(context=True).double()
    for parameter in true.parameters():
        nn.init.normal_(parameter, std=0.3)
    sums = empty_sums(true)
    for seed in range(12):
        add_pass(sums, moved_pass(true, layout, seed))
    maps = fit_maps(sums, sums)
    assert relative_error(maps.of_inputs(), sums) < 1e-6
    found = bypass_of(context=True).double()
    maps.write(found)
    new = moved_pass(true, layout, seed=99)
    entry_BNC = found.entry(layout, new.input_BNC)
    for level, valid_BN in enumerate(layout.split(layout.valid_BN)):
        entry_RC = layout.split(entry_BNC)[level][valid_BN]
        for layer, memory_BNC in enumerate(new.memories):
            expected = layout.split(memory_BNC)[level][valid_BN]
            torch.testing.assert_close(
                found.moved(layer, level, entry_RC), expected, rtol=1e-2, atol=1e-2
            )


def test_a_shared_context_lies_between_none_and_one_for_each_layer():
    dense_pass = DenseTeacher(twins()[0])(RECORDS)
    errors = {}
    for context in (False, True):
        sums = empty_sums(bypass_of(context=context))
        add_pass(sums, dense_pass)
        errors[context] = relative_error(fit_maps(sums, sums).of_inputs(), sums)
    alone = relative_error(solve(sums, sums).maps, sums)
    assert alone < errors[True] < errors[False]
