"""The tools around data and checkpoints, on a small shapes data set."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from tests.small_shapes import small_shapes
from tokendetr.analysis.recorded_tables import read_recorded
from tokendetr.checkpoint.safetensors import load_safetensors
from tokendetr.cli import (
    demo_training,
    export_checkpoint,
    make_shapes,
    run_demo,
    visualize_data,
    visualize_json_results,
)
from tokendetr.config.load import load_config

DENSE = "dino_shapes"


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory):
    with small_shapes(tmp_path_factory, num_train=4, num_val=3) as folder:
        yield folder


def test_make_shapes_says_what_it_made(tmp_path, monkeypatch, capsys):
    root = tmp_path / "made"
    options = ["--root", str(root), "--train-images", "1", "--val-images", "1", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["make_shapes.py", *options])
    make_shapes.main()
    assert str(root) in capsys.readouterr().out
    assert (root / "train" / "000001.jpg").is_file()
    monkeypatch.setattr("sys.argv", ["make_shapes.py", *options, "--seed", "5"])
    with pytest.raises(SystemExit, match="error: .*'seed': 0.*'seed': 5"):
        make_shapes.main()


def test_annotations_are_drawn_on_the_images(shapes, tmp_path):
    visualize_data.main(
        ["--source", "annotation", "--config-file", DENSE, "--output-dir", str(tmp_path)]
        + ["--num", "2", "dataloader.train.dataset.names=shapes_val"]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001.jpg", "000002.jpg"]
    original = Image.open(shapes / "val" / "000001.jpg")
    drawn = np.asarray(Image.open(tmp_path / "000001.jpg"), dtype=float)
    assert drawn.shape[:2] == original.size[::-1]
    assert np.abs(drawn - np.asarray(original, dtype=float)).mean() > 3


def test_the_loaders_images_are_drawn_as_training_sees_them(shapes, tmp_path):
    visualize_data.main(
        ["--source", "dataloader", "--config-file", DENSE, "--output-dir", str(tmp_path)]
        + ["--num", "3", "dataloader.train.num_workers=0", "dataloader.train.total_batch_size=2"]
    )
    sizes = [Image.open(path).size for path in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert all(max(size) <= 272 for size in sizes)


def halves(path: Path, image: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return an image's left and right half, at its own size: small ones are drawn larger."""
    drawn = Image.open(path)
    scale = drawn.height / image["height"]
    assert scale >= 1
    assert drawn.width == pytest.approx(2 * scale * image["width"], abs=2)
    width = image["width"]
    pixels = np.asarray(drawn.resize((2 * width, image["height"])), dtype=float)
    return pixels[:, :width], pixels[:, width:]


def test_results_are_drawn_beside_the_truth(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    first = truth["annotations"][0]
    record = {key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([record]))
    output = tmp_path / "out"
    arguments = ["--input", str(results), "--output", str(output), "--dataset", "shapes_val"]
    visualize_json_results.main(arguments)
    image = next(i for i in truth["images"] if i["id"] == first["image_id"])
    (path,) = output.iterdir()
    assert path.stem == Path(image["file_name"]).stem
    left, right = halves(path, image)
    original = np.asarray(Image.open(shapes / "val" / image["file_name"]), dtype=float)
    assert np.abs(left - original).mean() > 0.5
    assert np.abs(right - original).mean() > 0.5
    visualize_json_results.main([*arguments, "--conf-threshold", "0.95"])
    again, _ = halves(path, image)
    assert np.abs(again - original).mean() < np.abs(left - original).mean()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not readable JSON"),
        ("{}", "holds a dict, not a list"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', "record 0 has no category_id, score"),
        ("[]", "no results for images of shapes_val"),
        (
            '[{"image_id": 1000001, "category_id": 77, "bbox": [0, 0, 1, 1], "score": 1}]',
            "no categories [77]",
        ),
    ],
)
def test_bad_results_are_refused(tmp_path, content, message):
    results = tmp_path / "results.json"
    results.write_text(content)
    with pytest.raises(SystemExit) as error:
        visualize_json_results.main(
            ["--input", str(results), "--output", str(tmp_path / "o"), "--dataset", "shapes_val"]
        )
    assert message in str(error.value)


def test_export_keeps_every_weight_and_halves_the_file(tmp_path, capsys):
    model = instantiate(load_config(DENSE).model)
    state = model.state_dict()
    torch.save({"model": state, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "m.pth")
    target = tmp_path / "new" / "m.safetensors"
    export_checkpoint.main(["--input", str(tmp_path / "m.pth"), "--output", str(target)])
    assert "MB" in capsys.readouterr().out
    assert target.stat().st_size < 0.55 * (tmp_path / "m.pth").stat().st_size
    assert target.stat().st_size < 8e6
    loaded = load_safetensors(str(target))
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-6)
    with pytest.raises(SystemExit, match=r"error: .*nothing\.pth"):
        export_checkpoint.main(["--input", "nothing.pth", "--output", str(target)])


def _renamed(weights):
    return {name.replace("cls_head.", "class_embed."): value for name, value in weights.items()}


def _dropping(weights):
    return {name: value for name, value in weights.items() if "level_embeds" not in name}


def _unchanged(weights):
    return weights


def test_converted_weights_are_compared_with_a_model_before_they_are_written(tmp_path, capsys):
    state = instantiate(load_config(DENSE).model).state_dict()
    theirs = {name.replace("class_embed.", "cls_head."): value for name, value in state.items()}
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    target = tmp_path / "ours.safetensors"
    command = ["--input", str(tmp_path / "theirs.pth"), "--output", str(target), "--convert"]
    here = f"{__name__}._"
    for function, message in (
        ("dropping", r"not every tensor fits dino_shapes \(\d+ missing, \d+ unexpected, 0 of"),
        ("unchanged", "changed none of the"),
    ):
        with pytest.raises(SystemExit, match=message):
            export_checkpoint.main([*command, here + function, "--config-file", "dino_shapes"])
        assert not target.exists()
    capsys.readouterr()
    export_checkpoint.main([*command, here + "renamed", "--config-file", "dino_shapes"])
    printed = capsys.readouterr().out
    heads = sum("class_embed." in name for name in state)
    assert f"{heads} are gone, {heads} are new" in printed and "not compared" not in printed
    assert load_safetensors(str(target)).keys() == state.keys()
    export_checkpoint.main([*command, here + "renamed"])
    assert f"tokendetr verify-checkpoint {target}" in capsys.readouterr().out


def test_the_demos_table_has_a_row_per_detector():
    candidate = run_demo.Candidate("DINO", "c.py", "w.pth")
    candidate.metrics = dict(zip(run_demo.METRICS, (50.04, 70.0, 30.0, 60.0, 65.0), strict=True))
    candidate.gflops, candidate.encoder_gflops, candidate.milliseconds = 0.9111, 0.2, 31.26
    candidate.large_milliseconds = 1571.2
    lines = run_demo.table([candidate], 250).markdown().splitlines()
    titles = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    values = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert "250 validation images" in lines[4]
    metrics, large = ["AP", "AP50", "APs", "APm", "APl"], "ms, R50 at 800 x 1216"
    assert titles == [*metrics, "GFLOPs", "encoder GFLOPs", "ms/image", large]
    assert values[1:6] == ["50.0", "70.0", "30.0", "60.0", "65.0"]
    assert values[6:] == ["0.911", "0.200", "31.3", "1571"]


def test_a_failed_training_names_its_log(tmp_path):
    command = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match=r"exit 3\); see .*console\.txt:\nthe reason"):
        demo_training.run_training(command, tmp_path / "console.txt", 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    """Needs the shipped checkpoints and draws the full data set if it is missing."""
    monkeypatch.delenv("DETECTRON2_DATASETS")
    run_demo.main(
        ["--output", str(tmp_path), "--iterations", "16", "--timed-images", "5"]
        + ["--score-iterations", "8"]
    )
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    average_precision = [float(row.split("|")[2]) for row in rows[2:4]]
    assert average_precision[0] >= 40
    assert average_precision[0] - average_precision[1] <= 3
    assert "killed with SIGKILL" in printed
    assert printed.rstrip().endswith(str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 1e5
    recorded = read_recorded(tmp_path / "results.json")
    assert recorded.commands == ["make demo"] and len(recorded.tables[0].rows) == 4
    assert len(list((tmp_path / "images").glob("*_tokens.png"))) == len(run_demo.DRAWN_IMAGES)
