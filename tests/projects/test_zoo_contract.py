"""Every listed config, narrowed to a few channels, keeps the contract of detectors: it trains, pads
without a trace, bears images without boxes and of any size, reloads and copies."""

import copy
import re

import pytest
import torch
from omegaconf import DictConfig

from tests import small_configs
from tests.small_detectors import record
from tokendetr.config import observed, sparsify, zoo
from tokendetr.config.targets import check_targets
from tokendetr.errors import ConfigError

# Configs that tests/small_configs.py cannot narrow, and why.
NOT_SHRUNK: dict[str, str] = {}
NAMES = zoo.list()
# The detectors, as changes of a config's model: every method is put into each of them.
ONE_STAGE = {"as_two_stage": False}
DETECTORS = {
    "dino": ("dino_shapes", {}),
    "deformable": ("deformable_detr_shapes", {**ONE_STAGE, "with_box_refine": False}),
    "deformable_refine": ("deformable_detr_shapes", ONE_STAGE),
    "deformable_two_stage": ("deformable_detr_shapes", {}),
    "dab": ("dab_deformable_detr_shapes", {}),
    "dab_two_stage": ("dab_deformable_detr_shapes", {"as_two_stage": True}),
    "dn": ("dn_deformable_detr_shapes", {}),
    "dn_two_stage": ("dn_deformable_detr_shapes", {"as_two_stage": True}),
    "h": ("h_deformable_detr_shapes", ONE_STAGE),
    "h_two_stage": ("h_deformable_detr_shapes", {}),
}
METHODS = {
    name: name.removesuffix("_dino_shapes") for name in NAMES if name.endswith("_dino_shapes")
}
BOXES = [[5, 5, 60, 50], [20, 10, 40, 30], [50, 20, 90, 60]]
SIZES = [(96, 128), (64, 160), (113, 75)]


@pytest.fixture(scope="module")
def swept() -> dict[str, dict[str, str]]:
    """By check: the small models that ran, and the first config of each."""
    return {}


def records(*boxes: list) -> list[dict]:
    return [
        record(*size, image, seed=seed)
        for seed, (size, image) in enumerate(zip(SIZES, boxes, strict=False))
    ]


def detections(model: torch.nn.Module, batch: list[dict]) -> list:
    model.eval()
    torch.manual_seed(0)  # of methods that select at random
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def assert_same(one, other) -> None:
    assert len(one) == len(other)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-3, atol=2e-2)
    assert torch.equal(one.pred_classes, other.pred_classes)


def train(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """One step's gradients, by parameter: all of those that are not frozen."""
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
    """The parameters that only zeros reach."""
    return {name for name, gradient in gradients.items() if not gradient.any()}


def draws_at_random(node: DictConfig) -> bool:
    """Whether the encoder's tokens are drawn, so that an image's depend on its batch."""
    return (node.transformer.encoder.get("sparsifier") or {}).get("selection") == "random"


def padded_batches(node: DictConfig) -> None:
    """Train and evaluate one."""
    model = small_configs.build(node)
    batch = records(BOXES, BOXES[:1], BOXES[:2])
    dead = without_gradient(train(model, batch))
    if dead:
        # Fresh class weights may rank every token of a picture below places without one, whose
        # features are 0; then no proposal comes from a token. The opposite weights rank them above.
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
            assert_same(found, detections(model, [one])[0])


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
                assert_same(found, detections(model, [one])[0])
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
            assert_same(one, found)
        losses = other.train()(records(BOXES))
        assert torch.isfinite(sum(losses.values()))


CHECKS = {
    "padded_batches": padded_batches,
    "no_boxes": images_without_boxes,
    "sizes": images_of_any_size,
    "copies": copies_and_reloads,
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


def has_two_stages(model: DictConfig) -> bool:
    return model.get("as_two_stage", True)  # DINO always has them


def put_into(model: DictConfig, method: DictConfig) -> None:
    """Give a detector's model what another one has of a method: its sparsifier or its backbone."""
    sparsifier = method.transformer.encoder.get("sparsifier")
    if sparsifier is None:
        model.backbone = method.backbone
        model.neck.in_features = method.neck.in_features
        observed(model)
        return
    sparsify(model, sparsifier)
    if not has_two_stages(model):
        own = model.transformer.encoder.sparsifier
        if "projection" in own:  # Sparse DETR
            own.projection = "own"
        if "num_objects" in own:  # Focus-DETR
            own.num_classes = "${....num_classes}"


@each_check
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", METHODS, ids=METHODS.values())
def test_every_method_in_every_detector(check, method, detector):
    config, overrides = DETECTORS[detector]
    model = zoo.get_config(config).model
    model.update(overrides)
    put_into(model, zoo.get_config(method).model)
    CHECKS[check](small_configs.shrink(model))
