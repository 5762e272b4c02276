"""Detectors on awkward batches: padding, boxes, sizes, saturation, and twice the same."""

import random
from pathlib import Path

import torch

from tests.reliability.campaign import row
from tests.small_detectors import (
    NAMES,
    assert_same,
    build,
    detections,
    record,
    total,
    trained_parameters,
)


def name_of(seed: int) -> str:
    return NAMES[seed % len(NAMES)]


def random_boxes(rng: random.Random, height: int, width: int, count: int) -> list[list[float]]:
    boxes = []
    for _ in range(count):
        x, y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        boxes.append([x, y, rng.uniform(x, width), rng.uniform(y, height)])
    return boxes


@row(
    "MD3",
    "an image alone, and in a batch of 2 to 8 others of any size",
    target="float64: the same detections, scores to 1e-4, boxes to 1e-2 pixels",
    default=2,
    nightly=60,
    unit="images",
)
def batches(seed: int, folder: Path) -> int:
    rng = random.Random(seed)
    model = build(name_of(seed)).double()
    sizes = [(rng.randint(8, 160), rng.randint(8, 160)) for _ in range(rng.randint(2, 8))]
    records = [record(*size, seed=seed + number) for number, size in enumerate(sizes)]
    for one, found in zip(records, detections(model, records), strict=True):
        assert_same(found, detections(model, [one])[0])
    return len(records)


def awkward_boxes(rng: random.Random, kind: str) -> list[list[float]]:
    """Boxes of an image of 64 x 96 pixels."""
    some = random_boxes(rng, 64, 96, rng.randint(1, 4))
    return {
        "none": [],
        "without area": [*some, [10, 10, 10, 30], [5, 5, 5, 5]],
        "outside": [*some, [-40, -40, 200, 200], [90, 60, 130, 100]],
        "equal": [[10, 10, 40, 40]] * 6,
        "tiny": [[x, 20, x + 1e-3, 20 + 1e-3] for x in (1, 20, 95)],
        "many": random_boxes(rng, 64, 96, 1000),
    }[kind]


KINDS = ("none", "without area", "outside", "equal", "tiny", "many")


@row(
    "MD4",
    "no boxes, boxes without area, outside, equal, tiny, 1,000 boxes: loss and gradient",
    target="finite; the same parameters get a gradient as in an ordinary batch",
    default=2,
    nightly=60,
)
def boxes(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    model = build(name_of(seed))
    kind = KINDS[seed // len(NAMES) % len(KINDS)]
    ordinary = [record(64, 96, random_boxes(rng, 64, 96, 3), seed=n) for n in range(2)]
    expected = trained_parameters(model, ordinary)
    odd = [record(64, 96, awkward_boxes(rng, kind), seed=n) for n in range(2)]
    assert trained_parameters(model, odd) == expected, kind
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), kind


@row(
    "MD5",
    "images from 1x1 to 4000x32 pixels, tall, wide and prime sizes",
    target="0 exceptions; finite detections and losses",
    default=2,
    nightly=60,
)
def image_sizes(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    prime = rng.choice((2, 3, 7, 31, 97, 211))
    size = rng.choice(
        ((1, 1), (1, rng.randint(1, 2000)), (rng.randint(1, 2000), 1), (4000, 32), (32, 4000),
         (prime, rng.choice((5, 13, 101))), (rng.randint(1, 16), rng.randint(1, 16)))
    )  # fmt: skip
    model = build(name_of(seed), num_queries=rng.choice((4, 12, 60)))
    (found,) = detections(model, [record(*size, seed=seed)])
    assert found.pred_boxes.tensor.isfinite().all() and found.scores.isfinite().all()
    losses = model.train()([record(*size, [[0, 0, 1, 1]]), record(16, 16)])
    assert torch.isfinite(total(losses)), losses


@row(
    "MD6",
    "logits of 1e4, constant images, weights that are all zero: the losses",
    target="finite",
    default=2,
    nightly=60,
)
def saturation(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    model = build(name_of(seed)).train()
    kind = ("logits", "constant", "zero")[seed // len(NAMES) % 3]
    batch = [record(64, 96, random_boxes(rng, 64, 96, n), seed=n) for n in (3, 1)]
    with torch.no_grad():
        if kind == "logits":
            for name, parameter in model.named_parameters():
                if "class_embed" in name and name.endswith("bias"):
                    parameter.fill_(rng.choice((1e4, -1e4)))
        elif kind == "constant":
            batch = [{**r, "image": torch.full_like(r["image"], 255.0 * (n % 2))}
                     for n, r in enumerate(batch)]  # fmt: skip
        else:
            for parameter in model.parameters():
                parameter.zero_()
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), (kind, losses)
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), kind


@row(
    "MD9",
    "50 steps of training, twice",
    target="bit for bit",
    default=0,
    nightly=len(NAMES),
)
def repeated(seed: int, folder: Path) -> None:
    def train() -> dict[str, torch.Tensor]:
        model = build(name_of(seed)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        rng = random.Random(seed)
        torch.manual_seed(seed)
        for step in range(50):
            batch = [record(32, 48, random_boxes(rng, 32, 48, n), seed=step) for n in (2, 1)]
            optimizer.zero_grad()
            total(model(batch)).backward()
            optimizer.step()
        return model.state_dict()

    one, two = train(), train()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
