"""Weights are read as plain data only and loaded strictly; safetensors hold half precision."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall
from omegaconf import OmegaConf

from tests.train.toy import ToyDetector, toy_detector_of
from tokendetr.analysis.inputs import build_measured_model
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.key_names import grouped_keys
from tokendetr.checkpoint.safetensors import load_safetensors, save_safetensors
from tokendetr.checkpoint.weights import load_weights, read_checkpoint
from tokendetr.errors import CheckpointMismatchError, UnsafeCheckpointError
from tokendetr.predict.predictor import build_model

NAMED = ("train.init_checkpoint=FILE",)


class Gadget:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".pyth", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickles_are_refused(tmp_path, ending, legacy):
    mark = tmp_path / "executed"
    path = str(tmp_path / f"evil{ending}")
    content = {"model": {"stem.weight": Gadget(mark)}, "__author__": "x"}
    if ending == ".pkl":
        with open(path, "wb") as file:
            pickle.dump(content, file)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError, match="was refused.*Nothing was executed"):
        read_checkpoint(path)
    with pytest.raises(UnsafeCheckpointError, match="evil") as caught:
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    assert "weights_only" not in str(caught.value)  # torch advises to read it in an unsafe way
    assert not mark.exists()


@pytest.mark.parametrize(
    "function", ["os.system", "builtins.eval", "subprocess.Popen", "posix.system"]
)
def test_globals_of_a_zoo_pickle(tmp_path, function):
    module, name = function.rsplit(".", 1)
    path = tmp_path / "evil.pkl"
    path.write_bytes(f"c{module}\n{name}\n(S'touch {tmp_path}/executed'\ntR.".encode())
    with pytest.raises(UnsafeCheckpointError, match=name):
        read_checkpoint(str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
def test_damaged_files_are_named(tmp_path, content, ending):
    path = tmp_path / f"damaged{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(str(path))


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": ToyDetector().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"model\.pth is damaged"):
        read_checkpoint(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read_checkpoint("nowhere.pth")


def test_zoo_pickle_matches_a_backbone(tmp_path):
    model = ToyDetector()
    stem = np.full((8, 3, 3, 3), 0.5, dtype=np.float32)
    path = tmp_path / "backbone.pkl"
    with open(path, "wb") as file:
        pickle.dump(
            {
                "model": {"weight": np.ones(1), "stem.weight": stem},
                "__author__": "third_party",
                "matching_heuristics": True,
            },
            file,
        )
    report = load_weights(AtomicCheckpointer(model), str(path))
    assert "stem.weight" in report.matched and not report.is_complete
    assert torch.equal(model.stem.weight, torch.from_numpy(stem))


# ------------------------------------------------------------------------------ matching


def save(tmp_path, state, **extra):
    path = str(tmp_path / "model.pth")
    torch.save({"model": state, **extra} if extra is not None else state, path)
    return path


def test_another_model_is_refused_with_its_keys(tmp_path):
    state = ToyDetector().state_dict()
    state["stem.weight"] = torch.zeros(8, 3, 5, 5)
    state["extra.weight"] = torch.zeros(1)
    for name in ("norm.bias", "bbox_embed.bias"):
        del state[name]
    path = save(tmp_path, state)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    message = " ".join(str(caught.value).split())
    for text in (
        path,
        "missing in the file | 2 | norm.bias, bbox_embed.bias",
        "unexpected in the file | 1 | extra.weight",
        "wrong shape | 1 | stem.weight: [8, 3, 5, 5] in the file, [8, 3, 3, 3] in the model",
        "train.init_checkpoint_strict=False",
    ):
        assert text in message, text
    report = load_weights(AtomicCheckpointer(ToyDetector()), path, strict=False)
    tensors = {value.data_ptr() for value in ToyDetector().state_dict().values()}
    assert len(report.matched) == len(tensors) - 3


@pytest.mark.parametrize("build", [build_model, lambda cfg: build_measured_model(cfg, NAMED)])
def test_every_tool_heeds_the_config_s_strictness(tmp_path, build):
    state = toy_detector_of(0.25).state_dict()
    del state["norm.bias"]
    train = {"device": "cpu", "init_checkpoint": save(tmp_path, state)}
    train["model_ema"] = {"enabled": False, "use_ema_weights_for_eval_only": False}
    cfg = OmegaConf.create({"model": LazyCall(ToyDetector)(), "train": train})
    cfg.train.init_checkpoint_strict = True
    with pytest.raises(CheckpointMismatchError, match="init_checkpoint_strict=False"):
        build(cfg)
    cfg.train.init_checkpoint_strict = False
    assert torch.equal(build(cfg).stem.weight, state["stem.weight"])


def test_weights_without_any_match_are_refused(tmp_path):
    path = save(tmp_path, {"other.weight": torch.zeros(1)})
    with pytest.raises(CheckpointMismatchError, match="no key"):
        load_weights(AtomicCheckpointer(ToyDetector()), path, strict=False)


def test_bare_state_dict_and_module_prefix(tmp_path):
    source = toy_detector_of(0.25)
    path = str(tmp_path / "bare.pth")
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, path)
    target = ToyDetector()
    assert load_weights(AtomicCheckpointer(target), path).is_complete
    assert torch.equal(target.stem.weight, source.stem.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "meta": {"epoch": 3}},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}, "epoch": 3},
        lambda w: {"state_dict": {f"detector.module.{k}": v for k, v in w.items()}},
        lambda w: {"ema": {"module": w, "updates": 5}, "optimizer": {"state": {}}},
        lambda w: {"module": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
        lambda w: {"model": {"state_dict": w}},
        lambda w: {"net": w, "acc": 0.5},
        lambda w: {"model_ema": {f"module.{k}": v for k, v in w.items()}},
    ],
)
def test_other_programs_checkpoints(tmp_path, wrap):
    source = toy_detector_of(0.25)
    path = str(tmp_path / "other.pth")
    torch.save(wrap(source.state_dict()), path)
    target = ToyDetector()
    assert load_weights(AtomicCheckpointer(target), path).is_complete
    assert torch.equal(target.stem.weight, source.stem.weight)


@pytest.mark.parametrize("prefix", ["module.", "model.", "detector.module."])
def test_a_prefix_of_most_keys_is_named_with_the_keys_that_lack_it(tmp_path, prefix):
    weights = {f"{prefix}{k}": v for k, v in toy_detector_of(0.25).state_dict().items()}
    path = save(tmp_path, weights | {"steps_done": torch.tensor(7)})
    with pytest.raises(
        CheckpointMismatchError, match=f"'{prefix}', which these keys lack: steps_done"
    ):
        load_weights(AtomicCheckpointer(ToyDetector()), path)


def test_no_prefix_is_named_where_a_few_keys_happen_to_have_one(tmp_path):
    strangers = {f"other{i}.weight": torch.zeros(1) for i in range(9)}
    path = save(tmp_path, strangers | {"old.stem.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(CheckpointMismatchError) as error:
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    assert "behind the prefix" not in str(error.value)


def test_a_wrapped_moving_average_is_found_or_refused(tmp_path):
    average = {f"module.{n}": torch.full_like(p, 3.0) for n, p in ToyDetector().named_parameters()}
    path = save(tmp_path, toy_detector_of(1.0).state_dict(), ema_state=average)
    model = ToyDetector()
    load_weights(AtomicCheckpointer(model), path, choice="ema")
    assert model.stem.weight.unique().tolist() == [3.0]
    path = save(tmp_path, toy_detector_of(1.0).state_dict(), ema_state={"other": torch.ones(1)})
    with pytest.raises(CheckpointMismatchError, match="ema_state"):
        load_weights(AtomicCheckpointer(model), path, choice="ema")


def test_matching_heuristics_query(tmp_path):
    path = str(tmp_path / "part.pth")
    torch.save({"weight": torch.zeros(1), "stem.weight": torch.ones(8, 3, 3, 3)}, path)
    model = ToyDetector()
    load_weights(AtomicCheckpointer(model), f"{path}?matching_heuristics=True")
    assert torch.equal(model.stem.weight, torch.ones(8, 3, 3, 3))
    with pytest.raises(ValueError, match="only matching_heuristics"):
        load_weights(AtomicCheckpointer(model), f"{path}?heuristics=True")


def test_moving_average_of_a_checkpoint(tmp_path):
    average = {n: torch.full_like(p, 3.0) for n, p in ToyDetector().named_parameters()}
    path = save(tmp_path, toy_detector_of(1.0).state_dict(), ema_state=average)
    model = ToyDetector()
    for choice, value in (("ema", 3.0), ("model", 1.0), ("ema_if_kept", 3.0), ("auto", 1.0)):
        load_weights(AtomicCheckpointer(model), path, choice=choice)
        assert model.stem.weight.unique().tolist() == [value]
    chosen_by_it = save(
        tmp_path,
        toy_detector_of(1.0).state_dict(),
        ema_state=average,
        best_metric_name="bbox_ema/AP",
    )
    load_weights(AtomicCheckpointer(model), chosen_by_it, choice="auto")
    assert model.stem.weight.unique().tolist() == [3.0]
    with pytest.raises(ValueError, match="no ema_state"):
        load_weights(AtomicCheckpointer(model), save(tmp_path, model.state_dict()), choice="ema")


# ------------------------------------------------------------------------------ safetensors


def test_safetensors_round_trip(tmp_path):
    model = ToyDetector()
    with torch.no_grad():
        model.norm.running_var.fill_(1e-12)  # float16 would make it zero
    path = str(tmp_path / "weights.safetensors")
    size = save_safetensors(model, path, metadata={"recipe": "toy"})
    assert size == os.path.getsize(path)
    assert size < sum(v.numel() * v.element_size() for v in model.state_dict().values())
    state = load_safetensors(path)
    assert list(state) and state.keys() == model.state_dict().keys()
    assert state["decoder.class_embed.weight"] is state["class_embed.weight"]
    assert torch.equal(state["norm.running_var"], model.norm.running_var)
    assert torch.equal(state["stem.weight"], model.stem.weight.half().float())
    other = ToyDetector()
    assert load_weights(AtomicCheckpointer(other), path).is_complete
    assert torch.equal(other.class_embed.weight, model.class_embed.weight.half().float())


def test_a_safetensors_file_without_aliases_loads(tmp_path):
    """Other programs drop the second name of a shared tensor without saying so."""
    from safetensors.torch import save_file

    state = {
        k: v.clone()
        for k, v in toy_detector_of(0.5).state_dict().items()
        if not k.startswith("decoder.")
    }
    path = str(tmp_path / "dropped.safetensors")
    save_file(state, path)
    model = ToyDetector()
    assert load_weights(AtomicCheckpointer(model), path).is_complete
    assert model.class_embed.weight.unique().tolist() == [0.5]


def test_safetensors_keep_what_half_precision_cannot_hold(tmp_path):
    model = ToyDetector()
    with torch.no_grad():
        model.bbox_embed.weight[0, 0] = 1e6
    path = str(tmp_path / "weights.safetensors")
    save_safetensors(model, path)
    assert torch.equal(load_safetensors(path)["bbox_embed.weight"], model.bbox_embed.weight)
    with torch.no_grad():
        model.bbox_embed.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"bbox_embed\.weight is not finite"):
        save_safetensors(model, path)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        save_safetensors(model, str(tmp_path / "weights.pth"))


def test_keys_that_differ_in_one_part_are_written_as_one():
    keys = [f"backbone.blocks.{i}.gate.{kind}" for i in (0, 1, 4) for kind in ("weight", "bias")]
    assert grouped_keys([*keys, "head.bias", "norm.bias"]) == [
        "backbone.blocks.{0,1,4}.gate.{weight,bias}",
        "head.bias",
        "norm.bias",
    ]
    assert grouped_keys([]) == []
