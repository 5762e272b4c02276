"""What a checkpoint keeps of a training may be damaged, or of another optimizer or seed."""

import json

import pytest
import torch
from detectron2.config import LazyConfig

from tests.train import toy
from tests.train.toy import FEW
from tokendetr import fit
from tokendetr.checkpoint.training_state import training_state_fault
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.data.random_state import RngState, capture_rng
from tokendetr.errors import CheckpointError, CheckpointMismatchError, ConfigError
from tokendetr.train.optimizer_state import load_optimizer_state
from tokendetr.train.setup import saved_config

LONGER = ["train.max_iter=6", *FEW[1:]]


def change(path, where, value):
    content = torch.load(path, weights_only=True)
    *parents, last = where.split(".")
    node = content
    for name in parents:
        node = node[name]
    node[last] = value
    torch.save(content, path)


def test_a_runs_config_is_not_lost_where_another_takes_its_name(toy_root, tmp_path, caplog):
    def save(name, *overrides, **options):
        cfg = toy.make_config(toy_root, tmp_path)
        fill_defaults(cfg)
        LazyConfig.apply_overrides(cfg, list(overrides))
        kinds = {"evaluation_only": False, "is_resumed": False, **options}
        with saved_config(cfg, str(tmp_path), **kinds):
            pass
        return (tmp_path / name).read_text()

    mine = save("config.yaml").replace("max_iter", "# my comment\n  max_iter", 1)
    (tmp_path / "config.yaml").write_text(mine)
    save("config.yaml", source=str(tmp_path / "sub" / ".." / "config.yaml"))
    assert (tmp_path / "config_1.yaml").read_text() == mine and "config_1.yaml" in caplog.text
    before = save("config.yaml", is_resumed=True)
    assert not (tmp_path / "config_2.yaml").exists()
    save("config.yaml", "optimizer.lr=0.5", is_resumed=True)
    assert (tmp_path / "config_2.yaml").read_text() == before


def test_a_resume_that_is_refused_leaves_the_runs_config(toy_root, run_folder):
    cfg = toy.make_config(toy_root, run_folder)
    fill_defaults(cfg)
    config, copy = run_folder / "config.yaml", run_folder / "config_1.yaml"
    config.write_text("mine: 1\n")
    cfg.train.max_iter = 2
    with pytest.raises(ConfigError, match="has 4 iterations, more than"):
        fit(cfg, resume=True)
    assert config.read_text() == "mine: 1\n" and not copy.exists()
    options = {"evaluation_only": False, "is_resumed": True}
    with pytest.raises(KeyError), saved_config(cfg, str(run_folder), **options) as begin:
        begin()
        raise KeyError("after the first step")
    assert "max_iter: 2" in config.read_text() and copy.read_text() == "mine: 1\n"


STATES = [
    ("trainer", 5),
    ("trainer", {}),
    ("trainer.iteration", "3"),
    ("trainer.iteration", -1),
    ("trainer.hooks", []),
    ("trainer.metrics", None),
    ("trainer.optimizer", {}),
    ("trainer.optimizer.state", []),
    ("trainer.optimizer.param_groups", [1]),
    ("rng_state", 0),
    ("data_state", {}),
    ("data_state.seed", None),
    ("data_state.images", -4),
]


@pytest.mark.parametrize(("where", "value"), STATES)
def test_states_of_another_form_are_named(finished, where, value):
    content = read_checkpoint(str(finished / "model_final.pth"))
    assert training_state_fault(content) == ""
    node = content
    for name in where.split(".")[:-1]:
        node = node[name]
    node[where.rpartition(".")[2]] = value
    assert where in training_state_fault(content)


def test_the_checkpoint_before_one_with_a_damaged_state_is_taken(toy_run, run_folder, caplog):
    change(run_folder / "model_final.pth", "data_state", {"seed": "x"})
    toy_run(run_folder, *LONGER, resume=True)
    assert "its data_state.seed is 'x'" in caplog.text and "model_0000003.pth" in caplog.text
    assert read_checkpoint(str(run_folder / "model_final.pth"))["iteration"] == 5


def test_a_state_that_only_its_owner_can_refuse_is_an_error_with_the_file(toy_run, run_folder):
    change(run_folder / "model_final.pth", "trainer.optimizer.param_groups", [{"params": 3}] * 2)
    with pytest.raises(CheckpointMismatchError, match=r"model_final\.pth belongs to another model"):
        toy_run(run_folder, *LONGER, resume=True)


def test_odd_metrics_and_generators_cost_a_warning_alone(toy_run, run_folder, caplog):
    last = run_folder / "model_final.pth"
    change(last, "trainer.metrics", {"loss_bbox": {"smooth": True, "values": 5}, "lr": []})
    change(last, "rng_state", {"0": {"python": [3]}})
    (run_folder / "run.json").write_text(
        json.dumps({**json.loads((run_folder / "run.json").read_text()), "evaluated": "x"})
    )
    with (run_folder / "metrics.json").open("a") as file:
        file.write("[" * 100_000 + "\n")
    (run_folder / "model_best.pth").write_bytes(b"")
    torch.save([1], run_folder / "model_best.pth")
    toy_run(run_folder, *LONGER, resume=True)
    assert "values of loss_bbox cannot be used" in caplog.text
    assert "random state of the checkpoint cannot be used" in caplog.text
    assert "the best metric is reset" in caplog.text


def test_a_damaged_random_state_leaves_the_generators_alone():
    state = RngState()
    state.load_state_dict({"0": {**capture_rng(), "torch": torch.zeros(3, dtype=torch.uint8)}})
    before = torch.get_rng_state()
    assert not state.apply()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_optimizer_is_refused_before_the_first_step(toy_run, run_folder):
    with pytest.raises(CheckpointMismatchError, match="lacks max_exp_avg_sq"):
        toy_run(run_folder, *LONGER, "+optimizer.amsgrad=True", resume=True)


def test_a_state_must_have_what_the_optimizer_needs():
    weights = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))]

    def stepped(kind, **options):
        optimizer = kind(weights, lr=0.1, **options)
        weights[1].grad = torch.ones(2)  # the first one never has a gradient
        optimizer.step()
        return optimizer

    adam = stepped(torch.optim.AdamW).state_dict()
    with pytest.raises(CheckpointMismatchError, match="lacks momentum_buffer, which SGD"):
        load_optimizer_state(torch.optim.SGD(weights, lr=0.1, momentum=0.9), adam)
    plain = torch.optim.SGD(weights, lr=0.1)
    load_optimizer_state(plain, adam)
    plain.step()
    again = torch.optim.AdamW(weights, lr=0.3)
    load_optimizer_state(again, adam)
    assert again.param_groups[0]["lr"] == 0.3
    assert torch.equal(again.state[weights[1]]["exp_avg"], adam["state"][1]["exp_avg"])


def test_a_state_of_parameters_in_another_order_is_refused():
    def adam(*shapes):
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        for each in parameters:
            each.grad = torch.ones_like(each)
        return torch.optim.AdamW(parameters)

    optimizer = adam((2, 3), (3, 2))
    optimizer.step()
    other = adam((3, 2), (2, 3))
    message = r"exp_avg of parameter 0 .* \[2, 3\], the parameter \[3, 2\]"
    with pytest.raises(CheckpointMismatchError, match=message):
        load_optimizer_state(other, optimizer.state_dict())
    assert not other.state


def test_another_seed_is_not_used_and_that_is_said(toy_run, run_folder, caplog):
    toy_run(run_folder, *LONGER, "train.seed=99", resume=True)
    assert "train.seed=99 is ignored" in caplog.text
    assert read_checkpoint(str(run_folder / "model_final.pth"))["data_state"]["seed"] == 7


def test_weights_of_other_kinds_than_plain_tensors_are_refused(tmp_path):
    path = tmp_path / "odd.pth"
    weight = torch.ones(4, 3)
    odd = {
        "without storage": weight.to("meta"),
        "sparse": weight.to_sparse(),
        "complex": weight.to(torch.complex64),
        "larger than the file": torch.zeros(1).expand(1 << 50),
    }
    for reason, value in odd.items():
        torch.save({"model": {"w": value}}, path)
        with pytest.raises(CheckpointError, match=f"'w' in its weights is .*{reason}") as caught:
            read_checkpoint(str(path))
        assert str(path) in str(caught.value)


def test_a_checkpoint_within_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(CheckpointError, match="nested in more than"):
        read_checkpoint(str(tmp_path / "loop.pth"))


@pytest.mark.parametrize("average", [5, "x", {"decay": 0.9}, {"module": {"w": 1}}])
def test_a_moving_average_that_is_none_is_left_out(tmp_path, caplog, average):
    path = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(2)}, "ema_state": average}, path)
    assert "ema_state" not in read_checkpoint(str(path))
    assert "moving average" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["+optimizer.fused=True", "+optimizer.foreach=True"], "optimizer cannot be built"),
        (["+train.clip_grad.params.foo=1"], "train cannot be built .* 'foo'"),
        (["+dataloader.train.foo=1"], r"dataloader\.train cannot be built .* 'foo'"),
        (["+dataloader.train.collate_fn=x"], "is not a function"),
        (["+dataloader.train.sampler=x"], "gives no indices"),
    ],
)
def test_what_only_the_first_step_would_meet_is_said_before_it(toy_run, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        toy_run(tmp_path, *options)
    assert not list(tmp_path.glob("model_*"))
