"""Fit the maps with which a transformed backbone restores tokens, on unlabeled images.

Example:
    tokendetr fit-recovery token_transforming_dino_shapes_vit --images datasets/shapes/train \\
        --output output/affine.pth
    tokendetr evaluate --config-file token_transforming_dino_shapes_vit \\
        model.backbone.token_transform.recovery=affine train.init_checkpoint=output/affine.pth

The config's backbone must be transformed (``model.backbone.token_transform``). The output has the
detector's unchanged weights and the maps.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from omegaconf import OmegaConf, open_dict
from tqdm import tqdm

from token_transforming import fit_recovery, transform
from tokendetr.analysis.inputs import load_measured_config
from tokendetr.cli.argument_types import positive_int
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.errors import ConfigError
from tokendetr.io.atomic import write_atomically
from tokendetr.io.outputs import check_output_file
from tokendetr.predict import Predictor
from tokendetr.sparsification import UnlabeledImages
from tokendetr.sparsification.recipe import config_file


class ImageBatches(Sequence[list[dict[str, Any]]]):
    """Batches of images, read on demand.

    Args:
        images: the images.
        held_back: use the held-back images; otherwise up to ``count`` batches of the others.
        count: maximum number of batches.
    """

    def __init__(self, images: UnlabeledImages, *, held_back: bool, count: int = 0) -> None:
        self.images = images
        self.files = images.held_back_batches() if held_back else None
        fitted = -(-len(images.fitted) // images.batch_size)
        self.number = min(count, fitted) if self.files is None else len(self.files)

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, number: int) -> list[dict[str, Any]]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[list[dict[str, Any]]]: ...
    def __getitem__(self, number: int | slice) -> Any:
        """Return one batch of inputs, or several."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self.number))]
        if not 0 <= number < self.number:
            raise IndexError(number)
        if self.files is None:
            return self.images.batch(number)
        return [self.images.read(path) for path in self.files[number]]


def fit_on_images(model: torch.nn.Module, images: UnlabeledImages, count: int) -> list[float]:
    """Fit a detector's maps to ``count`` images; see :func:`token_transforming.fit_recovery`."""
    batches = ImageBatches(images, held_back=False, count=-(-count // images.batch_size))
    with tqdm(desc="maps", unit="batch") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return fit_recovery(model, batches, ImageBatches(images, held_back=True), progress=show)


def run(args: argparse.Namespace) -> list[float]:
    """Load the detector, fit its maps and save both.

    Raises:
        ConfigError: the config names no weights, or its backbone is not transformed.
    """
    cfg = load_measured_config(config_file(args.config), args.opts)
    check_output_file(str(args.output), [cfg.train.init_checkpoint or args.config])
    options = OmegaConf.select(cfg, "model.backbone.token_transform", default=None)
    if options is None:
        raise ConfigError(
            f"the backbone of {args.config} is not transformed: give a config that has "
            "model.backbone.token_transform"
        )
    if not cfg.train.init_checkpoint:
        raise ConfigError("the config names no weights: add train.init_checkpoint=FILE")
    with open_dict(options):
        options.recovery = "residual"  # the dense detector's weights have no maps
    predictor = Predictor.from_config(cfg)
    images = UnlabeledImages.from_folders(
        args.images, predictor, seed=args.seed, batch_size=args.batch_size
    )
    wanted: Any = OmegaConf.to_container(options, resolve=True)
    backbone: Any = predictor.model.get_submodule("backbone")
    transform(backbone, **{**wanted, "recovery": "affine"})
    left = fit_on_images(predictor.model, images, args.number)
    content = io.BytesIO()
    torch.save({"model": predictor.model.state_dict()}, content)
    write_atomically(str(args.output), content.getbuffer())
    return left


@program(KeyError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add(
        "config",
        help="config with a transformed backbone: name, file or a run's folder",
    )
    add("opts", nargs="*", help="overrides, such as train.init_checkpoint=FILE")
    add("--images", nargs="+", required=True, metavar="FOLDER", help="any images")
    add("--output", required=True, type=Path, metavar="FILE", help="checkpoint to write")
    add("--number", type=positive_int, default=128, help="maximum number of images (default 128)")
    add("--batch-size", type=positive_int, default=8, help="(default 8)")
    add("--seed", type=int, default=0, help="seed for choosing images (default 0)")
    args = parse_with_overrides(parser, arguments, intermixed=True)
    left = run(args)
    for number, share in enumerate(left):
        print(f"reduction {number}: maps leave {share:.0%} of the residual recovery's error")
    print(f"{args.output}: use it with model.backbone.token_transform.recovery=affine")


if __name__ == "__main__":
    main()
