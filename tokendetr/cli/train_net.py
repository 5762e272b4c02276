"""Train or evaluate a detector from a lazy config.

Examples:
    tokendetr train --config-file dino_shapes train.device=cpu
    tokendetr train --config-file dino_r50_4scale_12ep --num-gpus 8
    tokendetr train --config-file dino_r50_4scale_12ep --num-gpus 8 --resume
    tokendetr evaluate --config-file dino_r50_4scale_12ep train.init_checkpoint=model.pth
    tokendetr train --config-file dino_shapes --num-gpus 2 train.device=cpu
    torchrun --nproc-per-node 8 tools/train_net.py --config-file dino_r50_4scale_12ep

Options are detectron2's. A key that the config does not have is an error; ``+key=value`` adds one.
"""

import signal
import sys

from detectron2.engine import default_argument_parser

from tokendetr.cli.arguments import overrides_last
from tokendetr.cli.program import program
from tokendetr.config.load import load_config, resolve_config
from tokendetr.layers.precision import PRECISIONS
from tokendetr.train.launch import launch
from tokendetr.train.process_group import Timeouts
from tokendetr.train.run import run


@program()
def main() -> None:
    """Parse the command line and start the processes."""
    # Until the run takes care of signals, Ctrl-C ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of --eval-only, by autocast; training has train.amp",
    )
    args = parser.parse_args(overrides_last(sys.argv[1:]))
    if args.precision != "float32" and not args.eval_only:
        parser.error("--precision is for --eval-only; training has train.amp.enabled and .dtype")
    args.config_file = resolve_config(args.config_file)  # detectron2 copies the file
    # Read here too, so that a mistake is met before processes are started.
    settings = load_config(args.config_file, args.opts).train
    limits = settings.distributed
    launch(
        run,
        args,
        device=settings.device,
        default_dist_url=parser.get_default("dist_url"),
        timeouts=Timeouts(limits.rendezvous_timeout, limits.collective_timeout),
    )


if __name__ == "__main__":
    main()
