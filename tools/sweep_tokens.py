"""Sweep keep ratios and methods of token reduction in a detector's backbone, without training.

Examples:
    S=projects/dino/configs/dino_shapes_swin.py
    W=train.init_checkpoint=projects/dino/checkpoints/dino_shapes_swin.safetensors
    python tools/sweep_tokens.py --config-file $S --layers 2 4 --output out train.device=cpu $W
    python tools/sweep_tokens.py --config-file $S --layers 2 4 --output out --features 32 $W

Each point is one way to build W at one keep ratio: the metric (AP on the config's test data, or the
relative error of the backbone's last map), GFLOPs of the backbone, and milliseconds per image of
the whole model. OUTPUT/sweep.csv and OUTPUT/sweep.png are written anew after every point.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokendetr  # noqa: F401, I001  (makes detectron2 and detrex importable)
import matplotlib
import torch
from torch import Tensor, nn

from token_transforming import METHODS, SELECTIONS, restore, transform
from tokendetr.flops import count_flops, synthetic_inputs
from tokendetr.measuring import build_measured_model, load_measured_config, loaded_inputs
from tokendetr.timing import Summary, timed
from tokendetr.train import CheckpointMismatchError, ConfigError, UnsafeCheckpointError
from tokendetr.train.checkpoint import write_atomically
from tokendetr.train.evaluation import Evaluation

DENSE = "dense"
EXPECTED_ERRORS = (
    CheckpointMismatchError,
    ConfigError,
    OSError,
    TypeError,
    UnsafeCheckpointError,
    ValueError,
)


@dataclass(frozen=True)
class Point:
    """One line of the CSV.

    Attributes:
        method: how W is built; "dense" for the model as it is.
        keep_ratio: of every reduction.
        metric: AP in percent, or the features' relative error.
        gflops: of the backbone, for one image.
        milliseconds: per image, whole model, median.
    """

    method: str
    keep_ratio: float
    metric: float
    gflops: float
    milliseconds: float


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="lazy config of a dense detector")
    add("--layers", type=int, nargs="+", required=True, help="blocks that reduce, from 0")
    add("--keep-ratios", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5])
    add("--methods", nargs="+", choices=METHODS, default=["pruning", "merging", "transforming"])
    add("--selection", choices=SELECTIONS, default="attention", help="of informative tokens")
    add("--threshold", type=float, default=0.5, help="of the gate; -1 turns it off")
    add("--output", required=True, metavar="FOLDER", help="where sweep.csv and sweep.png go")
    add("--features", type=int, metavar="IMAGES", help="features' error on so many images, not AP")
    add("--input-size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    add("--repeats", type=int, default=10, help="timed images of each point")
    add("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config, at the end")
    args = parser.parse_args(arguments)
    if args.repeats < 1 or (args.features is not None and args.features < 1):
        parser.error("--repeats and --features must be at least 1")
    return args


def average_precision(cfg: Any, model: nn.Module) -> Callable[[], float]:
    """Return a function that evaluates the model as it is now."""
    evaluation = Evaluation(cfg, model)

    def evaluate() -> float:
        return float(evaluation()["bbox"]["AP"])

    return evaluate


def feature_error(cfg: Any, model: Any, count: int) -> Callable[[], float]:
    """Return a function that compares the backbone's last map with the dense one's.

    The error is ``|reduced - dense| / |dense|``, the mean over images.
    """
    batches = list(loaded_inputs(cfg, count))

    def last_maps() -> Iterator[Tensor]:
        seen: list[Tensor] = []

        def look(module: nn.Module, args: Any, outputs: dict[str, Tensor]) -> None:
            seen.append(list(outputs.values())[-1])

        hook = model.backbone.register_forward_hook(look)
        try:
            for batch in batches:
                with torch.no_grad():
                    model(batch)
                yield seen.pop()
        finally:
            hook.remove()

    expected = list(last_maps())

    def compare() -> float:
        errors = [
            float((ours - dense).norm() / dense.norm())
            for ours, dense in zip(last_maps(), expected, strict=True)
        ]
        return sum(errors) / len(errors)

    return compare


def measure(
    model: nn.Module, score: Callable[[], float], method: str, keep: float, args: argparse.Namespace
) -> Point:
    """Measure the model as it is now."""
    inputs = synthetic_inputs(*args.input_size)
    gflops = count_flops(model, inputs, arithmetic=False).by_part["backbone"] / 1e9
    device = next(model.parameters()).device
    with torch.no_grad():
        model(inputs)
        seconds = [timed(lambda: model(inputs), device) for _ in range(args.repeats)]
    return Point(method, keep, score(), gflops, 1e3 * Summary.of(seconds).median)


def write(points: Sequence[Point], folder: Path, metric: str) -> None:
    """Write the CSV and the picture, each in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_atomically(str(folder / "sweep.csv"), text.getvalue().encode())
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name in dict.fromkeys(point.method for point in points):
        line = [point for point in points if point.method == name]
        for axis, cost in zip(axes, ("gflops", "milliseconds"), strict=True):
            costs, scores = [getattr(p, cost) for p in line], [p.metric for p in line]
            axis.plot(costs, scores, "o-", label=name)
    axes[0].set(xlabel="GFLOPs of the backbone", ylabel=metric)
    axes[1].set(xlabel="milliseconds per image")
    axes[0].legend()
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(str(folder / "sweep.png"), picture.getvalue())


def run(args: argparse.Namespace) -> list[Point]:
    """Measure all points."""
    cfg = load_measured_config(args.config_file, args.opts)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_measured_model(cfg, args.opts)
    if args.features:
        metric, score = "relative error of features", feature_error(cfg, model, args.features)
    else:
        metric, score = "AP", average_precision(cfg, model)
    points = [measure(model, score, DENSE, 1.0, args)]
    write(points, folder, metric)
    for method in args.methods:
        for keep in args.keep_ratios:
            transform(
                model.get_submodule("backbone"),
                layers=args.layers,
                keep_ratio=keep,
                method=method,
                selection=args.selection,
                threshold=args.threshold,
            )
            points.append(measure(model, score, method, keep, args))
            restore(model)
            write(points, folder, metric)
            logging.getLogger(__name__).info("%s", points[-1])
    return points


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(args)
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
