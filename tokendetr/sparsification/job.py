"""Make a dense detector sparse: from its config and a folder of images to a new config and weights.

Writes ``config.py``, which every tool reads, ``model.pth``, ``report.json`` and ``report.md``. The
dense detector's files are not changed.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from tokendetr.analysis.inputs import load_measured_config
from tokendetr.config.load import resolve_trained, result_writers
from tokendetr.config.run_folders import SPARSIFIED_CONFIG, TRAINED_CONFIG
from tokendetr.errors import ConfigError, NotSparsifiableError, OutputError
from tokendetr.evaluation.run import Evaluation
from tokendetr.io.atomic import write_atomically
from tokendetr.io.locks import lock_folder
from tokendetr.io.outputs import check_output_file
from tokendetr.predict import Predictor
from tokendetr.sparsification.fitting import FitOptions, fit
from tokendetr.sparsification.images import UnlabeledImages
from tokendetr.sparsification.recipe import Budget, Method, config_file, is_path, sparse_model
from tokendetr.sparsification.report import SparsificationReport, compare
from tokendetr.sparsification.teacher import find_encoder

__all__ = ["SparsifyJob", "run_job"]

STATE_FILE = "unfinished_fit.pth"
OUTPUTS = (SPARSIFIED_CONFIG, "model.pth", "report.json", "report.md")
_EVALUATION = "evaluation"
_ADDED = "transformer.encoder.sparsifier."

_CONFIG = '''"""A detector made sparse without labels by `tokendetr sparsify`."""

from pathlib import Path as _Path

from tokendetr.sparsification import sparse_config as _sparse_config

_config = _sparse_config(
    {config!r},
    method={method!r},
    keep_ratio={keep_ratio!r},
    overrides={overrides!r},
    budget={budget!r},
    context={context!r},
    checkpoint=str(_Path(__file__).resolve().with_name("model.pth")),
)
globals().update({{_key: _config[_key] for _key in _config}})
'''


@dataclass(frozen=True)
class SparsifyJob:
    """Inputs and options of a job.

    Attributes:
        config: name (``tokendetr.zoo``) or file of the dense detector's config, or the folder of
            its run.
        images: folders, files or glob patterns of unlabeled images.
        output_dir: output folder; an interrupted job resumes from it.
        overrides: of the config, including ``train.init_checkpoint=FILE``.
        keep_ratio: share of an image's tokens that the encoder updates, in (0, 1].
        method: how tokens are chosen, see :data:`tokendetr.sparsification.METHODS`.
        options: of the fit.
        batch_size: images per batch of the fit.
        evaluate: also measure AP on the config's test set before and after.
        budget: of an image, see :data:`tokendetr.sparsification.BUDGETS`.
        context: of the bypass, see :class:`tokendetr.encoder.AffineBypass`.
    """

    config: str
    images: Sequence[str]
    output_dir: Path
    overrides: Sequence[str] = ()
    keep_ratio: float = 0.3
    method: Method = "sparse"
    options: FitOptions = FitOptions()
    batch_size: int = 8
    evaluate: bool = False
    budget: Budget = "ratio"
    context: bool = True


def run_job(
    job: SparsifyJob, *, progress: Callable[[str, int, int, float], None] = lambda *_: None
) -> SparsificationReport:
    """Make a detector sparse, write it, and compare it with the dense one.

    Raises:
        ConfigError: the config names no weights, or no test set to evaluate on.
        FileNotFoundError, KeyError: config, weights, images or the test set to evaluate on do not
            exist.
        NotSparsifiableError: the detector has no deformable encoder, or is sparse already.
        FewImagesError, StaleFitError, ValueError: as :func:`tokendetr.sparsification.fit`.
        OutputError: a file would replace one of the dense detector's, or the folder is a
            training's.
        RunFolderError: another process writes to the folder.
    """
    cfg = load_measured_config(config_file(job.config), job.overrides)
    sparse_cfg = sparse_model(
        cfg.model, job.method, job.keep_ratio, job.budget, context=job.context
    )
    if not cfg.train.init_checkpoint:
        raise ConfigError(
            "the config names no weights to start from: add train.init_checkpoint=FILE"
        )
    _check_outputs(job, str(cfg.train.init_checkpoint))
    predictor = Predictor.from_config(cfg)
    images = UnlabeledImages.from_folders(
        job.images, predictor, seed=job.options.seed, batch_size=job.batch_size
    )
    dense = predictor.model
    if job.evaluate:  # a test set that is missing is found before the fit
        evaluation_into(job.output_dir / _EVALUATION, cfg, dense).prepare(required=True)
    student = _twin(dense, sparse_cfg, cfg)
    seconds: dict[str, float] = {}
    state_file = job.output_dir / STATE_FILE
    with lock_folder(str(job.output_dir)):
        with _timed(seconds, "fit"):
            result = fit(
                dense, student, images, job.options, state_file=state_file, progress=progress
            )
        write_detector(job, student)
        with _timed(seconds, "report"):
            report = _report(job, cfg, dense, student, images)
        report = replace(report, fit=asdict(result), seconds=seconds)
        _write_report(job, report)
        state_file.unlink(missing_ok=True)
    return report


def _check_outputs(job: SparsifyJob, weights: str) -> None:
    """Refuse, before any work, to write over the dense detector's files."""
    inputs = [*job.images, weights.partition("?")[0]]
    inputs += filter(None, [_file_of(job)])
    for name in OUTPUTS:
        check_output_file(str(job.output_dir / name), inputs)
    if (job.output_dir / TRAINED_CONFIG).exists():
        raise OutputError(
            f"{job.output_dir} is the folder of a training, whose {TRAINED_CONFIG} programs would "
            "read instead of the sparse detector's config: choose another folder"
        )


def _file_of(job: SparsifyJob) -> str | None:
    """Return the file of the dense detector's config; None if the config is given by its name."""
    return resolve_trained(config_file(job.config))[0] if is_path(job.config) else None


def _write_report(job: SparsifyJob, report: SparsificationReport) -> None:
    text = json.dumps({"job": _plain(job), **report.as_dict()}, indent=2)
    write_atomically(str(job.output_dir / "report.json"), text.encode())
    markdown = report.table().markdown()
    write_atomically(str(job.output_dir / "report.md"), markdown.encode())


def _twin(dense: nn.Module, sparse_cfg: DictConfig, cfg: DictConfig) -> nn.Module:
    """Build the sparse detector with the dense one's weights."""
    torch.manual_seed(0)
    student: nn.Module = instantiate(sparse_cfg).to(cfg.train.device)
    encoder, dense_encoder = find_encoder(student), find_encoder(dense)
    missing, unexpected = student.load_state_dict(dense.state_dict(), strict=False)
    wrong = [name for name in missing if not name.startswith(_ADDED)] + unexpected
    if wrong or len(list(encoder.children())) < len(list(dense_encoder.children())):
        raise NotSparsifiableError(
            f"{type(dense_encoder).__name__} is not a plain deformable encoder: its weights do not "
            f"fit tokendetr.encoder.TokenEncoder ({', '.join(wrong[:3])})"
        )
    return student.eval()


def write_detector(job: SparsifyJob, student: nn.Module) -> None:
    """Write config and weights."""
    text = _CONFIG.format(
        config=_file_of(job) or job.config,
        overrides=[o for o in job.overrides if not o.startswith("train.init_checkpoint=")],
        method=job.method,
        keep_ratio=job.keep_ratio,
        budget=job.budget,
        context=job.context,
    )
    buffer = io.BytesIO()
    torch.save({"model": student.state_dict()}, buffer)
    write_atomically(str(job.output_dir / "model.pth"), buffer.getbuffer())
    write_atomically(str(job.output_dir / SPARSIFIED_CONFIG), text.encode())


def _report(
    job: SparsifyJob,
    cfg: DictConfig,
    dense: nn.Module,
    student: nn.Module,
    images: UnlabeledImages,
) -> SparsificationReport:
    name = f"{job.method}, keep {job.keep_ratio:g}"
    name += " on the mean" if job.budget == "mass" else ""
    detectors = {"dense": dense, name: student}
    rows = compare(detectors, images, device=torch.device(cfg.train.device))
    if job.evaluate:
        folder = job.output_dir / _EVALUATION
        rows = [
            replace(row, ap=evaluation_into(folder, cfg, detectors[row.name]).box_ap())
            for row in rows
        ]
    return SparsificationReport(rows, len(images.held_back), {}, {})


def evaluation_into(folder: Path, cfg: DictConfig, detector: nn.Module) -> Evaluation:
    """Return the evaluation of a config, whose files go to a folder."""
    for node in result_writers(cfg):
        node.output_dir = str(folder)
    return Evaluation(cfg, detector)


def _plain(job: SparsifyJob) -> dict[str, Any]:
    values = asdict(job)
    return {**values, "output_dir": str(job.output_dir), "images": list(job.images)}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
