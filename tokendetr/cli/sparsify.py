"""Make a trained detector sparse in minutes, with unlabeled images.

Examples:
    tokendetr sparsify dino_shapes --images datasets/shapes/train --output output/sparse --evaluate
    tokendetr sparsify output/mine --images photos --keep 0.3 --output output/sparse
    tokendetr sparsify my_config.py train.init_checkpoint=weights.pth \\
        --images photos --output output/sparse

The sparse encoder updates only a share of its tokens. A score head learns to select them from the
dense decoder's attention; the others are updated by affine maps, fitted by least squares. The
output folder gets config.py and model.pth, which every tool reads, and a report. An interrupted run
continues where it stopped. The dense detector's files are not changed.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing

from tokendetr.cli.argument_types import non_negative_int, output_folder, positive_int
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.io.progress import Progress
from tokendetr.sparsification import (
    BUDGETS,
    METHODS,
    TARGETS,
    FitOptions,
    SparsifyJob,
    run_job,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "config", help="the dense detector's config, by name or file, or the folder of its run"
    )
    parser.add_argument(
        "opts", nargs="*", help="config overrides, such as train.init_checkpoint=FILE"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders of images, or a data set's name for its images",
    )
    parser.add_argument(
        "--output", required=True, type=output_folder, metavar="DIR", help="folder to write"
    )
    parser.add_argument("--keep", type=float, default=0.3, help="share of tokens (default 0.3)")
    parser.add_argument(
        "--method", choices=METHODS, default="sparse", help="how tokens are chosen (default sparse)"
    )
    _add_fit_options(parser)
    parser.add_argument(
        "--evaluate", action="store_true", help="AP on the config's test set, before and after"
    )
    return parser


def _add_fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="ratio",
        help="keep the same share in every image (ratio), or less in easy ones at the same mean "
        "(mass)",
    )
    parser.add_argument(
        "--no-context",
        action="store_false",
        dest="context",
        help="map skipped tokens by their own features alone, without their surroundings",
    )
    parser.add_argument(
        "--distill",
        type=positive_int,
        default=0,
        metavar="ITERATIONS",
        help="also distill the dense detector into the encoder's weights (default 0)",
    )
    parser.add_argument(
        "--targets",
        choices=TARGETS,
        default=FitOptions.targets,
        help="what is distilled: the dense encoder's memory, the outputs of decoder and two-stage "
        f"head, or both (default {FitOptions.targets})",
    )
    parser.add_argument(
        "--score-iterations",
        type=non_negative_int,
        default=300,
        help="batches that scores are fitted to (default 300)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="images per batch (default 8)"
    )
    parser.add_argument(
        "--max-images",
        type=positive_int,
        default=2000,
        help="limit for fitting the maps (default 2000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the fit (default 0)")


class _Bars:
    """A progress bar per stage."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, value: float) -> None:
        if self._bar is None or stage != self._stage:
            self.close()
            self._bar, self._stage = Progress(total=total, desc=stage, unit="batch"), stage
        self._bar.update(done - self._bar.n)
        if value == value:
            self._bar.set_postfix_str(f"{value:.4f}")

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@program(KeyError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_with_overrides(build_parser(), arguments, intermixed=True)
    with closing(_Bars()) as bars:
        job = SparsifyJob(
            config=args.config,
            overrides=args.opts,
            images=args.images,
            output_dir=args.output,
            keep_ratio=args.keep,
            context=args.context,
            method=args.method,
            options=FitOptions(
                score_iterations=args.score_iterations,
                distill_iterations=args.distill,
                targets=args.targets,
                max_images=args.max_images,
                seed=args.seed,
            ),
            batch_size=args.batch_size,
            evaluate=args.evaluate,
            budget=args.budget,
        )
        report = run_job(job, progress=bars)
    print(report.table().markdown())
    print(f"{args.output}: config.py, model.pth and report.json")


if __name__ == "__main__":
    main()
