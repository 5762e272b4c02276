"""Focus-DETR against a float64 re-implementation for single images, and its laws."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from focus_detr import FocusSparsifier
from tests.focus_detr.focus_models import STRIDES, focus_model, focus_sparsifier, put_into
from tests.focus_detr.plain_focus import plain_encoder
from tests.plain_encoder import make_encoder
from tests.pyramids import make_batch, valid_rows
from tests.small_detectors import CLASSES, LEVELS, WIDTH, build, record
from tokendetr.encoder.forward_context import observe, record_tokens, run_pass
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.tokens import LevelLayout, box_labels
from tokendetr.visualization.tokens import draw_tokens, legend_height

RECORDS = [
    record(128, 168, [[8.5, 8.5, 60.5, 70.5], [30.5, 40.5, 121, 127]]),
    record(72, 80, seed=1),
    record(120, 56, [[5, 9, 40.5, 110]], seed=2),
]
SIZES = [(16, 21), (9, 10), (15, 7)]


def run_encoder(model, pyramid):
    """The memory that a model's encoder makes of a pyramid, and the trace of that pass."""
    with record_tokens() as trace, torch.no_grad():
        memory = run_pass(model, None, lambda: model.transformer.encoder(**pyramid.inputs))
    return memory, trace.forwards[0]


def pyramids(dtype=torch.float64, seed=0):
    batch, alone = make_batch(SIZES, WIDTH, dtype=dtype, seed=seed)
    return _three_levels(batch), [_three_levels(single) for single in alone]


def _three_levels(pyramid):
    layout = pyramid.layout
    tokens = sum(layout.level_sizes[:LEVELS])
    pyramid.layout = LevelLayout.from_valid_sizes(
        layout.level_shapes[:LEVELS], [sizes[:LEVELS] for sizes in layout.known_sizes]
    )
    pyramid.x_BNC, pyramid.pos_BNC = pyramid.x_BNC[:, :tokens], pyramid.pos_BNC[:, :tokens]
    return pyramid


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_plain_encoder_also_in_a_padded_batch(seed):
    model = focus_model().double().eval()
    encoder, transformer = model.transformer.encoder, model.transformer
    heads = (transformer.enc_output, transformer.enc_output_norm, model.class_embed[-1])
    batch, alone = pyramids(seed=seed)
    memory, _ = run_encoder(model, batch)
    for image, single in enumerate(alone):
        layout = single.layout
        with torch.no_grad():
            expected = plain_encoder(
                encoder,
                heads,
                single.x_BNC[0],
                single.pos_BNC[0],
                layout.reference_points_BNL2()[0].double(),
                layout,
                encoder.sparsifier.budget.ratios,
            )
        got = valid_rows(batch.layout, memory, image)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulation": "bottom_up"},
        {"modulation": "none", "fine_score": "logits"},
        {"num_objects": 0, "keep_ratio": 0.05},
        {"num_objects": 300, "value_policy": "initial", "layer_ratios": (1.0, 0.3)},
    ],
)
def test_an_images_result_does_not_depend_on_its_batch(options):
    model = focus_model(**options).double().eval()
    batch, alone = pyramids()
    memory, forward = run_encoder(model, batch)
    for image, single in enumerate(alone):
        expected, single_forward = run_encoder(model, single)
        got = valid_rows(batch.layout, memory, image)
        torch.testing.assert_close(got, expected[0], rtol=1e-6, atol=1e-6)
        place = batch.layout.valid_BN[image].cumsum(0) - 1
        for layer, single_layer in zip(forward.layers, single_forward.layers, strict=True):
            kept, own = layer.token_map.anchor_BK, single_layer.token_map.anchor_BK
            if own is None:
                assert kept is None
                continue
            valid = layer.token_map.valid_BK
            kept = kept[image] if valid is None else kept[image][valid[image]]
            assert batch.layout.valid_BN[image][kept].all()
            assert place[kept].tolist() == own[0].tolist()


def test_each_layer_keeps_a_prefix_of_one_ranking():
    model = focus_model(layer_ratios=(0.5, 0.2)).eval()
    batch, _ = pyramids(torch.float32)
    _, forward = run_encoder(model, batch)
    maps = [layer.token_map for layer in forward.layers]
    counts = [sum(levels) for levels in batch.layout.valid_counts]
    for token_map, ratio in zip(maps, (0.5, 0.2), strict=True):
        kept = token_map.valid_BK.sum(dim=1).tolist()
        assert kept == [-(-round(ratio * 10) * count // 10) for count in counts]
    length = maps[1].num_tokens
    assert torch.equal(maps[0].anchor_BK[:, :length], maps[1].anchor_BK)
    score = forward.layers[0].scores["foreground"].gather(1, maps[0].anchor_BK)
    assert ((score[:, 1:] <= score[:, :-1]) | ~maps[0].valid_BK[:, 1:]).all()


def test_traces_and_drawings_show_scores_of_foreground_and_objects():
    model = focus_model(layer_ratios=(1.0, 0.3)).eval()
    with record_tokens() as trace:
        model(RECORDS[:1])
    forward = trace.forwards[-1]
    first, second = (layer.scores for layer in forward.layers)
    assert set(first) == {"foreground", "object"} and set(second) == {"object"}
    assert first["object"].isfinite().all()
    kept = torch.zeros_like(forward.layout.valid_BN)
    kept.scatter_(1, forward.layers[1].token_map.anchor_BK, True)
    assert torch.equal(second["object"].isfinite(), kept)
    picture = np.zeros((128, 168, 3), dtype=np.uint8)
    width, height = draw_tokens(picture, forward, width=84).size
    rows = (height - legend_height(width) - 6) / (64 + 6 + 16)
    # Foreground, objects and tokens of both layers, in how many of them a token is, and later maps.
    assert rows == 1 + 2 + 2 + 1 + len(forward.maps)


@pytest.mark.parametrize("training", [False, True])
def test_keep_ratio_one_without_dual_attention_is_bitwise_the_dense_encoder(training):
    results = []
    for sparsifier in (None, focus_sparsifier(keep_ratio=1.0, num_objects=0)):
        model = put_into(build("dino", dn_number=0), sparsifier).train(training)
        if not training:
            (first, *_) = model(RECORDS)
            fields = first["instances"].get_fields()
            results.append([fields["scores"], fields["pred_boxes"].tensor])
            continue
        losses = model(RECORDS)
        losses.pop("loss_foreground", None)
        sum(losses.values()).backward()
        shared = [
            parameter.grad
            for name, parameter in model.named_parameters()
            if "sparsifier" not in name and parameter.grad is not None
        ]
        results.append([*(losses[name] for name in sorted(losses)), *shared])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_selector_learns_from_the_foreground_loss_alone():
    model = focus_model().train()
    selector = model.transformer.encoder.sparsifier.selector
    losses = model(RECORDS)
    foreground = losses.pop("loss_foreground")
    sum(losses.values()).backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in selector.parameters())
    others = [p for n, p in model.named_parameters() if ".selector." not in n]
    assert all(parameter.grad is not None for parameter in others)
    model.zero_grad()
    foreground.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in selector.parameters())
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("backbone.") for name in reached)
    assert {name.split(".")[1] for name in reached if name.startswith("transformer.")} == {
        "encoder",
        "enc_output",
        "enc_output_norm",
        "level_embeds",
    }
    assert not any(".layers." in name for name in reached)


def naive_loss(logits, labels, valid):
    total = 0.0
    for image in range(len(logits)):
        positives = max(1, int(labels[image].sum()))
        for token in valid[image].nonzero().flatten().tolist():
            p = float(torch.sigmoid(logits[image, token]))
            if labels[image, token]:
                total -= 0.25 * (1 - p) ** 2 * float(torch.tensor(p).log()) / positives
            else:
                total -= 0.75 * p**2 * float(torch.tensor(1 - p).log()) / positives
    return total / len(logits)


def test_the_foreground_loss_equals_a_loop_over_real_tokens():
    model = focus_model(loss_weight=1.5, size_ranges=((0, 40), (20, 70), (45, 1e9))).train()
    with record_tokens() as trace:
        loss = model(RECORDS)["loss_foreground"]
    forward = trace.forwards[0]
    logits, layout = forward.layers[0].scores["foreground"].double(), forward.layout
    boxes = [item["instances"].gt_boxes.tensor for item in RECORDS]
    labels = box_labels(
        boxes, layout, strides=STRIDES, rule="center", size_ranges=((0, 40), (20, 70), (45, 1e9))
    )
    assert labels.sum() > 20
    expected = 1.5 * naive_loss(logits, labels, layout.valid_BN)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_saturated_logits_give_finite_losses_and_gradients():
    model = focus_model().train()
    last = model.transformer.encoder.sparsifier.selector.score_head.layer2[4]
    for bias in (1e4, -1e4):
        model.zero_grad()
        with torch.no_grad():
            last.bias.fill_(bias)
        loss = model(RECORDS)["loss_foreground"]
        loss.backward()
        assert torch.isfinite(loss) and loss > 1
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_tiny_images_and_images_without_boxes_train_and_evaluate():
    tiny = [record(9, 8), record(33, 16, [[1, 1, 9, 30]], seed=3)]
    model = focus_model(num_objects=300)
    for records in (tiny, tiny[:1]):
        losses = model.train()(records)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        assert len(model.eval()(records)) == len(records)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_a_detector_with_quantized_products_is_near_its_original():
    model = focus_model().eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with torch.no_grad():
        for exact, near in zip(model(RECORDS), quantized(RECORDS), strict=True):
            exact, near = (each["instances"].scores.sort().values for each in (exact, near))
            assert 0 < (near - exact).abs().max() < 0.1


@pytest.mark.parametrize("name", ["deformable", "dn"])
def test_one_stage_detectors_train_and_use_heads_of_the_sparsifiers_own(name):
    with pytest.raises(UnsupportedDetectorError, match="two stages"):
        focus_model(name).train()(RECORDS)
    model = focus_model(name, num_classes=CLASSES).train()
    losses = model(RECORDS)
    own = {n for n in losses if n.endswith("_enc")}
    assert own == {"loss_class_enc", "loss_bbox_enc", "loss_giou_enc"}
    sum(losses.values()).backward()
    heads = model.transformer.encoder.sparsifier.own_heads
    for parameter in heads.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    together = model.eval()(RECORDS)
    for image, found in zip(RECORDS, together, strict=True):
        (alone,) = model([image])
        torch.testing.assert_close(
            found["instances"].scores, alone["instances"].scores, rtol=1e-3, atol=1e-5
        )


def test_own_heads_train_by_a_criterion_of_their_own_where_the_detector_s_is_for_masks():
    with pytest.raises(ValueError, match="give num_classes"):
        FocusSparsifier(criterion=torch.nn.Identity())
    model = focus_model("deformable", num_classes=CLASSES)
    own = copy.deepcopy(model.criterion)
    own.weight_dict = {name: 2 * weight for name, weight in own.weight_dict.items()}
    plain = model.train()(RECORDS)
    model.criterion.losses = [*model.criterion.losses, "masks"]
    with pytest.raises(UnsupportedDetectorError, match="masks.*a criterion of their own"):
        observe(model)
    model.transformer.encoder.sparsifier.criterion = own
    observe(model)
    model.criterion.losses.pop()  # this detector itself predicts no masks
    losses = model(RECORDS)
    for name in ("loss_class_enc", "loss_bbox_enc", "loss_giou_enc"):
        torch.testing.assert_close(losses[name], 2 * plain[name])


def test_published_weights_of_the_dense_detector_fit_but_for_what_is_new():
    missing = focus_model().load_state_dict(build("dino").state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(".sparsifier." in key for key in missing.missing_keys)


def test_mixed_precision_keeps_the_class_heads_gradient():
    model = focus_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(RECORDS)
    losses["loss_class_enc"].backward()
    grad = model.class_embed[-1].weight.grad
    assert grad is not None and grad.abs().sum() > 0


def test_random_selection_keeps_as_many_other_tokens():
    batch, _ = pyramids(torch.float32)
    learned = run_encoder(focus_model().eval(), batch)[1].layers[0].token_map
    random = run_encoder(focus_model(selection="random").eval(), batch)[1].layers[0].token_map
    assert random.num_tokens == learned.num_tokens
    assert torch.equal(random.valid_BK, learned.valid_BK)
    assert set(random.anchor_BK[0].tolist()) != set(learned.anchor_BK[0].tolist())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"modulation": "sideways"}, "modulation"),
        ({"fine_score": "sum"}, "fine_score"),
        ({"selection": "norm"}, "selection"),
        ({"num_objects": -1}, "num_objects"),
        ({"loss_weight": -1.0}, "loss_weight"),
        ({"strides": (8, 16)}, "strides"),
        ({"size_ranges": ((0, 64),)}, "size_ranges"),
        ({"value_policy": "stale"}, "value_policy"),
    ],
)
def test_wrong_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        focus_sparsifier(**options)


def test_an_encoder_that_does_not_fit_is_named_when_it_is_built():
    with pytest.raises(ValueError, match=r"num_layers=2.*num_levels=3.*encoder has 4"):
        make_encoder(focus_sparsifier(), num_layers=5)
    with pytest.raises(ValueError, match="num_layers=6"):
        make_encoder(FocusSparsifier(), num_layers=2)


def test_an_encoder_alone_says_that_it_needs_a_detector():
    batch, _ = make_batch(SIZES, WIDTH)
    with pytest.raises(UnsupportedDetectorError, match="sparsify"):
        make_encoder(focus_sparsifier(num_levels=4, strides=None), num_layers=2)(**batch.inputs)


def test_strides_follow_the_number_of_levels():
    assert FocusSparsifier(num_levels=5).strides == (8, 16, 32, 64, 128)


def test_importing_the_method_imports_no_detector():
    code = "import sys, focus_detr; print([m for m in sys.modules if m.startswith('projects')])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
