"""Configs with detrex's names have detrex's values, and build on detrex's own files."""

import json
from pathlib import Path

import pytest
from detrex.config import get_config

from tests.projects.upstream_facts import (
    MISSING,
    ROOT,
    UPSTREAM,
    deliberate,
    differences,
    flatten,
)
from tokendetr.config import zoo
from tokendetr.config.files import PROJECTS_DIR
from tokendetr.errors import ConfigError

DELIBERATE = deliberate()
COMMON = json.loads((ROOT / "tests" / "golden" / "upstream_common.json").read_text())
FOUND: dict[str, dict] = {}
FOREIGN = {
    "dino_focal_base_lrf_fl3_4scale_12ep": "focalnet.FocalNet",
    "dino_focalnet_large_lrf_384_fl4_5scale_36ep": "focalnet.FocalNet",
    "dino_internimage_large_4scale_12ep": "internimage.InternImage",
    "dino_eva_01_4scale_12ep": "eva.EVAViT",
}


@pytest.mark.parametrize("name", UPSTREAM, ids=lambda name: Path(name).stem)
@pytest.mark.xdist_group("upstream_parity")
def test_a_config_has_detrexs_values(name):
    found = FOUND[name] = differences(name)
    assert not {k: pair for k, pair in found.items() if name not in DELIBERATE.get(k, ())}
    assert Path(zoo.get_config_file(Path(name).stem)) == PROJECTS_DIR.parent / name


@pytest.mark.xdist_group("upstream_parity")
def test_every_row_of_the_table_names_a_difference():
    """Runs after the comparisons and makes those that are missing itself."""
    FOUND.update({name: differences(name) for name in UPSTREAM if name not in FOUND})
    assert len(DELIBERATE) <= 25
    for key, names in DELIBERATE.items():
        used = {name for name, found in FOUND.items() if key in found}
        assert used, f"no config differs in {key}"
        # Rows for all configs, or for a project's, apply to those that differ.
        if len(names) <= 3:
            assert used == names, key


def test_a_wrong_value_is_found(tmp_path):
    name = "projects/dino/configs/dino-resnet/dino_r50_4scale_24ep.py"
    wrong = tmp_path / name
    wrong.parent.mkdir(parents=True)
    lines = (
        "from tokendetr.config import zoo",
        "config = zoo.get_config('dino_r50_4scale_24ep')",
        "dataloader, lr_multiplier, model = config.dataloader, config.lr_multiplier, config.model",
        "optimizer, train = config.optimizer, config.train",
        "model.label_noise_ratio = 0.2",
        "del model.position_embedding.temperature, train.seed",
        "model.transformer.encoder.num_points = 8",
        "optimizer.params.lr_factor_func.factors['sampling_offsets'] = 0.1",
    )
    wrong.write_text("\n".join(lines))
    found = differences(name, tmp_path)
    assert found["model.label_noise_ratio"] == (0.5, 0.2)
    assert found["model.position_embedding.temperature"] == (20, 10000)
    assert found["train.seed"] == (-1, MISSING)
    assert found["model.transformer.encoder.num_points"] == (MISSING, 8)
    assert "optimizer.params.lr_factor_func@" in found


@pytest.mark.parametrize("path", sorted(COMMON))
def test_shared_configs_have_detrexs_names_keys_and_values(path):
    ours = dict(flatten(get_config(path)))
    assert ours == COMMON[path]


def test_detrex_ships_the_shared_configs_that_are_here():
    folder = ROOT / "configs"
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*.py")} == set(COMMON)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_package_that_a_foreign_backbone_needs_is_named_in_one_line(name):
    """Checked without detrex; with it, the model is built."""
    backbone = zoo.get_config(name).model.backbone
    if _is_there(backbone.get("net", backbone)["_target_"]):
        pytest.skip("detrex itself is installed")
    with pytest.raises(ConfigError, match=f"{FOREIGN[name]}.* needs detrex itself") as caught:
        zoo.load(name)
    assert "\n" not in str(caught.value)


def _is_there(target: str) -> bool:
    from detectron2.utils.registry import locate

    try:
        locate(target)
    except ImportError:
        return False
    return True
