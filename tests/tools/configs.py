"""Config files of tiny detectors with data of their own, for running the tools."""

from pathlib import Path

from tests import small_detectors

TEXT = """
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detrex.config import get_config
from omegaconf import OmegaConf

from tests import small_detectors
from tests.tools.configs import Drawing, drawn

model = L(small_detectors.{detector})(num_queries=12)
train = get_config("common/train.py").train
train.device = "cpu"
optimizer = get_config("common/optim.py").AdamW
dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(drawn)(count=6), mapper=L(Drawing)(), total_batch_size=2, num_workers=0
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(drawn)(count=3), mapper=L(Drawing)(), num_workers=0
)
"""


def drawn(count: int) -> list[dict]:
    """Return records of images that the mapper draws."""
    return [{"image_id": index, "height": 64, "width": 64 + 32 * index} for index in range(count)]


class Drawing:
    """A mapper that draws a record's image, with two boxes."""

    def __call__(self, record: dict) -> dict:
        boxes = [[4, 4, 40, 30], [20, 8, 60, 60]]
        size = (record["height"], record["width"])
        return small_detectors.record(*size, boxes, seed=record["image_id"])


def write_config(folder: Path, detector: str = "dino") -> str:
    """Write a config file and return its path."""
    path = folder / f"small_{detector}.py"
    path.write_text(TEXT.format(detector=detector))
    return str(path)
