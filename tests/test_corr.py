"""Corr against sums over lists, as an evaluator beside others."""

import math

import pytest
import torch
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset

from tests.small_detectors import build
from tests.sparse_detr.sparse_detectors import RECORDS, sparse
from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.trace import record_tokens
from tokendetr.evaluation.decoder_correlation import CorrEvaluator, updated_attention


def test_it_is_the_share_of_attention_on_updated_tokens_of_each_image_and_level():
    model = sparse().eval()
    with record_tokens() as trace, torch.no_grad():
        model(RECORDS)
    (forward,) = trace.forwards
    kept_BL, all_BL = updated_attention(forward)
    layout, token_map = forward.layout, forward.layers[0].token_map
    for image in range(2):
        index, valid = token_map.anchor_BK[image].tolist(), token_map.valid_BK[image].tolist()
        kept = {token for token, own in zip(index, valid, strict=True) if own}
        for level, (start, size) in enumerate(
            zip(layout.level_starts, layout.level_sizes, strict=True)
        ):
            mass = forward.maps[MAP_NAME][image].tolist()
            real = [n for n in range(start, start + size) if layout.valid_BN[image, n]]
            expected = math.fsum(mass[n] for n in real if n in kept)
            assert float(kept_BL[image, level]) == pytest.approx(expected, abs=1e-9)
            total = math.fsum(mass[n] for n in real)
            assert float(all_BL[image, level]) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_it_evaluates_a_data_set_beside_others(ratio):
    model, loader = sparse(keep_ratio=ratio), [[record] for record in RECORDS]
    results = inference_on_dataset(model, loader, DatasetEvaluators([CorrEvaluator()]))["tokens"]
    assert set(results) == {"Corr", "Corr_level1", "Corr_level2", "Corr_level3"}
    if ratio == 1.0:
        assert set(results.values()) == {100.0}
    else:
        shares = []
        for batch in loader:
            with record_tokens() as trace, torch.no_grad():
                model.eval()(batch)
            kept_BL, all_BL = updated_attention(trace.forwards[0])
            shares.append(float(kept_BL.sum() / all_BL.sum()))
        assert results["Corr"] == pytest.approx(50 * sum(shares))
        assert 0 < results["Corr"] < 100
    with record_tokens() as trace:
        pass
    assert not trace.forwards


def test_models_that_cannot_be_looked_at_are_named():
    with pytest.raises(ValueError, match="supervised"):
        inference_on_dataset(build("dino"), [RECORDS], CorrEvaluator())
