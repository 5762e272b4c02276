"""The study of sparsification: every step once, with and without labels, in one table."""

import pytest
import torch
from detectron2.config import instantiate

from benchmarks import sparsification, sparsification_steps
from benchmarks.sparsification_steps import Distillation, Plan
from benchmarks.sparsification_tables import tables
from tests.small_shapes import small_shapes
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config_file
from tokendetr.sparsification import FitOptions

pytestmark = pytest.mark.slow
RATIOS = (0.5, 0.1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with small_shapes(tmp_path_factory, num_train=9, num_val=2) as folder:
        yield folder


def test_a_seed_is_fitted_trained_with_labels_and_recorded(shapes, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "dense.safetensors"
    save_safetensors(
        instantiate(load_config(str(get_config_file("dino_shapes"))).model), str(weights)
    )
    monkeypatch.setattr(sparsification, "COUNTED_IMAGES", 1)
    results = tmp_path / "results.json"
    overrides = [f"train.init_checkpoint={weights}", "train.device=cpu"]
    once = {step: Distillation(d.targets, 1) for step, d in sparsification_steps.DISTILLED.items()}
    monkeypatch.setattr(sparsification, "DISTILLED", once)
    options = FitOptions(score_iterations=1)

    def study():
        images, plan = [str(shapes / "train")], Plan(ratios=RATIOS)
        return sparsification.Study("dino_shapes", overrides, images, tmp_path, plan, results)

    study().run(0, options, labels=1)
    own = sparsification.recorded(results)["dino_shapes"]["seeds"]["0"]
    assert set(own["labels"]) == set(own["labels, no bypass"]) == {"0.5", "0.1"}
    assert set(own["outputs"]) == {"0.5", "0.1"} and set(own["mass"]) == {"0.1"}
    assert set(own["labels, dense"]) == {"None"} and own["iterations with labels"] == 1
    bypass = torch.load(tmp_path / "labels_0" / "labels" / "run" / "model_final.pth")["model"]
    assert any("bypass" in key for key in bypass)
    (table,) = tables(sparsification.recorded(results))
    names = [row[0] for row in table.rows]
    assert names.index("(d) the bypass in every layer, then trained with labels") > names.index(
        "(b) scores and bypass in every layer"
    )
    capsys.readouterr()
    study().run(0, options, labels=1)
    assert capsys.readouterr().out == "", "measured again"
