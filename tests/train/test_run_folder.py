"""A folder belongs to one run and one writer; damage and mismatches are reported."""

import json
import os
import subprocess
import sys

import pytest
import torch
from detectron2.utils.events import EventStorage
from filelock import FileLock

from tests.patience import patience
from tests.train.toy import FEW
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.errors import (
    CheckpointError,
    CheckpointMismatchError,
    ConfigError,
    RunFolderError,
)
from tokendetr.train.run_folder import RunFolder
from tokendetr.train.writers import MetricsFile


def test_a_folder_with_checkpoints_is_refused_with_the_ways_on(toy_run, run_folder):
    with pytest.raises(RunFolderError) as caught:
        toy_run(run_folder, *FEW)
    message = str(caught.value)
    assert "--resume" in message and "train.output_dir=" in message and "move" in message


def test_checkpoints_of_another_run_are_not_resumed(toy_run, run_folder, tmp_path):
    toy_run(tmp_path / "other", *FEW)
    for path in (tmp_path / "other").glob("model_*.pth"):
        path.rename(run_folder / path.name)
    with pytest.raises(RunFolderError, match="another run"):
        toy_run(run_folder, *FEW, resume=True)


def test_checkpoints_without_identity_are_taken_on(toy_run, run_folder):
    """Files of another program, or a checkpoint that was copied alone."""
    identity = json.loads((run_folder / "run.json").read_text())["run"]
    (run_folder / "run.json").unlink()
    toy_run(run_folder, *FEW, resume=True)
    assert json.loads((run_folder / "run.json").read_text())["run"] == identity


HOLD = """
import sys, time
import tokendetr
from tokendetr.train.run_folder import RunFolder
with RunFolder(sys.argv[1], resume=False):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_second_writer_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match=f"process {holder.pid} on .* writes there now"):
            RunFolder(str(tmp_path), resume=False).__enter__()
    finally:
        holder.kill()
        holder.wait(patience(10))
    with RunFolder(str(tmp_path), resume=False) as folder:
        assert json.loads((tmp_path / "run.json").read_text())["pid"] == os.getpid()
        assert folder.evaluated == -1


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, error):
    def refuse(self, *args, **options):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with RunFolder(str(tmp_path), resume=False) as folder:
        folder.mark_evaluated(3)
    assert "has no locks" in caplog.text and (tmp_path / "run.json").is_file()


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path):
    """Of another user, in a folder that both may write to; root may open it all the same."""
    (tmp_path / ".run.lock").mkdir()
    with pytest.raises(
        RunFolderError, match=r"cannot be written to: .*\.run\.lock: Is a directory"
    ):
        RunFolder(str(tmp_path), resume=False).__enter__()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used as a folder"):
        RunFolder(str(tmp_path / "file"), resume=False).__enter__()
    (tmp_path / "link").symlink_to("unmounted")
    with pytest.raises(RunFolderError, match="is a link to unmounted, which is missing"):
        RunFolder(str(tmp_path / "link" / "run"), resume=False).__enter__()


@pytest.mark.parametrize("damage", ["truncated", "zeros", "empty", "text"])
def test_the_checkpoint_before_a_damaged_one_is_taken(toy_run, run_folder, caplog, damage):
    last = run_folder / "model_final.pth"
    content = last.read_bytes()
    last.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "zeros": bytes(len(content)),
            "empty": b"",
            "text": b"not a checkpoint",
        }[damage]
    )
    good = read_checkpoint(str(run_folder / "model_0000003.pth"))["model"]
    toy_run(run_folder, *FEW, resume=True)
    assert "Cannot resume from" in caplog.text and "model_0000003.pth" in caplog.text
    assert caplog.records[0].levelname == "WARNING"
    final = read_checkpoint(str(last))["model"]
    assert all(torch.equal(final[name], value) for name, value in good.items())


def test_nothing_readable_is_an_error(toy_run, run_folder):
    for path in run_folder.glob("model_*.pth"):
        path.write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        toy_run(run_folder, *FEW, resume=True)


def test_a_binary_pointer_is_no_obstacle(toy_run, run_folder):
    (run_folder / "last_checkpoint").write_bytes(bytes(range(256)))
    toy_run(run_folder, *FEW, resume=True)


def test_a_changed_model_is_shown_as_a_table(toy_run, run_folder):
    with pytest.raises(CheckpointMismatchError) as caught:
        toy_run(run_folder, *FEW, "model.num_classes=5", resume=True)
    message = str(caught.value)
    assert "class_embed" in message and "wrong shape" in message
    assert "train.init_checkpoint=" in message and "model_final.pth" in message


def test_changed_settings_of_the_optimizer_are_used_and_said(toy_run, run_folder, caplog):
    changed = ["optimizer.lr=0.004", "optimizer.weight_decay=0.3", "train.max_iter=6"]
    toy_run(run_folder, *FEW, *changed, resume=True)
    assert "optimizer's lr from 0.01 to 0.004" in caplog.text
    assert "optimizer's weight_decay from 0.0001 to 0.3" in caplog.text
    group = read_checkpoint(str(run_folder / "model_final.pth"))["trainer"]["optimizer"][
        "param_groups"
    ][0]
    assert group["initial_lr"] == 0.004 and group["weight_decay"] in (0.0, 0.3)
    assert group["lr"] <= 0.004


def test_unchanged_settings_are_not_mentioned(toy_run, run_folder, caplog):
    toy_run(run_folder, *FEW, "train.max_iter=6", resume=True)
    assert "The config changes" not in caplog.text


def test_no_more_checkpoints_than_asked_for(toy_run, run_folder):
    """A kill between saving and removing leaves one too many."""
    for number in (0, 1):
        (run_folder / f"model_000000{number}.pth").write_bytes(b"old")
    keep = "train.checkpointer.max_to_keep=2"
    toy_run(run_folder, *FEW, keep, resume=True)
    names = sorted(p.name for p in run_folder.glob("model_0*.pth"))
    assert names == ["model_0000001.pth", "model_0000003.pth"]


def test_zero_periods_are_off(toy_run, tmp_path):
    off = ["train.checkpointer.period=0", "train.log_period=0", "train.eval_period=0"]
    toy_run(tmp_path, "train.max_iter=3", *off, "train.checkpointer.max_to_keep=0")
    assert sorted(p.name for p in tmp_path.glob("model_*")) == ["model_best.pth", "model_final.pth"]


def test_an_unknown_best_metric_lists_the_metrics(toy_run, tmp_path):
    with pytest.raises(ConfigError, match=r"bbox/mAP .*bbox/AP, .*bbox/AP50"):
        toy_run(tmp_path, "+train.best_metric=bbox/mAP", "train.eval_period=5")
    assert (tmp_path / "model_0000004.pth").is_file()


def write_rows(path, start, rows):
    with EventStorage(start) as storage:
        writer = MetricsFile(str(path), start)
        for iteration in rows:
            storage.iter = iteration
            storage.put_scalar("loss", float(iteration))
            writer.write()
        writer.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_hold_each_iteration_once(tmp_path):
    path = tmp_path / "metrics.json"
    assert [r["iteration"] for r in write_rows(path, 0, range(6))] == [0, 1, 2, 3, 4, 5]
    with path.open("a") as file:
        file.write('{"iteration": 6, "lo')  # killed while it was written
    rows = write_rows(path, 4, range(4, 8))
    assert [r["iteration"] for r in rows] == list(range(8))
    assert [r["iteration"] for r in write_rows(path, 0, range(2))] == [0, 1]


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write = os.write

    def full(handle, content):
        if len(content) > 10:
            write(handle, bytes(content[:10]))
            raise OSError(28, "No space left on device")
        return write(handle, content)

    with EventStorage(0) as storage:
        writer = MetricsFile(str(path))
        storage.put_scalar("loss", 1.0)
        writer.write()
        before = path.read_bytes()
        storage.iter = 1
        storage.put_scalar("loss", 2.0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                writer.write()
        assert path.read_bytes() == before
        writer.write()
    assert [json.loads(x)["loss"] for x in path.read_text().splitlines()] == [1.0, 1.5]


def test_a_full_disk_for_metrics_costs_no_checkpoint(toy_run, tmp_path, monkeypatch, caplog):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "write", full)
    toy_run(tmp_path, *FEW)
    assert read_checkpoint(str(tmp_path / "model_final.pth"))["iteration"] == 3
    assert caplog.text.count("MetricsFile failed") == 1


def test_resumed_events_replace_those_after_the_checkpoint(toy_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["train.max_iter=8", "train.log_period=1", "train.eval_period=0"]
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, *options, "train.checkpointer.period=4", interrupt_at=6)
    toy_run(tmp_path, *options, "train.checkpointer.period=4", resume=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("total_loss")] == list(range(8))
