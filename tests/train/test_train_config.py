"""Overrides are strict; mistakes are met before anything is built."""

import os
import subprocess
import sys

import pytest
import torch
from detrex.config import get_config
from omegaconf import OmegaConf

from tests.source_tree import ROOT
from tests.train.toy import make_config
from tokendetr.cli import train_net
from tokendetr.config.load import (
    ADDED_TRAIN_DEFAULTS,
    fill_defaults,
    follow_output_dir,
    load_config,
    result_writers,
)
from tokendetr.config.model import check_device
from tokendetr.config.overrides import apply_overrides
from tokendetr.errors import ConfigError
from tokendetr.evaluation.run import default_best_metric

CONFIG = "tests/train/toy_config.py"


@pytest.fixture
def cfg(toy_root, tmp_path):
    cfg = make_config(toy_root, tmp_path)
    fill_defaults(cfg)
    return cfg


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.maxiter=3", "train.max_iter"),
        ("train.amp.enable=True", "train.amp.enabled"),
        ("optimizer.learning_rate=1", "optimizer"),
        ("dataloader.train.totl_batch_size=4", "dataloader.train.total_batch_size"),
        ("modle.num_classes=3", "model.num_classes"),
        ("~train.maxiter", "train.max_iter"),
    ],
)
def test_unknown_keys_name_the_nearest(cfg, override, nearest):
    before = str(cfg)
    with pytest.raises(ConfigError) as caught:
        apply_overrides(cfg, [override])
    key = override.lstrip("~").split("=")[0]
    assert key in str(caught.value) and nearest in str(caught.value)
    assert f"+{key}" in str(caught.value)
    assert str(cfg) == before


def test_known_keys_of_every_kind(cfg):
    apply_overrides(
        cfg,
        [
            "train.max_iter=3",
            "train.amp.dtype=bfloat16",
            "optimizer.betas=[0.8,0.9]",  # a parameter of the target that the config leaves out
            "dataloader.train.aspect_ratio_grouping=False",
            "+train.my_note=hello",
            "+extra.deep.key=[1,2]",
            "++extra.deep.more=x.pth?a=True",
            "++train.checkpointer.period=7",
            "dataloader.train.mapper.augmentation.1.max_size=100",
            "train.init_checkpoint=/path/to/model.pth",
            "~dataloader.evaluator.output_dir",
        ],
    )
    assert cfg.train.max_iter == 3 and cfg.train.my_note == "hello"
    assert cfg.extra.deep.more == "x.pth?a=True" and cfg.train.checkpointer.period == 7
    assert list(cfg.optimizer.betas) == [0.8, 0.9] and list(cfg.extra.deep.key) == [1, 2]
    assert cfg.dataloader.train.aspect_ratio_grouping is False
    assert cfg.dataloader.train.mapper.augmentation[1].max_size == 100
    assert "output_dir" not in cfg.dataloader.evaluator


@pytest.mark.parametrize("override", ["train.max_iter=many", "train.amp.enabled=perhaps"])
def test_words_for_numbers(cfg, override):
    with pytest.raises(ConfigError, match=override.split("=")[1]):
        apply_overrides(cfg, [override])


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.max_iter", "write train.max_iter=VALUE"),
        ("train.max_iter=[1", "override"),
        ("train.seed=1,2", "several values"),
        ("train.max_iter = 5", "write train.max_iter=5, without spaces"),
        ("--train.max_iter=5", "write train.max_iter=5; options such as --resume come before"),
    ],
)
def test_malformed_overrides(cfg, override, hint):
    with pytest.raises(ConfigError, match=hint):
        apply_overrides(cfg, [override])


def test_one_length_may_replace_several(cfg):
    resize = cfg.dataloader.train.mapper.augmentation[1]
    resize.short_edge_length = (24, 28)
    key = "dataloader.train.mapper.augmentation.1.short_edge_length"
    assert apply_overrides(cfg, [f"{key}=32"]) is cfg and resize.short_edge_length == 32
    resize.short_edge_length = (24, 28)
    with pytest.raises(ConfigError, match="is a list"):
        apply_overrides(cfg, [f"{key}=0.5"])


def test_missing_config_names_similar_files():
    with pytest.raises(FileNotFoundError, match=r"toy_confg\.py.*did you mean.*toy_config\.py"):
        load_config(str(ROOT / "tests/train/toy_confg.py"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_config("no/such/folder/config.py")
    with pytest.raises(ConfigError, match="--config-file"):
        load_config("")


def test_defaults_are_filled_and_kept(cfg):
    assert cfg.train.init_checkpoint_strict is True and cfg.train.amp.dtype == "float16"
    assert cfg.train.max_iter == 12 and cfg.train.checkpointer.period == 4


def test_the_models_device_follows_train_device(toy_root, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_ROOT", str(toy_root))
    monkeypatch.setenv("TOY_OUTPUT", str(tmp_path))
    path = str(ROOT / CONFIG)
    assert load_config(path, ["train.device=cuda"]).model.device == "cuda"
    assert load_config(path, ["train.device=cuda", "model.device=cpu"]).model.device == "cpu"


def test_result_files_follow_the_output_folder(toy_root, tmp_path, monkeypatch):
    """Also in a config that copies the folder."""
    monkeypatch.setenv("TOY_ROOT", str(toy_root))
    monkeypatch.setenv("TOY_OUTPUT", str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_text(
        "from tests.train.toy_config import *\n"
        "dataloader.evaluator.output_dir = train.output_dir\n"
        "model.device = train.device\n"
    )
    key = "dataloader.evaluator.output_dir"
    cfg = load_config(str(path), ["train.output_dir=mine", "train.device=meta"])
    assert (cfg.dataloader.evaluator.output_dir, cfg.model.device) == ("mine", "meta")
    cfg = load_config(str(path), [f"{key}=other", "train.output_dir=mine"])
    assert cfg.dataloader.evaluator.output_dir == "other"
    assert load_config(str(path)).dataloader.evaluator.output_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("base", "mine"),
        ("./base/", "mine"),
        ("base/inference", "mine/inference"),
        ("elsewhere", "elsewhere"),
        ("baseline", "baseline"),
        ("${train.output_dir}", "mine"),
        ("${train.output_dir}/a", "mine/a"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_result_files_below_the_output_folder_follow_it(written, expected, nested):
    node = {"output_dir": written}
    evaluator = {"evaluators": [node, {"other": 1}]} if nested else node
    cfg = OmegaConf.create({"train": {"output_dir": "base"}, "dataloader": {}})
    cfg.dataloader.evaluator = evaluator
    cfg.train.output_dir = "mine"
    follow_output_dir(cfg, "base")
    assert [str(n.output_dir) for n in result_writers(cfg)] == [expected]


def test_keys_of_train_are_detrex_s_and_those_that_are_added():
    cfg = OmegaConf.create({"train": {"amp": {"enabled": True}}})
    fill_defaults(cfg)
    theirs = get_config("common/train.py").train
    assert set(cfg.train) == {*theirs, *ADDED_TRAIN_DEFAULTS}
    assert not set(ADDED_TRAIN_DEFAULTS) & set(theirs) - {"amp"}
    assert cfg.train.amp == {"enabled": True, "dtype": "float16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_explained():
    with pytest.raises(ValueError, match=r"train\.device=cpu"):
        check_device("cuda")


def test_the_default_best_metric_is_box_ap(cfg):
    assert default_best_metric(cfg) == "bbox/AP"
    cfg.train.model_ema = {"enabled": True, "use_ema_weights_for_eval_only": True}
    assert default_best_metric(cfg) == "bbox_ema/AP"
    cfg.train.best_metric = "bbox/AP50"
    assert default_best_metric(cfg) == "bbox/AP50"


def test_command_line_mistakes_end_with_one_line(toy_root, tmp_path):
    """A mistake ends the program before any output exists, with a message and no traceback."""
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "tools/train_net.py", "--config-file", CONFIG, "train.maxiter=3"],
        cwd=ROOT,
        env={
            **os.environ,
            "TOY_ROOT": str(toy_root),
            "TOY_OUTPUT": str(out),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and not out.exists()
    assert "did you mean train.max_iter" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["train.amp.enabled=True", "train.amp.dtype=half"], "train.amp.dtype='half'"),
        (["train.grad_accum_weighting=areas"], "use 'boxes' or 'images'"),
        (["train.device=gpu"], "train.device is 'gpu'"),
        (["train.output_dir="], "train.output_dir is empty"),
        (["train.output_dir=' '"], "train.output_dir is empty"),
        (["model=${train}"], "model builds a DictConfig"),
        (["train.output_dir='out?put'"], "has a '?', tab or line break"),
        (["dataloader.train.num_workers=-1"], "num_workers=-1 must be"),
        (["+optimizer.betas=[0.9,1.0]"], "optimizer.betas.1=1.0 must be"),
        (["+dataloader.evaluator.max_dets_per_image=[1,2]"], "max_dets_per_image"),
        (["+dataloader.evaluator.tasks=[box]"], "tasks=box"),
        (["+optimizer.betas=[0.9]"], "optimizer cannot be built"),
        (["lr_multiplier._target_=builtins.dict"], "not a fvcore ParamScheduler"),
        (["dataloader.evaluator._target_=builtins.dict"], "no method reset"),
        (["dataloader.train.mapper._target_=builtins.dict"], "not a mapper of records"),
        (["+dataloader.train.sampler=[0,99]"], "gives 99, which is not an index"),
        (["+dataloader.train.sampler=[-1]"], "gives -1, which is not an index"),
        (["+dataloader.train.sampler=[0.5]"], "gives 0.5, which is not an index"),
        (["+dataloader.train.sampler=[0]"], "ended at iteration 0"),
        (["--num-gpus", "-1"], "--num-gpus -1"),
        (["--num-machines", "0"], "--num-machines 0"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank 2"),
        (["--num-machines", "2", "--dist-url", "garbage"], "garbage"),
        (["--eval-only", "train.init_checkpoint=absent.pth"], "absent.pth"),
        (["train.init_checkpoint=absent.pth"], "absent.pth"),
    ],
)
def test_slips_end_in_one_line(toy_root, tmp_path, monkeypatch, capfd, options, text):
    """A wrong command line is reported by name before there is a run, also behind an override."""
    monkeypatch.setenv("TOY_ROOT", str(toy_root))
    monkeypatch.setenv("TOY_OUTPUT", str(tmp_path / "out"))
    monkeypatch.chdir(ROOT)
    words = ["train_net", "--config-file", CONFIG, "train.max_iter=2", *options]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        train_net.main()
    output = str(caught.value.code) + capfd.readouterr().err
    assert text in output and "Traceback" not in output, output
    assert not list((tmp_path / "out").glob("model_*"))
    if "absent.pth" in text:  # before anything is written
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "", "neither .py nor .yaml"),
        ("a.py", "x = (\n", "is not Python"),
        ("a.py", "import no_such_module\n", "no_such_module"),
        (
            "a.py",
            "from detrex.modeling.backbone import NoSuch\n",
            "this config needs detrex itself",
        ),
        ("a.py", "import projects.no_such.modeling\n", "needs detrex's own projects"),
        ("a.py", "\nraise KeyError('no')\n", "a.py (line 2) raised KeyError('no')"),
        ("a.py", "open('no/such/file')\n", "(line 1) raised FileNotFoundError"),
        ("a.py", "import sys\nsys.exit(0)\n", "raised SystemExit(0)"),
        ("a.py", "from .a import model\n", "loads itself"),
        ("a.py", "train = dict(device='cpu', output_dir='out')\n", "has no model, dataloader"),
    ],
)
def test_what_is_no_config_is_named(tmp_path, monkeypatch, name, content, text):
    path = tmp_path / name
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["train_net", "--config-file", str(path)])
    with pytest.raises(SystemExit) as caught:
        train_net.main()
    assert text in str(caught.value.code)


ODD_PARTS = {
    "train:\n": "train must be a group of keys, not None",
    "train: [1]\n": "train must be a group of keys",
    "dataloader: hi\n": "dataloader must be a group of keys, not 'hi'",
    "model: 5\n": "model must be a group of keys, not 5",
    "train: {output_dir: '${oc.env:NO_SUCH_VARIABLE}'}\n": "NO_SUCH_VARIABLE",
    "x: '${'\n": "odd.yaml",
    "train: {max_iter: 5}\ntrain: {max_iter: 6}\n": "'train' stands in lines 1 and 2",
    "train:\n  seed: 5\n  seed: 5\n": "'seed' stands in lines 2 and 3",
    "train: {data_files: 5}\n": "train.data_files=5 must be a group",
    "model: {_target_: ..x.y}\n": "model is ..x.y, which cannot be imported",
    "train: {data_files: {mine: [a.json]}}\n": "train.data_files.mine is .* not two paths",
    "x: \udce9\n": "not UTF-8 text",
}


@pytest.mark.parametrize("text", ODD_PARTS)
def test_odd_parts_of_a_saved_config_are_named(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=ODD_PARTS[text]):
        load_config(str(path))


def test_settings_that_a_config_lacks_are_said_once(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {}\n")
    for _ in range(2):
        load_config(str(path))
    assert caplog.text.count(f"{path} has no train: detrex's defaults apply") == 1


def test_keys_that_are_numbers_and_lists_of_evaluators_are_fine(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text("model: {1: a, 2.5: {true: b}}\ndataloader: {evaluator: [{max: 1}, {}]}\n")
    cfg = load_config(str(path))
    assert cfg.model[1] == "a" and len(cfg.dataloader.evaluator) == 2
    with pytest.raises(ConfigError, match="no key 'model.x'"):
        load_config(str(path), ["model.x=1"])
