"""Semantic segmentation with fewer tokens: mIoU of a plain ViT over its keep ratio.

    python -m benchmarks.segmentation --train    # the encoder and its linear decoder
    python -m benchmarks.segmentation            # sweep ways and keep ratios, record the figures
    python -m benchmarks.segmentation --splice   # only write the recorded figures into the page

The task of Token Transforming's Figure 4 (b, c) at a size that a CPU trains: a plain vision
transformer with a linear decoder on the masks of the shapes data set (background and four kinds of
shapes). The encoder is compressed without training; ``recovery=affine`` is fitted to unlabeled
training images. Every way is measured on all validation images.

Shapes: B image, H and W of a map, E classes of a token's cells.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.backbone import ViT
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.nn import functional as F

from token_transforming import fit_recovery, restore, transform
from tokendetr.analysis.flops import count_flops
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Table, splice
from tokendetr.io.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "segmentation" / "results.json"
PAGE = ROOT / "docs" / "reproduction" / "measurements" / "token_transforming.md"
SIDE, PATCH, WIDTH, DEPTH, HEADS, CELLS = 256, 16, 96, 6, 3, 4
"""Pixels of the canvas and of a patch, the encoder, and the decoder's cells per patch and side."""
KINDS = ("background", "disc", "square", "triangle", "cross")
IGNORED = 255
"""Label of pixels outside of the image and of crowds."""
FITTED = 128
"""Images that affine recoveries are fitted to; a quarter as many are held back."""
DISTINCT = {"method": "transforming", "selection": "distinct"}
WAYS: dict[str, dict[str, Any]] = {
    "pruning": {"method": "pruning"},
    "merging": {"method": "merging"},
    "transforming": {"method": "transforming"},
    "transforming, least alike *": DISTINCT,
    "transforming, least alike, residual *": {**DISTINCT, "recovery": "residual"},
    "transforming, least alike, affine *": {**DISTINCT, "recovery": "affine"},
}
PLACES: dict[tuple[int, ...], tuple[float, ...]] = {(1,): (0.5, 0.3), (0, 2, 4): (0.7,)}
"""Blocks that reduce, once and three times, and what is kept at each."""


class Segmenter(nn.Module):
    """A plain ViT and a linear decoder of its patches.

    Takes records of detectron2's form, of which ``image`` (uint8 [3, SIDE, SIDE]) is used, and
    returns logits [B, kinds, SIDE / PATCH * CELLS, likewise].
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ViT(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            pretrain_img_size=SIDE,
            pretrain_use_cls_token=False,
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.Linear(WIDTH, len(KINDS) * CELLS**2)

    def forward(self, records: Sequence[dict[str, Any]]) -> Tensor:
        """Return the logits of a batch."""
        image_B3HW = torch.stack([record["image"] for record in records]).float() / 128 - 1
        patch_BCHW = self.backbone(image_B3HW)["last_feat"]
        logit_BHWE = self.decoder(self.norm(patch_BCHW.permute(0, 2, 3, 1)))
        return F.pixel_shuffle(logit_BHWE.permute(0, 3, 1, 2), CELLS)


@dataclass(frozen=True)
class MaskedImages:
    """Images of the shapes data set and their masks, on a canvas of one size.

    Attributes:
        folder: of the images.
        coco: the annotations.
        ids: of the images, in order.
    """

    folder: Path
    coco: COCO
    ids: Sequence[int]

    @classmethod
    def of(cls, root: Path, split: str) -> MaskedImages:
        """Open a split."""
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        return cls(root / split, coco, sorted(coco.imgs))

    def read(self, index: int, *, mirrored: bool = False) -> dict[str, Any]:
        """Return ``image``, uint8 [3, SIDE, SIDE], and ``label``, long [SIDE, SIDE]."""
        info = self.coco.imgs[self.ids[index]]
        pixels_HW3 = np.asarray(Image.open(self.folder / info["file_name"]).convert("RGB"))
        height, width = pixels_HW3.shape[:2]
        image_HW3 = np.full((SIDE, SIDE, 3), 128, np.uint8)
        label_HW = np.full((SIDE, SIDE), IGNORED, np.int64)
        image_HW3[:height, :width], label_HW[:height, :width] = pixels_HW3, 0
        for annotation in self.coco.imgToAnns[info["id"]]:
            kind = self.coco.cats[annotation["category_id"]]["supercategory"]
            value = IGNORED if annotation["iscrowd"] else KINDS.index(kind)
            label_HW[:height, :width][self.coco.annToMask(annotation) > 0] = value
        image, label = torch.from_numpy(image_HW3).permute(2, 0, 1), torch.from_numpy(label_HW)
        if mirrored:
            image, label = image.flip(-1), label.flip(-1)
        return {"image": image, "label": label, "height": SIDE, "width": SIDE}

    def batches(self, indices: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """Yield batches of eight images."""
        for start in range(0, len(indices), 8):
            yield [self.read(index) for index in indices[start : start + 8]]


def train(model: Segmenter, images: MaskedImages, iterations: int, batch: int) -> None:
    """Train encoder and decoder from nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / iterations))),
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    started = time.perf_counter()
    for iteration in range(iterations):
        chosen = torch.randint(len(images.ids), (batch,), generator=generator).tolist()
        flips = torch.rand(batch, generator=generator) < 0.5
        records = [
            images.read(index, mirrored=bool(flip))
            for index, flip in zip(chosen, flips, strict=True)
        ]
        loss = F.cross_entropy(_full_size(model(records)), _labels(records), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (iteration + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"{iteration + 1}: loss {float(loss):.3f}, {seconds:.0f} s", flush=True)


def _labels(records: Sequence[dict[str, Any]]) -> Tensor:
    return torch.stack([record["label"] for record in records])


def _full_size(logit_BVHW: Tensor) -> Tensor:
    return F.interpolate(logit_BVHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


@torch.no_grad()
def mean_iou(model: nn.Module, images: MaskedImages) -> float:
    """Return the mean over kinds of intersection over union on all images, in percent."""
    count = len(KINDS)
    confusion = torch.zeros(count * count)
    for records in images.batches(range(len(images.ids))):
        predicted = _full_size(model(records)).argmax(dim=1)
        label = _labels(records)
        seen = label != IGNORED
        confusion += torch.bincount(count * label[seen] + predicted[seen], minlength=count**2)
    table = confusion.view(count, count)
    both = table.diagonal()
    return float(100 * (both / (table.sum(0) + table.sum(1) - both)).mean())


def sweep(model: Segmenter, root: Path, recorded: dict[str, Any]) -> None:
    """Measure what is not recorded, and record it."""
    images, unlabeled = MaskedImages.of(root, "val"), MaskedImages.of(root, "train")
    fitted = list(unlabeled.batches(range(FITTED)))
    held_back = list(unlabeled.batches(range(FITTED, FITTED + FITTED // 4)))
    points: dict[str, list[float]] = recorded["points"]
    for name, place, keep, options in _points():
        if name in points:
            continue
        if options is not None:
            transform(model.backbone, layers=place, keep_ratio=keep, **options)
            if options.get("recovery") == "affine":
                fit_recovery(model, fitted, held_back)
        counted = count_flops(model, [images.read(0)], arithmetic=False)
        gflops = counted.by_part["backbone"] / 1e9
        points[name] = [round(mean_iou(model, images), 2), round(gflops, 4)]
        restore(model.backbone)
        print(name, points[name], flush=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(RESULTS), (json.dumps(recorded, indent=1) + "\n").encode())


def _points() -> Iterator[tuple[str, tuple[int, ...], float, dict[str, Any] | None]]:
    yield "dense", (), 1.0, None
    for place, keeps in PLACES.items():
        for way, options in WAYS.items():
            for keep in keeps:
                yield f"{place}; {way}; {keep:g}", place, keep, options


def tables(recorded: dict[str, Any]) -> list[Table]:
    """Return a table for each choice of blocks."""
    points = recorded["points"]
    dense_iou, dense_gflops = points["dense"]
    found = []
    for place, keeps in PLACES.items():
        rows = []
        for way in WAYS:
            cells: list[str | None] = [way]
            for keep in keeps:
                point = points.get(f"{place}; {way}; {keep:g}")
                saved = 0 if point is None else 100 * (1 - point[1] / dense_gflops)
                cells.append(None if point is None else f"{point[0]:.1f} ({saved:.0f} %)")
            rows.append(cells)
        blocks = f"block{'s' * (len(place) > 1)} {', '.join(map(str, place))}"
        found.append(
            Table(
                name=f"segmentation_{len(place)}",
                title=f"mIoU, and how many of the encoder's operations are saved; reduced at "
                f"{blocks}; dense {dense_iou:.1f}, {dense_gflops:.3f} GFLOPs",
                columns=("kept", *(f"{keep:g}" for keep in keeps)),
                rows=rows,
                notes=(
                    f"{recorded['training']}; * is ours, not the paper's.",
                    f"{recorded['date']}, `python -m benchmarks.segmentation`, "
                    f"{recorded['machine']}",
                ),
            )
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=Path("datasets/shapes"), help="the shapes data set")
    add("--weights", type=Path, default=Path("output/segmentation/model.pth"))
    add("--train", action="store_true", help="make the weights")
    add("--iterations", type=int, default=1000, help="of training (default 1000)")
    add("--batch-size", type=int, default=12, help="of training (default 12)")
    add("--splice", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = Segmenter()
    if args.train:
        train(model, MaskedImages.of(args.data, "train"), args.iterations, args.batch_size)
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        saved = {"model": model.state_dict(), "iterations": args.iterations}
        torch.save({**saved, "batch_size": args.batch_size}, args.weights)
        return
    if not args.splice:
        loaded = torch.load(args.weights, weights_only=True)
        model.load_state_dict(loaded["model"])
        recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"points": {}}
        recorded["training"] = (
            f"trained for {loaded['iterations']} iterations of {loaded['batch_size']} images"
        )
        recorded["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        recorded["machine"] = machine()
        sweep(model.eval(), args.data, recorded)
    for table in tables(json.loads(RESULTS.read_text())):
        sys.stdout.write(table.markdown() + "\n")
        splice(PAGE, table)


if __name__ == "__main__":
    main()
