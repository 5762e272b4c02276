"""The console script ``tokendetr``: one command per program.

    tokendetr                    # list the commands
    tokendetr train --config-file dino_shapes train.device=cpu
    tokendetr predict --help

``python -m tokendetr`` does the same. Each program is imported only when it is run.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tokendetr.cli.program import program
from tokendetr.errors import UPSTREAM, upstream_missing


class Command(NamedTuple):
    """A command of the console script.

    Attributes:
        target: its function, ``module:function``, which reads ``sys.argv``.
        summary: one-line description.
    """

    target: str
    summary: str


COMMANDS = {
    "train": Command("tokendetr.cli.train_net:main", "train a detector from a config"),
    "evaluate": Command("tokendetr.cli.train_net:evaluate", "evaluate a detector's weights"),
    "report": Command("tokendetr.cli.report:main", "write an HTML report on runs"),
    "predict": Command("tokendetr.cli.demo:main", "detect objects in images and videos"),
    "doctor": Command("tokendetr.cli.doctor:main", "check this installation"),
    "list": Command("tokendetr.cli.list_configs:main", "list configs, and which have weights"),
    "analyze": Command("tokendetr.cli.analyze:main", "analyze the errors in results"),
    "analyze-model": Command(
        "tokendetr.cli.analyze_model:main", "count operations, parameters, activations"
    ),
    "benchmark": Command("tokendetr.cli.benchmark:main", "compare the speed of detectors"),
    "convert": Command("tokendetr.cli.convert_dataset:main", "convert Pascal VOC or YOLO labels"),
    "export": Command(
        "tokendetr.cli.export_model:main", "export a detector for use outside of Python"
    ),
    "export-weights": Command(
        "tokendetr.cli.export_checkpoint:main", "write small weight files, convert weights"
    ),
    "verify-checkpoint": Command(
        "tokendetr.cli.verify_checkpoint:main", "check whether a checkpoint fits a config"
    ),
    "check-data": Command("tokendetr.cli.check_dataset:main", "check annotations and images"),
    "visualize-tokens": Command(
        "tokendetr.cli.visualize_tokens:main", "draw what encoder layers keep and merge"
    ),
    "visualize-mixing": Command(
        "tokendetr.cli.visualize_mixing:main",
        "draw which tokens a backbone's reduced tokens combine",
    ),
    "visualize-data": Command("tokendetr.cli.visualize_data:main", "draw annotations"),
    "visualize-results": Command(
        "tokendetr.cli.visualize_json_results:main", "draw a result file's detections"
    ),
    "rank-importance": Command(
        "tokendetr.cli.importance_ranking:main", "rank a dense encoder's levels"
    ),
    "sparsify": Command(
        "tokendetr.cli.sparsify:main", "make a trained detector sparse with unlabeled images"
    ),
    "fit-recovery": Command(
        "tokendetr.cli.fit_recovery:main",
        "fit a transformed backbone's maps without labels",
    ),
    "sweep-tokens": Command("tokendetr.cli.sweep_tokens:main", "measure metrics over keep ratios"),
    "compare-shapes": Command("tokendetr.cli.compare_shapes:main", "compare the small detectors"),
    "study": Command("tokendetr.cli.study:main", "compare detectors with intervals"),
    "ablate": Command("tokendetr.cli.ablate:main", "fine-tune the variants of a study"),
    "table": Command("tokendetr.cli.table:main", "print a project's result tables"),
    "make-shapes": Command("tokendetr.cli.make_shapes:main", "generate the shapes data set"),
    "make-bdd-s": Command("tokendetr.cli.make_bdd_s:main", "select BDD-S from BDD100K"),
    "demo": Command("tokendetr.cli.run_demo:main", "show the project in one run"),
}
"""Every command by its name."""


def usage() -> str:
    """Return the usage message with the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: tokendetr COMMAND ...", "", *lines, "", "tokendetr COMMAND --help"])


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        from tokendetr import __version__

        print(f"tokendetr {__version__}")
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}\n\n{usage()}")
    command = COMMANDS[name]
    sys.argv = [f"tokendetr {name}", *rest]
    module, _, function = command.target.partition(":")
    try:
        run = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name not in UPSTREAM:
            raise
        sys.exit(f"error: {upstream_missing(error.name or '')}")
    run()


if __name__ == "__main__":
    main()
