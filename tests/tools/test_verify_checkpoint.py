"""``tokendetr verify-checkpoint``, and the page of published files."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from tokendetr.checkpoint.published import find_published, published_checkpoints
from tokendetr.cli import verify_checkpoint
from tokendetr.config import load_config, zoo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published_checkpoints.md"


@pytest.fixture(scope="module")
def weights():
    config = load_config("dino_shapes", ["model.device=cpu"])
    return instantiate(config.model).state_dict()


def test_a_matching_checkpoint_is_confirmed(weights, tmp_path, capsys):
    torch.save({"model": weights}, tmp_path / "mine.pth")
    verify_checkpoint.main([str(tmp_path / "mine.pth"), "--config-file", "dino_shapes"])
    printed = capsys.readouterr().out
    tensors = len({value.data_ptr() for value in weights.values()})
    assert tensors < len(weights), "shared heads have several names"
    assert f"| matched                |      {tensors} |" in printed
    assert "every tensor fits" in printed and "authors" not in printed


def test_differing_keys_and_shapes_are_listed(weights, tmp_path, capsys):
    changed = {**weights, "stranger": torch.zeros(1), "label_enc.weight": torch.zeros(3, 2)}
    del changed["transformer.level_embeds"]
    torch.save({"model": changed}, tmp_path / "mine.pth")
    with pytest.raises(SystemExit, match="1 missing, 1 unexpected, 1 of another shape"):
        verify_checkpoint.main([str(tmp_path / "mine.pth"), "--config-file", "dino_shapes"])
    printed = capsys.readouterr().out
    assert "stranger" in printed and "transformer.level_embeds" in printed
    assert "label_enc.weight: [3, 2] in the file, [12, 96] in the model" in printed


@pytest.mark.parametrize(
    ("name", "rows", "advice"),
    [
        ("class_embed.0.weight", 5, "model.num_classes=5"),
        ("transformer.tgt_embed.weight", 7, "model.num_queries"),
        ("transformer.level_embeds", 5, "number of feature levels"),
        ("transformer.decoder.layers.0.attentions.1.attention_weights.weight", 96, "num_points"),
        ("transformer.enc_output.weight", 95, "width of a layer"),
    ],
)
def test_another_shape_is_explained_by_the_setting_that_determines_it(
    weights, tmp_path, capsys, name, rows, advice
):
    of_another = torch.zeros(rows, *weights[name].shape[1:])
    torch.save({"model": {**weights, name: of_another}}, tmp_path / "mine.pth")
    with pytest.raises(SystemExit, match="0 missing, 0 unexpected, 1 of another shape"):
        verify_checkpoint.main([str(tmp_path / "mine.pth"), "--config-file", "dino_shapes"])
    assert advice in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.pth"], "mine.pth is not the name of a published file.*--config-file"),
        (["/nowhere/dino_r50_4scale_24ep.pth"], "/nowhere/dino_r50_4scale_24ep.pth"),
        (["a.pth", "--config-file", "dino_shapes", "model.num_clases=3"], "num_classes"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        verify_checkpoint.main(arguments)


def test_published_files_are_found_by_name():
    found = find_published("/downloads/focus_detr_r50_4scale_12ep.pth")
    assert found is not None and found.file == "focus_detr_r50_4scale_12ep.zip"
    assert "init_checkpoint=focus_detr_r50_4scale_12ep.pth model." in found.command()
    assert find_published("https://x/dino_r50_4scale_24ep.pth?download=1").ap == 50.6


def test_every_published_file_has_a_config_that_takes_its_overrides():
    seen = {(row.config, row.overrides) for row in published_checkpoints()}
    for config, overrides in sorted(seen):
        assert zoo.get_config_file(config).is_file()
        assert not overrides or "model" in load_config(config, overrides)
    assert len({row.file for row in published_checkpoints()}) == len(published_checkpoints())


def test_the_page_is_the_table():
    assert verify_checkpoint.published_table().markdown().strip() in PAGE.read_text()
