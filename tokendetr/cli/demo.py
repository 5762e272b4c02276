"""Detect objects in images, folders of images, videos or a camera's stream.

Examples:
    tokendetr predict --config-file dino_shapes --input datasets/shapes/val --output output/pictures
    tokendetr predict --config-file dino_r50_4scale_12ep --video-input film.mp4 \\
        --output film_out.mp4 train.init_checkpoint=dino_r50_4scale_12ep.pth

Drawings are written to --output under the images' names, and all detections to ``detections.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from PIL import Image

from tokendetr.cli.argument_types import share
from tokendetr.cli.arguments import (
    add_config_option,
    add_overrides_option,
    add_size_options,
    described_parser,
    parse_with_overrides,
)
from tokendetr.cli.program import program
from tokendetr.compat.opencv import has_windows
from tokendetr.config.load import load_config
from tokendetr.errors import CutOffVideoError, OutputError
from tokendetr.io.atomic import write_atomically
from tokendetr.io.images import IMAGE_SUFFIXES, save_image
from tokendetr.io.outputs import check_output_file, check_output_folder, drawing_names
from tokendetr.io.progress import Progress
from tokendetr.layers.precision import PRECISIONS
from tokendetr.predict import (
    Predictor,
    coco_results,
    dataset_metadata,
    find_images,
    read_rgb,
)
from tokendetr.predict.video import load_opencv, read_frames
from tokendetr.visualization.boxes import draw_boxes, found_boxes, legible_scale

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
logger = logging.getLogger("tokendetr.demo")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; sizes, channel order and names default to the config's test data."""
    parser = described_parser(__doc__)
    add_config_option(parser, trained=True)
    parser.add_argument("--input", nargs="+", help="images, folders, or glob patterns in quotes")
    parser.add_argument("--video-input", help="video file (needs opencv)")
    parser.add_argument("--webcam", action="store_true", help="camera 0 (needs opencv)")
    parser.add_argument("--output", help="folder for drawings and JSON, or video file to write")
    parser.add_argument(
        "--confidence-threshold", type=share, default=0.5, help="minimum score of drawn objects"
    )
    add_size_options(parser)
    parser.add_argument("--img_format", choices=("RGB", "BGR"), help="channel order of the model")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="by autocast")
    parser.add_argument("--metadata_dataset", help="data set whose class names are shown")
    add_overrides_option(parser)
    args = parse_with_overrides(parser, arguments)
    if sum(map(bool, (args.input, args.video_input, args.webcam))) != 1:
        parser.error("give exactly one of --input, --video-input and --webcam")
    if not args.output and not args.webcam:
        parser.error("--output is needed: a folder for images, a file for a video")
    output = Path(args.output or "")
    if args.input and output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        parser.error(f"--output {output}: give a folder, for the drawings and detections.json")
    return args


def draw(image_HWC: np.ndarray, instances: Instances, metadata: Any) -> np.ndarray:
    """Draw boxes, names and scores over an image; small images are enlarged to be legible."""
    boxes = found_boxes(instances, metadata.get("thing_classes", None))
    return np.asarray(draw_boxes(image_HWC, boxes, scale=legible_scale(image_HWC)))


def run_on_images(predictor: Predictor, args: argparse.Namespace, metadata: Any) -> int:
    """Write a drawing per input and ``detections.json``; return the number of unreadable inputs."""
    folder = Path(args.output)
    records: list[dict[str, Any]] = []
    unreadable = 0
    paths = find_images(args.input)
    targets = drawing_names(paths, folder, ".jpg")
    pairs = Progress(list(zip(paths, targets, strict=True)), unit="image")
    for number, (path, target) in enumerate(pairs, start=1):
        try:
            image_HWC = read_rgb(path)
        except OSError as error:
            logger.error("%s", error)
            unreadable += 1
            continue
        instances = predictor(image_HWC)
        records += coco_results(instances, image_id=number, metadata=metadata, file_name=str(path))
        shown = instances[instances.scores >= args.confidence_threshold]
        drawing = Image.fromarray(draw(image_HWC, shown, metadata))
        save_image(drawing, target, quality=92)
    write_atomically(str(folder / "detections.json"), json.dumps(records, indent=0).encode())
    print(f"{folder}: images with detections, and all detections in detections.json")
    return unreadable


def run_on_video(predictor: Predictor, args: argparse.Namespace, metadata: Any) -> None:
    """Write a video with detections, or show the camera's stream until Esc is pressed.

    Raises:
        CutOffVideoError: the input is cut off; what could be read of it was written.
    """
    cv2 = load_opencv()
    writer = None
    frames = _Frames(0 if args.webcam else args.video_input)
    for image_HWC, rate in Progress(frames, unit="frame"):
        instances = predictor(image_HWC)
        shown = instances[instances.scores >= args.confidence_threshold]
        drawn_bgr = np.ascontiguousarray(draw(image_HWC, shown, metadata)[:, :, ::-1])
        if args.output:
            if writer is None:
                size = drawn_bgr.shape[1], drawn_bgr.shape[0]
                code = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(args.output, code, rate, size)
                if not writer.isOpened():
                    raise OutputError(f"OpenCV cannot write {args.output}: try a name ending .mp4")
            writer.write(drawn_bgr)
        else:
            cv2.imshow("detections", drawn_bgr)
            if cv2.waitKey(1) == 27:
                break
    if args.output:
        if writer is None:
            raise FileNotFoundError(f"there are no frames in {args.video_input or 'the camera'}")
        writer.release()
        if not Path(args.output).is_file() or not Path(args.output).stat().st_size:
            raise OutputError(f"OpenCV wrote no {args.output}: is its codec installed?")
        print(f"wrote {args.output}")
    if frames.error is not None:
        raise frames.error


class _Frames:
    """Frames of a source; ``error`` is set afterward if they end too early."""

    def __init__(self, source: str | int) -> None:
        self._source = source
        self.error: CutOffVideoError | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        try:
            yield from read_frames(self._source)
        except CutOffVideoError as error:
            self.error = error


def _check_video_file(output: str, source: str | None) -> None:
    """Refuse a video that could not be written, before any frame is computed.

    Raises:
        OutputError: it has no known ending, is a folder, or is the video that is read.
    """
    if not output.lower().endswith(VIDEO_SUFFIXES):
        raise OutputError(f"--output {output} must end in one of {', '.join(VIDEO_SUFFIXES)}")
    check_output_file(output, [source] if source else [])


def _check_windows(cv2: Any) -> None:
    """Refuse to show a camera's stream if OpenCV has no windows.

    Raises:
        ImportError: saying how to do without.
    """
    if not has_windows(cv2):
        raise ImportError(
            "this OpenCV has no windows (the headless package): write the stream to a file with "
            "--output FILE.mp4, or pip install opencv-python in its place"
        )


@program(ImportError, KeyError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    setup_logger(name="tokendetr")
    cfg = load_config(args.config_file, args.opts, trained=True)
    metadata = dataset_metadata(cfg, args.metadata_dataset)
    if args.input:
        find_images(args.input)  # before the model is built
        check_output_folder(args.output)
    if not args.input:
        cv2 = load_opencv()
        if not args.output:
            _check_windows(cv2)
        else:
            _check_video_file(args.output, args.video_input)
    predictor = Predictor.from_config(
        cfg,
        min_size=args.min_size_test,
        max_size=args.max_size_test,
        img_format=args.img_format,
        precision=args.precision,
    )
    if not args.input:
        run_on_video(predictor, args, metadata)
    elif unreadable := run_on_images(predictor, args, metadata):
        sys.exit(f"error: {unreadable} images could not be read (see above)")


if __name__ == "__main__":
    main()
