"""Focus-DETR's dual attention among the tokens that Sparse DETR keeps (its appendix A.2.3)."""

import pytest
import torch

from sparse_detr import SparseSparsifier
from tests.focus_detr.plain_focus import plain_objects, plain_score
from tests.plain_encoder import plain_layer
from tests.pyramids import valid_rows
from tests.small_detectors import build, detections
from tests.sparse_detr.sparse_detectors import RECORDS, run_encoder, sparse
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.errors import UnsupportedDetectorError

OBJECTS = {"num_objects": 7, "num_heads": 2}


def naive_memory(model, context):
    """Run one image, written out: rank, keep, let the most object-like attend, update the kept."""
    encoder, transformer, layout = model.transformer.encoder, model.transformer, context["layout"]
    sparsifier, shapes = encoder.sparsifier, layout.level_shapes
    memory, pos = context["query"][0], context["query_pos"][0]
    reference = layout.reference_points_BNL2()[0].to(memory.dtype)
    feature = (memory + pos) * layout.proposals()[1][0][:, None]
    feature = transformer.enc_output_norm(transformer.enc_output(feature))
    foreground = plain_score(sparsifier.score_head, feature)
    kept = sorted(range(len(memory)), key=lambda i: (-float(foreground[i]), i))
    index = torch.tensor(kept[: int(sparsifier.keep_ratio * len(memory)) + 1])
    valid = torch.ones(len(memory), dtype=memory.dtype)
    for block, layer in zip(sparsifier.object_attentions, encoder.layers, strict=True):
        tokens = memory[index].clone()
        category = model.class_embed[-1](tokens).amax(dim=1).sigmoid()
        score = (category * foreground[index].sigmoid()).tolist()
        best = sorted(range(len(index)), key=lambda place: (-score[place], place))[:7]
        tokens[best] = plain_objects(block, tokens[best], pos[index][best])
        updated = plain_layer(layer, tokens, memory, pos[index], reference[index], valid, shapes)
        memory = memory.index_copy(0, index, updated)
    return memory


@torch.no_grad()
def test_it_equals_the_naive_encoder_also_in_a_padded_batch():
    model = sparse(**OBJECTS).double().eval()
    records = [one | {"image": one["image"].double()} for one in RECORDS]
    calls = []
    hook = model.transformer.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    memory = run_encoder(model, records)
    for image, one in enumerate(records):
        run_encoder(model, [one])
        got = valid_rows(calls[0]["layout"], memory, image)
        torch.testing.assert_close(got, naive_memory(model, calls[-1]), rtol=1e-6, atol=1e-6)
    hook.remove()


def test_losses_train_it_and_a_trace_has_its_scores():
    model = sparse(**OBJECTS).train()
    with record_tokens() as trace:
        sum(model(RECORDS).values()).backward()
    attentions = model.transformer.encoder.sparsifier.object_attentions
    assert all(p.grad is not None and p.grad.any() for p in attentions.parameters())
    layers = trace.forwards[0].layers
    assert all("object" in layer.scores for layer in layers)


def test_without_objects_it_has_no_further_weights():
    assert not any("object" in key for key in sparse().state_dict())


def test_keep_ratio_one_applies_it_and_zero_does_not():
    dense, one, zero = build("dino"), sparse(keep_ratio=1.0, **OBJECTS), sparse(keep_ratio=0.0)
    with_objects = sparse(keep_ratio=0.0, **OBJECTS)
    scores = [detections(m, RECORDS)[0].scores for m in (dense, one, zero, with_objects)]
    assert not torch.equal(scores[0], scores[1])
    assert torch.equal(scores[2], scores[3])


def test_what_it_needs_is_checked_when_the_model_is_built():
    with pytest.raises(ValueError, match="num_objects needs scores"):
        SparseSparsifier(num_objects=3, selection="random")
    with pytest.raises(ValueError, match="num_objects must be at least 0"):
        SparseSparsifier(num_objects=-1)
    with pytest.raises(UnsupportedDetectorError, match="two-stage"):
        sparse("deformable", projection="own", **OBJECTS)
