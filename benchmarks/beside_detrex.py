"""Time DINO-R50 as detrex builds it and as this project does, where both are installed.

    python -m benchmarks.beside_detrex --detrex CHECKOUT --json    # measure, record, write the page
    python -m benchmarks.beside_detrex --splice                    # only write docs/performance.md

Each side runs in a process of its own, on one thread: one image of 800 x 1216 pixels in evaluation,
after one that is not counted, and one training step (forward, backward, update) on two of 480 x 640
with denoising. Processor seconds, and the most memory that the process had.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate

from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.analysis.inputs import synthetic_targets, write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Table, splice
from tokendetr.config import zoo
from tokendetr.layers.cpu import optimize

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
RESULTS = PAGE.parent / "upstream" / "speed.json"
CONFIG = "dino_r50_4scale_12ep"
FILE = f"projects/dino/configs/dino-resnet/{CONFIG}.py"
SIDES = ("detrex", "tokendetr")
TASKS = {
    "evaluation, 800 x 1216": ((800, 1216), 1),
    "training step, 2 x 480 x 640": ((480, 640), 2),
}
FIELDS = ("seconds", "peak_mib")


def build(side: str, detrex: Path) -> torch.nn.Module:
    """Return the detector with random weights, the same for both."""
    if side == "detrex":
        model = LazyConfig.load(str(detrex / FILE)).model
        stay_on_the_cpu()
    else:
        model = zoo.get_config(CONFIG).model
    model.device = "cpu"
    torch.manual_seed(0)
    return instantiate(model)


def stay_on_the_cpu() -> None:
    """Let detrex's denoising, which says ``.cuda()``, work on a CPU."""
    send = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return send(tensor, *("cpu" if a == "cuda" else a for a in args), **options)

    torch.Tensor.to = to  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda tensor, *args, **options: tensor  # type: ignore[method-assign]


def processor_seconds(work: Callable[[], Any]) -> float:
    """Seconds of the processor that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(side: str, task: str, detrex: Path) -> dict[str, float]:
    """Return one side's time and memory for one task, in this process."""
    torch.set_num_threads(1)
    model, ((height, width), batch) = build(side, detrex), TASKS[task]
    inputs = synthetic_inputs(height, width, batch_size=batch)
    if task.startswith("evaluation"):
        model.eval()
        if side == "tokendetr":
            optimize(model)  # as its evaluation and its predictor do
        with torch.no_grad():
            model(synthetic_inputs(256, 320, batch_size=1))
            seconds = processor_seconds(lambda: model(inputs))
    else:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        records = synthetic_targets(inputs, num_classes=80)

        def step() -> None:
            sum(model(records).values()).backward()
            optimizer.step()

        seconds = processor_seconds(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak}


def table(results: dict[str, Any]) -> Table:
    """Return the rows as the docs show them."""
    rows = []
    for task, sides in results["rows"].items():
        theirs, ours = (sides[side] for side in SIDES)
        ratios = [theirs[field] / ours[field] for field in FIELDS]
        rows.append(
            (
                task,
                f"{theirs['seconds']:.1f}",
                f"{ours['seconds']:.1f}",
                f"{ratios[0]:.2f}",
                f"{theirs['peak_mib']:.0f}",
                f"{ours['peak_mib']:.0f}",
            )
        )
    columns = ("DINO-R50, 4 levels", "detrex, s", "here, s", "times faster")
    columns += ("detrex, peak MiB", "here, peak MiB")
    title = "DINO-R50 as detrex builds it and as this project does, one thread, random weights"
    return Table("beside_detrex", title, columns, rows, [results["made"]])


def _run(command: list[str], detrex: Path | None) -> "subprocess.CompletedProcess[str]":
    """Run one side in a process of its own, detrex's with its ``projects`` first on the path."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if detrex is not None:
            # Only its projects: a checkout hides what the installed detrex has compiled.
            Path(folder, "projects").symlink_to(detrex.resolve() / "projects")
            paths = [folder, environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def main() -> None:
    """Measure both sides, or print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detrex", type=Path, default=Path(), help="its source checkout")
    parser.add_argument("--json", nargs="?", type=Path, const=RESULTS, help="record the figures")
    parser.add_argument("--splice", action="store_true", help="only write docs/performance.md")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "TASK"), help="one run, here")
    args = parser.parse_args()
    if args.splice:
        splice(PAGE, table(json.loads(RESULTS.read_text())))
        return
    if args.one:
        print(json.dumps(measure(*args.one, args.detrex)))
        return
    rows: dict[str, Any] = {}
    for task in TASKS:
        rows[task] = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--one", side, task, "--detrex", str(args.detrex)]
            done = _run(command, args.detrex if side == "detrex" else None)
            rows[task][side] = json.loads(done.stdout.strip().splitlines()[-1])
            print(task, side, rows[task][side], flush=True)
    made = (
        "`python -m benchmarks.beside_detrex`, processor seconds on one thread of an "
        f"{machine()}; {datetime.date.today().isoformat()}."
    )
    results = {"made": made, "rows": rows}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(results, str(args.json))
        if args.json == RESULTS:
            splice(PAGE, table(results))
    print(table(results).markdown())


if __name__ == "__main__":
    main()
