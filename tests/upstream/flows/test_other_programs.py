"""Programs that look at detectors and data, each with a detector of the other project."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.upstream.flows.programs import ROOT, as_coco, checkout, detrexs_projects, start
from tokendetr.config import zoo

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

IMAGES = 4
DETREXS = ["--config-file", Path(__file__).with_name("detrex_config.py")]
"""A Deformable DETR of detrex with an encoder of this project."""
SIZES = ["--min_size_test", 96, "--max_size_test", 128]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and what programs leave."""
    return as_coco(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="module")
def variables(folder):
    """The environment of the programs."""
    config = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"
    return {
        "DETECTRON2_DATASETS": folder,
        "FLOW_CONFIG": checkout("detrex") / config,
        "FLOW_METHOD": "dynamic",
        "FLOW_DATA": folder / "coco",
        "FLOW_OUTPUT": folder / "output",
        "PYTHONPATH": f"{detrexs_projects(folder)}:{ROOT}",
    }


@pytest.fixture(scope="module")
def weights(folder, variables):
    """A checkpoint after one iteration, as an override."""
    train = [ROOT / "tools" / "train_net.py", *DETREXS, "train.max_iter=1", "train.eval_period=0"]
    start(train, **variables)
    return f"train.init_checkpoint={folder / 'output' / 'model_final.pth'}"


@pytest.fixture(scope="module")
def results(folder):
    """The annotations as COCO results of score 1."""
    found = json.loads((folder / "coco" / "annotations.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    path = folder / "results.json"
    path.write_text(json.dumps([{key: one[key] for key in keys} | {"score": 1.0} for one in found]))
    return path


def pictures(folder: Path) -> list[str]:
    """The stems of the images in a folder."""
    return sorted(path.stem for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


def tool(name: str, *arguments: Any) -> list[Any]:
    return [ROOT / "tools" / f"{name}.py", *arguments]


def test_our_demo_and_token_maps_show_detrexs_detector(folder, variables, weights, tmp_path):
    image = folder / "coco" / "images" / "000.png"
    found = ["--confidence-threshold", 0, "--input", image, "--output"]
    start(tool("demo", *DETREXS, *found, tmp_path / "demo", weights), **variables)
    assert pictures(tmp_path / "demo") == ["000"]
    detections = json.loads((tmp_path / "demo" / "detections.json").read_text())
    assert detections and {"bbox", "score", "category_id"} <= detections[0].keys()
    start(tool("visualize_tokens", *DETREXS, *found, tmp_path / "tokens", weights), **variables)
    assert len(pictures(tmp_path / "tokens")) == 2, "kept tokens, and queries of the decoder"


def test_our_counts_and_times_of_detrexs_detector(variables, tmp_path):
    size = ["--input-size", 96, 128]
    flops, times = tmp_path / "flops.json", tmp_path / "times.json"
    tasks = ["--tasks", "flop", "parameter", *size, "--json", flops]
    start(tool("analyze_model", *DETREXS, *tasks), **variables)
    counted = json.loads(flops.read_text())
    assert counted["flop"]["gflops"] > 1 and counted["parameter"]["total"] > 39e6
    once = ["--task", "eval", *size, "--repeats", 1, "--warmup", 0, "--json", times]
    start(tool("benchmark", *DETREXS, *once), **variables)
    assert "encoder" in times.read_text()


# One image has no result: detrex's program shows it nevertheless.
@pytest.mark.parametrize(("program", "shown"), [("ours", IMAGES - 1), ("detrex's", IMAGES)])
def test_data_and_results_are_drawn(program, shown, variables, results, tmp_path):
    """This project's programs on detrex's config, detrex's on a config of this project."""
    where = ROOT if program == "ours" else checkout("detrex")
    config = DETREXS
    if program == "detrex's":
        config = ["--config-file", zoo.get_config_file("dino_r50_4scale_12ep")]
    data = ["--source", "annotation", *config, "--output-dir", tmp_path / "data"]
    start(["tools/visualize_data.py", *data], where, **variables)
    assert len(pictures(tmp_path / "data")) == IMAGES
    drawn = ["--input", results, "--output", tmp_path / "results", "--dataset", "coco_2017_val"]
    start(["tools/visualize_json_results.py", *drawn], where, **variables)
    assert len(pictures(tmp_path / "results")) == shown


def test_detrexs_analysis_and_demo_take_our_configs(folder, variables, tmp_path):
    config = ["--config-file", zoo.get_config_file("dynamic_dino_shapes")]
    cpu = ["train.device=cpu", "model.device=cpu"]
    few = ["dataloader.test.dataset.names=coco_2017_val", "dataloader.test.num_workers=0"]
    few += ["dataloader.test.mapper.augmentation.0.short_edge_length=96"]
    analyze = ["tools/analyze_model.py", *config, "--tasks", "flop", "activation", "parameter"]
    done = start([*analyze, "-n", 2, *cpu, *few], checkout("detrex"), **variables)
    told = done.stdout + done.stderr
    assert "Total GFlops" in told and "Parameter Count" in told and "Activations" in told
    image = folder / "coco" / "images" / "000.png"
    shown = ["--confidence-threshold", 0, "--input", image, "--output", tmp_path, "--opts", *cpu]
    start(["demo/demo.py", *config, *SIZES, *shown], checkout("detrex"), **variables)
    assert pictures(tmp_path) == ["000"]
