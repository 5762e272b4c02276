"""VOC and BDD100K in their original layout on disk, through training and evaluation."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from tests.train import toy
from tokendetr.config.fragments import get_fragment
from tokendetr.config.load import fill_defaults, load_config
from tokendetr.config.registration import register_coco_format
from tokendetr.data.bdd100k import register_bdd100k
from tokendetr.data.validate import validate_config_data
from tokendetr.errors import ConfigError
from tokendetr.train.run import train

VOC_OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>
<ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"""
VOC_BOXES = {
    "000001": [("cat", 3, 5, 20, 22)],
    "000002": [("cat", 1, 1, 9, 9), ("dog", 8, 4, 40, 28)],
}


def write_voc(root):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for image_id, objects in VOC_BOXES.items():
        pixels = np.full((30, 44, 3), 90, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg")
        parts = "".join(
            VOC_OBJECT.format(name=name, x=x, y=y, right=right, bottom=bottom)
            for name, x, y, right, bottom in objects
        )
        size = "<size><width>44</width><height>30</height><depth>3</depth></size>"
        text = f"<annotation>{size}{parts}</annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(text)
    for split in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(VOC_BOXES) + "\n")


class Oracle(nn.Module):
    """A detector that returns the annotations."""

    def __init__(self, records):
        super().__init__()
        self.records = {record["image_id"]: record for record in records}

    def forward(self, batched_inputs):
        return [{"instances": self.detect(record)} for record in batched_inputs]

    def detect(self, image):
        record = self.records[image["image_id"]]
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        if record["annotations"] and record["annotations"][0]["bbox_mode"] == 1:
            boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes.view(-1, 4))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]]).long()
        found.scores = torch.ones(len(boxes))
        return found


def oracle_metrics(dataloader):
    names = dataloader.test.dataset.names
    dataloader.test.num_workers = 0
    loader, evaluator = instantiate(dataloader.test), instantiate(dataloader.evaluator)
    return inference_on_dataset(Oracle(DatasetCatalog.get(names)), loader, evaluator)["bbox"]


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / "VOC2007")
    names = [f"voc_of_a_test_{split}" for split in ("trainval", "test")]
    for name in names:
        split = name.rpartition("_")[2]
        register_pascal_voc(name, str(tmp_path / "VOC2007"), split, 2007)
        MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    dataloader = get_fragment("data/voc2007_detr.py").dataloader
    dataloader.train.dataset.names, dataloader.test.dataset.names = names
    yield dataloader
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_voc_ground_truth_scores_100_for_classes_with_boxes(voc):
    """Of 20 classes two have boxes, so the mean over classes is a tenth."""
    metrics = oracle_metrics(voc)
    assert metrics["AP"] == pytest.approx(10.0)
    assert metrics["AP50"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    "mark", ["<difficult></difficult>", "<difficult>Unspecified</difficult>", ""]
)
def test_vocs_difficult_mark_may_be_open_in_evaluation(voc, tmp_path, mark):
    for path in (tmp_path / "VOC2007" / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0</difficult>", mark))
    assert oracle_metrics(voc)["AP"] == pytest.approx(10.0)


def test_voc_trains_and_evaluates(voc, tmp_path):
    cfg = toy.make_config(tmp_path, tmp_path / "output")
    cfg.dataloader = voc
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.num_workers = cfg.dataloader.test.num_workers = 0
    cfg.model.num_classes = 20
    cfg.train.max_iter = cfg.train.eval_period = 2
    fill_defaults(cfg)
    validate_config_data(cfg)
    results = train(cfg, instantiate(cfg.model), resume=False)
    assert 0 <= results["bbox"]["AP"] <= 100
    assert '"bbox/AP"' in (tmp_path / "output" / "metrics.json").read_text()
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")


def write_bdd100k(root, num_images=4):
    for split in ("train", "val"):
        made = root / "made"
        annotations = toy.write_dataset(made, num_images=num_images)
        (root / "jsons").mkdir(parents=True, exist_ok=True)
        shutil.move(annotations, root / "jsons" / f"det_{split}_cocofmt.json")
        shutil.move(made / "images", root / "images" / "100k" / split)


@pytest.fixture
def bdd100k(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_bdd100k(tmp_path / "bdd100k")
    dataloader = get_fragment("data/bdd100k_detr.py").dataloader
    dataloader.evaluator.output_dir = None  # of ``train``, which is not there
    yield dataloader
    for name in ("bdd100k_train", "bdd100k_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_bdd100k_ground_truth_scores_100(bdd100k):
    assert oracle_metrics(bdd100k)["AP"] == pytest.approx(100.0)
    assert len(instantiate(bdd100k.train.dataset)) == 3, "images without boxes train nobody"


def test_bdd100k_is_checked_before_training(bdd100k, tmp_path):
    cfg = toy.make_config(tmp_path, tmp_path / "output")
    cfg.dataloader = bdd100k
    validate_config_data(cfg)
    (tmp_path / "bdd100k" / "images" / "100k" / "train" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"det_train_cocofmt\.json.*\n.*001\.png does not exist"):
        validate_config_data(cfg)
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")


def test_a_name_means_the_folder_registered_last(bdd100k, tmp_path):
    assert len(DatasetCatalog.get("bdd100k_val")) == 4
    write_bdd100k(tmp_path / "other", num_images=7)
    register_bdd100k(str(tmp_path / "other"))
    records = DatasetCatalog.get("bdd100k_val")
    assert len(records) == 7
    assert records[0]["file_name"].startswith(str(tmp_path / "other"))
    register_bdd100k(str(tmp_path / "other"))  # repeating a registration changes nothing
    assert MetadataCatalog.get("bdd100k_val").thing_classes == ["class0", "class1", "class2"]


def test_configs_that_register_may_be_loaded_again_with_other_paths(tmp_path):
    config = tmp_path / "config.py"
    for folder, num_images in (("one", 4), ("other", 7), ("other", 7)):
        toy.write_dataset(tmp_path / folder, num_images=num_images)
        files = f"{str(tmp_path / folder / 'annotations.json')!r}, {str(tmp_path / folder)!r}"
        config.write_text(
            "from detectron2.data.datasets import register_coco_instances\n"
            f"register_coco_instances('again', {{}}, {files})\n"
            "train = {}\n"
        )
        load_config(str(config))
        assert len(DatasetCatalog.get("again")) == num_images
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register("again", list)
    config.write_text(config.read_text().replace("again", "coco_2017_val"))
    with pytest.raises(ConfigError, match="already registered|cannot be set"):
        load_config(str(config))
    DatasetCatalog.remove("again")
    MetadataCatalog.remove("again")


def test_configs_that_register_resolvers_may_be_loaded_again(tmp_path):
    file = tmp_path / "config.py"
    for factor in (4, 5):
        file.write_text(
            "from omegaconf import OmegaConf\n"
            f"OmegaConf.register_new_resolver('times', lambda number: {factor} * number)\n"
            "train = {'max_iter': '${times:3}'}\n"
        )
        assert load_config(str(file)).train.max_iter == 3 * factor
    with pytest.raises(ValueError, match="'times' is already registered"):
        OmegaConf.register_new_resolver("times", abs)
    OmegaConf.clear_resolver("times")


def test_configs_that_register_data_sets_load_in_threads_without_changing_the_catalog(tmp_path):
    register, names = DatasetCatalog.register, {"first", "second", "third"}
    body = f"from detectron2.data import DatasetCatalog\nfor name in {sorted(names)}:\n"
    config, twice = tmp_path / "config.py", tmp_path / "twice.py"
    config.write_text(f"{body}    DatasetCatalog.register(name, list)\ntrain = {{}}\n")
    twice.write_text(f"{config.read_text()}DatasetCatalog.register('third', list)\n")
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(load_config, [str(config)] * 8))) == 8
    for _ in range(2):
        with pytest.raises(ConfigError, match="line 5.*'third' is already registered"):
            load_config(str(twice))
    load_config(str(config))
    assert names <= set(DatasetCatalog) and DatasetCatalog.register == register
    for name in names:
        DatasetCatalog.remove(name)


def test_configs_load_again_with_other_paths_where_assertions_are_off(tmp_path, monkeypatch):
    """``python -O`` removes detectron2's own check of names that are taken."""

    def register(self, name, records):
        self[name] = records

    monkeypatch.setattr(type(DatasetCatalog), "register", register)
    monkeypatch.setattr(Metadata, "__setattr__", lambda self, k, v: self.__dict__.setdefault(k, v))
    config = tmp_path / "config.py"
    for folder in ("one", "other", "other"):
        files = f"{f'{tmp_path}/{folder}.json'!r}, {str(tmp_path / folder)!r}"
        config.write_text(
            "from detectron2.data.datasets import register_coco_instances\n"
            f"register_coco_instances('unchecked', {{}}, {files})\ntrain = {{}}\n"
        )
        load_config(str(config))
        assert MetadataCatalog.get("unchecked").json_file == f"{tmp_path}/{folder}.json"
    DatasetCatalog.remove("unchecked")
    MetadataCatalog.remove("unchecked")


def test_what_a_load_does_not_register_again_comes_back(tmp_path, monkeypatch):
    """A module is imported once; a load that fails leaves the data sets of the one before."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_once.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('once', list)\n"
        "MetadataCatalog.get('once').thing_classes = ['a']\n"
    )
    config = tmp_path / "config.py"

    def write(folder, *lines):
        register = f"register_coco_instances('own', {{}}, '{folder}.json', '{folder}')"
        head = "from detectron2.data.datasets import register_coco_instances"
        config.write_text("\n".join((head, *lines, register, "train = {}\n")))

    write("one")
    load_config(str(config))
    write("other", "import imported_once")
    load_config(str(config))
    assert MetadataCatalog.get("own").json_file == "other.json"
    assert MetadataCatalog.get("once").thing_classes == ["a"] and DatasetCatalog.get("once") == []
    records = DatasetCatalog["own"]
    write("third")
    config.write_text(f"{config.read_text()}raise ValueError('too early')\n")
    with pytest.raises(ConfigError, match="too early"):
        load_config(str(config))
    assert MetadataCatalog.get("own").json_file == "other.json"
    assert DatasetCatalog["own"] is records
    for name in ("own", "once"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_name_may_be_registered_again_for_another_kind_of_data_set(tmp_path):
    DatasetCatalog.register("taken", list)
    register_coco_format("taken", str(toy.write_dataset(tmp_path)), str(tmp_path / "images"))
    assert len(DatasetCatalog.get("taken")) == 10
    DatasetCatalog.remove("taken")
    MetadataCatalog.remove("taken")
