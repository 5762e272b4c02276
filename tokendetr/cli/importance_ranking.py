"""Rank the levels of a trained dense detector by importance, for each stage of Dynamic DETR.

Examples:
    tokendetr rank-importance --config-file dino_shapes --stage-lengths 1,1,1
    tokendetr rank-importance --output orders.py --num-images 500 \\
        --config-file projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py \\
        train.init_checkpoint=dino_r50_4scale_12ep.pth

For each layer, the smallest set of tokens with 75 % of the attention is determined. A level's score
is the share of that set in the level, averaged over a stage's layers and the config's test images
(--statistic mass: its share of all attention; own_share: the share of the level's own tokens that
are in the set). Prints scores, orders, and the override that sets them. --output writes a config
fragment for ``from .orders import level_orders`` in a lazy config.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from dynamic_detr.importance import STATISTICS, LevelImportance, record_level_importance
from tokendetr.analysis.inputs import (
    load_measured_config,
    loaded_inputs,
)
from tokendetr.analysis.tables import Table
from tokendetr.cli.argument_types import output_file, positive_int, share
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.io.atomic import write_atomically
from tokendetr.io.progress import Progress
from tokendetr.predict import build_trained_model

OVERRIDE = "model.transformer.encoder.sparsifier.level_orders"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    add_config_option(parser, "a dense detector", trained=True)
    parser.add_argument(
        "--num-images", type=positive_int, help="first images of the test set (all)"
    )
    parser.add_argument(
        "--stage-lengths",
        type=_numbers,
        default=(2, 3, 1),
        metavar="LAYERS",
        help="encoder layers of each stage (2,3,1)",
    )
    parser.add_argument("--mass", type=share, default=0.75, help="share of the attention (0.75)")
    parser.add_argument(
        "--statistic",
        choices=STATISTICS,
        default=STATISTICS[0],
        help=f"score of a level, see above (default {STATISTICS[0]})",
    )
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="config fragment to write"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="key=value overrides, with train.init_checkpoint"
    )
    return parse_with_overrides(parser, arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def measure(args: argparse.Namespace) -> LevelImportance:
    """Run the config's test images through its model and record the encoder's attention.

    Raises:
        ValueError: no trained weights are given, the encoder cannot be recorded, the stages do not
            fit it, or there are no images.
    """
    cfg = load_measured_config(args.config_file, args.opts)
    model = build_trained_model(cfg)
    images = sys.maxsize if args.num_images is None else args.num_images
    watched = record_level_importance(_encoder(model), mass=args.mass, statistic=args.statistic)
    with torch.no_grad(), watched as importance:
        for batch in Progress(loaded_inputs(cfg, images), unit="image"):
            model(batch)
    return importance


def _encoder(model: torch.nn.Module) -> torch.nn.Module:
    encoder = getattr(getattr(model, "transformer", None), "encoder", None)
    if not isinstance(encoder, torch.nn.Module):
        raise ValueError(f"{type(model).__name__} has no transformer.encoder")
    return encoder


def as_table(importance: LevelImportance, stage_lengths: Sequence[int]) -> Table:
    """Return a table of the scores and the order of each stage."""
    scores = importance.stage_scores(stage_lengths)
    orders = importance.level_orders(stage_lengths)
    levels = [f"level {level + 1}" for level in range(len(scores[0]))]
    rows, first = [], 1
    for length, row, order in zip(stage_lengths, scores, orders, strict=True):
        layers = str(first) if length == 1 else f"{first}-{first + length - 1}"
        shares = [f"{score:.3f}" for score in row]
        rows.append([layers, *shares, " ".join(map(str, order))])
        first += length
    small_set = f"the smallest set with {importance.mass:.0%} of the attention"
    measured = {
        "set_share": f"Share of {small_set} that lies in each level",
        "mass": "Share of the attention that each level gets",
        "own_share": f"Share of each level's tokens in {small_set}",
    }[importance.statistic]
    title = f"{measured}, mean of {importance.num_images} images."
    return Table("importance", title, ["encoder layers", *levels, "most important first"], rows)


def fragment(
    args: argparse.Namespace, importance: LevelImportance, orders: Sequence[Sequence[int]]
) -> str:
    """Return the config fragment with the orders and how they were measured."""
    lines = [
        '"""Levels by importance in each stage (tools/importance_ranking.py).',
        "",
        f"Measured on {args.config_file}",
        f"with {' '.join(args.opts)}:",
        f"{importance.num_images} images, {importance.mass:.0%} of the attention, "
        f"statistic {importance.statistic}.",
        '"""',
        "",
        f"level_orders = {[list(order) for order in orders]}",
        f"stage_lengths = {list(args.stage_lengths)}",
        "",
    ]
    return "\n".join(lines)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    importance = measure(args)
    print(as_table(importance, args.stage_lengths).markdown())
    orders = importance.level_orders(args.stage_lengths)
    print(f"{OVERRIDE}={orders}".replace(" ", ""))
    if args.output is not None:
        write_atomically(args.output, fragment(args, importance, orders).encode())


if __name__ == "__main__":
    main()
