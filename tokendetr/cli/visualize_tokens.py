"""Draw which tokens each encoder layer keeps or merges, for each feature level, over images.

Examples:
    tokendetr visualize-tokens --config-file dynamic_dino_shapes \\
        --input datasets/shapes/val/000001.jpg --output output/tokens
    tokendetr visualize-tokens --config-file sparse_dino_shapes --input photos/ \\
        --output output/tokens model.transformer.encoder.sparsifier.keep_ratio=0.2

Writes two files for each image. NAME_overview.png has the image, the tokens of each layer and the
detections. NAME_tokens.png has a row for each layer and a column for each level: tokens that are
queries of their own show the image, merged ones their mean color in a frame, others are dark; heat
maps show scores above and the decoder's attention below. Counts go to tokens.json. For stages of a
backbone that selects tokens there are further files, NAME_backbone_stage_N.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from tokendetr.cli.argument_types import output_folder, positive_int, share
from tokendetr.cli.arguments import (
    add_config_option,
    add_overrides_option,
    add_size_options,
    described_parser,
    parse_with_overrides,
)
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.layer_tokens import describe, worth_drawing
from tokendetr.io.atomic import write_atomically
from tokendetr.io.images import save_image
from tokendetr.io.outputs import drawing_names
from tokendetr.io.progress import Progress
from tokendetr.predict import Predictor, dataset_metadata, find_images, read_rgb
from tokendetr.visualization.boxes import found_boxes
from tokendetr.visualization.token_overview import draw_overview
from tokendetr.visualization.tokens import draw_tokens


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    add_config_option(parser, trained=True)
    parser.add_argument("--input", nargs="+", required=True, help="images, folders or patterns")
    parser.add_argument("--output", type=output_folder, required=True, help="folder to write")
    add_size_options(parser)
    parser.add_argument("--tile-width", type=positive_int, default=256, help="pixels per tile")
    parser.add_argument(
        "--confidence-threshold", type=share, default=0.3, help="minimum score (default 0.3)"
    )
    add_overrides_option(parser)
    return parse_with_overrides(parser, arguments)


def visualize(
    predictor: Predictor,
    paths: list[Path],
    folder: Path,
    tile_width: int,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.3,
) -> None:
    """Write both drawings for each image, and the counts of all.

    Args:
        predictor: a detector with an encoder or backbone of this project.
        paths: the images.
        folder: gets the drawings and tokens.json.
        tile_width: width of a layer's tile in pixels.
        names: class names; None labels with indices.
        threshold: minimum score of drawn detections.

    Raises:
        ValueError: nothing was recorded, since the model has no encoder of this project.
    """
    counts = {}
    stems = [name.stem for name in drawing_names(paths, folder, ".png")]
    for path, stem in Progress(list(zip(paths, stems, strict=True)), unit="image"):
        image_HWC = read_rgb(path)
        with record_tokens() as trace:
            instances = predictor(image_HWC)
        if not trace.forwards:
            raise ValueError("the model's encoder is not tokendetr's: no tokens were recorded")
        boxes = found_boxes(instances[instances.scores >= threshold], names)
        for forward in worth_drawing(trace.forwards):
            is_encoder = forward.name == "encoder"
            part = "" if is_encoder else "_" + forward.name.replace(" ", "_")
            sheet = draw_tokens(image_HWC, forward, width=tile_width, boxes=boxes)
            save_image(sheet, folder / f"{stem}{part or '_tokens'}.png")
            overview = draw_overview(image_HWC, forward, boxes)
            save_image(overview, folder / f"{stem}{part}_overview.png")
            counts[str(path) if is_encoder else f"{path}, {forward.name}"] = describe(forward)
    write_atomically(str(folder / "tokens.json"), json.dumps(counts, indent=1).encode())


@program(ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    setup_logger(name="tokendetr")
    paths = find_images(args.input)
    cfg = load_config(args.config_file, args.opts, trained=True)
    predictor = Predictor.from_config(cfg, min_size=args.min_size_test, max_size=args.max_size_test)
    visualize(
        predictor,
        paths,
        args.output,
        args.tile_width,
        names=dataset_metadata(cfg).get("thing_classes", None),
        threshold=args.confidence_threshold,
    )
    print(f"{args.output}: NAME_overview.png and NAME_tokens.png per image, counts in tokens.json")


if __name__ == "__main__":
    main()
