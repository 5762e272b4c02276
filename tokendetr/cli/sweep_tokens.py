"""Sweep the keep ratio of a sparse encoder, or of reductions in a backbone, without training.

Examples:
    tokendetr sweep-tokens --config-file sparse_dino_shapes --output out

    S=dino_shapes_swin; W=train.init_checkpoint=dino_shapes_swin.safetensors
    tokendetr sweep-tokens --config-file $S --layers 4 8 --output out train.device=cpu $W
    tokendetr sweep-tokens --config-file $S --layers 4 8 --output out --features 32 $W
    tokendetr sweep-tokens --config-file $S --layers 4 8 \\
        --ways pruning pruning:selection=uniform transforming:threshold=-1 --output out $W
    tokendetr sweep-tokens --config-file $S --layers 4 8 --keep-ratios 0.5 \\
        --ways merging:recovery=residual merging:recovery=residual:layers=8 --output out $W
    tokendetr sweep-tokens --config-file $S --layers 4 8 --keep-ratios 0.5 \\
        --fit datasets/shapes/train --ways transforming:recovery=affine --output out $W

Without --layers, the keep ratio of the encoder's sparsifier is swept (Sparse DETR, Focus-DETR, or
Dynamic DETR, where it is that of the most important level). --name names the curve; with --resume,
other configs and checkpoints add curves to the plot.

With --layers, these blocks of the backbone reduce their tokens by each method of --ways, which may
have options of its own, and at each keep ratio. An option keep_ratio=0.45+0.8 of a way has one
keep ratio for each block. projects/dino/checkpoints/README.md has the command that makes the
weights of dino_shapes_swin.

Each point has the metric (AP on the config's test data, or the relative error of the backbone's
last map), GFLOPs of the encoder or the backbone, and milliseconds per image of the whole model.
OUTPUT/sweep.csv and OUTPUT/sweep.png are updated after every point; with --resume, points in the
file are not measured again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from token_transforming import restore, transform
from tokendetr.analysis.flops import count_flops, synthetic_inputs
from tokendetr.analysis.inputs import (
    load_measured_config,
    loaded_inputs,
)
from tokendetr.analysis.sweep import Point, points_of, write
from tokendetr.analysis.timing import Summary, timed
from tokendetr.cli.argument_types import non_negative_int, output_folder, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.fit_recovery import fit_on_images
from tokendetr.cli.program import program
from tokendetr.cli.reduction_argument import WAY_OPTIONS, Way
from tokendetr.encoder.keep_ratio import find_sparsifier
from tokendetr.errors import ConfigError
from tokendetr.evaluation.run import Evaluation
from tokendetr.predict import Predictor, build_trained_model
from tokendetr.sparsification import UnlabeledImages

DENSE = "dense"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add_config_option(parser, "a sparse detector, or of a dense one for --layers", trained=True)
    add(
        "--layers",
        type=non_negative_int,
        nargs="+",
        help="blocks of the backbone that reduce, from 0",
    )
    add("--name", help="name of an encoder's line (default: its method's)")
    add(
        "--keep-ratios",
        type=float,
        nargs="+",
        default=[0.9, 0.8, 0.7, 0.6, 0.5],
        help="points, in (0, 1]",
    )
    add(
        "--ways",
        nargs="+",
        type=Way.parse,
        metavar="METHOD[:OPTION=VALUE...]",
        default=[Way.parse(method) for method in ("pruning", "merging", "transforming")],
        help="options: " + ", ".join(WAY_OPTIONS),
    )
    add(
        "--output",
        type=output_folder,
        required=True,
        metavar="FOLDER",
        help="where sweep.csv and sweep.png go",
    )
    add(
        "--features",
        type=positive_int,
        metavar="IMAGES",
        help="measure the error of the backbone's last map on so many images, not AP",
    )
    add(
        "--images",
        type=positive_int,
        metavar="IMAGES",
        help="AP on so many test images, not on all",
    )
    add(
        "--input-size",
        type=positive_int,
        nargs=2,
        default=(256, 256),
        metavar=("HEIGHT", "WIDTH"),
        help="of the counted and timed image (default 256 256)",
    )
    add("--fit", nargs="+", metavar="FOLDER", help="images to fit recovery=affine to")
    add("--fit-images", type=positive_int, default=64, help="number of these images (default 64)")
    add("--repeats", type=positive_int, default=10, help="timed images of each point")
    add("--resume", action="store_true", help="keep the points that OUTPUT/sweep.csv has")
    add("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config, at the end")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser()
    args = parse_with_overrides(parser, arguments)
    affine = [way.name for way in args.ways if way.options.get("recovery") == "affine"]
    if affine and not args.fit:
        parser.error(f"{affine[0]} is fitted to images: give --fit FOLDER")
    for way in args.ways:
        layers, ratios = way.options.get("layers", args.layers), way.options.get("keep_ratio")
        if ratios and layers and len(ratios) != len(layers):
            parser.error(f"{way.name}: {len(ratios)} keep ratios for {len(layers)} layers")
    if args.features and not args.layers:
        parser.error("--features compares a backbone's maps: it needs --layers")
    if args.features and args.images:
        parser.error("--features and --images are different metrics: give one of them")
    return args


def average_precision(cfg: Any, model: nn.Module, count: int | None) -> Callable[[], float]:
    """Return a function that computes the box AP in percent on the first ``count`` test images.

    Loader and evaluator are built here, before anything is fitted.

    Args:
        cfg: the whole config.
        model: evaluated in the state that it has when the function is called.
        count: number of images; None: all.

    Raises:
        ConfigError: loader or evaluator cannot be built, or the evaluator counts all images.
    """
    evaluation = Evaluation(cfg, model, images=count)
    evaluation.prepare(required=True)
    return evaluation.box_ap


def feature_error(cfg: Any, model: Any, count: int) -> Callable[[], float]:
    """Return a function that computes the relative error of the backbone's last map.

    It is ``|reduced - dense| / |dense|``, the mean over images.

    Args:
        cfg: the whole config.
        model: dense while this function runs, and reduced when the returned one is called.
        count: number of test images.
    """
    batches = list(loaded_inputs(cfg, count))

    def last_maps() -> Iterator[Tensor]:
        seen: list[Tensor] = []

        def record(module: nn.Module, args: Any, outputs: dict[str, Tensor]) -> None:
            seen.append(list(outputs.values())[-1])

        with model.backbone.register_forward_hook(record):
            for batch in batches:
                with torch.no_grad():
                    model(batch)
                yield seen.pop()

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
    """Measure the model in its current state.

    Args:
        model: the model, in evaluation mode.
        score: computes its metric.
        method: name of the curve.
        keep: keep ratio of the point, in (0, 1].
        args: image size and number of timed passes; with ``layers`` the backbone's operations are
            counted, else the encoder's.
    """
    inputs = synthetic_inputs(*args.input_size)
    part = "backbone" if args.layers else "encoder"
    gflops = count_flops(model, inputs, arithmetic=False).by_part[part] / 1e9
    device = next(model.parameters()).device
    with torch.no_grad():
        model(inputs)
        seconds = [timed(lambda: model(inputs), device) for _ in range(args.repeats)]
    return Point(method, keep, score(), gflops, 1e3 * Summary.of(seconds).median)


def run(args: argparse.Namespace) -> list[Point]:
    """Measure all points."""
    cfg = load_measured_config(args.config_file, args.opts)
    model = build_trained_model(cfg)
    if args.features:
        metric, score = "relative error of features", feature_error(cfg, model, args.features)
    else:
        metric, score = "AP", average_precision(cfg, model, args.images)
    folder: Path = args.output
    points = points_of(folder) if args.resume else []
    if not args.layers:
        return run_encoder(args, model, score, points, metric)
    seen = {(point.method, point.keep_ratio) for point in points}
    if (DENSE, 1.0) not in seen:
        points.append(measure(model, score, DENSE, 1.0, args))
    for way in args.ways:
        for keep in way.keep_ratios(args.keep_ratios):
            if (way.name, keep) in seen:
                continue
            backbone = model.get_submodule("backbone")
            transform(backbone, **{"layers": args.layers, "keep_ratio": keep, **way.options})
            if way.options.get("recovery") == "affine":
                predictor = Predictor.from_config(cfg, model=model)
                images = UnlabeledImages.from_folders(args.fit, predictor)
                fit_on_images(model, images, args.fit_images)
            points.append(measure(model, score, way.name, keep, args))
            restore(model)
            write(points, folder, metric, "backbone")
            logging.getLogger(__name__).info("%s", points[-1])
    write(points, folder, metric, "backbone")
    return points


def run_encoder(
    args: argparse.Namespace,
    model: nn.Module,
    score: Callable[[], float],
    points: list[Point],
    metric: str,
) -> list[Point]:
    """Measure an encoder's method at all keep ratios, and add its curve to the file.

    Raises:
        ConfigError: the encoder has no sparsifier.
        NotSparsifiableError: its sparsifier has no keep ratio.
    """
    try:
        sparsifier = find_sparsifier(model)
    except ConfigError as error:
        raise ConfigError(f"{error}; --layers sweeps the backbone instead") from error
    name = args.name or type(sparsifier).__name__.removesuffix("Sparsifier")
    seen = {(point.method, point.keep_ratio) for point in points}
    for keep in args.keep_ratios:
        if (name, keep) in seen:
            continue
        sparsifier.set_keep_ratio(keep)
        points.append(measure(model, score, name, keep, args))
        write(points, args.output, metric, "encoder")
        logging.getLogger(__name__).info("%s", points[-1])
    return points


@program(TypeError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run(args)


if __name__ == "__main__":
    main()
