"""Draw the annotations of a config's training data, as annotated or as the loader augments them.

Examples:
    C=projects/dino/configs/dino_shapes.py
    tokendetr visualize-data --source annotation --config-file $C --num 50
    tokendetr visualize-data --source dataloader --config-file $C --output-dir output/loaded
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from omegaconf import DictConfig
from PIL import Image

from tokendetr.cli.argument_types import output_folder, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.data.stream import build_train_loader
from tokendetr.data.workers import named_loader_failures
from tokendetr.io.images import save_image
from tokendetr.io.outputs import DrawingNames
from tokendetr.io.progress import Progress
from tokendetr.predict import read_rgb

Drawn = tuple[Path, np.ndarray]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "--source",
        choices=("annotation", "dataloader"),
        required=True,
        help="images as stored, or as the training loader augments them",
    )
    add_config_option(parser)
    parser.add_argument(
        "--output-dir", type=output_folder, default="./output/data", help="folder to write"
    )
    parser.add_argument(
        "--num", type=positive_int, help="images to draw (default: all, or an epoch)"
    )
    parser.add_argument("--show", action="store_true", help="show windows instead of writing files")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config")
    return parse_with_overrides(parser, arguments)


def dataset_names(cfg: DictConfig) -> list[str]:
    """Return the names of the training sets.

    Raises:
        KeyError: the config has none.
    """
    names = cfg.dataloader.train.dataset.get("names", None)
    if not names:
        raise KeyError("the config has no dataloader.train.dataset.names")
    return [names] if isinstance(names, str) else list(names)


def annotated(cfg: DictConfig) -> Iterator[Drawn]:
    """Yield every image of the training sets as stored, with its annotations drawn."""
    for name in dataset_names(cfg):
        records = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        for record in records:
            canvas = Visualizer(read_rgb(Path(record["file_name"])), metadata)
            yield Path(record["file_name"]), canvas.draw_dataset_dict(record).get_image()


def loaded(cfg: DictConfig) -> Iterator[Drawn]:
    """Yield one epoch of the loader's augmented images, with their annotations drawn."""
    names = dataset_names(cfg)
    total = sum(len(DatasetCatalog.get(name)) for name in names)
    metadata = MetadataCatalog.get(names[0])
    channel_order = cfg.dataloader.train.mapper.get("img_format", "RGB")
    loader = build_train_loader(cfg.dataloader.train, seed=0)
    entries = (entry for batch in loader for entry in batch)
    for number, entry in enumerate(islice(entries, total)):
        image = utils.convert_image_to_rgb(entry["image"].permute(1, 2, 0), channel_order)
        instances = entry["instances"]
        classes = metadata.get("thing_classes", None)
        labels = [classes[c] if classes else str(c) for c in instances.gt_classes.tolist()]
        canvas = Visualizer(image, metadata)
        drawn = canvas.overlay_instances(labels=labels, boxes=instances.gt_boxes)
        path = Path(entry["file_name"])
        yield path.with_name(f"{number:06d}_{path.name}"), drawn.get_image()


def present(drawings: Iterator[Drawn], folder: Path, number: int | None, show: bool) -> int:
    """Write the drawings to a folder, or show them one after another; return their number."""
    count = 0
    folder.mkdir(parents=True, exist_ok=True)
    names = DrawingNames(folder, ".jpg")
    for path, drawn in Progress(islice(drawings, number), total=number, unit="image"):
        image = Image.fromarray(drawn)
        if show:
            image.show(title=path.name)
        else:
            save_image(image, names.of(path), quality=92)
        count += 1
    return count


@program(KeyError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    setup_logger(name="tokendetr")
    sources: dict[str, Any] = {"annotation": annotated, "dataloader": loaded}
    cfg = load_config(args.config_file, args.opts)
    with named_loader_failures():
        count = present(sources[args.source](cfg), Path(args.output_dir), args.num, args.show)
    print(f"{count} images{'' if args.show else f' in {args.output_dir}'}")


if __name__ == "__main__":
    main()
