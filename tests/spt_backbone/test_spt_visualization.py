"""Drawings of SPT's selected tokens."""

import json

import numpy as np
from PIL import Image

from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.cli import visualize_tokens
from tokendetr.config.zoo import get_config


def test_every_stage_gets_a_sheet_with_its_counts(tmp_path):
    from detectron2.config import instantiate

    name = "spt_dino_shapes"
    config = get_config(name)
    config.model.device = "cpu"
    config.model.backbone.threshold = 0.5
    weights = str(tmp_path / "weights.safetensors")
    save_safetensors(instantiate(config.model), weights)
    picture = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    folder = tmp_path / "out"
    visualize_tokens.main(
        ["--config-file", name, "--input", str(picture)]
        + ["--output", str(folder), "--min_size_test", "96", "--max_size_test", "128"]
        + ["--opts", f"train.init_checkpoint={weights}", "model.backbone.threshold=0.5"]
    )
    counts = json.loads((folder / "tokens.json").read_text())
    assert set(counts) == {f"{picture}, backbone stage 3", f"{picture}, backbone stage 4"}
    for stage, blocks, tokens in ((3, 4, 48), (4, 2, 12)):
        layers = counts[f"{picture}, backbone stage {stage}"]
        assert [layer["tokens"] for layer in layers] == [tokens] * blocks
        assert all(0 <= layer["queries"] <= tokens for layer in layers)
        assert Image.open(folder / f"picture_backbone_stage_{stage}.png").width == 256 + 12
    assert not (folder / "picture_tokens.png").exists()  # the encoder is dense
