"""Keep ratios of a loaded detector, set by hand and by a time limit."""

import math

import pytest
import torch

from tests.small_detectors import build, record
from tests.sparse_detr.sparse_detectors import sparse
from tokendetr.analysis import keep_ratio_search
from tokendetr.config import zoo
from tokendetr.encoder import set_keep_ratio
from tokendetr.errors import ConfigError
from tokendetr.sparsification import (
    TooSlowError,
    keep_ratio_within,
)

RECORDS = [record(64, 80)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Make a detector that takes 10 ms plus 100 ms times its keep ratio."""
    model = sparse(keep_ratio=0.3).eval()
    sparsifier = model.transformer.encoder.sparsifier
    monkeypatch.setattr(
        keep_ratio_search, "timed", lambda run, device: 0.010 + 0.1 * sparsifier.keep_ratio
    )
    return model


@pytest.mark.parametrize(("limit", "ratio"), [(15.1, 0.05), (41, 0.3), (44.9, 0.3), (500, 1.0)])
def test_the_greatest_ratio_within_a_time_is_chosen_and_set(clock, limit, ratio):
    assert keep_ratio_within(clock, RECORDS, limit) == pytest.approx((ratio, 10 + 100 * ratio))
    assert clock.transformer.encoder.sparsifier.keep_ratio == ratio


def test_a_time_out_of_reach_is_an_error_and_changes_nothing(clock):
    with pytest.raises(TooSlowError, match="15 ms at keep ratio 0.05 and the limit is 12 ms"):
        keep_ratio_within(clock, RECORDS, 12)
    assert clock.transformer.encoder.sparsifier.keep_ratio == 0.3
    for limit in (0, math.nan):
        with pytest.raises(ValueError, match="max_ms"):
            keep_ratio_within(clock, RECORDS, limit)


def test_any_ratio_is_within_a_generous_time_limit():
    ratio, taken = keep_ratio_within(sparse().eval(), RECORDS, 1e6, repeats=1)
    assert ratio == 1.0 and taken > 0


def test_ratios_are_set_by_hand_where_there_is_something_to_set():
    model = sparse()
    set_keep_ratio(model, 0.7)
    assert model.transformer.encoder.sparsifier.keep_ratio == 0.7
    with pytest.raises(ValueError, match="keep_ratio"):
        set_keep_ratio(model, 1.5)
    with pytest.raises(ConfigError, match="no sparsifier.* make the detector sparse"):
        set_keep_ratio(build("dino"), 0.5)


def test_the_zoo_loads_any_ratio():
    model = zoo.load("sparse_dino_shapes_bypass", None, keep=0.15)
    assert model.transformer.encoder.sparsifier.keep_ratio == 0.15
    with pytest.raises(ConfigError, match="no sparsifier"):
        zoo.load("dino_shapes", keep=0.5)
