"""Deformable DETR (R50) with one set of weights, as other projects and this one run it.

Hugging Face transformers' model with random weights is converted by
``tokendetr.integrations.from_huggingface``; detrex's has the same state-dict keys as ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr import SparseSparsifier
from tokendetr.config import sparsify, zoo
from tokendetr.integrations import from_huggingface
from tokendetr.layers.cpu import optimize
from tokendetr.layers.precision import evaluated_in

CONFIG = "deformable_detr_r50_50ep"
Run = Callable[[], Tensor]
"""One forward pass; returns the scores of the detections, best first."""


def huggingface_model() -> nn.Module:
    """Return transformers' model with seeded weights that make every head and point differ."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        ResNetConfig,
    )

    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    model = DeformableDetrForObjectDetection(
        DeformableDetrConfig(backbone_config=backbone, num_labels=80)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.05)
    return model.eval()


def our_model(theirs: nn.Module, *, keep: float | None = None) -> nn.Module:
    """Return our model with the weights of transformers' model.

    ``keep`` makes its encoder Sparse DETR's, with a score head of seeded random weights.
    """
    from detectron2.config import LazyCall

    torch.manual_seed(1)
    node = zoo.get_config(CONFIG).model
    if keep is not None:
        method = LazyCall(SparseSparsifier)(
            keep_ratio=keep, auxiliary_heads=False, projection="own"
        )
        sparsify(node, method)
    return _with_weights(node, theirs)


def detrex_model(theirs: nn.Module, checkout: Path) -> nn.Module:
    """Return detrex's model with transformers' weights.

    Args:
        theirs: transformers' model.
        checkout: detrex's source tree, for its ``projects``; detrex itself must be installed.
    """
    from detectron2.config import LazyConfig

    # Only its projects: a checkout on the path hides what the installed detrex has compiled.
    folder = checkout / "projects"
    spec = spec_from_file_location(
        "projects", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["projects"] = module_from_spec(spec)
    config = folder / "deformable_detr" / "configs" / f"{CONFIG}.py"
    return _with_weights(LazyConfig.load(str(config)).model, theirs)


def _with_weights(node: Any, theirs: nn.Module) -> nn.Module:
    from detectron2.config import instantiate

    node.device = "cpu"
    model: nn.Module = instantiate(node).eval()
    weights = from_huggingface(theirs.state_dict())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any("sparsifier" not in name for name in missing):
        raise RuntimeError(f"the weights do not fit: {missing} missing, {unexpected} unexpected")
    return model


def image_3HW(size: Sequence[int]) -> Tensor:
    """Return the image, pixel values 0..255."""
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255


def run_huggingface(model: nn.Module, image: Tensor, precision: str) -> Run:
    """Run a transformers model; its processor's normalization is not part of the time."""
    mean, std = (
        torch.tensor(each)[:, None, None]
        for each in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    pixels = ((image - mean) / std)[None]
    mask = torch.ones(1, *image.shape[1:], dtype=torch.long)

    def run() -> Tensor:
        with evaluated_in(precision, model):
            logits_QV = model(pixel_values=pixels, pixel_mask=mask).logits[0].float()
        return logits_QV.sigmoid().flatten().topk(300).values

    return run


def run_detector(
    model: nn.Module, image: Tensor, precision: str = "float32", *, optimized: bool
) -> Run:
    """Run a detectron2 model; ``optimized`` as this project's evaluation does."""
    if optimized:
        optimize(model)
    height, width = image.shape[1:]

    def run() -> Tensor:
        with evaluated_in(precision, model):
            found = model([{"image": image, "height": height, "width": width}])
        scores: Tensor = found[0]["instances"].scores.float()
        return scores.sort(descending=True).values

    return run


def run_onnxruntime(path: Path, image: Tensor, threads: int) -> Run:
    """Run an ONNX file; the threads do not spin after a pass, while others are timed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {"images": image[None].numpy(), "sizes": torch.tensor([image.shape[1:]]).numpy()}
    return lambda: torch.from_numpy(session.run(["scores"], feeds)[0])[0]


def run_openvino(
    path: Path, image: Tensor, threads: int, precision: str, extension: Path | None = None
) -> Run:
    """Run an ONNX file by OpenVINO, one with our operator by our extension."""
    import openvino

    hint = {"float32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    if extension is not None:
        core.add_extension(str(extension))
    model = core.compile_model(str(path), "CPU", settings)
    arguments = [image[None].numpy(), torch.tensor([image.shape[1:]]).numpy()]
    return lambda: torch.from_numpy(model(arguments)["scores"].copy())[0]
