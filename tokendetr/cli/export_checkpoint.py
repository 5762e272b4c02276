"""Write the weights of a training checkpoint as a small safetensors file.

Examples:
    tokendetr export-weights --input output/dino_shapes/model_final.pth \\
        --output projects/dino/checkpoints/dino_shapes.safetensors
    tokendetr export-weights --input theirs.pth --output ours.safetensors --dtype float32 \\
        --convert my_names.renamed --config-file dino_r50_4scale_12ep

Matrices are stored in half precision, and tensors with several names once; optimizer and training
state are left out. The file can be used like any checkpoint (``train.init_checkpoint``).
``--convert`` first passes the weights through a function, such as ``sparse_detr.from_published``,
which renames the weights of another code base. With ``--config-file``, nothing is written unless
every tensor fits that model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokendetr.checkpoint.averaged import chosen_weights
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.checkpoint.weights import fit_report, read_checkpoint
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.model import model_on_cpu
from tokendetr.errors import CheckpointMismatchError
from tokendetr.io.outputs import check_output_file

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@program(ValueError)
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
    add_config_option(parser, "the model that the weights must fit", required=False)
    parser.add_argument("opts", nargs="*", help="overrides of that config, key=value")
    args = parse_with_overrides(parser, arguments, intermixed=True)
    if args.opts and not args.config_file:
        parser.error("overrides need the config that they change: give --config-file")
    check_output_file(args.output, [args.input])
    checkpoint = read_checkpoint(args.input)
    weights, which = chosen_weights(checkpoint, args.weights)
    if checkpoint.get("ema_state"):
        other = "model" if which == "ema" else "ema"
        print(f"using the weights of {which!r}; use --weights {other} for the others")
    if args.convert:
        weights = convert(weights, args.convert)
    if args.config_file:
        require_fit(weights, args.config_file, args.opts)
    size = save_safetensors(
        {name: torch.as_tensor(value) for name, value in weights.items()},
        args.output,
        dtype=DTYPES[args.dtype],
        metadata={"source": Path(args.input).name},
    )
    print(f"{args.output}: {size / 1e6:.2f} MB")
    if args.convert and not args.config_file:
        print(
            "not compared with a model: add --config-file CONFIG, or run\n"
            f"tokendetr verify-checkpoint {args.output} --config-file CONFIG"
        )


def convert(weights: Mapping[str, Any], function: str) -> dict[str, Any]:
    """Pass weights through a function, and print how many names it changed.

    Args:
        weights: tensors or arrays by name.
        function: dotted name of a function from weights to weights.

    Raises:
        ValueError: there is no such function; it returned something else than weights by name, or
            the weights as they were.
    """
    found = find_function(function)(weights)
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray)
        for name, value in found.items()
    ):
        raise ValueError(f"--convert {function} must return a dict of tensors by name")
    if found.keys() == weights.keys() and all(found[name] is weights[name] for name in weights):
        raise ValueError(f"--convert {function} changed none of the {len(weights)} names")
    gone, new = weights.keys() - found.keys(), found.keys() - weights.keys()
    print(
        f"{function}: {len(weights)} names before, {len(found)} after; "
        f"{len(gone)} are gone, {len(new)} are new"
    )
    return dict(found)


def require_fit(weights: Mapping[str, Any], config: str, overrides: Sequence[str]) -> None:
    """Print how weights match a config's model.

    Args:
        weights: tensors or arrays by name.
        config: a config's file or name.
        overrides: ``key=value`` each.

    Raises:
        CheckpointMismatchError: a tensor is missing, unexpected or of another shape.
        ConfigError: of the config or the overrides.
    """
    report = fit_report(model_on_cpu(config, overrides), weights)
    print(report.table())
    if not report.is_complete:
        raise CheckpointMismatchError(
            f"not every tensor fits {config} ({report.counts()}): nothing was written"
        )


def find_function(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Return a function by its dotted name.

    Raises:
        ValueError: there is none of that name.
    """
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--convert {name} is not a function: {error}") from error


if __name__ == "__main__":
    main()
