import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynamic_detr import DynamicSparsifier, TokenBudget, encoder_macs
from tests import small_detectors
from tokendetr.analysis.flops import (
    BLENDED_SIZES,
    PARTS,
    FlopReport,
    blended_flops,
    count_flops,
    flop_handles,
    mean_report,
    synthetic_inputs,
)
from tokendetr.config import zoo
from tokendetr.ops import use_reference

SIZE = (96, 128)
ORDERS = ((1, 2, 3, 4), (3, 2, 4, 1), (4, 3, 2, 1))


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Of a ResNet's levels of strides 8 to 64."""
    return [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]


@pytest.fixture(scope="module")
def dino_r50() -> nn.Module:
    config = LazyConfig.load(str(zoo.get_config_file("dino_r50_4scale_12ep")))
    config.model.device = "cpu"
    return instantiate(config.model)


@pytest.mark.parametrize("name", small_detectors.NAMES)
def test_figures_are_those_of_fvcore(name):
    model = small_detectors.build(name).eval()
    inputs = synthetic_inputs(*SIZE)
    report = count_flops(model, inputs)
    with use_reference():  # fvcore counts the sampling of this form
        analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        theirs = analysis.by_operator()
    for ours, kind in (
        ("conv", "conv"),
        ("layer_norm", "layer_norm"),
        ("group_norm", "group_norm"),
    ):
        assert report.by_operator[ours] == theirs[kind]
    assert report.by_operator["deformable_sampling"] == theirs["grid_sampler"]
    # A traced graph drops unused results: the last refinement of references, one box head.
    products = sum(theirs[kind] for kind in ("linear", "matmul", "bmm", "mm", "addmm", "einsum"))
    width, queries = small_detectors.WIDTH, 12
    unread_head = queries * (2 * width * width + 4 * width)
    assert report.by_operator["matmul"] - products in (0, unread_head)


@pytest.mark.parametrize("name", small_detectors.NAMES)
def test_products_and_convolutions_are_those_of_pytorchs_counter(name):
    model = small_detectors.build(name).eval().requires_grad_(False)  # PyTorch's tracker needs it
    inputs = synthetic_inputs(*SIZE)
    counter = FlopCounterMode(display=False)
    # It knows no formula of the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(inputs)
    theirs = sum(
        count
        for operator, count in counter.get_flop_counts()["Global"].items()
        if "ms_deform_attn" not in str(operator)
    )
    report = count_flops(model, inputs)
    assert 2 * (report.by_operator["conv"] + report.by_operator["matmul"]) == theirs


def test_fvcore_counts_our_operators_with_the_handles():
    model = small_detectors.build("deformable").eval()
    inputs = synthetic_inputs(*SIZE)
    analysis = FlopCountAnalysis(model, inputs).set_op_handle(**flop_handles())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == count_flops(model, inputs).total


@pytest.mark.parametrize("name", ["dino", "deformable_two_stage"])
def test_shapes_alone_and_plain_pytorch_give_the_same_count(name):
    model = small_detectors.build(name)
    inputs = synthetic_inputs(*SIZE)
    report = count_flops(model, inputs)
    assert count_flops(model, inputs, arithmetic=False) == report
    with use_reference():
        assert count_flops(model, inputs) == report


def test_encoder_is_what_the_formula_says():
    model = small_detectors.build("dino")
    shapes = [(12, 16), (6, 8), (3, 4)]
    expected = encoder_macs(
        shapes,
        num_layers=small_detectors.LAYERS,
        embed_dim=small_detectors.WIDTH,
        feedforward_dim=32,
        num_heads=2,
    )
    report = count_flops(model, synthetic_inputs(*SIZE))
    assert report.by_part["encoder"] == expected
    assert report.by_module["transformer.encoder"] == expected


def test_parts_add_up_and_heads_are_counted_once():
    report = count_flops(small_detectors.build("dino"), synthetic_inputs(*SIZE))
    assert tuple(report.by_part) == PARTS
    assert sum(report.by_part.values()) == report.total == report.by_module[""]
    assert report.by_part["backbone"] == report.by_module["backbone"]
    assert report.by_part["decoder"] < report.by_module["transformer.decoder"]  # heads inside
    class_head = small_detectors.WIDTH * small_detectors.CLASSES
    assert report.by_part["heads"] >= (12 * small_detectors.LAYERS) * class_head


def test_a_batch_costs_the_sum_of_its_images():
    model = small_detectors.build("deformable")
    one = count_flops(model, synthetic_inputs(*SIZE)).total
    assert count_flops(model, synthetic_inputs(*SIZE, batch_size=3)).total == 3 * one


def test_counting_leaves_the_model_as_it_was():
    model = small_detectors.build("dino").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, synthetic_inputs(*SIZE))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Failing(nn.Module):
    def forward(self, inputs):
        raise RuntimeError("broken model")


def test_a_failing_model_is_left_as_it_was():
    model = nn.Sequential(Failing()).train()
    with pytest.raises(RuntimeError, match="broken model"):
        count_flops(model, synthetic_inputs(8, 8))
    assert model.training
    assert not model[0]._forward_hooks


class Attention(nn.Module):
    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.written_out = written_out

    def forward(self, inputs):
        image = inputs[0]["image"].mean(0)[None, None]
        query, key = image[..., :5, :4], image[..., :7, :4]
        if self.written_out:
            return (query @ key.transpose(-1, -2)).softmax(-1) @ key
        return nn.functional.scaled_dot_product_attention(query, key, key)


@pytest.mark.parametrize("arithmetic", [True, False])
def test_fused_attention_costs_what_it_costs_written_out(arithmetic):
    inputs = synthetic_inputs(8, 8)
    fused, explicit = (
        count_flops(Attention(flag), inputs, arithmetic=arithmetic).total for flag in (False, True)
    )
    assert fused == explicit == 2 * 5 * 7 * 4


@torch.library.custom_op("tokendetr_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class Mysterious(nn.Module):
    def forward(self, inputs):
        return mystery(inputs[0]["image"])


def test_operators_without_a_rule_are_reported():
    report = count_flops(Mysterious(), synthetic_inputs(8, 8))
    assert report.uncounted == {"tokendetr_tests::mystery": 1}
    assert report.total == 0


def test_synthetic_images_are_seeded_noise():
    first, second = synthetic_inputs(5, 7, batch_size=2)
    assert first["image"].shape == (3, 5, 7)
    assert (first["height"], first["width"]) == (5, 7)
    assert 0 <= first["image"].min() < first["image"].max() <= 255
    assert not torch.equal(first["image"], second["image"])
    assert torch.equal(first["image"], synthetic_inputs(5, 7)[0]["image"])
    assert not torch.equal(first["image"], synthetic_inputs(5, 7, seed=1)[0]["image"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        count_flops(small_detectors.build("dino"), [])
    with pytest.raises(ValueError, match="positive"):
        synthetic_inputs(0, 8)
    with pytest.raises(ValueError, match="one positive weight each"):
        mean_report([])
    report = FlopReport(1.0, {}, {}, {}, {})
    with pytest.raises(ValueError, match="one positive weight each"):
        mean_report([report], [0.5, 0.5])


def test_mean_weighs_every_table():
    first = FlopReport(1.0, {"neck": 1.0}, {"": 1.0}, {"conv": 1.0}, {"conv": 8.0}, {})
    second = FlopReport(5.0, {"neck": 5.0}, {"": 5.0}, {"matmul": 5.0}, {"conv": 0.0}, {"x": 4.0})
    mean = mean_report([first, second], [3, 1])
    assert mean.total == 2.0
    assert mean.by_part == {"neck": 2.0}
    assert mean.by_operator == {"conv": 0.75, "matmul": 1.25}
    assert mean.activations == {"conv": 6.0}
    assert mean.uncounted == {"x": 1.0}


def test_dino_r50_costs_what_is_published(dino_r50):
    report = count_flops(dino_r50, synthetic_inputs(800, 1066), arithmetic=False)
    assert report.total / 1e9 == pytest.approx(237.3, rel=5e-4)
    assert report.by_part["encoder"] == encoder_macs(level_shapes(800, 1066))


def dynamic(model: nn.Module, ratios) -> TokenBudget:
    """Give DINO's encoder a Dynamic DETR sparsifier; returns its budget."""
    settings = {
        "keep_ratios": ratios,
        "level_orders": ORDERS,
        "stage_lengths": (2, 3, 1),
        "window_sizes": (8, 4, 2),
    }
    model.transformer.encoder.sparsifier = DynamicSparsifier(**settings)
    return TokenBudget(**settings)


@pytest.mark.parametrize(
    ("ratios", "gflops"),
    [
        pytest.param((0.4, 0.3, 0.2, 0.1), 138.8, marks=pytest.mark.slow),
        ((0.5, 0.4, 0.3, 0.2), 152.3),
        pytest.param((0.8, 0.7, 0.6, 0.5), 193.1, marks=pytest.mark.slow),
    ],
)
def test_dynamic_dino_costs_what_its_formula_says(dino_r50, ratios, gflops):
    budget = dynamic(dino_r50, ratios)
    try:
        report = blended_flops(dino_r50)
    finally:
        dino_r50.transformer.encoder.sparsifier = None
    assert report.total / 1e9 == pytest.approx(gflops, rel=0.02)
    analytic = sum(
        weight * encoder_macs(level_shapes(*size), budget) for weight, size in BLENDED_SIZES
    )
    assert report.by_part["encoder"] == pytest.approx(analytic, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size", "gflops"),
    [
        ("dino/configs/dino-resnet/dino_r50_4scale_12ep", (850, 1040), 246.6),
        ("dino/configs/dino-resnet/dino_r50_4scale_12ep", (800, 1333), 292.7),
        ("deformable_detr/configs/deformable_detr_r50_50ep", (800, 1066), 166.4),
        ("deformable_detr/configs/deformable_detr_r50_two_stage_50ep", (800, 1066), 170.7),
    ],
)
def test_other_detectors_cost_what_was_measured(config, size, gflops):
    node = LazyConfig.load(f"projects/{config}.py")
    node.model.device = "cpu"
    report = count_flops(instantiate(node.model), synthetic_inputs(*size), arithmetic=False)
    assert report.total / 1e9 == pytest.approx(gflops, rel=1e-3)
