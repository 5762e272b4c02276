"""Show which tokens each encoder layer kept or merged, per feature level, over pictures.

Example:
    P=projects/dynamic_detr
    python tools/visualize_tokens.py --config-file $P/configs/dynamic_dino_shapes.py \\
        --input datasets/shapes/val/000001.jpg --output output/tokens \\
        --opts train.init_checkpoint=$P/checkpoints/dynamic_dino_shapes.safetensors

Writes NAME_tokens.png per picture (a row per layer, a column per level; tokens that are queries of
their own show the picture, merged ones their mean colour in a frame, the others are dark; scores
above, the decoder's attention below them as heat maps) and the counts to tokens.json. Stages of a
backbone that selects tokens get a sheet each, NAME_backbone_stage_N.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from tokendetr.config.load import load_config
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.layer_tokens import describe
from tokendetr.encoder.trace import ForwardTrace
from tokendetr.errors import CheckpointMismatchError, ConfigError
from tokendetr.io.outputs import drawing_names
from tokendetr.predict import Predictor, find_images, read_rgb
from tokendetr.tokens import Identity
from tokendetr.visualization.token_pictures import draw_tokens

EXPECTED_ERRORS = (CheckpointMismatchError, ConfigError, OSError)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE", help="lazy config")
    parser.add_argument("--input", nargs="+", required=True, help="pictures, folders or patterns")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--min_size_test", type=int, help="shorter side (default: the config's)")
    parser.add_argument("--max_size_test", type=int, help="longest side (default: the config's)")
    parser.add_argument("--tile-width", type=int, default=256, help="pixels per tile")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key=value overrides")
    return parser.parse_args(arguments)


def worth_drawing(forwards: Sequence[ForwardTrace]) -> list[ForwardTrace]:
    """The last encoder pass and every stage of a backbone; dense ones only where all are dense."""
    latest = list({forward.name: forward for forward in forwards}.values())
    chosen = [
        forward
        for forward in latest
        if any(not isinstance(layer.token_map, Identity) for layer in forward.layers)
    ]
    return chosen or latest


def visualize(predictor: Predictor, pictures: list[Path], folder: Path, tile_width: int) -> None:
    """Write a sheet per picture, and the counts of all.

    Raises:
        ValueError: the model has no encoder of this project, so that nothing was recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    stems = [name.stem for name in drawing_names(pictures, folder, ".png")]
    for path, stem in tqdm(list(zip(pictures, stems, strict=True)), unit="picture"):
        image_HWC = read_rgb(path)
        with record_tokens() as trace:
            predictor(image_HWC)
        if not trace.forwards:
            raise ValueError("the model's encoder is none of tokendetr's: no tokens were recorded")
        for forward in worth_drawing(trace.forwards):
            is_encoder = forward.name == "encoder"
            sheet = draw_tokens(image_HWC, forward, width=tile_width)
            suffix = "tokens" if is_encoder else forward.name.replace(" ", "_")
            sheet.save(folder / f"{stem}_{suffix}.png")
            counts[str(path) if is_encoder else f"{path}, {forward.name}"] = describe(forward)
    (folder / "tokens.json").write_text(json.dumps(counts, indent=1))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    setup_logger(name="tokendetr")
    try:
        pictures = find_images(args.input)
        cfg = load_config(args.config_file, args.opts, trained=True)
        predictor = Predictor.from_config(
            cfg, min_size=args.min_size_test, max_size=args.max_size_test
        )
        visualize(predictor, pictures, Path(args.output), args.tile_width)
    except (*EXPECTED_ERRORS, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: a sheet NAME_tokens.png per picture, and the counts in tokens.json")


if __name__ == "__main__":
    main()
