"""tools/fit_recovery.py: maps from a folder of images, in a checkpoint that the config loads."""

import pytest
import torch
from detectron2.config import instantiate

from tests.small_shapes import small_shapes
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.cli import fit_recovery, sweep_tokens
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config_file
from tokendetr.predict import build_model

CONFIG = "token_transforming_dino_shapes_vit"
AFFINE = "model.backbone.token_transform.recovery=affine"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with small_shapes(tmp_path_factory, num_train=6, num_val=2) as folder:
        yield folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    save_safetensors(
        instantiate(load_config(str(get_config_file("dino_shapes_vit"))).model), str(path)
    )
    return path


def test_fitted_maps_load_with_the_config(shapes, weights, tmp_path, capsys):
    output = tmp_path / "affine.pth"
    fit_recovery.main(
        [CONFIG, f"train.init_checkpoint={weights}", "--images", str(shapes / "train")]
        + ["--output", str(output), "--batch-size", "2", "--number", "4"]
    )
    assert "use it with model.backbone.token_transform.recovery=affine" in capsys.readouterr().out
    cfg = load_config(str(get_config_file(CONFIG)), [f"train.init_checkpoint={output}", AFFINE])
    model = build_model(cfg)
    maps = [m for name, m in model.named_modules() if name.endswith("token_recovery")]
    assert len(maps) == 3 and all(each.weight.any() for each in maps)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("dino_shapes_vit", [], "is not transformed"),
        (CONFIG, ["train.init_checkpoint="], "add train.init_checkpoint=FILE"),
        ("no_such_config", [], "there is no config named"),
    ],
)
def test_mistakes_end_in_one_line(config, overrides, message, shapes, tmp_path):
    with pytest.raises(SystemExit) as ended:
        fit_recovery.main(
            [config, *overrides, "--images", str(shapes), "--output", str(tmp_path / "x.pth")]
        )
    assert message in str(ended.value) and "\n" not in str(ended.value)


def test_a_sweep_fits_maps_at_every_point(shapes, weights, tmp_path):
    arguments = ["--config-file", str(get_config_file("dino_shapes_vit")), "--layers", "0"]
    arguments += ["--keep-ratios", "0.5", "--features", "2", "--repeats", "1"]
    arguments += ["--ways", "pruning:recovery=residual", "pruning:recovery=affine"]
    arguments += ["--fit", str(shapes / "train"), "--fit-images", "4", "--output", str(tmp_path)]
    sweep_tokens.main([*arguments, f"train.init_checkpoint={weights}", "train.device=cpu"])
    points = {point.method: point for point in sweep_tokens.points_of(tmp_path)}
    residual, affine = points["pruning:recovery=residual"], points["pruning:recovery=affine"]
    assert affine.metric < residual.metric
    assert residual.gflops < affine.gflops < 1.05 * residual.gflops


def test_a_sweep_without_images_to_fit_to_is_refused(capsys):
    with pytest.raises(SystemExit):
        sweep_tokens.main(
            ["--config-file", "x", "--layers", "0", "--output", "x"]
            + ["--ways", "merging:recovery=affine"]
        )
    assert "give --fit FOLDER" in capsys.readouterr().err
