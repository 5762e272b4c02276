"""The C++ example returns the model's detections, in a process without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.deploy.models import CANVAS, build, images
from tests.source_tree import ROOT
from tokendetr.deploy import ExportOptions, export
from tokendetr.ops.library import library_facts

MISSING = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]


def write_ppm(image_3HW: torch.Tensor, path: Path) -> None:
    height, width = image_3HW.shape[1:]
    pixels = image_3HW.permute(1, 2, 0).to(torch.uint8).contiguous().numpy().tobytes()
    path.write_bytes(f"P6\n{width} {height}\n255\n".encode() + pixels)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(MISSING), reason=f"not on the PATH: {', '.join(MISSING)}")
@pytest.mark.skipif(library_facts().path is None, reason="there are no compiled kernels")
def test_the_example_detects_what_the_model_detects(tmp_path):
    model, package = build("dino", "sparse"), tmp_path / "detector.pt2"
    assert export(model, package, ExportOptions("aoti", CANVAS))["checks"]["aotinductor"]["good"]
    folder = tmp_path / "build"
    configure = ["cmake", "-S", str(ROOT / "examples/cpp"), "-B", str(folder)]
    configure += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    for command in (configure, ["cmake", "--build", str(folder)]):
        subprocess.run(command, check=True, capture_output=True, text=True)
    picture = images([(50, 70)])[0].floor()
    write_ppm(picture, tmp_path / "image.ppm")
    size = [str(number) for number in CANVAS]
    arguments = [str(library_facts().path), str(package), *size, str(tmp_path / "image.ppm")]
    printed = subprocess.run(
        [str(folder / "detect"), *arguments], check=True, capture_output=True, text=True, env={}
    ).stdout
    found = torch.tensor([[float(word) for word in line.split()] for line in printed.splitlines()])
    with torch.no_grad():
        expected = model([{"image": picture}])[0]["instances"]
    assert torch.equal(found[:, 0].long(), expected.pred_classes)
    torch.testing.assert_close(found[:, 1], expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 2:], expected.pred_boxes.tensor, atol=0.05, rtol=0)
