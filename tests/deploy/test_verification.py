"""Verification of exported files: its images, ties, and what the formats of one model share."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from tests.deploy.models import CANVAS, build, images
from tokendetr.deploy import DeployedDetector, ExportOptions, export, files
from tokendetr.deploy.programs import trace
from tokendetr.deploy.verification import compare, detect, verification_images
from tokendetr.ops import extension_available

pytestmark = pytest.mark.skipif(
    not extension_available(), reason="models are exported with the compiled kernels"
)


def test_formats_share_a_program_and_the_models_detections(tmp_path, monkeypatch):
    model, path, options = build("deformable"), tmp_path / "model.pt2", ExportOptions("pt2", CANVAS)
    program = trace(DeployedDetector(model), CANVAS)
    expected = detect(model, images())
    other = detect(model, images())
    for found in other:
        found.pred_boxes.tensor.add_(20.0)
    monkeypatch.setattr(files, "detect", lambda *a: pytest.fail("the model ran again"))
    shared = {"program": program, "images": images()}
    record = export(model, path, options, expected=expected, **shared)
    assert record["good"] and record["checks"]["torch.export"]["near_ties"] == 0
    # Detections that differ are compared again, with the model on slightly changed images.
    path = tmp_path / "again.pt2"
    record = export(model, path, options, expected=other, **shared)
    assert record["checks"]["torch.export"]["near_ties"] == len(images())


def test_verification_sees_images_smaller_than_the_canvas():
    sizes = {tuple(image.shape[1:]) for image in verification_images(CANVAS, padding=True)}
    assert len(sizes) >= 6 and CANVAS in sizes
    assert {tuple(i.shape[1:]) for i in verification_images(CANVAS, padding=False)} == {CANVAS}


class Balanced(torch.nn.Module):
    """Puts its box left or right, whichever half of the image is brighter."""

    def forward(self, batched_inputs):
        image = batched_inputs[0]["image"]
        left = float((image[..., :10] - image[..., 10:]).sum() > 0)
        return [{"instances": self.detection(10.0 * (1 - left))}]

    @staticmethod
    def detection(x):
        found = Instances((20, 20))
        found.pred_boxes = Boxes(torch.tensor([[x, 0.0, x + 5, 5]]))
        found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
        return found


@pytest.mark.parametrize("x, contrast, good", [(0, 0, True), (3, 0, False), (0, 1, False)])
def test_a_tie_may_be_decided_otherwise(x, contrast, good):
    image = torch.full((3, 20, 20), 100.0)
    image[..., 10:] += contrast
    model, (expected,) = Balanced(), detect(Balanced(), [image])
    assert float(expected.pred_boxes.tensor[0, 0]) == 10
    result = compare(
        model, [expected], lambda _: [{"instances": Balanced.detection(float(x))}], [image]
    )
    assert result.good == good and result.near_ties == int(good)


class Stripes(torch.nn.Module):
    """Puts a box into the brighter half of each of six stripes."""

    def forward(self, batched_inputs):
        stripes = batched_inputs[0]["image"].unflatten(1, (6, 10))
        contrast_6 = (stripes[..., :10] - stripes[..., 10:]).sum(dim=(0, 2, 3))
        return [{"instances": self.detections((contrast_6 > 0).float())}]

    @staticmethod
    def detections(left_6):
        x, y = 10 * (1 - left_6), 10.0 * torch.arange(6)
        found = Instances((60, 20))
        found.pred_boxes = Boxes(torch.stack([x, y, x + 5, y + 5], dim=1))
        found.scores, found.pred_classes = torch.full((6,), 0.9), torch.zeros(6, dtype=torch.long)
        return found


@pytest.mark.parametrize("bright, good", [(0.0, True), (1.0, False)])
def test_independent_ties_may_be_decided_each_in_its_way(bright, good):
    image = torch.full((3, 60, 20), 100.0)
    image[:, :10, 10:] += bright  # the first stripe is no tie if this is not 0
    expected = detect(Stripes(), [image])
    assert not expected[0].pred_boxes.tensor[:, 0].eq(0).any()
    other = Stripes.detections(torch.ones(6))
    result = compare(Stripes(), expected, lambda _: [{"instances": other}], [image])
    assert result.good == good and result.near_ties == int(good)
