"""Draw the matrix W of a transformed backbone: which tokens each reduced token combines.

Example:
    tokendetr visualize-mixing --config-file token_transforming_dino_shapes_vit \\
        --input datasets/shapes/val/000001.jpg --output output/mixing

Writes NAME_mixing.png for each image: the reduced tokens that combine the most tokens, numbered,
and a heat map of each one's row of W (Token Transforming's Figure 5). mixing.json has the share of
tokens that contribute to several reduced tokens. The backbone must reduce the tokens of whole
images (a plain ViT), not those of windows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokendetr.cli.argument_types import output_folder, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.io.atomic import write_atomically
from tokendetr.io.images import save_image
from tokendetr.io.outputs import drawing_names
from tokendetr.predict import Predictor, find_images, read_rgb
from tokendetr.visualization.mixing import draw_mixing, shared_tokens


def draw(predictor: Predictor, paths: Sequence[Path], folder: Path, count: int) -> None:
    """Write a drawing for each image, and the shares of shared tokens.

    Args:
        predictor: a detector whose backbone reduces tokens of whole images.
        paths: the images.
        folder: gets NAME_mixing.png for each, and mixing.json.
        count: number of rows of W, each a reduced token, to draw.

    Raises:
        ValueError: nothing was reduced.
    """
    shares = {}
    for path, target in zip(paths, drawing_names(paths, folder, "_mixing.png"), strict=True):
        image_HWC = read_rgb(path)
        with record_tokens() as trace:
            predictor(image_HWC)
        if not trace.reductions:
            raise ValueError(
                "no tokens of whole images were reduced: give a config with "
                "model.backbone.token_transform and a plain ViT"
            )
        reduction = trace.reductions[0]
        seen_HWC = predictor.resize.get_transform(image_HWC).apply_image(image_HWC)
        save_image(draw_mixing(seen_HWC, reduction, count=count), target)
        weight_BKN = reduction.token_map.weights_BKN()  # type: ignore[attr-defined]
        shares[str(path)] = {
            "block": reduction.block,
            "reduced tokens": reduction.token_map.num_tokens,
            "part of the tokens that go into several": shared_tokens(weight_BKN[0]),
        }
    write_atomically(str(folder / "mixing.json"), json.dumps(shares, indent=1).encode())


@program(KeyError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add_config_option(parser, "a detector whose backbone is transformed", trained=True)
    add("--input", nargs="+", required=True, help="images, folders or patterns")
    add("--output", type=output_folder, required=True, help="folder to write")
    add("--count", type=positive_int, default=14, help="rows of W to draw (default 14)")
    args = parse_with_overrides(parser, arguments)
    paths = find_images(args.input)
    draw(
        Predictor.from_config(load_config(args.config_file, args.opts, trained=True)),
        paths,
        args.output,
        args.count,
    )
    print(f"{args.output}: a sheet NAME_mixing.png per image, and mixing.json")


if __name__ == "__main__":
    main()
