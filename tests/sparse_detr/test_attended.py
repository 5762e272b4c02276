"""Tokens chosen by a trained detector's decoder (the paper's Table 7)."""

import pytest
import torch

from sparse_detr import AttendedTokens
from tests.small_detectors import build, detections, record
from tests.sparse_detr.sparse_detectors import RECORDS, sparse
from tokendetr.encoder import set_keep_ratio
from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.forward_context import observe, record_tokens
from tokendetr.errors import UnsupportedDetectorError


def attended(dense, *, name: str = "dino", **options):
    """Return a detector with other weights, whose tokens ``dense`` chooses."""
    model, teacher = build(name), build(name)
    sparsifier = AttendedTokens(teacher=teacher, **{"keep_ratio": 0.3, **options})
    model.transformer.encoder.sparsifier = sparsifier
    teacher.load_state_dict(dense.state_dict())
    sparsifier.is_ready.fill_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return observe(model)


def traced(model, records):
    with record_tokens() as trace, torch.no_grad():
        model(records)
    assert len(trace.forwards) == 1
    return trace.forwards[0]


@pytest.mark.parametrize("name", ["dino", "deformable", "h_two_stage"])
def test_it_keeps_what_the_teachers_decoder_attends_to_most(name):
    dense = build(name).eval()
    model = attended(dense, name=name).eval()
    forward, own = traced(model, RECORDS), traced(dense, RECORDS)
    expected_BN, token_map = own.maps[MAP_NAME], forward.layers[0].token_map
    for image in range(len(RECORDS)):
        real = forward.layout.valid_BN[image]
        mass = expected_BN[image].masked_fill(~real, -1)
        kept = token_map.anchor_BK[image][token_map.valid_BK[image]]
        count = int(0.3 * int(real.sum())) + 1
        assert len(set(kept.tolist())) == count and real[kept].all()
        torch.testing.assert_close(mass[kept], mass.sort(descending=True).values[:count])
    assert all(layer.token_map is token_map for layer in forward.layers)


def test_the_choice_in_training_is_that_of_one_canvas_and_the_teacher_stays_frozen():
    dense = build("dino")
    model = attended(dense).train()
    teacher = model.transformer.encoder.sparsifier.teacher
    assert not any(module.training for module in teacher.modules())
    with record_tokens() as trace:
        sum(model(RECORDS).values()).backward()
    assert trace.forwards[0].layers[0].token_map.num_tokens
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


def test_keep_ratio_one_is_bitwise_the_dense_detector_and_needs_no_teacher():
    dense, model = build("dino"), build("dino")
    model.transformer.encoder.sparsifier = AttendedTokens(teacher=build("dino"), keep_ratio=1.0)
    for ours, theirs in zip(detections(model, RECORDS), detections(dense, RECORDS), strict=True):
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    set_keep_ratio(model, 0.3)
    with pytest.raises(RuntimeError, match="has no weights"):
        model(RECORDS)
    with pytest.raises(ValueError, match="keep_ratio must lie in"):
        model.transformer.encoder.sparsifier.keep_ratio = 5


def test_a_dense_checkpoint_fills_detector_and_teacher_and_a_later_one_keeps_them_apart():
    dense, model = build("dino"), build("dino")
    sparsifier = AttendedTokens(teacher=build("dino"), keep_ratio=0.3)
    model.transformer.encoder.sparsifier = sparsifier
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(sparsifier.convert_weights(dense.state_dict()))
    assert sparsifier.is_ready
    for part in (model, sparsifier.teacher):
        assert torch.equal(part.class_embed[-1].weight, dense.class_embed[-1].weight)
    with torch.no_grad():
        model.class_embed[-1].weight.zero_()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(sparsifier.convert_weights(weights))
    assert not model.class_embed[-1].weight.any()
    assert sparsifier.teacher.class_embed[-1].weight.any()


def test_what_cannot_teach_is_refused():
    with pytest.raises(ValueError, match="must be dense"):
        AttendedTokens(teacher=sparse())
    with pytest.raises(ValueError, match="tokendetr's detectors, got Linear"):
        AttendedTokens(teacher=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="keep_ratio"):
        AttendedTokens(teacher=build("dino"), keep_ratio=1.5)
    model = attended(build("dino")).eval()
    captured = []
    hook = model.transformer.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: captured.append(kwargs), with_kwargs=True
    )
    model([record(64, 64)])
    hook.remove()
    with pytest.raises(UnsupportedDetectorError, match="needs the images"):
        model.transformer.encoder(**captured[0])
