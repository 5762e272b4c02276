"""The encoder loop against a plain per-layer re-implementation, and its laws."""

import copy

import pytest
import torch

from tests.plain_encoder import CHANNELS, make_encoder, plain_layer
from tests.pyramids import make_batch, valid_rows
from tokendetr.encoder import EncoderContext, TokenPlan, TokenSparsifier
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.layers import EncoderLayer
from tokendetr.tokens import Keep, TokenMap, topk_valid

SIZES = [(12, 16), (9, 10), (12, 7)]


class KeepSome(TokenSparsifier):
    """Keep the tokens of the largest norm, chosen once (as Sparse DETR) or before each layer."""

    def __init__(self, *, keep_ratio: float, once: bool = False, value_policy="updated") -> None:
        super().__init__(value_policy=value_policy)
        self.keep_ratio, self.once = keep_ratio, once

    def plan(self, context: EncoderContext) -> TokenPlan:
        return KeepPlan(context, self)


class KeepPlan(TokenPlan):
    def __init__(self, context: EncoderContext, options: KeepSome) -> None:
        super().__init__(context)
        self.options, self.map, self.seen = options, None, []

    def token_map(self, layer: int, memory_BNC: torch.Tensor) -> TokenMap:
        if self.map is None or not self.options.once:
            existing = [sum(image) for image in self.context.layout.valid_counts]
            counts = [max(1, int(count * self.options.keep_ratio)) for count in existing]
            index, valid = topk_valid(
                memory_BNC.norm(dim=2),
                counts,
                valid_BN=self.context.layout.valid_BN,
                valid_counts=existing,
            )
            self.map = Keep(index_BK=index, valid_BK=valid)
        return self.map


def plain_encoder(encoder, pyramid, *, keep_ratio=1.0, once=False, value_policy="updated"):
    """One image without padding, kept tokens chosen with Python's sort."""
    layout = pyramid.layout
    reference = layout.reference_points_BNL2()[0].to(pyramid.x_BNC.dtype)
    memory, initial = pyramid.x_BNC[0], pyramid.x_BNC[0]
    valid, kept = torch.ones(len(memory), dtype=memory.dtype), None
    for layer in encoder.layers:
        if kept is None or not once:
            norms = memory.norm(dim=1).tolist()
            count = max(1, int(len(memory) * keep_ratio))
            kept = sorted(range(len(memory)), key=lambda i: (-norms[i], i))[:count]
        index = torch.tensor(kept)
        value = memory if value_policy == "updated" else initial
        tokens = plain_layer(
            layer,
            memory[index],
            value,
            pyramid.pos_BNC[0][index],
            reference[index],
            valid,
            layout.level_shapes,
        )
        memory = memory.clone()
        memory[index] = tokens
    return memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_encoder_equals_a_plain_one_also_with_padding(dtype):
    batch, alone = make_batch(SIZES, CHANNELS, dtype=dtype)
    encoder = make_encoder().to(dtype)
    memory = encoder(**batch.inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6  # reference points are float32
    for image, single in enumerate(alone):
        expected = plain_encoder(encoder, single)
        got = valid_rows(batch.layout, memory, image)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("value_policy", ["updated", "initial"])
def test_sparse_encoder_equals_a_plain_one_also_with_padding(once, value_policy):
    batch, alone = make_batch(SIZES, CHANNELS, seed=1, dtype=torch.float64)
    choice = {"keep_ratio": 0.4, "once": once, "value_policy": value_policy}
    encoder = make_encoder(KeepSome(**choice)).double()
    memory = encoder(**batch.inputs)
    for image, single in enumerate(alone):
        expected = plain_encoder(encoder, single, **choice)
        got = valid_rows(batch.layout, memory, image)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    other = dict(choice, value_policy="initial" if value_policy == "updated" else "updated")
    assert (
        plain_encoder(encoder, alone[0], **other) - valid_rows(batch.layout, memory, 0)
    ).abs().max() > 1e-3


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("value_policy", ["updated", "initial"])
def test_evaluation_overwrites_no_input_and_equals_a_pass_with_gradients(once, value_policy):
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = make_encoder(KeepSome(keep_ratio=0.4, once=once, value_policy=value_policy))
    before = {name: value.clone() for name, value in tensors_of(batch).items()}
    expected = encoder.eval()(**batch.inputs)
    with torch.no_grad():
        first, second = encoder(**batch.inputs), encoder(**batch.inputs)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    for name, value in tensors_of(batch).items():
        assert torch.equal(value, before[name]), name


def tensors_of(batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.inputs.items() if isinstance(value, torch.Tensor)}


def test_keeping_all_tokens_is_bitwise_dense():
    _, (single, *_) = make_batch(SIZES, CHANNELS)
    dense = make_encoder()(**single.inputs)

    class Everything(TokenSparsifier):
        def plan(self, context):
            return EverythingPlan(context)

    class EverythingPlan(TokenPlan):
        def token_map(self, layer, memory_BNC):
            batch, tokens, _ = memory_BNC.shape
            return Keep(index_BK=torch.arange(tokens).expand(batch, -1))

    class Nothing(TokenSparsifier):
        def plan(self, context):
            return TokenPlan(context)

    assert torch.equal(make_encoder(Everything())(**single.inputs), dense)
    assert torch.equal(make_encoder(Nothing())(**single.inputs), dense)


@pytest.mark.parametrize("mask", ["query_key_padding_mask", "key_padding_mask"])
def test_upstreams_call_gives_the_same_as_a_layout(mask):
    """The second name is mmdetection's."""
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder, layout = make_encoder(), batch.layout
    expected = encoder(**batch.inputs)
    got = encoder(
        query=batch.x_BNC,
        key=None,
        value=None,
        query_pos=batch.pos_BNC,
        spatial_shapes=layout.spatial_shapes(),
        reference_points=layout.reference_points_BNL2(),
        level_start_index=layout.level_start_index(),
        valid_ratios=layout.valid_ratios_BL2,
        attn_masks=[None, None],
        **{mask: layout.padding_BN},
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("sparsifier", [None, KeepSome(keep_ratio=0.5)])
def test_positions_and_points_of_one_image_are_those_of_all(sparsifier):
    _, (single, *_) = make_batch(SIZES, CHANNELS)
    encoder, layout = make_encoder(sparsifier), single.layout
    query_BNC = torch.randn(3, layout.num_tokens, CHANNELS)
    geometry = {"spatial_shapes": layout.spatial_shapes()}
    points = layout.reference_points_BNL2()
    got = encoder(query_BNC, query_pos=single.pos_BNC, reference_points=points, **geometry)
    pos_BNC = single.pos_BNC.repeat(3, 1, 1)
    assert torch.equal(got, encoder(query_BNC, query_pos=pos_BNC, **geometry))


def test_parameter_names_are_upstreams():
    names = set(make_encoder(num_layers=1, post_norm=True).state_dict())
    modules = ["sampling_offsets", "attention_weights", "value_proj", "output_proj"]
    modules = [f"layers.0.attentions.0.{name}" for name in modules]
    modules += ["layers.0.ffns.0.layers.0.0", "layers.0.ffns.0.layers.1"]
    modules += ["layers.0.norms.0", "layers.0.norms.1", "post_norm_layer"]
    assert names == {f"{name}.{part}" for name in modules for part in ("weight", "bias")}


@pytest.mark.parametrize("once", [False, True])
def test_checkpointing_changes_neither_results_nor_gradients(once):
    batch, _ = make_batch(SIZES, CHANNELS)
    results = []
    for use_checkpoint in (False, True):
        encoder = make_encoder(
            KeepSome(keep_ratio=0.5, once=once), use_checkpoint=use_checkpoint, attn_dropout=0.1
        )
        x = batch.x_BNC.clone().requires_grad_()
        torch.manual_seed(5)
        memory = encoder(**{**batch.inputs, "query": x})
        memory.square().mean().backward()
        gradients = [parameter.grad for parameter in encoder.parameters()]
        results.append([memory, x.grad, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_padding_never_reaches_a_real_token():
    batch, _ = make_batch(SIZES, CHANNELS)
    for encoder in (make_encoder(), make_encoder(KeepSome(keep_ratio=0.5))):
        before = encoder(**batch.inputs)
        rubbish = batch.x_BNC.masked_fill(batch.layout.padding_BN[..., None], 1e4)
        after = encoder(**{**batch.inputs, "query": rubbish})
        for image in range(len(SIZES)):
            a, b = (valid_rows(batch.layout, memory, image) for memory in (before, after))
            assert torch.equal(a, b)


def test_pre_norm_order_normalizes_values_too():
    order = ("norm", "self_attn", "norm", "ffn")
    _, (single, *_) = make_batch(SIZES, CHANNELS)
    dense = make_encoder(operation_order=order)
    sparse = make_encoder(KeepSome(keep_ratio=1.0), operation_order=order)
    assert dense.pre_norm and dense.layers[0].pre_norm
    got, expected = sparse(**single.inputs), dense(**single.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "order",
    [("norm", "ffn"), ("ffn", "self_attn"), ("self_attn", "cross_attn"), ("self_attn",) * 2],
)
def test_wrong_orders_are_refused(order):
    with pytest.raises(ValueError, match="operation_order"):
        make_encoder(operation_order=order)


def test_wrong_arguments_are_named():
    batch, _ = make_batch(SIZES, CHANNELS)
    with pytest.raises(ValueError, match="num_layers"):
        make_encoder(num_layers=-1)
    with pytest.raises(ValueError, match="layout or spatial_shapes"):
        make_encoder()(query=batch.x_BNC)
    with pytest.raises(ValueError, match="layout"):
        make_encoder()(query=batch.x_BNC[:2], layout=batch.layout)
    shapes, mask = batch.layout.spatial_shapes(), batch.layout.padding_BN[:1]
    for query in (batch.x_BNC.transpose(0, 1), batch.x_BNC[:, None]):
        with pytest.raises(ValueError, match=r"have shape \[B, \d+, C\], batch first; got"):
            make_encoder()(query=query, spatial_shapes=shapes)
    with pytest.raises(ValueError, match="layout is of 1 images"):
        make_encoder()(batch.x_BNC, query_key_padding_mask=mask, spatial_shapes=shapes)
    with pytest.raises(ValueError, match="value_policy"):
        KeepSome(keep_ratio=0.5, value_policy="stale")
    with pytest.raises(ValueError, match="feed-forward"):
        EncoderLayer(
            attention=make_encoder().layers[0].attentions[0],
            ffns=[],
            operation_order=("self_attn", "ffn"),
        )


def test_hooks_see_each_layer_and_carried_tokens():
    class Watching(KeepSome):
        def plan(self, context):
            self.last = WatchingPlan(context, self)
            return self.last

    class WatchingPlan(KeepPlan):
        def before_attention(self, layer, tokens_BKC, token_map):
            self.seen.append(("before", layer, tokens_BKC.clone()))
            return tokens_BKC + 1

        def after_layer(self, layer, tokens_BKC, token_map):
            self.seen.append(("after", layer, tokens_BKC.clone()))

        def finalize(self, memory_BNC):
            return memory_BNC * 2

    batch, _ = make_batch(SIZES, CHANNELS)
    watching = Watching(keep_ratio=0.3, once=True)
    memory = make_encoder(watching)(**batch.inputs)
    seen = watching.last.seen
    assert [(name, layer) for name, layer, _ in seen] == [
        (name, layer) for layer in range(3) for name in ("before", "after")
    ]
    assert torch.equal(seen[1][2], seen[2][2])
    last = Keep.reduce(watching.last.map, memory / 2)[watching.last.map.valid_BK]
    torch.testing.assert_close(last, seen[-1][2][watching.last.map.valid_BK])


def test_trace_records_maps_only_inside_the_block():
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = make_encoder(KeepSome(keep_ratio=0.5))
    encoder(**batch.inputs)
    with record_tokens() as trace:
        encoder(**batch.inputs)
        make_encoder()(**batch.inputs)
    encoder(**batch.inputs)
    assert [len(forward.layers) for forward in trace.forwards] == [3, 3]
    assert trace.forwards[0].layout is batch.layout
    kept = trace.forwards[0].layers[0].token_map
    assert isinstance(kept, Keep) and kept.num_tokens < batch.layout.num_tokens


def test_encoders_copy_and_keep_their_sparsifier():
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = make_encoder(KeepSome(keep_ratio=0.5))
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(**batch.inputs), encoder(**batch.inputs))
    assert twin.sparsifier is not encoder.sparsifier


def test_bfloat16_autocast_stays_close():
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = make_encoder(KeepSome(keep_ratio=1.0))
    expected = encoder(**batch.inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = encoder(**batch.inputs)
    for image in range(len(SIZES)):
        a, b = (valid_rows(batch.layout, m, image) for m in (got, expected))
        assert torch.nn.functional.cosine_similarity(a.float(), b, dim=1).min() > 0.99


@pytest.mark.parametrize(
    "order", [("self_attn", "norm", "ffn", "norm"), ("norm", "self_attn", "norm", "ffn")]
)
def test_blocks_of_tokens_give_what_all_tokens_give_at_once(order, monkeypatch):
    batch, _ = make_batch(SIZES, CHANNELS, seed=4)
    encoder = make_encoder(operation_order=order).eval()
    at_once = encoder(**batch.inputs).detach()  # blocks are for calls without gradients
    rows = []
    hooks = [
        layer.ffns[0].register_forward_hook(lambda module, inputs, _: rows.append(inputs[0].shape))
        for layer in encoder.layers
    ]
    monkeypatch.setattr("tokendetr.layers.blocks.ROWS_AT_ONCE", 50)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            memory = encoder(**batch.inputs)
        torch.testing.assert_close(memory, at_once, rtol=1e-5, atol=1e-5)
    assert max(shape[1] for shape in rows) == 50
    for hook in hooks:
        hook.remove()


def test_hooks_of_an_attention_are_called_where_blocks_would_pay(monkeypatch):
    monkeypatch.setattr("tokendetr.layers.blocks.ROWS_AT_ONCE", 50)
    batch, _ = make_batch(SIZES, CHANNELS, seed=4)
    encoder, calls = make_encoder().eval(), []
    with torch.no_grad():
        expected = encoder(**batch.inputs)
        for layer in encoder.layers:
            layer.attentions[0].register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(encoder(**batch.inputs), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == len(encoder.layers)
