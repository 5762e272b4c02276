"""Several formats of one model share its traced program and its detections."""

import pytest

from tests.deploy.models import CANVAS, build, images
from tokendetr.deploy import DeployedDetector, ExportOptions, export, files
from tokendetr.deploy.programs import trace
from tokendetr.deploy.verification import detect
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
