"""``accelerate`` puts our kernels into models of other libraries: same results, and reversible."""

import copy
import functools
import importlib
import warnings

import pytest
import torch
from torch import Tensor, nn

import tokendetr
from tests.integrations import small_huggingface
from tests.small_detectors import build as build_ours
from tokendetr.compat.torch_private import TorchDispatchMode
from tokendetr.integrations import rebinding
from tokendetr.ops.ms_deform_attn.reference import ms_deform_attn_reference

IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
SHAPES = torch.tensor([[6, 9], [3, 5]])
TOKENS, WIDTH, HEADS = 69, 16, 2


class Seen(TorchDispatchMode):
    """Count calls of our operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function.name() == "tokendetr::ms_deform_attn"
        return function(*args, **(kwargs or {}))


def outputs(model: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    results = model(images)
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    found = [results[name].float() for name in names if name in results]
    return [each.clamp(-1e4, 1e4) for each in found]  # Grounding DINO's padded text has -inf


def gap(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", small_huggingface.MODELS)
def test_a_model_of_transformers_gives_the_same_on_our_kernels(name):
    model = small_huggingface.build(name).eval()
    attentions = small_huggingface.ATTENTIONS.get(name, 4)
    keys = list(model.state_dict())
    with torch.no_grad():
        before = outputs(model)
        with tokendetr.accelerate(model) as accelerated:
            assert len(accelerated.layers) == attentions and not accelerated.left
            with Seen() as seen:
                during = outputs(model)
            assert seen.calls == attentions
            again = tokendetr.accelerate(model)
            assert not again.layers and len(again.left) == attentions
            assert "already" in str(again)
        after = outputs(model)
    assert gap(before, during) < 1e-5
    assert gap(before, after) == 0.0
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "mask2former", "grounding_dino"])
def test_training_gives_the_same_gradients(name):
    model = small_huggingface.build(name).eval()  # without dropout

    def gradients() -> list[Tensor]:
        model.zero_grad()
        sum(x.sigmoid().sum() for x in outputs(model)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    with tokendetr.accelerate(model):
        during = gradients()
    assert len(during) == len(before)
    for ours, theirs in zip(during, before, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-4 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr_v2", "mask2former"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_original(name, how):
    model = small_huggingface.build(name).eval()
    images = IMAGES
    with torch.no_grad():
        exact = outputs(model)
        if how == "bfloat16":
            model, images = model.to(torch.bfloat16), IMAGES.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            theirs = outputs(model, images)
            with tokendetr.accelerate(model), Seen() as seen:
                ours = outputs(model, images)
    assert seen.calls > 0
    assert gap(ours, exact) <= 1.5 * gap(theirs, exact)


HOOKED = (
    "deformable_detr",
    "grounding_dino",
    "lw_detr",
    "mm_grounding_dino",
    "omdet_turbo",
    "pp_doclayout_v2",
    "pp_doclayout_v3",
    "pp_doclayout_v4",
    "rf_detr",
    "rt_detr",
)


@pytest.mark.parametrize("family", HOOKED)
def test_the_layer_behind_the_kernel_hook_of_every_family(family):
    home = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    layer = home.MultiScaleDeformableAttention()
    query, locations, weights = inputs()
    shapes = [tuple(shape) for shape in SHAPES.tolist()]
    arguments = (query.unflatten(-1, (HEADS, -1)), SHAPES, shapes, None, locations, weights, 64)
    expected = layer(*arguments)
    with tokendetr.accelerate(layer), Seen() as seen:
        torch.testing.assert_close(layer(*arguments), expected, rtol=1e-5, atol=1e-5)
    assert seen.calls == 1


def test_oneformers_layer_runs_on_our_kernels():
    home = importlib.import_module("transformers.models.oneformer.modeling_oneformer")
    torch.manual_seed(0)
    layer = home.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention(WIDTH, HEADS, 2, 3)
    nn.init.normal_(layer.sampling_offsets.weight)
    query, _, _ = inputs()
    arguments = {
        "encoder_hidden_states": query,
        "reference_points": torch.rand(2, TOKENS, 2, 2),
        "spatial_shapes": SHAPES,
        "spatial_shapes_list": [tuple(shape) for shape in SHAPES.tolist()],
    }
    expected = layer(query, **arguments)[0]
    with tokendetr.accelerate(layer), Seen() as seen:
        torch.testing.assert_close(layer(query, **arguments)[0], expected, rtol=1e-5, atol=1e-5)
    assert seen.calls == 1


def core_pytorch(value, shapes, locations, weights):
    return ms_deform_attn_reference(value, tuple(map(tuple, shapes.tolist())), locations, weights)


class MSDeformAttnFunction(torch.autograd.Function):
    """A library's own CUDA kernels, which are not installed."""

    @staticmethod
    def forward(ctx, *arguments):
        raise NotImplementedError("not compiled with CUDA")


ms_deform_attn_core_pytorch = multi_scale_deformable_attn_pytorch = core_pytorch


def with_function(function):
    """A module whose compiled function is another one."""
    forward = rebinding.rebound(MSDeformAttn.forward, {"MSDeformAttnFunction": function})
    return type("MSDeformAttn", (MSDeformAttn,), {"forward": forward})()


class WithoutStarts(torch.autograd.Function):
    """TrackFormer's, which is not told where the levels start."""

    @staticmethod
    def forward(ctx, value, shapes, locations, weights, im2col_step):
        return core_pytorch(value, shapes, locations, weights)


def deprecated_arguments(function):
    """A decorator such as mmengine's, which renames keywords."""

    @functools.wraps(function)
    def forward(self, *args, **kwargs):
        if "residual" in kwargs:
            warnings.warn("residual is deprecated")
            kwargs["identity"] = kwargs.pop("residual")
        return function(self, *args, **kwargs)

    return forward


class MSDeformAttn(nn.Module):
    """The original's module in short, with Mask2Former's fallback without a CUDA kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.value_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query, locations, weights, identity=0.0):
        value = self.value_proj(query).unflatten(-1, (HEADS, -1))
        try:
            output = MSDeformAttnFunction.apply(value, SHAPES, None, locations, weights, 64)
        except Exception:
            output = ms_deform_attn_core_pytorch(value, SHAPES, locations, weights)
        return output + identity


class Decorated(MSDeformAttn):
    @deprecated_arguments
    def forward(self, query, locations, weights, identity=0.0):
        value = self.value_proj(query).unflatten(-1, (HEADS, -1))
        return multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights) + identity


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, TOKENS, WIDTH, generator=generator)
    locations = torch.rand(2, TOKENS, HEADS, 2, 3, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, TOKENS, HEADS, 2, 3, generator=generator)
    return query.to(dtype), locations.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("kind", [MSDeformAttn, Decorated])
def test_modules_that_call_a_function_of_their_file(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind())
    expected = model[0](*inputs())
    with tokendetr.accelerate(model) as accelerated:
        assert list(accelerated.layers) == ["0"] and kind.__name__ in accelerated.layers["0"]
        with Seen() as seen:
            torch.testing.assert_close(model[0](*inputs()), expected, rtol=1e-5, atol=1e-5)
        assert seen.calls == 1
        other = kind()  # another instance, the class and its file stay as they were
        with Seen() as seen:
            other(*inputs())
        assert seen.calls == 0
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved[0].value_proj.bias.add_(1.0)
        assert not torch.equal(moved[0](*inputs()), model[0](*inputs()))
    assert "forward" not in vars(model[0])


def test_a_decorator_of_forward_still_applies():
    model = Decorated()
    with tokendetr.accelerate(model), pytest.warns(UserWarning, match="residual"):
        moved = model(*inputs(), residual=2.0)
    torch.testing.assert_close(moved, model(*inputs()) + 2.0, rtol=1e-5, atol=1e-5)


def test_coordinates_of_another_type_than_the_values():
    model = Decorated().to(torch.float16)
    query, _, _ = inputs(torch.float16)
    _, locations, weights = inputs(torch.bfloat16)
    expected = core_pytorch(
        model.value_proj(query).unflatten(-1, (HEADS, -1)), SHAPES, locations, weights
    )
    with tokendetr.accelerate(model):
        torch.testing.assert_close(model(query, locations, weights), expected, rtol=2e-3, atol=2e-3)


def test_compiled_it_runs_our_operator():
    found = []

    def backend(graph, example_inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model = Decorated()
    expected = model(*inputs())
    with tokendetr.accelerate(model):
        compiled = torch.compile(model, backend=backend)
        torch.testing.assert_close(compiled(*inputs()), expected, rtol=1e-5, atol=1e-5)
    assert any("ms_deform_attn" in name and "grid" not in name for name in found), found


def test_models_without_deformable_attention_are_refused_and_ours_are_left_alone():
    with pytest.raises(ValueError, match="no deformable attention"):
        tokendetr.accelerate(nn.Linear(2, 2))
    accelerated = tokendetr.accelerate(build_ours("dino"))
    assert not accelerated.layers and len(accelerated.left) == 4


def test_functions_with_other_arguments_are_left_alone_and_named():
    model = nn.Sequential(with_function(WithoutStarts))
    expected = model[0](*inputs())
    accelerated = tokendetr.accelerate(model)
    assert not accelerated.layers
    assert accelerated.left["0"] == (
        "its MSDeformAttnFunction takes other arguments: "
        "value, shapes, locations, weights, im2col_step"
    )
    assert torch.equal(model[0](*inputs()), expected)


def test_a_function_that_was_not_compiled_is_replaced():
    """OneFormer's name for it is then None."""
    model = with_function(None)
    expected = model(*inputs())
    with tokendetr.accelerate(model), Seen() as seen:
        torch.testing.assert_close(model(*inputs()), expected, rtol=1e-5, atol=1e-5)
    assert seen.calls == 1


def test_single_pixels_are_left_alone():
    model = small_huggingface.build("rt_detr_v2").eval()
    for module in model.modules():
        if hasattr(module, "n_points_list"):
            module.method = "discrete"
    with torch.no_grad():
        before = outputs(model)
        accelerated = tokendetr.accelerate(model)
        assert not accelerated.layers and "discrete" in str(accelerated)
        assert gap(outputs(model), before) == 0.0
