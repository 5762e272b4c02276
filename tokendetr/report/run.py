"""Read a run: its settings, training curves, and its detector's accuracy and cost."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tokendetr.analysis.flops import count_flops
from tokendetr.config.load import load_config
from tokendetr.config.run_folders import TRAINED_CONFIG, is_run_folder
from tokendetr.data.builtin_datasets import register_if_known
from tokendetr.data.coco_check import read_coco
from tokendetr.data.validate import coco_files, dataset_names
from tokendetr.errors import DatasetError
from tokendetr.evaluation.error_analysis import Analysis, analyze_results
from tokendetr.io.atomic import write_atomically
from tokendetr.predict import Detector, load, read_rgb, run_config
from tokendetr.train.writers import recorded_rows

__all__ = ["Run", "read_run", "timed_in_turns"]

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"
SETTINGS = (
    "train.init_checkpoint",
    "train.max_iter",
    "train.seed",
    "dataloader.train.total_batch_size",
    "dataloader.train.dataset.names",
    "dataloader.test.dataset.names",
    "optimizer.lr",
    "optimizer.weight_decay",
    "train.amp.enabled",
    "train.model_ema.enabled",
    "model.num_classes",
    "model.num_queries",
    "model.transformer.encoder.sparsifier._target_",
    "model.transformer.encoder.sparsifier.keep_ratio",
    "model.transformer.encoder.sparsifier.keep_ratios",
)
"""Keys of the config that are listed first."""

_OF_TRAINING = ("train.", "optimizer.", "dataloader.train.")

_COUNTED, _TIMED = 3, 8


@dataclass(frozen=True)
class Run:
    """A training run, or a config with weights, and its evaluation.

    Attributes:
        name: name of the folder or config.
        settings: key -> value of the main settings (:data:`SETTINGS`).
        config: the whole config as YAML.
        rows: rows of ``metrics.json``; empty for weights that were not trained here.
        analysis: analysis of the results on the test set.
        evaluated: description of the evaluated images.
        image_root: folder of the test images.
        annotations: COCO JSON of these images.
        results: COCO results on them.
        is_training: the folder is a training's, so that its settings are those of the weights.
        cost: ``gflops`` per image (a multiply-add counts as 1), ``parameters`` in millions, and
            ``ms`` per image (:func:`timed_in_turns`); empty for results without a detector.
        detector: the detector with its weights; None for results without one.
    """

    name: str
    settings: dict[str, Any]
    config: str
    rows: Sequence[Mapping[str, Any]]
    analysis: Analysis
    evaluated: str
    image_root: Path
    annotations: Path
    results: Path
    is_training: bool = False
    cost: dict[str, float] = field(default_factory=dict)
    detector: Detector | None = field(default=None, repr=False)

    def image_path(self, row: Mapping[str, Any]) -> Path:
        """Return the file of a row of ``analysis.images``."""
        return self.image_root / str(row["file_name"])


def read_run(source: str, cache: Path, *, device: str = "cpu", limit: int = 200) -> Run:
    """Read the folder of a run, or a config with the weights that come with it.

    If a folder has results they are analyzed; otherwise the detector is run on the first images of
    the test set.

    Args:
        source: the folder of a training, an evaluation or ``tokendetr sparsify``, or a config's
            name.
        cache: folder for results that are computed here.
        device: device that the detector runs on.
        limit: maximum number of images to run the detector on if there are no results.

    Raises:
        FileNotFoundError, KeyError, ConfigError: there is no such run, config or weights.
        DatasetError: the test set cannot be used.
    """
    folder = Path(os.path.expanduser(source))
    is_folder = is_run_folder(folder)
    config = str(run_config(folder, of_results=True)) if is_folder else source
    final = folder / "model_final.pth"
    is_training = is_folder and Path(config).name == TRAINED_CONFIG
    if is_folder and final.is_file():
        detector = load(config, str(final), device=device, threshold=0.0)
    else:
        detector = load(source if is_training else config, device=device, threshold=0.0)
    cfg = load_config(config, trained=not is_folder)
    name = folder.resolve().name if is_folder else source
    tested = next((name for name, for_test in dataset_names(cfg, evaluation_only=True)), "")
    register_if_known(tested)
    files = coco_files(tested)
    if files is None:
        raise DatasetError(f"the test set {tested!r} of {source} is not in COCO's format")
    annotations = Path(files.json_file)
    results, evaluated = folder / RESULTS, f"all images of {tested}"
    if not (is_folder and results.is_file()):
        part = _run_detector(detector, annotations, Path(files.image_root), cache / name, limit)
        annotations, results, count = part
        evaluated = f"the first {count} images of {tested}"
    analysis = analyze_results(annotations, results)
    paths = [Path(files.image_root) / row["file_name"] for row in analysis.images[:_COUNTED]]
    return Run(
        name=name,
        settings={
            "weights": detector.weights.removeprefix("weights: "),
            **_settings(cfg, is_training),
        },
        config=OmegaConf.to_yaml(_plain(cfg)),
        rows=recorded_rows(str(folder / "metrics.json")) if is_folder else [],
        analysis=analysis,
        evaluated=evaluated,
        image_root=Path(files.image_root),
        annotations=annotations,
        results=results,
        is_training=is_training,
        cost=_cost(detector, paths),
        detector=detector,
    )


def _run_detector(
    detector: Detector, annotations: Path, images: Path, cache: Path, limit: int
) -> tuple[Path, Path, int]:
    """Run the detector on the first images; return annotations, results and number of images."""
    data = read_coco(str(annotations))
    chosen = data["images"][:limit]
    ids = {image["id"] for image in chosen}
    logger.info("Running %s on %d images", detector.weights, len(chosen))
    rows: list[dict[str, Any]] = []
    for image in chosen:
        found = detector(str(images / image["file_name"]))
        assert not isinstance(found, list)
        rows += found.records(image["id"])
    part = {
        **data,
        "images": chosen,
        "annotations": [a for a in data["annotations"] if a["image_id"] in ids],
    }
    for name, content in (("annotations.json", part), (RESULTS, rows)):
        os.makedirs(cache, exist_ok=True)
        write_atomically(str(cache / name), json.dumps(content).encode())
    return cache / "annotations.json", cache / RESULTS, len(chosen)


def _settings(cfg: DictConfig, is_training: bool) -> dict[str, Any]:
    keys = [key for key in SETTINGS if is_training or not key.startswith(_OF_TRAINING)]
    found = {key: OmegaConf.select(cfg, key, default=None) for key in keys}
    return {
        key: getattr(value, "__qualname__", value)  # a class that the config targets
        for key, value in found.items()
        if value not in (None, "")
    }


def _plain(cfg: DictConfig) -> Any:
    """Return a config in which objects, which YAML cannot represent, are replaced by names."""

    def convert(node: Any) -> Any:
        if isinstance(node, dict):
            return {str(key): convert(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [convert(value) for value in node]
        if node is None or isinstance(node, str | int | float | bool):
            return node
        return getattr(node, "__qualname__", None) or str(node)

    return OmegaConf.create(convert(OmegaConf.to_container(cfg, resolve=False)))


def _cost(detector: Detector, paths: Sequence[Path]) -> dict[str, float]:
    """Return operations per image and parameters."""
    inputs = [[detector.predictor.inputs(read_rgb(path))] for path in paths]
    with torch.no_grad():
        totals = [count_flops(detector.model, batch).total for batch in inputs]
    return {
        "gflops": sum(totals) / len(totals) / 1e9,
        "parameters": sum(p.numel() for p in detector.model.parameters()) / 1e6,
    }


def timed_in_turns(runs: Sequence[Run]) -> list[Run]:
    """Return runs with the median time of single images on this machine added to their cost.

    The detectors take turns image by image, so that other load on the machine slows all alike.

    Args:
        runs: with detectors.
    """
    inputs = []
    for run in runs:
        assert run.detector is not None
        paths = [run.image_path(row) for row in run.analysis.images[:_TIMED]]
        inputs.append([run.detector.predictor.inputs(read_rgb(path)) for path in paths])
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.no_grad():
        for turn in range(-1, max(map(len, inputs))):  # the first turn is a warm-up
            for run, images, own in zip(runs, inputs, seconds, strict=True):
                assert run.detector is not None
                start = time.perf_counter()
                run.detector.model([images[turn % len(images)]])
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn >= 0:
                    own.append(time.perf_counter() - start)
    return [
        replace(run, cost={**run.cost, "ms": 1e3 * median(own)})
        for run, own in zip(runs, seconds, strict=True)
    ]
