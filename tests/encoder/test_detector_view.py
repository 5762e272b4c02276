"""Sparsifiers have read-only access to the detector around their encoder."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sparse_detr import SparseSparsifier
from tests.small_detectors import CLASSES, LAYERS, NAMES, WIDTH, build, record
from tokendetr.encoder.decoder_attention import DecoderAttention
from tokendetr.encoder.detector_view import DetectorView, require_detector
from tokendetr.encoder.forward_context import current_pass, observe
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers import MultiScaleDeformableAttention
from tokendetr.tokens import LevelLayout

TWO_STAGE = ("dino", "deformable_two_stage", "dab_two_stage", "dn_two_stage", "h_two_stage")
INPUTS = [record(64, 96, [[8, 8, 40, 40]]), record(48, 64, seed=1)]


def running_detector():
    return require_detector(current_pass().detector)


def spy(model, look):
    """Call ``look`` while the model's encoder runs."""
    observe(model)
    model.transformer.encoder.register_forward_hook(lambda module, args, output: look(output))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_it_knows_two_stages_and_the_decoders_attentions(name):
    seen = []
    model = spy(build(name).eval(), lambda memory: seen.append(running_detector()))
    model(INPUTS)
    (view,) = seen
    assert view.detector is model
    assert view.has_proposals == (name in TWO_STAGE)
    assert len(view.cross_attentions) == LAYERS
    assert view.cross_attentions[0] is model.transformer.decoder.layers[0].attentions[1]


@pytest.mark.parametrize("name", TWO_STAGE)
def test_the_projection_and_heads_are_those_of_the_proposals(name):
    """The view computes from the memory exactly the scores and boxes of the two-stage head."""
    seen = {}
    model = spy(
        build(name).eval(),
        lambda memory: seen.update(memory=memory, view=running_detector()),
    )
    propose = model.transformer.propose

    def watched(encoded, **options):
        seen.update(layout=encoded.layout, proposals=propose(encoded, **options))
        return seen["proposals"]

    model.transformer.propose = watched
    model(INPUTS)
    tokens_BNC = seen["view"].project(seen["memory"], seen["layout"])
    torch.testing.assert_close(tokens_BNC, seen["proposals"].tokens_BNC, rtol=0, atol=0)
    logits_BNV = seen["view"].class_head(tokens_BNC)
    torch.testing.assert_close(logits_BNV, seen["proposals"].logits_BNV, rtol=0, atol=0)
    boxes_BN4 = seen["view"].box_head(tokens_BNC) + seen["layout"].proposals()[0]
    torch.testing.assert_close(boxes_BN4, seen["proposals"].boxes_logit_BN4, rtol=0, atol=0)


def test_names_of_dinos_authors():
    """Their heads on encoder tokens are the transformer's, and the detector knows the queries."""
    transformer = nn.Module()
    transformer.enc_output = nn.Linear(WIDTH, WIDTH)
    transformer.enc_out_class_embed, transformer.enc_out_bbox_embed = nn.Identity(), nn.Identity()
    transformer.decoder = nn.Module()
    transformer.decoder.class_embed = nn.ModuleList([nn.Linear(WIDTH, CLASSES)])
    detector = nn.Module()
    detector.transformer, detector.num_queries = transformer, 5
    view, layout = DetectorView(detector), LevelLayout.from_valid_sizes([(4, 4)], [[(4, 4)]])
    assert view.has_proposals
    assert view.class_head is transformer.enc_out_class_embed
    assert view.box_head is transformer.enc_out_bbox_embed
    assert view.matching_queries(12, layout) == slice(7, None), "7 are noised targets"


def test_a_copy_uses_its_own_parts():
    seen = []
    model = spy(
        build("dino").eval(),
        lambda memory: seen.append(running_detector().class_head),
    )
    other = copy.deepcopy(model)
    model(INPUTS), other(INPUTS)
    assert seen[0] is model.transformer.decoder.class_embed[-1]
    assert seen[1] is other.transformer.decoder.class_embed[-1]


def test_what_is_missing_is_named():
    with pytest.raises(UnsupportedDetectorError, match=r"tokendetr\.config\.sparsify"):
        running_detector()
    view = DetectorView(build("deformable"))
    layout = LevelLayout.from_valid_sizes([(4, 4)], [[(4, 4)]])
    with pytest.raises(UnsupportedDetectorError, match="enc_output"):
        view.project(torch.zeros(1, 16, 16), layout)
    with pytest.raises(UnsupportedDetectorError, match="Linear has no transformer"):
        _ = DetectorView(torch.nn.Linear(1, 1)).transformer


def test_callbacks_run_after_the_model_and_may_add_losses():
    model = build("dino").train()
    order = []

    def look(memory):
        current_pass().losses.when_decoded(lambda: order.append("done"))
        current_pass().losses.when_decoded(
            lambda: current_pass().losses.add("loss_late", memory.square().mean())
        )
        order.append("encoder")

    spy(model, look)
    model.transformer.decoder.register_forward_hook(lambda *_: order.append("decoder"))
    losses = model(INPUTS)
    assert order == ["encoder", "decoder", "done"]
    losses["loss_late"].backward()
    assert current_pass().losses is None


@pytest.mark.parametrize("fails", [False, True])
def test_every_context_is_left_even_after_a_failure(fails):
    model = build("dino").eval()
    events = []

    @contextmanager
    def watching():
        events.append("in")
        yield
        events.append("out")

    def look(memory):
        current_pass().losses.enter(watching())
        current_pass().losses.when_decoded(lambda: events.append("done"))
        if fails:
            raise FloatingPointError("on purpose")

    spy(model, look)
    if fails:
        with pytest.raises(FloatingPointError):
            model(INPUTS)
    else:
        model(INPUTS)
    assert events == (["in", "out"] if fails else ["in", "done", "out"])
    assert current_pass().losses is None


class Decoder(nn.Module):
    """One deformable cross-attention over a map of 4 x 6 tokens."""

    def __init__(self):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(
            WIDTH, num_heads=2, num_levels=1, num_points=2, batch_first=True
        )

    def forward(self, query_BQC, memory_BNC):
        points_BQL2 = torch.full((1, query_BQC.shape[1], 1, 2), 0.5)
        shapes = torch.tensor([[4, 6]])
        return self.attention(
            query=query_BQC,
            value=memory_BNC,
            reference_points=points_BQL2,
            spatial_shapes=shapes,
            level_start_index=torch.tensor([0]),
        )


def test_further_passes_of_a_decoder_are_not_recorded():
    """Mr.DETR decodes three times in training; only the first pass equals that of evaluation."""
    torch.manual_seed(0)
    detector = nn.Module()
    detector.transformer = nn.Module()
    detector.transformer.decoder = Decoder()
    memory_BNC = torch.randn(1, 24, WIDTH)
    layout = LevelLayout.from_upstream(
        spatial_shapes=torch.tensor([[4, 6]]),
        valid_ratios=None,
        query_key_padding_mask=None,
        like_BNC=memory_BNC,
    )
    masses = []
    for passes in (1, 3):
        with DecoderAttention(DetectorView(detector), layout) as attention:
            for _ in range(passes):
                detector.transformer.decoder(torch.randn(1, 5, WIDTH), memory_BNC)
        masses.append(float(attention.mass_BN.sum()))
    assert masses == pytest.approx([10.0, 10.0])  # 5 queries, 2 heads, weights that sum to 1


class FirstCodeAttention(nn.Module):
    """Names and call of the attention in Deformable DETR's first code."""

    def __init__(self, attention):
        super().__init__()
        self.n_heads, self.n_levels = attention.num_heads, attention.num_levels
        self.n_points = attention.num_points
        self.sampling_offsets = attention.sampling_offsets
        self.attention_weights = attention.attention_weights

    def forward(self, query, reference_points, input_flatten, input_spatial_shapes):
        return query


def test_the_first_codes_attention_is_seen_whatever_its_order_of_levels():
    """MaskDINO's decoder has the finest level first, its pixel decoder the coarsest."""
    torch.manual_seed(0)
    shapes = [(2, 3), (4, 6)]
    layout = LevelLayout.from_valid_sizes(shapes, [shapes])
    ours = MultiScaleDeformableAttention(WIDTH, num_heads=2, num_levels=2, batch_first=True)
    query_BQC, memory_BNC = torch.randn(1, 5, WIDTH), torch.randn(1, layout.num_tokens, WIDTH)
    points_BQL2 = torch.rand(1, 5, 1, 2).expand(-1, -1, 2, -1)
    masses = []
    for order in ([0, 1], [1, 0]):
        theirs = FirstCodeAttention(copy.deepcopy(ours))
        for name, size in (("sampling_offsets", 2), ("attention_weights", 1)):
            part = getattr(theirs, name)
            for values in (part.weight.data, part.bias.data):
                by_level = values.view(2, 2, theirs.n_points * size, *values.shape[1:])
                by_level.copy_(by_level[:, order].clone())
        with DecoderAttention(DetectorView(nn.ModuleDict({"decoder": theirs})), layout) as seen:
            ordered = torch.tensor([shapes[level] for level in order])
            theirs(query_BQC, points_BQL2, memory_BNC, ordered)
        masses.append(seen.mass_BN)
    torch.testing.assert_close(masses[1], masses[0])
    assert masses[0].std() > 0
    with (
        DecoderAttention(DetectorView(nn.ModuleDict({"decoder": theirs})), layout),
        pytest.raises(UnsupportedDetectorError, match="levels"),
    ):
        theirs(query_BQC, points_BQL2, memory_BNC, torch.tensor([(9, 9), (2, 3)]))


def test_a_criterion_that_lacks_what_the_heads_need_is_named_when_the_model_is_built():
    model = build("dino")
    heads = {"embed_dim": WIDTH, "num_classes": CLASSES, "num_layers": LAYERS}
    model.transformer.encoder.sparsifier = SparseSparsifier(**heads)
    model.criterion.num_classes = CLASSES + 1
    with pytest.raises(UnsupportedDetectorError, match=f"num_classes={CLASSES}.*{CLASSES + 1}"):
        observe(model)
    model.criterion.losses = ["class", "boxes", "masks", "ious"]
    with pytest.raises(UnsupportedDetectorError, match=r"for masks and ious.*auxiliary_heads=Fal"):
        observe(model)
    model.criterion.losses = ["class", "boxes"]
    model.criterion.loss_boxes = lambda outputs, targets, indices, num_boxes, ranks: {}
    with pytest.raises(UnsupportedDetectorError, match=r"needs ranks.*auxiliary_heads=False"):
        observe(model)
    model.criterion = nn.Identity()
    with pytest.raises(UnsupportedDetectorError, match=r"Identity has no matcher.*auxiliary"):
        observe(model)
    model.transformer.encoder.sparsifier = SparseSparsifier(**heads, auxiliary_heads=False)
    observe(model)
