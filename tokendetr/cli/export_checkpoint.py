"""Write the weights of a training checkpoint as a small safetensors file.

Example:
    tokendetr export-weights --input output/dino_shapes/model_final.pth \\
        --output projects/dino/checkpoints/dino_shapes.safetensors

Matrices are stored in half precision, and tensors with several names once; optimizer and training
state are left out. The file can be used like any checkpoint (``train.init_checkpoint``).
``--convert`` first passes the weights through a function, such as ``sparse_detr.from_published``,
which renames the weights of another code base.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokendetr.checkpoint.averaged import chosen_weights
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.io.outputs import check_output_file

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@program(OSError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--input", required=True, help="checkpoint of a training")
    parser.add_argument("--output", required=True, help="file to write, ending in .safetensors")
    parser.add_argument("--convert", metavar="MODULE.FUNCTION", help="renames the weights")
    parser.add_argument(
        "--weights",
        choices=("auto", "model", "ema"),
        default="auto",
        help="the model's weights, their moving average, or (auto) those by which a best "
        "checkpoint was selected",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of matrices")
    args = parser.parse_args(arguments)
    check_output_file(args.output, [args.input])
    checkpoint = read_checkpoint(args.input)
    weights, which = chosen_weights(checkpoint, args.weights)
    if checkpoint.get("ema_state"):
        other = "model" if which == "ema" else "ema"
        print(f"using the weights of {which!r}; use --weights {other} for the others")
    if args.convert:
        weights = dict(find_function(args.convert)(weights))
    size = save_safetensors(
        {name: torch.as_tensor(value) for name, value in weights.items()},
        args.output,
        dtype=DTYPES[args.dtype],
        metadata={"source": Path(args.input).name},
    )
    print(f"{args.output}: {size / 1e6:.2f} MB")


def find_function(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Return a function by its dotted name.

    Raises:
        ValueError: there is none of that name.
    """
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--convert {name} is no function: {error}") from error


if __name__ == "__main__":
    main()
