"""The bootstrap of AP over images, against pycocotools on the drawn images themselves."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tokendetr.analysis.significance import compare, holm, seed_variance
from tokendetr.evaluation.bootstrap import draw_images, match_images

NUM_IMAGES = 12


def a_data_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make ground truth with crowds and an empty image, and detections near it and elsewhere."""
    random = np.random.default_rng(seed)
    truths: list[dict[str, Any]] = []
    detections = []
    for image in range(1, NUM_IMAGES):  # the first image, 0, stays empty
        for _ in range(int(random.integers(1, 6))):
            x, y, w, h = (float(v) for v in (*random.uniform(0, 100, 2), *random.uniform(8, 80, 2)))
            category = int(random.integers(1, 4))
            record = {"image_id": image, "category_id": category}
            crowd = int(random.random() < 0.1)
            truths.append(
                {**record, "id": len(truths) + 1, "bbox": [x, y, w, h]}
                | {"area": w * h, "iscrowd": crowd}
            )
            shift = float(random.normal(0, 6))
            detections.append({**record, "bbox": [x + shift, y, w, h], "score": random.random()})
        detections.append(
            {"image_id": image, "category_id": 1, "bbox": [3.0, 3.0, 30.0, 30.0], "score": 0.3}
        )
    images = [{"id": image, "width": 200, "height": 200} for image in range(NUM_IMAGES)]
    categories = [{"id": n, "name": str(n)} for n in (1, 2, 3)]
    return {"images": images, "annotations": truths, "categories": categories}, detections


def pycocotools_ap(truth: dict[str, Any], detections: list[dict[str, Any]], place: int) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[place])


@pytest.mark.parametrize(("area", "place"), [("all", 0), ("small", 3), ("medium", 4)])
def test_every_image_once_is_pycocotools_ap(area: str, place: int) -> None:
    truth, detections = a_data_set(seed=0)
    ours = match_images(copy.deepcopy(truth), detections, area).average_precision()
    assert ours == pytest.approx(pycocotools_ap(truth, detections, place), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_replicate_is_pycocotools_ap_of_the_drawn_images(seed: int) -> None:
    truth, detections = a_data_set(seed)
    times_I = draw_images(NUM_IMAGES, 1, seed)[0]
    images: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []
    found = []
    for image, times in enumerate(times_I):
        for _ in range(times):
            number = len(images)
            images.append({**truth["images"][image], "id": number})
            for record in truth["annotations"]:
                if record["image_id"] == image:
                    truths.append({**record, "image_id": number, "id": len(truths) + 1})
            found += [{**d, "image_id": number} for d in detections if d["image_id"] == image]
    drawn = {**truth, "images": images, "annotations": truths}
    ours = match_images(copy.deepcopy(truth), detections).average_precision(times_I)
    assert ours == pytest.approx(pycocotools_ap(drawn, found, 0), abs=1e-9)


def test_no_detections_are_an_ap_of_zero() -> None:
    truth, _ = a_data_set(seed=0)
    assert match_images(truth, []).average_precision() == 0.0


def test_equal_arguments_draw_equal_images() -> None:
    times_RI = draw_images(7, 5, seed=3)
    assert (times_RI.sum(axis=1) == 7).all()
    assert (times_RI == draw_images(7, 5, seed=3)).all()


def test_an_interval_of_a_normal_difference() -> None:
    difference_R = np.random.default_rng(0).normal(1.0, 0.5, 20_000)
    found = compare(1.0, difference_R)
    assert (found.low, found.high) == pytest.approx((1 - 0.98, 1 + 0.98), abs=0.03)
    assert found.p_value == pytest.approx(0.0455, abs=0.01)  # two standard errors from 0
    assert found.smallest_visible == pytest.approx(2.80 * 0.5, abs=0.03)


def test_equal_detectors_do_not_differ() -> None:
    assert compare(0.0, np.zeros(200)).p_value == 1.0


def test_a_clear_difference_stays_clear_among_a_hundred_pairs() -> None:
    difference_R = np.random.default_rng(0).normal(3.0, 0.5, 500)
    assert max(holm([compare(3.0, difference_R).p_value] * 100)) < 1e-4


def test_variance_between_seeds_widens_the_interval() -> None:
    difference_R = np.random.default_rng(0).normal(1.0, 0.3, 20_000)
    found = compare(1.0, difference_R, seed_variance=0.16)
    assert found.high - found.mean == pytest.approx(1.96 * 0.5, abs=0.01)


def test_variance_between_seeds_is_pooled() -> None:
    # Squared deviations .5 and 2 of three and two scores, over 2 + 1 degrees of freedom.
    assert seed_variance([[1.0, 1.5, 0.5], [2.0, 4.0], [7.0]]) == pytest.approx((0.5 + 2) / 3)
    assert seed_variance([[1.0], [5.0]]) == 0.0


def test_few_replicates_are_refused() -> None:
    with pytest.raises(ValueError, match="100 replicates"):
        compare(0.0, np.zeros(50))


def test_holm_corrects_as_published() -> None:
    # The step-down products 4 x .005, 3 x .01, 2 x .03, 1 x .04, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
