"""Forward pass and one training step of detectors on a GPU, in float32 and bfloat16.

python -m benchmarks.gpu_detectors [--device cuda] [--input-size 800 1216] --json FILE

For each: the median time, the largest memory in use, and that outputs, losses and gradients are
finite. Weights are random, images are noise.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from benchmarks.reporting import milliseconds
from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.analysis.inputs import load_measured_config, synthetic_targets, write_json
from tokendetr.ops import use_reference

CONFIGS = {
    "DINO": "projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py",
    "Dynamic-DINO": "projects/dynamic_detr/configs/dynamic_dino_r50_4scale_12ep.py",
    "SPT-DINO": "projects/spt_backbone/configs/spt_dino_tiny_4scale_12ep.py",
}
SMALL_CONFIGS = {
    "DINO": "projects/dino/configs/dino_shapes.py",
    "Dynamic-DINO": "projects/dynamic_detr/configs/dynamic_dino_shapes.py",
    "SPT-DINO": "projects/spt_backbone/configs/spt_dino_shapes.py",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def median_ms(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of some calls after one that is not measured."""
    step()
    return statistics.median(milliseconds(step, device) for _ in range(repeats))


def all_finite(tensors: list[Tensor]) -> bool:
    """Return whether no tensor has an infinity or NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def measure(model: nn.Module, batch: list[dict[str, Any]], dtype: str, repeats: int) -> dict:
    """Measure one detector in one dtype."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    autocast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")

    def detect() -> list[Tensor]:
        with torch.no_grad(), autocast:
            found = model(batch)
        return [record["instances"].scores for record in found]

    def train() -> list[Tensor]:
        model.zero_grad()
        with autocast:
            losses = model(batch)
        total = sum(losses.values())
        total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [total.detach(), *gradients]

    model.eval()
    with use_reference():
        expected = detect()
    scores = detect()
    difference = max(float((a - b).abs().max()) for a, b in zip(scores, expected, strict=True))
    result = {"finite detections": all_finite(scores), "scores beside plain PyTorch": difference}
    result["forward ms"] = median_ms(detect, device, repeats)
    model.train()
    result["finite losses and gradients"] = all_finite(train())
    result["training step ms"] = median_ms(train, device, repeats)
    if device.type == "cuda":
        result["memory MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def main() -> None:
    """Measure all detectors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--input-size", type=int, nargs=2, default=(800, 1216))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the detectors of the shapes data")
    parser.add_argument("--json", metavar="FILE", required=True)
    options = parser.parse_args()
    results: dict[str, dict[str, dict]] = {}
    for name, config in (SMALL_CONFIGS if options.small else CONFIGS).items():
        torch.manual_seed(0)
        cfg = load_measured_config(config, [f"train.device={options.device}"])
        model = instantiate(cfg.model).to(options.device)
        images = synthetic_inputs(*options.input_size)
        batch = synthetic_targets(images, num_classes=cfg.model.num_classes)
        results[name] = {}
        for dtype in DTYPES:
            results[name][dtype] = measure(model, batch, dtype, options.repeats)
            print(name, dtype, results[name][dtype], flush=True)
            write_json(results, options.json)
        del model
    wrong = [
        f"{name} {dtype}: {fact}"
        for name, dtypes in results.items()
        for dtype, result in dtypes.items()
        for fact, value in result.items()
        if value is False
    ]
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
