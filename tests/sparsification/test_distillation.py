"""Outputs of the dense detector as targets, against its own predictions and plain loops."""

import copy
import math

import pytest
import torch

from tests.small_detectors import CLASSES, LAYERS, NAMES
from tests.sparsification.twins import RECORDS, twins
from tokendetr.detector.queries import Predictions
from tokendetr.encoder.forward_context import open_pass
from tokendetr.errors import NotSparsifiableError
from tokendetr.sparsification import DenseTeacher, FitOptions
from tokendetr.sparsification.distillation import (
    distillation_loss,
    memory_loss,
    output_loss,
    prediction_loss,
)


def dense_pass(dense):
    return DenseTeacher(dense)(RECORDS, with_mass=True, with_decoding=True)


def random_predictions(seed: int, valid_BQ=None) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 2, 3, CLASSES, generator=generator)
    boxes = 0.1 + 0.4 * torch.rand(2, 2, 3, 4, generator=generator)
    return Predictions(logits, boxes, valid_BQ)


def naive_loss(found: Predictions, wanted: Predictions) -> float:
    total = confidence = 0.0
    for layer in range(2):
        for image, query in wanted.valid_BQ.nonzero().tolist():
            mine, dense = (p.logits_SBQV[layer, image, query].double() for p in (found, wanted))
            p, q = dense.sigmoid(), mine.sigmoid()
            total += float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
            (a, b) = (p.boxes_SBQ4[layer, image, query].tolist() for p in (found, wanted))
            distance = sum(abs(x - y) for x, y in zip(a, b, strict=True))
            confidence += float(p.max())
            total += float(p.max()) * (5 * distance + 2 * (1 - naive_giou(a, b)))
    return total / confidence


def naive_giou(a, b) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    spans = []
    for x, w, y, v in ((ax, aw, bx, bw), (ay, ah, by, bh)):
        low, high = (x - w / 2, y - v / 2), (x + w / 2, y + v / 2)
        spans.append((max(0.0, min(high) - max(low)), max(high) - min(low)))
    inner, outer = (math.prod(span[i] for span in spans) for i in (0, 1))
    union = aw * ah + bw * bh - inner
    return inner / union - (outer - union) / outer


def test_the_loss_of_predictions_is_that_of_plain_loops():
    valid_BQ = torch.tensor([[True, True, True], [True, False, False]])
    found, wanted = random_predictions(0), random_predictions(1, valid_BQ)
    found.boxes_SBQ4[:, 1, 1:] = float("nan")  # of padding queries
    loss = prediction_loss(found, wanted)
    assert loss.item() == pytest.approx(naive_loss(found, wanted), rel=1e-4)
    found.boxes_SBQ4[0, 0, 0, 0] = float("nan")
    assert prediction_loss(found, wanted).isnan()


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_repeats_the_dense_pass_and_keeping_all_has_no_loss(name):
    dense, student = twins(name)
    seen = []
    hook = dense.register_forward_hook(lambda *args: seen.append(args[-1]))
    found = dense_pass(dense)
    hook.remove()
    last = found.decoding.predictions
    assert len(last.logits_SBQV) == LAYERS
    assert (found.decoding.proposals is None) == (not ("two_stage" in name or name == "dino"))
    for image, detections in enumerate(seen[0]):  # the best score is the detector's own
        real = slice(None) if last.valid_BQ is None else last.valid_BQ[image]
        best = last.logits_SBQV[-1, image, real].sigmoid().max()
        torch.testing.assert_close(best, detections["instances"].scores.max())
    student.transformer.encoder.sparsifier.set_keep_ratio(1.0)
    with torch.no_grad(), open_pass(student):
        again = found.decoding.repeat(student, found.memory_BNC)
        assert torch.equal(again.logits_SBQV, last.logits_SBQV)
        assert torch.equal(again.boxes_SBQ4, last.boxes_SBQ4)
        memory_BNC = found.encode(student.transformer.encoder)
        assert output_loss(student, memory_BNC, found).item() == pytest.approx(0, abs=1e-3)
        student.transformer.encoder.sparsifier.set_keep_ratio(0.2)
        memory_BNC = found.encode(student.transformer.encoder)
        assert output_loss(student, memory_BNC, found).item() > 0.01


def test_a_final_norm_is_part_of_the_memory():
    dense, student = twins()
    for model in (dense, student):
        encoder = model.transformer.encoder
        encoder.post_norm_layer = torch.nn.LayerNorm(encoder.embed_dim)
    encoder.sparsifier.set_keep_ratio(1.0)
    found = dense_pass(dense)
    with torch.no_grad(), open_pass(student):
        memory_BNC = found.encode(encoder)
        assert memory_loss(memory_BNC, found, torch.ones_like(found.mass_BN)).item() < 1e-9
        assert output_loss(student, memory_BNC, found).item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("targets", ["memory", "outputs", "both"])
def test_training_the_encoder_lowers_the_loss_of_any_targets(targets):
    dense, student = twins()
    before = copy.deepcopy(dense.state_dict())
    found = dense_pass(dense)
    encoder = student.transformer.encoder
    encoder.sparsifier.set_keep_ratio(0.2)
    parameters = dict(encoder.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-3)
    losses = []
    for _ in range(12):
        with open_pass(student):
            loss = distillation_loss(student, found, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    gradients = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert {"sparsifier.bypass.weight", "sparsifier.bypass.bias"} <= gradients
    assert any(name.startswith("layers.0.") for name in gradients)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_outputs_that_cannot_be_compared_are_refused_and_the_memory_is_not():
    dense, _ = twins()
    decoder = dense.transformer.decoder
    change = decoder.register_forward_pre_hook(lambda _, args: (args[0], args[1] + 0, *args[2:]))
    with pytest.raises(NotSparsifiableError, match="DINO changes the memory .*targets memory"):
        dense_pass(dense)
    change.remove()
    del dense.bbox_embed
    with pytest.raises(NotSparsifiableError, match="lists of heads class_embed, bbox_embed"):
        dense_pass(dense)


def test_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="targets must be one of .*'boxes'"):
        FitOptions(targets="boxes")
