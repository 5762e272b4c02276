"""Measure the speed of inference, training or data loading for one or several configs.

Examples:
    tokendetr benchmark --task eval --config-file dino_shapes --config-file dynamic_dino_shapes
    tokendetr benchmark --task train --config-file dino_shapes --input-size 256 256 --repeats 10
    tokendetr benchmark --task data --config-file dino_shapes dataloader.train.num_workers=2

Several configs are measured in turns in one run, so that other load on the machine affects all
alike; every turn begins with another one. Each takes the images of its own test set, unless
--input-size is given. Overrides at the end apply to every config. Weights are random unless
train.init_checkpoint=FILE is given.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from tabulate import tabulate

from tokendetr.analysis.contender import Contender, image_shapes
from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.analysis.inputs import (
    build_measured_model,
    load_measured_config,
    loaded_inputs,
    synthetic_targets,
    write_json,
)
from tokendetr.analysis.machine_load import machine_load
from tokendetr.analysis.throughput import TIME_LIMIT_S, loader_speed, stage_speeds
from tokendetr.analysis.timing import Summary, split_time, timed, turn_order
from tokendetr.cli.argument_types import non_negative_int, output_file, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.data.stream import build_train_loader
from tokendetr.data.workers import named_loader_failures
from tokendetr.io.progress import Progress
from tokendetr.layers.precision import PRECISIONS, evaluated_in, parse_dtype
from tokendetr.train.launch import launch
from tokendetr.train.setup import distributed
from tokendetr.train.trainer import Trainer

TASKS = ("train", "eval", "data", "data_advanced")
REPEATS = {"train": (100, 5), "eval": (300, 20), "data": (250, 250), "data_advanced": (100, 100)}
"""Task -> default number of measurements (on a GPU, on a CPU)."""
BATCH_SIZES = {"train": 2, "eval": 1}
"""Task -> default number of images per step and process; loaders keep the config's."""
CACHED_INPUTS = 100
DIST_URL = "auto"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add_config_option(parser, "a detector (may be repeated)", trained=True, action="append")
    add("--task", choices=TASKS, required=True, help="what is measured")
    add(
        "--input-size",
        type=positive_int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="synthetic images",
    )
    sizes = ", ".join(f"{task} {size}" for task, size in BATCH_SIZES.items())
    add(
        "--batch-size",
        type=positive_int,
        help=f"images per step and process (default: {sizes})",
    )
    repeats = ", ".join(f"{task} {gpu} or {cpu}" for task, (gpu, cpu) in REPEATS.items())
    add("--repeats", type=positive_int, help=f"measurements (default on GPU or CPU: {repeats})")
    add("--warmup", type=non_negative_int, default=5, help="runs before the measurements")
    add("--threads", type=positive_int, help="CPU threads of PyTorch")
    add("--precision", choices=PRECISIONS, default="float32", help="of --task eval, by autocast")
    add("--num-gpus", type=int, default=1, help="processes per machine (train and data)")
    add("--num-machines", type=int, default=1, help="machines of the run")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default=DIST_URL, help="where the processes meet: tcp://host:port")
    add(
        "--json",
        type=output_file,
        nargs="?",
        const="-",
        metavar="FILE",
        help="JSON to FILE, or to stdout",
    )
    add("opts", nargs=argparse.REMAINDER, help="key=value overrides of the configs, at the end")
    args = parse_with_overrides(parser, arguments)
    if args.task != "eval" and args.precision != "float32":
        parser.error("--precision is for --task eval; training has train.amp")
    if args.task == "eval" and args.num_gpus * args.num_machines > 1:
        parser.error("--task eval measures one process: leave --num-gpus and --num-machines at 1")
    return args


def eval_contender(args: argparse.Namespace, cfg: DictConfig, name: str, runs: int) -> Contender:
    """Measure inference of single batches, split into the model's parts."""
    model, device = build_measured_model(cfg, args.opts), torch.device(cfg.train.device)
    batch_size = args.batch_size or BATCH_SIZES["eval"]
    if args.input_size:
        cached = [synthetic_inputs(*args.input_size, batch_size=batch_size)]
    else:
        cached = list(loaded_inputs(cfg, min(runs, CACHED_INPUTS), batch_size=batch_size))
    batches = cycle(cached)

    @torch.no_grad()
    def step() -> dict[str, float]:
        batch = next(batches)
        with evaluated_in(args.precision, model):
            return split_time(model, lambda: model(batch), device)

    return Contender(name, device, step, [image_shapes(batch) for batch in cached])


def train_contender(args: argparse.Namespace, cfg: DictConfig, name: str, runs: int) -> Contender:
    """Measure training steps with the config's optimizer on cached batches."""
    device = torch.device(cfg.train.device)
    model = build_measured_model(cfg, args.opts).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    batch_size = args.batch_size or BATCH_SIZES["train"]
    if args.input_size:
        images = synthetic_inputs(*args.input_size, batch_size=batch_size, seed=comm.get_rank())
        cached = [synthetic_targets(images, num_classes=int(getattr(model, "num_classes", 1)))]
    else:
        cfg.dataloader.train.total_batch_size = batch_size * comm.get_world_size()
        cfg.dataloader.train.num_workers = min(cfg.dataloader.train.num_workers, 2)
        with named_loader_failures():
            loader = build_train_loader(cfg.dataloader.train, seed=0)
            cached = list(islice(loader, min(runs, CACHED_INPUTS)))
    settings = cfg.train
    trainer = Trainer(
        distributed(model, settings.ddp),
        cycle(cached),
        optimizer,
        amp_dtype=parse_dtype(settings.amp.dtype) if settings.amp.enabled else None,
        clip_grad=settings.clip_grad.params if settings.clip_grad.enabled else None,
        grad_accum_steps=settings.grad_accum_steps,
        grad_accum_weighting=settings.grad_accum_weighting,
    )

    def step() -> dict[str, float]:
        with EventStorage():
            return {"total": timed(trainer.run_step, device)}

    return Contender(name, device, step)


def time_models(args: argparse.Namespace, cfgs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """Measure the configs' models in turns.

    Returns:
        For each config, summaries in milliseconds by part, images per second and peak memory.
    """
    repeats = args.repeats or default_repeats(args.task, cfgs[0])
    make = eval_contender if args.task == "eval" else train_contender
    batch_size = args.batch_size or BATCH_SIZES[args.task]
    contenders = [
        make(args, cfg, name, args.warmup + repeats)
        for name, cfg in zip(args.config_file, cfgs, strict=True)
    ]
    for contender in Progress(contenders, desc="warming up", disable=not comm.is_main_process()):
        contender.warm_up(args.warmup)
    for turn in Progress(range(repeats), desc="measuring", disable=not comm.is_main_process()):
        for contender in turn_order(contenders, turn):
            contender.measure()
    if len({tuple(contender.shapes) for contender in contenders}) > 1:
        print(
            "note: the configs' images differ in size, so their times do not compare the "
            "detectors; --input-size HEIGHT WIDTH measures all on the same",
            file=sys.stderr,
        )
    results = []
    for contender in contenders:
        summaries = {
            part: Summary.of([1e3 * seconds for seconds in samples])
            for part, samples in contender.samples.items()
        }
        images = batch_size * comm.get_world_size()
        results.append(
            {
                "config": contender.name,
                "device": describe_device(contender.device),
                "batch_size": batch_size,
                "milliseconds": {part: asdict(summary) for part, summary in summaries.items()},
                "images_per_second": 1e3 * images / summaries["total"].median,
                "peak_memory_mb": contender.peak_bytes / 2**20,
            }
        )
    return results


def time_data(args: argparse.Namespace, cfgs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """Measure the training loaders, one config after the other."""
    repeats = args.repeats or default_repeats(args.task, cfgs[0])
    measure = loader_speed if args.task == "data" else stage_speeds
    results = []
    for name, cfg in zip(args.config_file, cfgs, strict=True):
        if args.batch_size:
            cfg.dataloader.train.total_batch_size = args.batch_size * comm.get_world_size()
        with named_loader_failures():
            speeds = measure(cfg.dataloader.train, repeats, warmup=args.warmup)
        results.append({"config": name, "stages": [asdict(speed) for speed in speeds]})
    return results


def default_repeats(task: str, cfg: DictConfig) -> int:
    """Return the default number of measurements."""
    return REPEATS[task][0 if str(cfg.train.device).startswith("cuda") else 1]


def describe_device(device: torch.device) -> str:
    """Return a description of a device for the table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def shown_name(config: str) -> str:
    """Return what a config is called in a table: a run's config is named by the run's folder."""
    path = Path(config)
    return path.parent.name if path.stem == "config" and path.parent.name else path.stem


def model_table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of milliseconds by config; speed-ups are relative to the first one."""
    first = results[0]["milliseconds"]["total"]["median"]
    parts = [part for part in results[0]["milliseconds"] if part != "total"]
    rows = [
        [
            shown_name(result["config"]),
            *(result["milliseconds"]["total"][key] for key in ("median", "p10", "p90")),
            *(result["milliseconds"].get(part, {}).get("median") for part in parts),
            first / result["milliseconds"]["total"]["median"],
            result["images_per_second"],
            result["peak_memory_mb"],
        ]
        for result in results
    ]
    headers = ("config", "ms", "p10", "p90", *parts, "speed-up", "images/s", "peak MB")
    return str(tabulate(rows, headers, floatfmt=".2f"))


def data_table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of milliseconds per item by config and stage of the loader."""
    rows = [
        [
            shown_name(result["config"]),
            stage["name"],
            *(stage["milliseconds"][key] for key in ("median", "p10", "p90")),
            stage["images_per_second"],
            stage["startup_seconds"],
        ]
        for result in results
        for stage in result["stages"]
    ]
    headers = ("config", "stage", "ms", "p10", "p90", "images/s", "start-up s")
    return str(tabulate(rows, headers, floatfmt=".2f"))


def run(args: argparse.Namespace) -> None:
    """Run the benchmark in one process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    load = machine_load()
    cfgs = [load_measured_config(config_file, args.opts) for config_file in args.config_file]
    is_data = args.task.startswith("data")
    results = time_data(args, cfgs) if is_data else time_models(args, cfgs)
    if not comm.is_main_process():
        return
    if args.json:
        write_json({"task": args.task, "overrides": args.opts, "results": results}, args.json)
        return
    if is_data:
        print(data_table(results))
        print(f"Each stage was measured for at most {TIME_LIMIT_S} s.")
    else:
        device, batch_size = results[0]["device"], results[0]["batch_size"]
        print(f"{device}; batches of {batch_size}; medians; {load.text or 'load unknown'} before")
        print(model_table(results))
    if load.is_busy:
        logging.warning("The machine was busy (%s): ratios say more than times", load.text)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    device = load_measured_config(args.config_file[0], args.opts).train.device
    launch(run, args, device=device, default_dist_url=DIST_URL)


if __name__ == "__main__":
    main()
