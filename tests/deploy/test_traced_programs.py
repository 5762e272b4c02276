"""Exported files compute what the model computes; a file that does not is not kept."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch

from tests import small_detectors as small
from tests.deploy.models import CANVAS, build, images
from tests.source_tree import ROOT
from tests.tools.configs import write_config
from tokendetr import record_tokens
from tokendetr.analysis.flops import count_flops
from tokendetr.cli import export_model
from tokendetr.deploy import DeployedDetector, ExportOptions, check, export, files, open_exported
from tokendetr.deploy.graph import products
from tokendetr.deploy.operators import gathered_attention
from tokendetr.deploy.programs import trace, write_program
from tokendetr.deploy.runtimes import installed_runtimes
from tokendetr.deploy.verification import padded_inputs
from tokendetr.errors import ExportCheckError, ExportError, OutputError
from tokendetr.ops import extension_available, ms_deform_attn_reference
from tokendetr.tokens import LevelLayout

pytestmark = pytest.mark.skipif(
    not extension_available(), reason="models are exported with the compiled kernels"
)
NO_ONNX = [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(NO_ONNX), reason=f"not installed: {', '.join(NO_ONNX)}")


def test_one_program_takes_any_number_of_images_of_any_size():
    entry = DeployedDetector(build("dino", "sparse"))
    program = trace(entry, CANVAS, batch=None).module()
    for pictures in (images()[:1], images()[:5]):
        inputs = padded_inputs(pictures, CANVAS)
        with torch.no_grad():
            for found, expected in zip(program(*inputs), entry(*inputs), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", [True, False])
def test_a_program_moves_tokens_on_a_bypass(padding):
    model = build("dino", "sparse", bypass=True)
    entry = DeployedDetector(model, padding=padding)
    inputs = padded_inputs(images()[:1], CANVAS)
    with torch.no_grad():
        found, expected = trace(entry, CANVAS).module()(*inputs), entry(*inputs)
        model.transformer.encoder.sparsifier.bypass = None
        unmoved = entry(*inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert not torch.allclose(expected[0], unmoved[0], atol=1e-2)


def test_a_file_is_kept_only_if_it_computes_the_same(tmp_path):
    model, path = build("deformable"), tmp_path / "model.pt2"
    record = export(model, path, ExportOptions("pt2", CANVAS), source="deformable")
    assert record["good"] and record["checks"]["torch.export"]["images"] >= 8
    assert json.loads((tmp_path / "model.pt2.json").read_text()) == json.loads(json.dumps(record))
    assert check(model, path)["good"]
    precisions = iter((50.0, 49.0))  # of the model, of the file
    with pytest.raises(ExportCheckError, match=r"AP is 49\.00 where the model has 50\.00"):
        check(model, path, evaluate=lambda _: next(precisions))
    with torch.no_grad():
        model.bbox_embed[-1].layers[-1].bias.add_(0.3)
    with pytest.raises(ExportCheckError, match="have no partner"):
        check(model, path)
    assert not json.loads((tmp_path / "model.pt2.json").read_text())["good"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


def test_a_refused_export_leaves_an_older_file_and_its_record(tmp_path, monkeypatch):
    model, path = build("deformable"), tmp_path / "model.pt2"
    path.write_bytes(b"older"), (tmp_path / "model.pt2.json").write_text("its record")
    monkeypatch.setattr(files, "write_program", lambda program, draft, *a, **k: None)
    monkeypatch.setattr(files, "_verify", lambda *a: {"good": False, "checks": {}})
    with pytest.raises(ExportCheckError, match="was not kept, the older file stays"):
        export(model, path, ExportOptions("pt2", CANVAS), program=object())
    assert path.read_bytes() == b"older"
    assert (tmp_path / "model.pt2.json").read_text() == "its record"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "tflite"}, "format must be one of"),
        ({"format": "onnx", "sampling": "nearest"}, "sampling must be"),
        ({"format": "pt2", "size": (0, 5)}, "size must be"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ExportError, match=message):
        ExportOptions(**{"size": CANVAS, **options})


def test_the_suffix_of_a_file_must_match_its_format(tmp_path):
    with pytest.raises(ExportError, match=r"ends in \.pt2"):
        export(build("dino"), tmp_path / "model.onnx", ExportOptions("pt2", CANVAS))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_is_named():
    with pytest.raises(OutputError, match=r"/proc/model\.pt2 cannot be written"):
        export(build("dino"), "/proc/model.pt2", ExportOptions("pt2", CANVAS))


def test_models_on_another_device_are_refused(tmp_path):
    with pytest.raises(ExportError, match="train.device=cpu"):
        export(build("dino").to("meta"), tmp_path / "model.pt2", ExportOptions("pt2", CANVAS))


def test_gathered_attention_equals_sampled_attention():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 7), (3, 2))
    value = torch.randn(2, 41, 3, 4, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 6, 3, 2, 5, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    locations[0, 0, 0, 0, 0] = float("nan")
    locations[1, 2, 1, 1, 3, 0] = 1e30
    weights = torch.rand(2, 6, 3, 2, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        gathered_attention(value, shapes, locations, weights),
        ms_deform_attn_reference(value, shapes, locations, weights),
    )


class Eigenvalues(torch.nn.Module):
    """Computes what ONNX has no operator for."""

    def forward(self, images, sizes):
        return (torch.linalg.eigvals(images).abs(), sizes, sizes)


@needs_onnx
def test_what_a_format_cannot_express_is_named(tmp_path):
    inputs = torch.eye(3), torch.zeros(1, dtype=torch.long)
    program = torch.export.export(Eigenvalues(), inputs, strict=False)
    with pytest.raises(ExportError, match=r"cannot be written as onnx: .*linalg_eig"):
        write_program(program, tmp_path / "model.onnx", "onnx")


class Sorts(torch.nn.Module):
    """Sorts numbers both ways, and small integers, as the methods do."""

    def forward(self, images, sizes):
        rising = images.sort(dim=1, stable=True)
        falling = images.sort(dim=1, descending=True, stable=True)
        small = (images > 2).to(torch.uint8).sort(dim=1, stable=True)
        single = images[:, :1].sort(dim=1, stable=True)
        order = images.argsort(dim=1, descending=True, stable=True)
        return falling.values, order, rising.indices + single.indices, small.indices


@needs_onnx
def test_equal_values_keep_their_order_in_every_runtime_also_in_threads(tmp_path):
    ties = torch.randint(5, (2, 900), generator=torch.Generator().manual_seed(0)).float()
    inputs = ties, torch.zeros(1, dtype=torch.long)
    path = tmp_path / "sorts.onnx"
    write_program(torch.export.export(Sorts(), inputs, strict=False), path, "onnx")
    expected = Sorts()(*inputs)
    for runtime in installed_runtimes("onnx"):
        run = open_exported(path, runtime)
        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(run, *inputs) for _ in range(40)]
        for call in calls:
            pairs = zip(call.result(), expected, strict=True)
            assert all(torch.equal(*pair) for pair in pairs), runtime


class Bags(torch.nn.Module):
    """Sums weighted rows of bags of unequal sizes, as Dynamic DETR's windows do."""

    def forward(self, images, sizes):
        rows = torch.tensor([0, 4, 2, 2, 1])
        weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25])
        starts = torch.tensor([0, 1, 4])
        sums = torch.embedding_bag(images, rows, starts, mode=0, per_sample_weights=weights)[0]
        return sums, sizes + 1, sizes + 2


@needs_onnx
def test_bags_are_summed_in_every_runtime(tmp_path):
    inputs = torch.arange(15.0).view(5, 3), torch.zeros(1, dtype=torch.long)
    path = tmp_path / "bags.onnx"
    with torch.no_grad():
        write_program(torch.export.export(Bags(), inputs, strict=False), path, "onnx")
    for runtime in installed_runtimes("onnx"):
        found = open_exported(path, runtime)(*inputs)
        assert torch.equal(found[0], Bags()(*inputs)[0]), runtime


class Anchors(torch.nn.Module):
    """Finds the tokens that a two-stage head may select on levels of 50 and 25 rows."""

    def forward(self, images, sizes):
        sizes_BL2 = torch.stack([sizes, (sizes + 1).div(2, rounding_mode="floor")], dim=1)
        layout = LevelLayout.from_traced_sizes([(50, 76), (25, 38)], sizes_BL2)
        usable_BN = layout.proposals()[1]
        return images + 1, usable_BN.long(), sizes + 1


@needs_onnx
def test_anchors_on_the_limit_are_left_out_in_every_runtime(tmp_path):
    sizes = torch.tensor([[50, 76], [38, 50]])  # outer centers of 50 cells: 0.01 and 0.99
    inputs, path = (torch.zeros(2, 3), sizes), tmp_path / "anchors.onnx"
    write_program(torch.export.export(Anchors(), inputs, strict=False), path, "onnx")
    expected = Anchors()(*inputs)[1]
    assert expected.sum().item() == 48 * 74 + 25 * 38 + 38 * 48 + 19 * 25
    for runtime in installed_runtimes("onnx"):
        assert torch.equal(open_exported(path, runtime)(*inputs)[1], expected), runtime


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
@pytest.mark.parametrize(
    "detector, method, padding",
    [
        ("dino", "dense", True),
        ("dino", "sparse", True),
        ("dab_two_stage", "focus", True),
        ("h_two_stage", "dynamic", False),
        ("dino", "dynamic", True),
        ("dn", "dense", True),
        ("deformable_refine", "dense", True),
    ],
)
def test_onnx_files_in_every_runtime(detector, method, padding, sampling, tmp_path):
    options = ExportOptions("onnx", CANVAS, padding=padding, sampling=sampling)
    record = export(build(detector, method), tmp_path / "model.onnx", options)
    assert record["checks"]["onnxruntime"]["good"]


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("method", ["sparse", "focus"])
def test_onnx_files_with_a_bypass_in_every_runtime(method, tmp_path):
    model = build("dino", method, bypass=True)
    record = export(model, tmp_path / "model.onnx", ExportOptions("onnx", CANVAS))
    assert record["good"] and record["checks"]["onnxruntime"]["good"]


@pytest.mark.slow
@needs_onnx
def test_the_program_exports_and_checks_a_config(tmp_path, capsys):
    config, path = write_config(tmp_path), str(tmp_path / "small.onnx")
    common = ["--config-file", config, "--output", path]
    torch.manual_seed(0)
    export_model.main([*common, "--size", "64", "96"])
    assert "good in onnxruntime" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="does not compute what the model computes"):
        export_model.main([*common, "--check"])  # other random weights


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("method", ["dense", "sparse"])
def test_the_graph_of_a_sparse_detector_is_sparse(method, tmp_path):
    model, path = build("dino", method), tmp_path / "model.onnx"
    export(model, path, ExportOptions("onnx", CANVAS, padding=False))
    found = products(path)
    picture = images([CANVAS])[0]
    with torch.no_grad(), record_tokens() as tokens:
        model([{"image": picture}])
    layout = tokens.forwards[0].layout
    kept = tokens.forwards[0].layers[0].token_map.num_tokens
    assert (kept < layout.num_tokens) == (method == "sparse")
    encoder = [each for each in found if ".encoder.layers." in each.weight]
    assert len(encoder) == 6 * small.LAYERS
    for each in encoder:
        wanted = layout.num_tokens if "value_proj" in each.weight else kept
        assert each.rows == wanted, each
    report = count_flops(model, [{"image": picture}])
    counted = sum(macs for kind, macs in report.by_operator.items() if kind in ("conv", "matmul"))
    assert sum(each.operations for each in found) == pytest.approx(counted, rel=0.02)


NODE_BUILDS = {
    "openvino": [[sys.executable, str(ROOT / "csrc/openvino"), "{folder}"]],
    "onnxruntime": [
        ["cmake", "-S", str(ROOT / "csrc/onnxruntime"), "-B", "{folder}"],
        ["cmake", "--build", "{folder}"],
    ],
}
NODE_NEEDS = {
    "openvino": find_spec("openvino") is not None or "openvino is not installed",
    "onnxruntime": "ORT_INCLUDE" in os.environ
    or "ORT_INCLUDE is not set, and the wheel of onnxruntime has no headers",
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_onnx
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the PATH")
@pytest.mark.parametrize("runtime", NODE_BUILDS)
def test_runtimes_compute_our_node_with_our_kernels(runtime, tmp_path):
    if NODE_NEEDS[runtime] is not True:
        pytest.skip(NODE_NEEDS[runtime])
    folder = tmp_path / "build"
    for command in NODE_BUILDS[runtime]:
        words = [word.format(folder=folder) for word in command]
        subprocess.run(words, check=True, capture_output=True)
    library = str(folder / f"libtokendetr_{runtime}.so")
    path = tmp_path / "model.onnx"
    for detector, method in (("dino", "sparse"), ("deformable", "dense")):  # boxes, points
        record = export(
            build(detector, method), path, ExportOptions("onnx-custom", CANVAS), library=library
        )
        assert list(record["checks"]) == [runtime] and record["good"]
    assert b"MSDeformAttn" in path.read_bytes() and b"GridSample" not in path.read_bytes()


def test_libraries_of_other_kinds_are_named(tmp_path):
    other = tmp_path / "other.so"
    other.write_bytes(b"nothing")
    options = ExportOptions("onnx-custom", CANVAS)
    for library, message in ((str(other), "extends neither"), ("none.so", "cannot be read")):
        with pytest.raises(ExportError, match=message):
            export(build("dino"), tmp_path / "model.onnx", options, library=library)


def test_our_node_is_not_exported_without_the_library_that_computes_it(tmp_path):
    with pytest.raises(ExportError, match="python csrc/openvino"):
        export(build("dino"), tmp_path / "model.onnx", ExportOptions("onnx-custom", CANVAS))
