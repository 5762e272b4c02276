"""Several processes train like one, and stop together."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import create_ddp_model
from detectron2.utils import comm

from tests.patience import patience
from tests.processes import report_threads_at_exit
from tests.small_detectors import build, record
from tests.source_tree import ROOT
from tests.train import toy
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.errors import ConfigError, NonFiniteLossError
from tokendetr.train.launch import launch
from tokendetr.train.network import free_port
from tokendetr.train.process_group import detect_environment, first_host
from tokendetr.train.run import train
from tokendetr.train.trainer import Trainer


def arguments(processes, output, root, *overrides, resume=False):
    return argparse.Namespace(
        num_gpus=processes,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        output=str(output),
        root=str(root),
        overrides=list(overrides),
        resume=resume,
    )


def train_toy(args):
    """Train the toy detector; run by every process."""
    torch.set_num_threads(1)
    if comm.get_world_size() > 1:
        report_threads_at_exit(Path(args.output) / f"threads{comm.get_rank()}.txt")
    cfg = toy.make_config(Path(args.root), Path(args.output))
    fill_defaults(cfg)
    LazyConfig.apply_overrides(cfg, args.overrides)
    # Ranks start from different weights: DDP must spread those of rank 0.
    torch.manual_seed(cfg.train.seed + 100 * comm.get_rank())
    before = instantiate(cfg.model)
    model = instantiate(cfg.model)
    if comm.get_rank() == 0:
        torch.manual_seed(cfg.train.seed)
        before = instantiate(cfg.model)
    model.load_state_dict(before.state_dict())
    start = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        train(cfg, model, resume=args.resume)
    except NonFiniteLossError as error:
        changed = any(not torch.equal(v, start[n]) for n, v in model.state_dict().items())
        Path(f"{args.output}/stopped{comm.get_rank()}.txt").write_text(f"{changed}\n{error}")


def final(folder):
    return read_checkpoint(str(folder / "model_final.pth"))


COMMON = [
    "model.normalize=boxes",
    "model.dropout=0.0",
    "train.max_iter=20",
    "train.eval_period=0",
    "+dataloader.train.aspect_ratio_grouping=False",
]


def train_in_both_precisions(args):
    """Train twice in the same processes, whose start takes longer than both trainings."""
    for dtype in ("float64", "float32"):
        output = f"{args.output}/{dtype}"
        overrides = [*args.overrides, f"model.dtype={dtype}"]
        train_toy(argparse.Namespace(**vars(args) | {"output": output, "overrides": overrides}))


def test_two_processes_equal_one(toy_root, tmp_path):
    """On the same global batches, through real loaders and augmentations."""
    for processes in (1, 2):
        run = arguments(processes, tmp_path / f"{processes}", toy_root, *COMMON)
        launch(train_in_both_precisions, run, device="cpu")
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-6)):
        one, two = (final(tmp_path / f"{processes}" / dtype) for processes in (1, 2))
        for name, value in one["model"].items():
            torch.testing.assert_close(two["model"][name], value, rtol=0, atol=tolerance)
        assert one["data_state"] == two["data_state"]
        assert sorted(two["rng_state"]) == ["0", "1"]
        # A thread of the process group that meets the interpreter's end may abort the process.
        threads = [tmp_path / f"2/{dtype}/threads{rank}.txt" for rank in (0, 1)]
        assert [file.read_text() for file in threads] == ["", ""]


def test_a_rank_without_boxes(tmp_path):
    """Every second image is empty and unshuffled: rank 1 never sees a box."""
    import json

    root = tmp_path / "data"
    path = toy.write_dataset(root, num_images=8)
    data = json.loads(path.read_text())
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] % 2 == 1]
    path.write_text(json.dumps(data))
    unshuffled = (
        "+dataloader.train.sampler={_target_: detectron2.data.samplers.TrainingSampler, "
        "size: 8, shuffle: false}"
    )
    for processes in (1, 2):
        launch(
            train_toy,
            arguments(
                processes,
                tmp_path / f"{processes}",
                root,
                *COMMON,
                unshuffled,
                "model.dtype=float64",
            ),
            device="cpu",
        )
    one, two = final(tmp_path / "1")["model"], final(tmp_path / "2")["model"]
    assert max((one[n] - two[n]).abs().max().item() for n in one) <= 1e-12


def test_two_processes_resume_bitwise_and_evaluate(toy_root, tmp_path):
    options = ["train.max_iter=10", "train.eval_period=5", "dataloader.train.num_workers=1"]
    options += ["train.model_ema.enabled=True", "train.grad_accum_steps=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launch(train_toy, arguments(2, whole, toy_root, *options), device="cpu")
    # The schedule's length must be the same: the first part ends at a checkpoint, not at max_iter.
    shutil.copytree(whole, parts)
    for name in ("model_final.pth", "model_0000009.pth", "model_0000007.pth"):
        (parts / name).unlink(missing_ok=True)
    (parts / "last_checkpoint").write_text("model_0000003.pth")
    launch(train_toy, arguments(2, parts, toy_root, *options, resume=True), device="cpu")
    one, two = final(whole), final(parts)
    for part in ("model", "ema_state"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    assert "bbox_ema/AP" in (parts / "metrics.json").read_text()


def test_all_ranks_stop_at_a_non_finite_loss_of_one(toy_root, tmp_path):
    out = tmp_path / "out"
    launch(train_toy, arguments(2, out, toy_root, *COMMON, "model.poison=6"), device="cpu")
    reports = [(out / f"stopped{rank}.txt").read_text().split("\n", 1) for rank in (0, 1)]
    assert reports[0][1] == reports[1][1]
    assert "image id 6" in reports[0][1] and "loss_class = nan" in reports[0][1]
    assert "Rank" in reports[0][1]


def test_torchruns_environment_is_read():
    env = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    found = detect_environment(env)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == (5, 8, 1, 4)
    assert found.init_method == "env://"
    assert detect_environment({}) is None
    assert detect_environment({**env, "MASTER_PORT": "1"}) is not None
    with pytest.raises(ConfigError, match="WORLD_SIZE='8 nodes' is not a number"):
        detect_environment({**env, "WORLD_SIZE": "8 nodes"})
    with pytest.raises(ConfigError, match="rank 8 of 8 processes"):
        detect_environment({**env, "RANK": "8"})
    del env["MASTER_ADDR"]
    assert detect_environment(env) is None


def test_slurms_environment_is_read():
    env = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_JOB_ID": "31",
    }
    found = detect_environment(env)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == (6, 8, 2, 4)
    assert found.init_method == "tcp://gpu03:20031"
    # A batch script itself, or an interactive shell of an allocation, is one process.
    assert detect_environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST"):
        detect_environment({k: v for k, v in env.items() if k != "SLURM_STEP_NODELIST"})
    with pytest.raises(ConfigError, match="ntasks-per-node"):
        detect_environment({**env, "SLURM_STEP_NUM_TASKS": "7"})
    with pytest.raises(ConfigError, match="8 tasks to 0 nodes"):
        detect_environment({**env, "SLURM_STEP_NUM_NODES": "0"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("gpu[03-07,9],cpu1", "gpu03"),
        ("gpu[9,11]", "gpu9"),
        ("a-b-1,a-b-2", "a-b-1"),
        ("rack[1-2]n0", "rack1n0"),
    ],
)
def test_the_first_host_of_a_slurm_list_is_found(nodes, host):
    assert first_host(nodes) == host


def test_one_process_runs_in_this_one():
    seen = []
    launch(lambda args: seen.append(os.getpid()), arguments(1, "", ""), device="cpu")
    assert seen == [os.getpid()]


SLURM_STEP = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "31",
}


def set_environment(monkeypatch, **variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_one_slurm_task_per_machine_starts_the_machines_processes(monkeypatch):
    set_environment(monkeypatch, **SLURM_STEP)
    started = []
    monkeypatch.setitem(launch.__globals__, "_supervise", lambda *options: started.append(options))
    launch(print, arguments(4, "", ""), device="cpu")
    ((count, (_, args, url, _, _)),) = started
    assert count == 4
    assert (args.num_machines, args.machine_rank, args.num_gpus) == (2, 1, 4)
    assert url == "tcp://gpu03:20031"


def test_torchruns_processes_win_over_slurm_and_num_gpus(monkeypatch, caplog):
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    set_environment(monkeypatch, **SLURM_STEP, **env, MASTER_PORT="1")
    joined = []
    monkeypatch.setitem(launch.__globals__, "_join", lambda *args: joined.append(args[0]))
    launch(print, arguments(8, "", ""), device="cpu")
    assert (joined[0].init_method, joined[0].rank) == ("env://", 1)
    assert "--num-gpus 8 is ignored: 2 processes" in caplog.text


def test_no_more_processes_than_torchrun_started_are_warned_of(monkeypatch, caplog):
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    set_environment(monkeypatch, **env, MASTER_PORT="1")
    monkeypatch.setitem(launch.__globals__, "_join", lambda *args: None)
    for processes in (1, 2):
        launch(print, arguments(processes, "", ""), device="cpu")
    assert "--num-gpus" not in caplog.text


def commands_of(how: str, port: int) -> list[tuple[list[str], dict[str, str]]]:
    """Return the commands, with their environment, of a run of two processes."""
    train_net = ["tools/train_net.py", "--config-file", "tests/train/toy_config.py"]
    python, address = [sys.executable], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if how == "torchrun":
        run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        return [([*python, *run, *train_net], {})]
    if how == "slurm":
        step = {**SLURM_STEP, "SLURM_STEP_NUM_NODES": "1", **address}
        return [
            ([*python, *train_net], {**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
            for rank in "01"
        ]
    if how == "machines":
        flags = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
        return [([*python, *train_net, *flags, "--machine-rank", rank], {}) for rank in "01"]
    return [([*python, *train_net, "--num-gpus", "2"], {})]


@pytest.mark.slow
def test_all_ways_to_start_two_processes_train_alike(toy_root, tmp_path):
    states = []
    for how in ("num_gpus", "torchrun", "slurm", "machines"):
        out = tmp_path / how
        base = {**os.environ, "TOY_ROOT": str(toy_root), "TOY_OUTPUT": str(out)}
        base |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        options = ["train.max_iter=4", "train.eval_period=0", "train.output_dir=" + str(out)]
        processes = [
            subprocess.Popen([*command, *options], cwd=ROOT, env={**base, **extra})
            for command, extra in commands_of(how, free_port())
        ]
        assert [process.wait(patience(60)) for process in processes] == [0] * len(processes), how
        assert (out / "log.txt.rank1").is_file()
        states.append(final(out)["model"])
    for state in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(value, state[name]), name


def train_dino(args):
    """Train a small DINO for 20 updates on four images; in every second pair one is empty."""
    torch.set_num_threads(1)
    dtype = getattr(torch, args.overrides[0])
    model = build("dino").to(dtype).train()
    model.dn_number = 0  # its noise is drawn per process
    boxes = [[5.0, 5.0, 60.0, 50.0], [20.0, 10.0, 40.0, 30.0], [1.0, 2.0, 30.0, 60.0]]
    steps = [
        [record(64, 96, boxes[: 3 * (i % 2 == 0)][: 1 + s % 3], seed=4 * s + i) for i in range(4)]
        for s in range(20)
    ]
    rank, world_size = comm.get_rank(), comm.get_world_size()
    batches = [[r | {"image": r["image"].to(dtype)} for r in s[rank::world_size]] for s in steps]
    wrapped = create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    trainer = Trainer(wrapped, batches, optimizer, clip_grad={"max_norm": 0.1, "norm_type": 2})
    trainer.train(0, 20)
    if rank == 0:
        torch.save(model.state_dict(), args.output)


@pytest.mark.slow
# AdamW divides by the gradient's size, so the rounding of a tiny gradient moves its weight as far
# as a large gradient would: one weight in thousands passes 1e-6 in float32.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_two_processes_train_dino_like_one(tmp_path, dtype, tolerance):
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pth"
        launch(train_dino, arguments(processes, output, "", dtype), device="cpu")
    one, two = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in (1, 2))
    key = "class_embed.0.weight"
    assert (one[key] - build("dino").state_dict()[key]).abs().max() > 1e-4
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance)
