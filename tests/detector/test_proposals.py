"""Two-stage selection: chosen tokens, their number, and the effect of padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.small_detectors import build, record
from tokendetr.detector import first_class_score, max_class_score, propose, select_top
from tokendetr.detector.proposals import PROPOSALS
from tokendetr.encoder import record_tokens
from tokendetr.tokens import LevelLayout

SHAPES = [(4, 6), (2, 3)]


def layout(*valid: list[tuple[int, int]]) -> LevelLayout:
    return LevelLayout.from_valid_sizes(SHAPES, list(valid))


FULL, PART, TINY = [(4, 6), (2, 3)], [(3, 4), (2, 2)], [(1, 1), (1, 1)]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_evaluation_selects_each_images_own_best_tokens(limit, seed):
    torch.manual_seed(seed)
    where = layout(FULL, PART, TINY)
    scores = torch.randn(3, 30)
    indices, valid = select_top(scores, where, limit, skip_padding=True)
    k = min(limit, 30)
    assert indices.shape == (3, k)
    for image in range(3):
        real = where.valid_BN[image].nonzero().flatten().tolist()
        best = sorted(real, key=lambda token: -float(scores[image, token]))[:k]
        kept = indices[image] if valid is None else indices[image][valid[image]]
        assert kept.tolist() == best
    assert (valid is None) == (k <= 2)


def test_training_lets_padding_compete_and_clamps_to_all_tokens():
    where = layout(FULL, TINY)
    scores = torch.arange(60.0).view(2, 30)
    indices, valid = select_top(scores, where, 100, skip_padding=False)
    assert indices.tolist() == [list(range(29, -1, -1))] * 2
    assert valid is None


def test_selection_carries_no_gradient_and_survives_an_image_alone():
    scores = torch.randn(1, 30, requires_grad=True)
    indices, valid = select_top(scores, layout(FULL), 5, skip_padding=True)
    assert valid is None
    assert not indices.requires_grad


def test_a_tokens_score_is_that_of_any_class_or_of_the_first():
    logits = torch.tensor([[[1.0, 3.0, 2.0]]])
    assert float(max_class_score(logits)) == 3.0
    assert float(first_class_score(logits)) == 1.0


def proposals_of(memory, where, **options):
    torch.manual_seed(0)
    options = {"limit": 4, "skip_padding": True, **options}
    return propose(
        memory,
        where,
        project=nn.Linear(8, 8),
        class_head=nn.Linear(8, 3),
        box_head=nn.Linear(8, 4),
        score=max_class_score,
        **options,
    )


def test_a_proposal_lies_on_its_token_and_border_tokens_propose_none():
    where = LevelLayout.from_valid_sizes([(128, 4), (2, 2)], [[(128, 4), (2, 2)]])
    memory = torch.randn(1, where.num_tokens, 8)
    found = proposals_of(memory, where)
    offsets = found.boxes_logit_BN4 - where.proposals()[0]
    boxes = (found.boxes_logit_BN4 - torch.nan_to_num(offsets)).sigmoid()
    assert boxes[0, 4 * 64 + 1, :2].tolist() == pytest.approx([1.5 / 4, 64.5 / 128])
    assert boxes[0, 4 * 64 + 1, 2:].tolist() == pytest.approx([0.05, 0.05])
    assert boxes[0, 4 * 128, 2:].tolist() == pytest.approx([0.1, 0.1])
    first_row = found.boxes_logit_BN4[0, :4]  # centers at 0.4 % of the height
    assert torch.isposinf(first_row).all()
    torch.testing.assert_close(found.logits_BNV[0, 0], found.logits_BNV[0, 3])


def test_padding_does_not_reach_scores_or_selection():
    where = layout(FULL, PART)
    memory = torch.randn(2, 30, 8)
    other = memory.masked_fill(~where.valid_BN[..., None], 1e6)
    one, two = proposals_of(memory, where), proposals_of(other, where)
    assert torch.equal(one.indices_BQ, two.indices_BQ)
    assert torch.equal(one.logits_BNV, two.logits_BNV)


def test_select_gathers_rows():
    where = layout(FULL)
    found = proposals_of(torch.randn(1, 30, 8), where)
    rows = found.select(found.tokens_BNC)
    for place, token in enumerate(found.indices_BQ[0].tolist()):
        assert torch.equal(rows[0, place], found.tokens_BNC[0, token])
    outputs = found.selected_outputs()
    assert outputs["pred_boxes"].shape == (1, 4, 4)
    assert found.dense_outputs()["pred_boxes"].isfinite().all()


def test_where_the_first_queries_start_is_recorded():
    model = build("dino").eval()
    with record_tokens() as trace, torch.no_grad():
        model([record(64, 80, seed=1), record(48, 48, seed=2)])
    started = trace.forwards[0].maps[PROPOSALS]
    assert started.shape == trace.forwards[0].layout.valid_BN.shape
    assert set(started.unique().tolist()) == {0.0, 1.0}
    assert started.sum(dim=1).tolist() == [12.0, 12.0]  # the model has 12 queries
