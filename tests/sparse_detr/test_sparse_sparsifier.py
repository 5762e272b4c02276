"""Sparse DETR's choice of tokens: its laws, on whole small detectors."""

import copy

import pytest
import torch

from sparse_detr import SparseSparsifier
from tests.plain_encoder import CHANNELS, make_encoder, plain_layer
from tests.pyramids import make_batch, valid_rows
from tests.small_detectors import WIDTH, build, record
from tests.sparse_detr.sparse_detectors import RECORDS, run_encoder, sparse
from tokendetr.encoder import TokenEncoder
from tokendetr.encoder.forward_context import observe, record_tokens
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.tokens import Identity

SIZES = [(16, 21), (9, 10), (16, 7)]
TWO_STAGE = ("dino", "deformable_two_stage", "dab_two_stage", "dn_two_stage", "h_two_stage")
ONE_STAGE = ("deformable", "deformable_refine", "dab", "dn", "h")


def own(**options) -> SparseSparsifier:
    """Return a sparsifier that needs no detector."""
    torch.manual_seed(2)
    return SparseSparsifier(
        **{"embed_dim": CHANNELS, "num_layers": 3, "projection": "own", **options}
    )


def traced(model, records):
    with record_tokens() as trace, torch.no_grad():
        model(records)
    return trace.forwards[0]


def test_the_former_name_of_a_projection_is_read_with_a_warning():
    with pytest.warns(FutureWarning, match="projection='detector'"):
        assert not own(projection="host").has_projection


def naive_encoder(encoder, pyramid):
    """Run one image, written out from the paper: rank, keep, and update only the kept tokens."""
    sparsifier, layout = encoder.sparsifier, pyramid.layout
    memory, pos = pyramid.x_BNC[0], pyramid.pos_BNC[0]
    reference = layout.reference_points_BNL2()[0].to(memory.dtype)
    tokens, shapes = len(memory), layout.level_shapes
    usable = layout.proposals()[1][0]
    feature = (memory + pos) * usable[:, None]
    feature = sparsifier.enc_output_norm(sparsifier.enc_output(feature))
    hidden = sparsifier.score_head.layer1(feature)
    half = hidden.shape[1] // 2
    mean = sum(hidden[:, half:]) / tokens
    mixed = torch.stack([torch.cat([row[:half], mean]) for row in hidden])
    score = sparsifier.score_head.layer2(mixed)[:, 0].tolist()
    kept = sorted(range(tokens), key=lambda i: (-score[i], i))
    index = torch.tensor(kept[: int(sparsifier.keep_ratio * tokens) + 1])
    valid = torch.ones(tokens, dtype=memory.dtype)
    for layer in encoder.layers:
        memory = memory.clone()
        memory[index] = plain_layer(
            layer, memory[index], memory, pos[index], reference[index], valid, shapes
        )
    return memory


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.8])
def test_it_equals_the_naive_encoder_also_in_a_padded_batch(ratio):
    batch, alone = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    encoder = make_encoder(own(keep_ratio=ratio)).double().eval()
    with torch.no_grad():
        memory = encoder(**batch.inputs)
        for image, single in enumerate(alone):
            got = valid_rows(batch.layout, memory, image)
            torch.testing.assert_close(got, naive_encoder(encoder, single), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TWO_STAGE)
def test_keep_ratio_one_is_bitwise_the_dense_detector(name):
    dense, sparse_model = build(name).eval(), sparse(name, keep_ratio=1.0).eval()
    with torch.no_grad():
        ours, theirs = sparse_model(RECORDS), dense(RECORDS)
    for a, b in zip(ours, theirs, strict=True):
        a, b = a["instances"], b["instances"]
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


def test_keep_ratio_one_is_bitwise_dense_in_training_too():
    models = [
        build("dino", dn_number=0).train(),
        sparse(keep_ratio=1.0, detector={"dn_number": 0}).train(),
    ]
    memories = [run_encoder(observe(model), RECORDS) for model in models]
    assert torch.equal(*memories)


@pytest.mark.parametrize("selection", ["dam", "objectness", "random"])
@pytest.mark.parametrize("name", ["dino", "deformable_two_stage"])
def test_one_set_for_all_layers_of_the_right_size_without_padding(name, selection):
    model = sparse(name, selection=selection).train()
    forward = traced(model, RECORDS)
    layout, (first, *others) = forward.layout, [layer.token_map for layer in forward.layers]
    assert all(token_map is first for token_map in others)
    for image in range(len(RECORDS)):
        valid = int(layout.valid_BN[image].sum())
        own_index = first.anchor_BK[image][first.valid_BK[image]]
        assert len(set(own_index.tolist())) == len(own_index) == int(0.3 * valid) + 1
        assert layout.valid_BN[image][own_index].all()


@pytest.mark.parametrize("selection", ["dam", "objectness"])
def test_an_images_kept_set_does_not_depend_on_its_batch(selection):
    model = sparse(selection=selection).double().eval()
    records = [one | {"image": one["image"].double()} for one in RECORDS]
    together = traced(model, records)
    token_map, layout = together.layers[0].token_map, together.layout
    for image, one in enumerate(records):
        own_rank = layout.valid_BN[image].cumsum(0) - 1
        kept = own_rank[token_map.anchor_BK[image][token_map.valid_BK[image]]]
        alone = traced(model, [one]).layers[0].token_map
        assert kept.tolist() == alone.anchor_BK[0].tolist()


def test_the_keep_ratio_may_change_at_inference():
    model = sparse(keep_ratio=0.5).eval()
    kept = {}
    for ratio in (0.5, 0.1, 1.0):
        model.transformer.encoder.sparsifier.set_keep_ratio(ratio)
        kept[ratio] = traced(model, RECORDS[:1]).layers[0].token_map
    assert isinstance(kept[1.0], Identity)
    few, more = (kept[ratio].anchor_BK[0].tolist() for ratio in (0.1, 0.5))
    assert few == more[: len(few)] and len(few) < len(more)
    sparsifier = model.transformer.encoder.sparsifier
    sparsifier.keep_ratio = 0.1
    assert traced(model, RECORDS[:1]).layers[0].token_map.anchor_BK[0].tolist() == few
    with pytest.raises(ValueError, match="keep_ratio"):
        sparsifier.set_keep_ratio(1.5)
    for wrong in (-0.1, "0.5", [0.5] * 6, None):
        with pytest.raises(ValueError, match=r"keep_ratio must lie in \[0, 1\], got"):
            sparsifier.keep_ratio = wrong


def test_heads_and_losses_are_left_out_of_evaluation():
    model = sparse().eval()
    for head in model.transformer.encoder.sparsifier.class_embed:
        head.register_forward_hook(lambda *_: pytest.fail("a training head ran in evaluation"))
    assert isinstance(model(RECORDS), list)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage_detectors_need_a_projection_of_its_own(name):
    with pytest.raises(UnsupportedDetectorError, match="two-stage"):
        sparse(name).eval()(RECORDS)
    model = sparse(name, projection="own").train()
    losses = model(RECORDS)
    assert "loss_dam" in losses
    sum(losses.values()).backward()
    sparsifier = model.transformer.encoder.sparsifier
    assert all(parameter.grad is not None for parameter in sparsifier.parameters())


def test_without_supervision_it_says_what_to_do():
    encoder = make_encoder(own()).train()
    batch, _ = make_batch(SIZES, CHANNELS)
    with pytest.raises(UnsupportedDetectorError, match=r"tokendetr\.config\.sparsify"):
        encoder(**batch.inputs)
    with pytest.raises(ValueError, match="num_layers"):
        make_encoder(own(num_layers=4)).eval()(**batch.inputs)


def test_tiny_images_work():
    model = sparse().train()
    losses = model([record(8, 8, [[1, 1, 6, 6]]), record(33, 9)])
    assert all(loss.isfinite() for loss in losses.values())
    model.eval()
    assert len(model([record(8, 8)])) == 1


def test_copies_do_not_share_their_choice():
    model = sparse()
    twin = copy.deepcopy(model)
    twin.transformer.encoder.sparsifier.set_keep_ratio(0.9)
    assert model.transformer.encoder.sparsifier.keep_ratio == 0.3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"keep_ratio": -0.1}, "keep_ratio"),
        ({"selection": "norm"}, "selection"),
        ({"projection": "none"}, "projection"),
        ({"padding": "zero"}, "padding"),
        ({"dam_weight": -1.0}, "dam_weight"),
        ({"value_policy": "stale"}, "value_policy"),
    ],
)
def test_wrong_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        SparseSparsifier(**options)


@pytest.mark.parametrize("training", [False, True])
def test_at_ratio_zero_the_decoder_sees_the_backbones_features(training):
    model = sparse(keep_ratio=0.0).train(training)
    seen = []
    hook = model.transformer.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["query"]),
        with_kwargs=True,
    )
    memory = run_encoder(model, RECORDS)
    hook.remove()
    assert torch.equal(memory, seen[0])
    if training:
        losses = model(RECORDS)
        assert not [name for name in losses if "dam" in name or "_enc_" in name]
        sum(losses.values()).backward()


def test_an_encoder_without_layers_hands_the_features_on():
    model = build("dino")
    encoder = TokenEncoder(embed_dim=WIDTH, num_heads=2, feedforward_dim=8, num_layers=0)
    query = torch.randn(1, 20, WIDTH)
    shapes = torch.tensor([[4, 4], [2, 1], [1, 2]])
    assert torch.equal(encoder(query, spatial_shapes=shapes), query)
    model.transformer.encoder = encoder
    model.train()(RECORDS)
