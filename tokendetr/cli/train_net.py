"""Train or evaluate a detector from a lazy config.

Examples:
    tokendetr train --config-file dino_shapes train.device=cpu
    tokendetr train --config-file dino_r50_4scale_12ep --num-gpus 8
    tokendetr train --config-file dino_r50_4scale_12ep --num-gpus 8 --resume
    tokendetr train --config-file dino_shapes --num-gpus 2 train.device=cpu
    torchrun --nproc-per-node 8 tools/train_net.py --config-file dino_r50_4scale_12ep

Options are detectron2's. A key that the config does not have is an error; ``+key=value`` adds one.
``tokendetr evaluate`` is ``--eval-only``, with a help of its own.
"""

import argparse
import signal
import sys

from detectron2.engine import default_argument_parser

from tokendetr.cli.argument_types import positive_int
from tokendetr.cli.arguments import (
    add_config_option,
    described_parser,
    overrides_last,
    parse_with_overrides,
)
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.layers.precision import PRECISIONS
from tokendetr.train.launch import launch
from tokendetr.train.process_group import Timeouts
from tokendetr.train.run import run

EVALUATE = """Evaluate the weights of a detector on the test data of its config.

Examples:
    tokendetr evaluate --config-file dino_shapes
    tokendetr evaluate --config-file dino_shapes --images 50
    tokendetr evaluate --config-file output/cells/config.yaml \\
        train.init_checkpoint=output/cells/model_best.pth
    tokendetr evaluate --config-file dino_r50_4scale_12ep --num-gpus 8 \\
        train.init_checkpoint=model.pth train.output_dir=evaluation

A config's name stands for the weights that come with it, any other config for its
train.init_checkpoint. Results are printed, and logged in train.output_dir beside the detections
(coco_instances_results.json, which ``tokendetr analyze`` reads); in the folder of a training they
are in its folder ``evaluation``. Other test data: dataloader.test.dataset.names=NAME.
"""


@program()
def main() -> None:
    """Parse the command line of training and start the processes."""
    parser = default_argument_parser(epilog=__doc__)
    _add_evaluation_options(parser)
    args = parser.parse_args(overrides_last(sys.argv[1:]))
    if not args.eval_only and (args.precision != "float32" or args.images):
        parser.error(
            "--precision and --images are for --eval-only; training has train.amp.enabled and "
            ".dtype"
        )
    _start(args)


@program()
def evaluate() -> None:
    """Parse the command line of an evaluation and start the processes."""
    parser = described_parser(EVALUATE)
    add_config_option(parser, trained=True)
    _add_evaluation_options(parser)
    shared = default_argument_parser()
    for flag, kind, text in (
        ("--num-gpus", int, "processes on each machine, one per GPU, or on the CPU"),
        ("--num-machines", int, "machines"),
        ("--machine-rank", int, "number of this machine, from 0"),
        ("--dist-url", str, "rendezvous of several machines: tcp://HOST:PORT"),
    ):
        default = shared.get_default(flag[2:].replace("-", "_"))
        parser.add_argument(flag, type=kind, default=default, help=text)
    parser.add_argument("opts", nargs="*", help="overrides of the config, key=value")
    parser.set_defaults(eval_only=True, resume=False)
    _start(parse_with_overrides(parser, None, intermixed=True))


def _add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of an evaluation, by autocast"
    )
    parser.add_argument(
        "--images", type=positive_int, metavar="N", help="evaluate the first N test images alone"
    )


def _start(args: argparse.Namespace) -> None:
    # Until the run takes care of signals, Ctrl-C ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Read here too, so that a mistake is met before processes are started.
    settings = load_config(args.config_file, args.opts, trained=args.eval_only).train
    limits = settings.distributed
    launch(
        run,
        args,
        device=settings.device,
        default_dist_url=default_argument_parser().get_default("dist_url"),
        timeouts=Timeouts(limits.rendezvous_timeout, limits.collective_timeout),
    )


if __name__ == "__main__":
    main()
