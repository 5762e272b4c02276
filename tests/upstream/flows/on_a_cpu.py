"""Run a program of detrex on a machine without a GPU.

    cd DETREX && python -m tests.upstream.flows.on_a_cpu tools/train_net.py --config-file ...

The program itself is detrex's, from its checkout. Patched while it runs, because detrex cannot work
without CUDA: the assertion of its trainer that CUDA is there, and ``.cuda()`` and ``.to("cuda")``
of tensors, which its denoising and a few losses say.
"""

import sys
from pathlib import Path
from typing import Any

import torch

ASSERTION = 'assert torch.cuda.is_available(), "[Trainer] CUDA is required for AMP training!"'


def stay_on_the_cpu() -> None:
    """Let tensors that are sent to a GPU stay where they are."""
    send = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        places = ("cpu" if isinstance(value, str) and value == "cuda" else value for value in args)
        return send(tensor, *places, **options)

    torch.Tensor.to = to  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda tensor, *args, **options: tensor  # type: ignore[method-assign]


def main() -> None:
    """Run the program whose path is the first argument, in this process."""
    program = Path(sys.argv[1])
    source = program.read_text()
    if program.name == "train_net.py":
        if ASSERTION not in source:
            raise SystemExit(f"{program} no longer asserts CUDA as it did: is a patch needed?")
        source = source.replace(ASSERTION, "pass")
    stay_on_the_cpu()
    sys.argv = sys.argv[1:]
    # The working folder stands in front for ``python -m``; a program has its own folder there.
    sys.path[0] = str(program.resolve().parent)
    variables = {"__name__": "__main__", "__file__": str(program.resolve())}
    exec(compile(source, str(program), "exec"), variables)  # noqa: S102  # detrex's own program


if __name__ == "__main__":
    main()
