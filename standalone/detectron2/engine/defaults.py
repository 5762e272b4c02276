"""Defaults of training scripts: arguments, setup, DDP, writers, a simple predictor."""

import argparse
import logging
import os
import sys
from typing import Any

import numpy as np
import torch
from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "DefaultPredictor",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> Any:
    """Wrap a model in DistributedDataParallel if there is more than one process.

    Args:
        model: the model, on its device.
        fp16_compression: send gradients as float16.
        **kwargs: further arguments of ``DistributedDataParallel``.

    Returns:
        The wrapped model, or the model itself in a single process.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    if on_gpu and "device_ids" not in kwargs:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default as comm_hooks

        ddp.register_comm_hook(state=None, hook=comm_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the command-line parser that training scripts share.

    Args:
        epilog: text after the help; examples by default.
    """
    script = sys.argv[0]
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
examples:
  {script} --config-file config.py --num-gpus 2            # one machine, two processes
  {script} --config-file config.py train.max_iter=1000     # override a value of the config
  {script} --config-file config.py --resume                # continue an interrupted run
  {script} --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...   # on HOST
  {script} --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT ...   # on the other one
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="the config: a .py or .yaml file"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in the output directory, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate without training")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on each machine, one per GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines in the run")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0"
    )
    # Derived from the user's id, so that runs of different users rarely share a port.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="rendezvous: tcp://host:port, or 'auto' for a free port of this machine",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        help="overrides of the config, at the end: key.path=value ...",
    )
    return parser


def _try_get_key(cfg: Any, *keys: str, default: Any = None) -> Any:
    """Return the value of the first of several dotted keys that a config of either kind has."""
    # A yacs CfgNode is a dict with attributes and is not known to OmegaConf.
    tree = cfg if OmegaConf.is_config(cfg) else OmegaConf.create(_plain(cfg))
    missing = object()
    for key in keys:
        value = OmegaConf.select(tree, key, default=missing)
        if value is not missing:
            return value
    return default


def _plain(cfg: Any) -> Any:
    return {key: _plain(value) for key, value in cfg.items()} if isinstance(cfg, dict) else cfg


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Set up logging, save the config and seed, as most scripts do first.

    Writes ``log.txt`` (other ranks ``log.txt.rank1`` ...) and ``config.yaml`` to the output folder.

    Args:
        cfg: a lazy config with ``train.output_dir``, ``train.seed`` (negative: random) and
            ``train.cudnn_benchmark`` if present, or a yacs config.
        args: parsed command line; ``config_file`` and ``eval_only`` are used.
    """
    output_dir = _try_get_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info("Rank of current process: %s. World size: %s", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            content = _highlight(file.read(), config_file)
        logger.info("Contents of args.config_file=%s:\n%s", config_file, content)
    if comm.is_main_process() and output_dir:
        _save_config(cfg, os.path.join(output_dir, "config.yaml"), logger)
    # Ranks differ, so that their augmentations do.
    seed = _try_get_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)
    # Timing kernels pays off only when shapes repeat, which they do not in evaluation.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = bool(
            _try_get_key(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
        )


def _save_config(cfg: Any, path: str, logger: logging.Logger) -> None:
    if OmegaConf.is_config(cfg):
        LazyConfig.save(cfg, path)
    else:
        logger.info("The config, with all defaults:\n%s", _highlight(cfg.dump(), ".yaml"))
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
    logger.info("Full config saved to %s", path)


def _highlight(code: str, file_name: str) -> str:
    """Color code for a terminal if pygments is installed."""
    try:
        import pygments
        from pygments.formatters import Terminal256Formatter
        from pygments.lexers import Python3Lexer, YamlLexer
    except ImportError:
        return code
    lexer = Python3Lexer() if file_name.endswith(".py") else YamlLexer()
    return pygments.highlight(code, lexer, Terminal256Formatter(style="monokai"))


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Return writers to the log, to ``metrics.json`` and to TensorBoard.

    Args:
        output_dir: created if missing.
        max_iter: the last iteration, for the remaining time in the log.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


class DefaultPredictor:
    """Run the model of a yacs config on single BGR images.

    Args:
        cfg: a yacs config: ``MODEL.WEIGHTS``, ``INPUT.{MIN_SIZE_TEST, MAX_SIZE_TEST, FORMAT}`` and
            ``DATASETS.TEST`` are used.

    Raises:
        TypeError: ``cfg`` is a lazy config, which has no such entries.
    """

    def __init__(self, cfg: Any) -> None:
        if OmegaConf.is_config(cfg) or not hasattr(cfg, "MODEL"):
            raise TypeError(
                "DefaultPredictor needs a yacs config (with cfg.MODEL, cfg.INPUT, cfg.DATASETS), "
                f"got {type(cfg).__name__}. For a lazy config build the model with "
                "`model = instantiate(cfg.model)`, load weights with "
                "`DetectionCheckpointer(model).load(cfg.train.init_checkpoint)` and call it with "
                "`model([{'image': image_chw, 'height': h, 'width': w}])`."
            )
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.modeling import build_model

        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), self.input_format

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict one image.

        Args:
            original_image: ``[H, W, 3]`` BGR, uint8.

        Returns:
            The model's output for the image, such as ``{"instances": Instances}``.
        """
        if self.input_format == "RGB":
            original_image = original_image[:, :, ::-1]
        height, width = original_image.shape[:2]
        image = self.aug.get_transform(original_image).apply_image(original_image)
        image_chw = torch.as_tensor(
            np.ascontiguousarray(image.astype("float32").transpose(2, 0, 1))
        )
        inputs = {"image": image_chw.to(self.cfg.MODEL.DEVICE), "height": height, "width": width}
        return self.model([inputs])[0]
