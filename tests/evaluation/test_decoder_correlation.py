"""Corr equals sums over lists, and records beside other evaluators."""

import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.structures import BoxMode
from torch import nn

from tests.small_detectors import build
from tests.sparse_detr.sparse_detectors import RECORDS, sparse
from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.trace import ForwardTrace, LayerTrace
from tokendetr.evaluation.decoder_correlation import CorrEvaluator, updated_attention
from tokendetr.evaluation.token_recall import TokenRecall
from tokendetr.tokens import Identity, Keep, LevelLayout


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


def share_looked_at(model, loader) -> float:
    shares = []
    for batch in loader:
        with record_tokens() as trace, torch.no_grad():
            model.eval()(batch)
        mass, layout = trace.forwards[0].maps[MAP_NAME][0].tolist(), trace.forwards[0].layout
        real = [value for value, own in zip(mass, layout.valid_BN[0].tolist(), strict=True) if own]
        shares.append(100 * sum(value > 0 for value in real) / len(real))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_it_evaluates_a_data_set_beside_others(ratio):
    model, loader = sparse(keep_ratio=ratio), [[record] for record in RECORDS]
    results = inference_on_dataset(model, loader, DatasetEvaluators([CorrEvaluator()]))
    results = results["decoder_attention"]
    names = {"Corr", "Corr_level1", "Corr_level2", "Corr_level3", "Corr_spread", "Looked_at"}
    assert set(results) == names
    looked_at = results.pop("Looked_at")
    assert looked_at == pytest.approx(share_looked_at(model, loader)) and 0 < looked_at < 100
    if ratio == 1.0:
        assert results.pop("Corr_spread") == 0
        assert set(results.values()) == {100.0}
    else:
        shares = []
        for batch in loader:
            with record_tokens() as trace, torch.no_grad():
                model.eval()(batch)
            kept_BL, all_BL = updated_attention(trace.forwards[0])
            shares.append(float(kept_BL.sum() / all_BL.sum()))
        assert results["Corr"] == pytest.approx(50 * sum(shares))
        assert results["Corr_spread"] == pytest.approx(50 * abs(shares[0] - shares[1]))
        assert 0 < results["Corr"] < 100
    with record_tokens() as trace:
        pass
    assert not trace.forwards


def test_evaluators_that_record_tokens_stand_side_by_side():
    model = sparse()
    loader = [[{**record, "image_id": number}] for number, record in enumerate(RECORDS)]
    box = {"bbox": [5.0, 5.0, 60.0, 60.0], "bbox_mode": BoxMode.XYXY_ABS}
    sizes = {"width": 100, "height": 100, "annotations": [box]}
    DatasetCatalog.register("beside_corr", lambda: [{"image_id": n, **sizes} for n in (0, 1)])
    both = DatasetEvaluators([CorrEvaluator(), TokenRecall("beside_corr")])
    together = inference_on_dataset(model, loader, both)
    with record_tokens() as trace, torch.no_grad():
        model.eval()(RECORDS)
    assert len(trace.forwards) == 1, "both evaluators have left nothing behind"
    alone = inference_on_dataset(model, loader, CorrEvaluator())
    assert together["decoder_attention"] == alone["decoder_attention"]
    recall = inference_on_dataset(model, loader, TokenRecall("beside_corr"))
    assert together["tokens"]["queries"] == recall["tokens"]["queries"] > 0
    assert together["tokens"]["kept"] == recall["tokens"]["kept"] > 0
    DatasetCatalog.remove("beside_corr")


def test_a_dense_detector_updates_all_that_its_decoder_looks_at():
    results = inference_on_dataset(build("dino"), [RECORDS], CorrEvaluator())
    results = results["decoder_attention"]
    assert results.pop("Corr_spread") == 0 and 0 < results.pop("Looked_at") < 100
    assert set(results.values()) == {100.0}


def test_models_that_cannot_be_looked_at_are_named():
    class EncoderAlone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = build("dino").transformer.encoder

        def forward(self, records):
            query = torch.zeros(1, 20, self.encoder.embed_dim)
            self.encoder(query, spatial_shapes=torch.tensor([[4, 4], [2, 1], [1, 2]]))
            return [{}]

    with pytest.raises(ValueError, match="observe"):
        inference_on_dataset(EncoderAlone(), [RECORDS], CorrEvaluator())


def hand_made(masses, layers):
    """One image of one level with 1 x n tokens and layers that keep the given tokens."""
    layout = LevelLayout.from_valid_sizes([(1, len(masses))], [[(1, len(masses))]])
    forward = ForwardTrace(layout)
    forward.maps[MAP_NAME] = torch.tensor([masses])
    identity = Identity(num_tokens=len(masses))
    for kept in layers:
        token_map = identity if kept is None else Keep(index_BK=torch.tensor([kept]))
        forward.layers.append(LayerTrace(token_map))
    return forward


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.7 + 0.4) / 2),
        ({"layers": "any"}, 0.9),
        ({"layers": "first"}, 0.7),
        ({"layers": "last"}, 0.4),
        ({"top": 0.2, "layers": "first"}, 1.0),
        ({"top": 0.2}, 0.5),
        ({"top": 0.4}, (0.5 / 0.7 + 0.2 / 0.7) / 2),
    ],
)
def test_modes_by_hand(options, expected):
    forward = hand_made([0.5, 0.2, 0.2, 0.1, 0.0], [[0, 2], [1, 2]])
    kept, total = updated_attention(forward, **options)
    assert float(kept.sum() / total.sum()) == pytest.approx(expected)


def test_a_random_set_for_every_layer_has_its_ratio_on_the_mean_of_layers():
    generator = torch.Generator().manual_seed(0)
    masses = torch.rand(2000, generator=generator).tolist()
    layers = [torch.randperm(2000, generator=generator)[:600].tolist() for _ in range(3)]
    shares = {}
    for mode in ("mean", "any"):
        kept, total = updated_attention(hand_made(masses, layers), layers=mode)
        shares[mode] = float(kept.sum() / total.sum())
    assert shares["mean"] == pytest.approx(0.3, abs=0.03)
    assert shares["any"] == pytest.approx(1 - 0.7**3, abs=0.03)
    dense, total = updated_attention(hand_made(masses, [None, None]))
    assert torch.equal(dense, total)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="layers"):
        CorrEvaluator(layers="best")
    with pytest.raises(ValueError, match="top"):
        CorrEvaluator(top=0.0)
