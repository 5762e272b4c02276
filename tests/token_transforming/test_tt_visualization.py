"""Heat maps of W: recorded matrices, typical rows, and the program that draws them."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from tests.token_transforming.plain_vits import PATCH, SIZE, images, vit
from token_transforming import transform
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.cli import visualize_mixing
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config_file
from tokendetr.encoder import record_tokens
from tokendetr.visualization.mixing import draw_mixing, shared_tokens, typical_tokens

SIDE = SIZE // PATCH
HOW = {"layers": (1, 2), "keep_ratio": 0.5, "threshold": 0.2, "temperature": 20.0}


def recorded():
    model = vit()
    transform(model, **HOW)
    with torch.no_grad(), record_tokens() as trace:
        model(images())
    return trace.reductions


def test_reductions_are_recorded_with_their_matrices():
    first, second = recorded()
    assert (first.block, second.block) == (1, 2) and first.grid == (SIDE, SIDE)
    weight = first.token_map.weights_BKN()
    assert weight.shape == (2, SIDE * SIDE // 2, SIDE * SIDE)
    torch.testing.assert_close(weight.sum(dim=2), torch.ones(2, SIDE * SIDE // 2))
    assert second.token_map.num_tokens == SIDE * SIDE // 4
    with pytest.raises(ValueError, match="block 2 form no grid"):
        draw_mixing(np.zeros((SIZE, SIZE, 3), np.uint8), second)


def test_typical_rows_gather_most_and_shared_tokens_are_counted():
    weight = torch.tensor([[1.0, 0, 0, 0], [0.4, 0.3, 0.3, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]])
    assert typical_tokens(weight, 2) == [1, 2]
    assert shared_tokens(weight) == 0.5  # tokens 0 and 2
    assert shared_tokens(torch.eye(4)) == 0


def test_a_heat_map_is_bright_where_its_row_is():
    first = recorded()[0]
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    sheet = np.asarray(draw_mixing(black, first, count=3, width=8 * SIDE), np.float32)
    weight = first.token_map.weights_BKN()[0]
    for number, row in enumerate(typical_tokens(weight, 3), start=1):
        left = 4 + number * (8 * SIDE + 4)
        tile = sheet[4 : 4 + 8 * SIDE, left : left + 8 * SIDE].sum(axis=2)
        cells = tile.reshape(SIDE, 8, SIDE, 8)[:, 4:, :, 4:].mean(axis=(1, 3))
        assert cells.argmax() == weight[row].argmax()


def test_the_tool_draws_a_config_s_backbone(tmp_path, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "dense.safetensors"
    save_safetensors(
        instantiate(load_config(str(get_config_file("dino_shapes_vit"))).model), str(weights)
    )
    Image.new("RGB", (250, 200), "red").save(tmp_path / "a.png")
    override = f"train.init_checkpoint={weights}"
    options = ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    config = ["--config-file", "token_transforming_dino_shapes_vit"]
    visualize_mixing.main([*config, *options, override])
    assert Image.open(tmp_path / "out" / "a_mixing.png").width > 1000
    found = json.loads((tmp_path / "out" / "mixing.json").read_text())[str(tmp_path / "a.png")]
    assert found["block"] == 0 and 0 <= found["part of the tokens that go into several"] <= 1
    with pytest.raises(SystemExit, match="no tokens of whole images were reduced"):
        visualize_mixing.main(["--config-file", "dino_shapes_vit", *options, override])
