"""The command: from a config's name and a folder to a config and weights that programs load."""

import json
from dataclasses import replace

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from tests.small_shapes import small_shapes
from tokendetr.analysis.inputs import build_measured_model
from tokendetr.checkpoint.safetensors import load_safetensors, save_safetensors
from tokendetr.cli import sparsify
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config, get_config_file
from tokendetr.errors import OutputError
from tokendetr.io.locks import LOCK_NAME, lock_folder
from tokendetr.predict import build_model, load
from tokendetr.sparsification import (
    FitOptions,
    NotSparsifiableError,
    SparsifyJob,
    StaleFitError,
    run_job,
    sparse_config,
    sparse_model,
)
from tokendetr.sparsification.state import FitState
from tokendetr.tokens import MassBudget

SMALL = ["model.transformer.encoder.feedforward_dim=32", "model.num_queries=20"]


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory):
    with small_shapes(tmp_path_factory, num_train=6, num_val=2) as folder:
        yield folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    model = instantiate(load_config(str(get_config_file("dino_shapes")), SMALL).model)
    with torch.no_grad():
        for head in model.class_embed:
            head.bias.fill_(-0.5)
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    save_safetensors(model, str(path))
    return path


def run(weights, folder, output, *options, config="dino_shapes"):
    sparsify.main(
        [config, *SMALL, f"train.init_checkpoint={weights}", "--images", str(folder)]
        + ["--output", str(output), "--score-iterations", "2", "--batch-size", "2", *options]
    )


def write_config(path, *changes):
    """Write the config of dino_shapes with changes, as lines of Python, and return its path."""
    names = "dataloader", "lr_multiplier", "model", "optimizer", "train"
    parts = [f"{name} = config.{name}" for name in names]
    lines = ["from tokendetr.config import zoo", "config = zoo.get_config('dino_shapes')", *parts]
    path.write_text("\n".join([*lines, *changes]))
    return str(path)


def test_it_writes_a_config_and_weights_that_load(shapes, weights, tmp_path, capsys):
    output, before = tmp_path / "sparse", weights.read_bytes()
    run(weights, shapes / "train", output, "--keep", "0.2", "--evaluate", "--budget", "mass")
    assert weights.read_bytes() == before
    assert sorted(p.name for p in output.iterdir() if p.is_file()) == [
        LOCK_NAME,
        "config.py",
        "model.pth",
        "report.json",
        "report.md",
    ]
    report = json.loads((output / "report.json").read_text())
    dense, ours = report["rows"]
    assert ours["encoder_gflops"] < dense["encoder_gflops"] and 0 <= ours["agreement"] <= 100
    assert dense["ap"] is not None and ours["ap"] is not None
    assert "sparse, keep 0.2 on the mean" in capsys.readouterr().out

    cfg = load_config(str(output / "config.py"))
    model = build_model(cfg)
    sparsifier = model.transformer.encoder.sparsifier
    assert sparsifier.keep_ratio == 0.2 and sparsifier.bypass.weight.any()
    assert not torch.equal(sparsifier.mass_budget.left_S, MassBudget().left_S)
    assert model.num_queries == 20
    saved = torch.load(output / "model.pth", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    override = "model.transformer.encoder.sparsifier.keep_ratio=0.5"
    other = build_measured_model(load_config(str(output / "config.py"), [override]))
    assert other.transformer.encoder.sparsifier.keep_ratio == 0.5


def test_a_moved_folder_and_a_config_file_work(shapes, weights, tmp_path):
    config = str(get_config_file("dino_shapes"))
    run(weights, shapes / "train", tmp_path / "a", "--method", "focus", config=config)
    (tmp_path / "a").rename(tmp_path / "b")
    cfg = load_config(str(tmp_path / "b" / "config.py"))
    # An evaluation writes beside it, and not over the results of the dense detector.
    assert cfg.train.output_dir == str(tmp_path / "b")
    assert load(str(tmp_path / "b"), device="cpu").weights == f"weights: {tmp_path / 'b/model.pth'}"
    model = build_model(cfg)
    assert model.transformer.encoder.sparsifier.bypass.weight.any()


def test_results_that_have_a_folder_of_their_own_move_too(tmp_path):
    config = write_config(
        tmp_path / "dense.py",
        "train.output_dir = './output/dense'",
        "dataloader.evaluator.output_dir = './output/dense/inference'",
    )
    checkpoint = str(tmp_path / "sparse" / "model.pth")
    cfg = sparse_config(config, method="sparse", keep_ratio=0.3, checkpoint=checkpoint)
    assert cfg.dataloader.evaluator.output_dir == str(tmp_path / "sparse" / "inference")


def test_a_result_in_a_folder_named_as_its_config_does_not_load_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "dino_shapes"
    own.mkdir()
    write_config(own / "config.py", "model.num_queries = 7")
    cfg = sparse_config("dino_shapes", method="sparse", keep_ratio=0.3, checkpoint="model.pth")
    assert cfg.model.num_queries == get_config("dino_shapes").model.num_queries


def test_the_dense_detectors_files_are_no_outputs(shapes, weights, tmp_path):
    dense = tmp_path / "model.pth"
    torch.save({"model": {}}, dense)
    with pytest.raises(SystemExit, match=r"model\.pth is an input"):
        run(dense, shapes / "train", tmp_path)
    config = write_config(tmp_path / "config.py")
    with pytest.raises(SystemExit, match=r"config\.py is an input"):
        run(weights, shapes / "train", tmp_path, config=config)


def test_a_run_is_named_by_its_folder(shapes, weights, tmp_path):
    dense, output = tmp_path / "dense", tmp_path / "sparse"
    bias = "transformer.decoder.class_embed.0.bias"
    dense.mkdir()
    cfg = load_config("dino_shapes", [*SMALL, "train.init_checkpoint=other.pth"])
    LazyConfig.save(cfg, str(dense / "config.yaml"))
    torch.save({"model": load_safetensors(str(weights))}, dense / "model_best.pth")
    job = SparsifyJob(config=str(dense), images=[str(shapes / "train")], output_dir=output)
    run_job(replace(job, batch_size=2, options=FitOptions(score_iterations=1)))
    assert load_config(str(output / "config.py")).model.num_queries == 20
    saved = torch.load(output / "model.pth", weights_only=True)["model"]
    assert torch.equal(saved[bias], load_safetensors(str(weights))[bias])
    with pytest.raises(OutputError, match="is the folder of a training"):
        run_job(replace(job, output_dir=dense))


def test_a_folder_has_one_writer(shapes, weights, tmp_path):
    with lock_folder(str(tmp_path)), pytest.raises(SystemExit, match="is in use"):
        run(weights, shapes / "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", [1], {"fingerprint": {}, "stage": "none"}])
def test_a_damaged_state_of_a_fit_is_named(tmp_path, content):
    path = tmp_path / "unfinished_fit.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(StaleFitError, match=r"unfinished_fit\.pth is .*: delete it"):
        FitState(path, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_config"], "there is no config named 'no_such_config'"),
        (["dino_shapes", "train.init_checkpoint="], "add train.init_checkpoint=FILE"),
        (["sparse_dino_shapes"], "has a sparsifier already"),
        (["dino_shapes", "train.init_checkpoint=nothing.pth"], "nothing.pth"),
        (["dino_shapes", "--keep", "0"], "keep_ratio must lie in"),
        (["dino_shapes", "--method", "focus", "--budget", "mass"], "'mass' needs method 'sparse'"),
        (["dino_shapes", "dataloader.test.dataset.names=no_set", "--evaluate"], "'no_set'"),
        (["dino_shapes", "dataloader.evaluator=null", "--evaluate"], "evaluator of boxes"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, shapes, tmp_path, request):
    if "--evaluate" in arguments:
        arguments = [*arguments, f"train.init_checkpoint={request.getfixturevalue('weights')}"]
        arguments += SMALL
    with pytest.raises(SystemExit) as ended:
        sparsify.main([*arguments, "--images", str(shapes / "train"), "--output", str(tmp_path)])
    assert message in str(ended.value) and "\n" not in str(ended.value)
    assert not (tmp_path / "model.pth").exists()


def test_counts_are_at_least_one(shapes, tmp_path, capsys):
    arguments = ["dino_shapes", "--images", str(shapes / "train"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        sparsify.main([*arguments, "--max-images", "0"])
    assert "--max-images: '0' is not a whole number of at least 1" in capsys.readouterr().err


def test_a_model_without_a_deformable_encoder_is_refused():
    model = get_config("dino_shapes").model
    del model.transformer.encoder
    with pytest.raises(NotSparsifiableError, match="no deformable encoder"):
        sparse_model(model, "sparse", 0.3)


@pytest.mark.parametrize("method", ["sparse", "focus", "random"])
@pytest.mark.parametrize(
    "name",
    [
        "dino_r50_4scale_12ep",
        "dino_r50_5scale_12ep",
        "dino_swin_tiny_224_4scale_12ep",
        "deformable_detr_r50_50ep",
        "dab_deformable_detr_r50_two_stage_50ep",
        "dn_deformable_detr_r50_50ep",
        "h_deformable_detr_r50_two_stage_50ep",
    ],
)
def test_configs_of_all_detectors_get_a_sparse_twin(name, method):
    model = sparse_model(get_config(name).model, method, 0.3)
    sparsifier = instantiate(model.transformer.encoder.sparsifier)
    bypass = sparsifier.bypass
    levels = 5 if "5scale" in name else 4
    assert (bypass.num_layers, bypass.num_levels, bypass.embed_dim) == (6, levels, 256)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("deformable_detr_shapes", "sparse"),
        ("dino_shapes_swin", "focus"),
        pytest.param("dab_deformable_detr_shapes", "focus", marks=pytest.mark.slow),
        pytest.param("dn_deformable_detr_shapes", "random", marks=pytest.mark.slow),
        pytest.param("h_deformable_detr_shapes", "sparse", marks=pytest.mark.slow),
        pytest.param("dino_shapes_vit", "random", marks=pytest.mark.slow),
    ],
)
def test_the_command_makes_every_detector_and_backbone_sparse(name, method, shapes, tmp_path):
    torch.manual_seed(0)
    dense = instantiate(load_config(str(get_config_file(name)), SMALL[:1]).model)
    save_safetensors(dense, str(tmp_path / "dense.safetensors"))
    sparsify.main(
        [name, SMALL[0], f"train.init_checkpoint={tmp_path / 'dense.safetensors'}"]
        + ["--images", str(shapes / "train"), "--output", str(tmp_path / "sparse")]
        + ["--method", method, "--score-iterations", "1", "--distill", "1", "--batch-size", "2"]
        + ["--targets", "both"]
    )
    model = build_model(load_config(str(tmp_path / "sparse" / "config.py")))
    assert model.transformer.encoder.sparsifier.bypass.weight.any()
    rows = json.loads((tmp_path / "sparse" / "report.json").read_text())["rows"]
    assert rows[1]["encoder_gflops"] < 0.8 * rows[0]["encoder_gflops"]
