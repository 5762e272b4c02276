"""Every listed config, narrowed to few channels, satisfies the contract of detectors."""

import copy
import pickle
import re

import pytest
import torch
from omegaconf import DictConfig

from tests import small_configs
from tests.small_configs import DETECTORS, put_into
from tests.small_detectors import assert_same, detections, record
from tokendetr.config import zoo
from tokendetr.config.targets import check_targets
from tokendetr.errors import ConfigError
from tokendetr.layers.cpu import optimize

# Configs that tests/small_configs.py cannot narrow, and why.
NOT_SHRUNK: dict[str, str] = {}
NAMES = zoo.list()
METHODS = {
    name: name.removesuffix("_dino_shapes") for name in NAMES if name.endswith("_dino_shapes")
}
BOXES = [[5, 5, 60, 50], [20, 10, 40, 30], [50, 20, 90, 60]]
SIZES = [(96, 128), (64, 160), (113, 75)]


@pytest.fixture(scope="module")
def swept() -> dict[str, dict[str, str]]:
    """Return by check the small models that ran, and the first config of each."""
    return {}


def records(*boxes: list) -> list[dict]:
    return [
        record(*size, image, seed=seed)
        for seed, (size, image) in enumerate(zip(SIZES, boxes, strict=False))
    ]


def train(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Return the gradients of one step by parameter, for all that are not frozen."""
    torch.manual_seed(0)
    model.train()
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    missing = [n for n, gradient in gradients.items() if gradient is None]
    assert not missing, f"no gradient reaches {missing}"
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    return gradients


def without_gradient(gradients: dict[str, torch.Tensor]) -> set[str]:
    """Return the parameters with zero gradients."""
    return {name for name, gradient in gradients.items() if not gradient.any()}


def draws_at_random(node: DictConfig) -> bool:
    """Return True if the encoder draws its tokens, so that results depend on the batch."""
    return (node.transformer.encoder.get("sparsifier") or {}).get("selection") == "random"


def padded_batches(node: DictConfig) -> None:
    """Train and evaluate a padded batch."""
    model = small_configs.build(node)
    batch = records(BOXES, BOXES[:1], BOXES[:2])
    dead = without_gradient(train(model, batch))
    if dead:
        # Initial class weights may rank every token of an image below padding, whose features are
        # 0; then no proposal comes from a token. The negated weights rank tokens above it.
        with torch.no_grad():
            for head in model.class_embed:
                head.weight.neg_()
        dead &= without_gradient(train(model, batch))
    if not node.transformer.encoder.num_layers:
        dead -= {"transformer.level_embeds"}  # positions are of the encoder's layers alone
    assert not dead, f"only zeros reach {sorted(dead)}"
    # In float32, scores that differ by rounding alone may change places, and tokens with them.
    model.double()
    batch = records([], [], [])
    for one, found in zip(batch, detections(model, batch), strict=True):
        assert len(found) == model.select_box_nums_for_evaluation
        if not draws_at_random(node):
            assert_same(found, detections(model, [one])[0], atol_px=2e-2)


def images_without_boxes(node: DictConfig) -> None:
    model = small_configs.build(node)
    for boxes in ((BOXES, []), ([], BOXES[:1]), ([], [])):
        train(model, records(*boxes))


def images_of_any_size(node: DictConfig) -> None:
    model = small_configs.build(node).double()
    for long in ((4000, 32), (32, 1200)):  # in one batch they would span a canvas of 4000 x 1200
        batch = [record(*size, seed=1) for size in ((1, 1), (17, 31), long)]
        for one, found in zip(batch, detections(model, batch), strict=True):
            if not draws_at_random(node):
                assert_same(found, detections(model, [one])[0], atol_px=2e-2)
            assert found.pred_boxes.tensor.isfinite().all()
    for size in ((1, 1), (4000, 32), (32, 1200), (8, 8)):
        batch = [record(*size, [[0, 0, 1, 1]])]
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
            batch += records([])  # batch statistics of a single pixel do not exist
        train(model, batch)


def copies_and_reloads(node: DictConfig) -> None:
    model = small_configs.build(node)
    batch = records([], [])
    expected = detections(model, batch)
    others = [copy.deepcopy(model), small_configs.build(node)]
    with torch.no_grad():
        for parameter in others[1].parameters():
            parameter.zero_()
    others[1].load_state_dict(model.state_dict(), strict=True)
    for other in others:
        for one, found in zip(expected, detections(other, batch), strict=True):
            assert_same(one, found, atol_px=2e-2)
        losses = other.train()(records(BOXES))
        assert torch.isfinite(sum(losses.values()))


def precisions(node: DictConfig, dtypes=(torch.float16, torch.bfloat16, torch.float64)) -> None:
    """Convert the weights; evaluate, optimized too, and train a copy that was pickled."""
    for dtype in dtypes:
        model = small_configs.build(node).to(dtype)
        batch = records([], [])
        expected = detections(model, batch)
        with optimize(model):
            detections(model, batch)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # our own
        for one, found in zip(expected, detections(copied, batch), strict=True):
            assert found.scores.dtype == torch.promote_types(dtype, torch.float32)
            assert torch.equal(one.scores, found.scores)
            assert torch.equal(one.pred_boxes.tensor, found.pred_boxes.tensor)
        gradients = train(copied, records(BOXES, BOXES[:1], BOXES[:2]))
        assert {gradient.dtype for gradient in gradients.values()} == {dtype}
        train(copied, records([], []))


CHECKS = {
    "padded_batches": padded_batches,
    "no_boxes": images_without_boxes,
    "sizes": images_of_any_size,
    "copies": copies_and_reloads,
    "precisions": precisions,
}
FAST = ("padded_batches",)
each_check = pytest.mark.parametrize(
    "check", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CHECKS]
)


@each_check
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.xdist_group("zoo")
def test_listed_configs(check, name, swept):
    try:
        model = zoo.get_config(name).model
        check_targets(model)
    except ConfigError as error:
        assert re.search("needs det(ectron2|rex) itself", str(error))
        pytest.skip("builds on a model of detectron2 or detrex, which is not installed")
    if "transformer" not in model:
        pytest.skip("no detection transformer")
    try:
        node = small_configs.shrink(model)
    except small_configs.CannotShrinkError as error:
        assert name in NOT_SHRUNK, f"{error}: teach tests/small_configs.py, or say why not"
        return
    assert name not in NOT_SHRUNK
    # Configs of the same small model differ in schedule, data or size alone: one of them runs.
    first = swept.setdefault(check, {}).setdefault(small_configs.identity(node), name)
    if first == name:
        CHECKS[check](node)


@each_check
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", METHODS, ids=METHODS.values())
def test_every_method_in_every_detector(check, method, detector):
    config, overrides = DETECTORS[detector]
    model = zoo.get_config(config).model
    model.update(overrides)
    put_into(model, zoo.get_config(method).model)
    CHECKS[check](small_configs.shrink(model))


@pytest.mark.parametrize("method", METHODS, ids=METHODS.values())
def test_every_method_takes_a_conversion_to_bfloat16(method):
    precisions(small_configs.shrink(zoo.get_config(method).model), (torch.bfloat16,))
