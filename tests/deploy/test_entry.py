"""The entry for deployment gives the detector's results, whatever lies beyond an image."""

from types import SimpleNamespace

import pytest
import torch

from tests import small_detectors as small
from tests.deploy.models import CANVAS, SIZES, build, images
from tokendetr.deploy import (
    DeployedDetector,
    ExportOptions,
    FixedDetections,
    RawPredictions,
    export,
)
from tokendetr.deploy.verification import padded_inputs
from tokendetr.errors import ExportError

METHODS = ("sparse", "focus", "dynamic")
PAIRS = [(name, "dense") for name in small.NAMES]
PAIRS += [(name, method) for name in ("dino", "dab") for method in METHODS]


def assert_same(model, entry, pictures, canvas=CANVAS):
    canvases, sizes = padded_inputs(pictures, canvas)
    with torch.no_grad():
        found = FixedDetections(*entry(canvases, sizes))
        for index, picture in enumerate(pictures):
            expected = model([{"image": picture}])[0]["instances"]
            count = int(found.counts_B[index])
            assert count == len(expected)
            torch.testing.assert_close(
                found.scores_BT[index, :count], expected.scores, atol=1e-5, rtol=0
            )
            torch.testing.assert_close(
                found.boxes_BT4[index, :count], expected.pred_boxes.tensor, atol=1e-3, rtol=0
            )
            assert torch.equal(found.labels_BT[index, :count], expected.pred_classes)
            assert not found.scores_BT[index, count:].any()


@pytest.mark.parametrize("detector, method", PAIRS)
def test_each_image_of_a_canvas_gets_what_it_gets_alone(detector, method):
    model = build(detector, method)
    assert_same(model, DeployedDetector(model), images())


@pytest.mark.parametrize("method", ("dense", *METHODS))
def test_images_that_fill_the_canvas_give_the_same(method):
    model = build("dino", method)
    pictures = images([CANVAS, CANVAS])
    assert_same(model, DeployedDetector(model, padding=False), pictures)


def test_what_lies_beyond_an_image_is_not_read():
    entry = DeployedDetector(build("dino"))
    canvases, sizes = padded_inputs(images(), CANVAS)
    beyond = torch.ones_like(canvases, dtype=torch.bool)
    for row, (height, width) in zip(beyond, SIZES, strict=True):
        row[:, :height, :width] = False
    with torch.no_grad():
        one, other = entry(canvases, sizes), entry(canvases.masked_fill(beyond, 1e4), sizes)
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first, second)


def test_predictions_before_post_processing_are_those_of_the_last_layer():
    model = build("h_two_stage")
    picture = images([CANVAS])
    with torch.no_grad():
        entry = DeployedDetector(model, padding=False, postprocess=False)
        raw = RawPredictions(*entry(*padded_inputs(picture, CANVAS)))
        expected = model([{"image": picture[0]}])[0]["instances"]
    assert raw.logits_BQV.shape[-1] == small.CLASSES and bool(raw.valid_BQ.all())
    best = raw.logits_BQV[0].sigmoid().flatten().topk(len(expected)).values
    torch.testing.assert_close(best, expected.scores)


@pytest.mark.parametrize("method", ["sparse", "focus"])
@pytest.mark.parametrize("padding", [True, False])
def test_tokens_on_a_bypass_move_in_programs_of_fixed_shapes(method, padding):
    model = build("dino", method, bypass=True)
    pictures = images() if padding else images([CANVAS, CANVAS])
    assert_same(model, DeployedDetector(model, padding=padding), pictures)


def test_token_counts_that_depend_on_the_image_are_refused():
    model = build("dino", "sparse")
    model.transformer.encoder.sparsifier.mass_budget = torch.nn.Identity()
    with pytest.raises(ExportError, match="with a mass_budget the number of tokens"):
        DeployedDetector(model)


def test_other_models_are_refused():
    with pytest.raises(ExportError, match="Linear is not one of tokendetr's.*exported$"):
        DeployedDetector(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["model", "module", "_orig_mod"])
def test_a_detector_inside_another_object_is_named(name, tmp_path):
    wrapper = SimpleNamespace(**{name: build("dino", "dense")})
    with pytest.raises(ExportError, match=f"that it holds as its attribute {name}"):
        export(wrapper, tmp_path / "a.pt2", ExportOptions("pt2", CANVAS))
