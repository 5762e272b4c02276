"""Auxiliary losses and outputs that submodules add during a forward pass."""

import copy
import pickle
import threading

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.patience import patience
from tests.processes import run_two_processes
from tokendetr.config.wrap import build_observed
from tokendetr.encoder.forward_context import current_pass, observe, replay_contexts


class Part(nn.Module):
    """A submodule that adds a loss whenever it runs inside an observed model."""

    def __init__(self, name: str = "loss_part") -> None:
        super().__init__()
        self.name = name
        self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        y = self.linear(x)
        context = current_pass().losses
        if context is not None:
            context.add(self.name, y.square().mean() * 0.5)
        return y


class Model(nn.Module):
    """The shape of a detectron2 model: losses in training, a list otherwise."""

    def __init__(self, part: nn.Module | None = None, device: str = "cpu") -> None:
        super().__init__()
        self.part = part or Part()
        self.criterion = nn.Identity()
        self.device = device

    def forward(self, batched_inputs):
        x = torch.stack([record["image"] for record in batched_inputs])
        y = self.part(x)
        return {"loss_own": y.sum()} if self.training else [{"instances": row} for row in y]


def inputs(count: int = 2) -> list[dict]:
    records = []
    for index in range(count):
        instances = Instances((50, 100))
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 5.0, 30.0, 25.0]] * index))
        instances.gt_classes = torch.arange(index)
        records.append({"image": torch.randn(2), "instances": instances})
    return records


def test_losses_join_in_training_only_and_the_state_dict_stays():
    model = Model()
    keys = list(model.state_dict())
    assert observe(model) is model
    assert set(model(inputs())) == {"loss_own", "loss_part"}
    assert list(model.state_dict()) == keys
    model.eval()
    assert isinstance(model(inputs()), list)
    assert current_pass().losses is None


def test_gradients_of_added_losses_reach_the_submodule():
    model = observe(Model())
    losses = model(inputs())
    losses["loss_part"].backward()
    assert model.part.linear.weight.grad.abs().sum() > 0


def test_observing_twice_changes_nothing():
    model = observe(observe(Model()))
    assert set(model(inputs())) == {"loss_own", "loss_part"}


def test_targets_are_normalized_by_each_images_own_size():
    seen = {}

    class Looking(Part):
        def forward(self, x):
            seen["context"], seen["targets"] = current_pass().losses, current_pass().losses.targets
            assert current_pass().losses.targets is seen["targets"]
            return super().forward(x)

    model = observe(Model(Looking()))
    model(inputs(3))
    empty, one, two = seen["targets"]
    assert empty.boxes_cxcywh_norm.shape == (0, 4) and empty.labels.shape == (0,)
    assert one.image_size == (50, 100)
    torch.testing.assert_close(one.boxes_cxcywh_norm, torch.tensor([[0.2, 0.3, 0.2, 0.4]]))
    assert two.labels.tolist() == [0, 1]
    assert seen["context"].criterion is model.criterion


def test_missing_annotations_and_odd_inputs_are_named():
    class Looking(Part):
        def forward(self, x):
            return current_pass().losses.targets

    model = observe(Model(Looking()))
    records = inputs()
    del records[1]["instances"]
    records[1]["file_name"] = "b.jpg"
    with pytest.raises(KeyError, match=r"image 1 .*b\.jpg"):
        model(records)
    assert current_pass().losses is None

    class Tensors(nn.Module):
        def forward(self, x):
            return current_pass().losses.targets

    with pytest.raises(TypeError, match="list of dicts"):
        observe(Tensors())(torch.zeros(2))


def test_targets_are_lazy():
    records = inputs()
    for record in records:
        del record["instances"]
    assert "loss_part" in observe(Model())(records)


def test_a_name_counts_once():
    class Twice(Part):
        def forward(self, x):
            return super().forward(super().forward(x))

    with pytest.raises(ValueError, match="loss_part"):
        observe(Model(Twice()))(inputs())
    assert current_pass().losses is None


def test_a_name_of_the_models_own_losses_gets_an_ending():
    """As MS-DETR names losses of its encoder like Focus-DETR's."""
    losses = observe(Model(Part("loss_own")))(inputs())
    assert set(losses) == {"loss_own", "loss_own_tokens"}
    assert losses["loss_own_tokens"] > 0


def test_losses_must_be_scalars_and_outputs_dicts():
    class Vector(Part):
        def forward(self, x):
            current_pass().losses.add("loss_vector", x)

    with pytest.raises(ValueError, match="scalar"):
        observe(Model(Vector()))(inputs())

    class Listing(Model):
        def forward(self, batched_inputs):
            super().forward(batched_inputs)
            return []

    with pytest.raises(TypeError, match="Listing"):
        observe(Listing())(inputs())
    assert current_pass().losses is None


def test_a_failed_pass_leaves_nothing_behind():
    class Failing(Part):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("broken part")

    model = observe(Model(Failing()))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken part"):
            model(inputs())
        assert current_pass().losses is None

    def refuse(module, args):
        raise RuntimeError("broken hook")

    model = Model()
    model.register_forward_pre_hook(refuse)
    outer = observe(Outer(observe(model)))
    with pytest.raises(RuntimeError, match="broken hook"):
        outer(inputs())
    assert current_pass().losses is None


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batched_inputs):
        context = current_pass().losses
        losses = self.inner(batched_inputs)
        assert current_pass().losses is context
        context.add("loss_outer", losses["loss_own"] * 2)
        return {f"inner_{name}": loss for name, loss in losses.items()}


def test_nested_models_keep_their_losses_apart():
    losses = observe(Outer(observe(Model())))(inputs())
    assert set(losses) == {"inner_loss_own", "inner_loss_part", "loss_outer"}


def test_copies_and_pickles_are_observed_on_their_own():
    model = observe(Model())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            twin.part.linear.weight.zero_()
        assert twin(inputs())["loss_part"] == 0
        assert model(inputs())["loss_part"] > 0


def test_threads_do_not_see_each_other():
    model, other = observe(Model()), observe(Model())
    barrier, found, limit = threading.Barrier(2), {}, patience(10)

    class Waiting(Part):
        def forward(self, x):
            barrier.wait(limit)
            found[threading.get_ident()] = current_pass().losses.owner
            barrier.wait(limit)
            return super().forward(x)

    model.part, other.part = Waiting(), Waiting()
    results = {}
    threads = [
        threading.Thread(target=lambda m=m: results.update({m: m(inputs())}))
        for m in (model, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {model, other}
    assert all(set(losses) == {"loss_own", "loss_part"} for losses in results.values())


def test_checkpointed_parts_count_once_and_get_their_gradient():
    class Checkpointed(Part):
        def forward(self, x):
            run = super().forward
            return checkpoint(run, x, use_reentrant=False, context_fn=replay_contexts)

    plain = observe(Model(Part()))
    again = observe(Model(Checkpointed()))
    again.load_state_dict(plain.state_dict())
    records = inputs()
    for model in (plain, again):
        sum(model(records).values()).backward()
    torch.testing.assert_close(again.part.linear.weight.grad, plain.part.linear.weight.grad)


def test_built_from_a_class_or_its_name():
    by_class = build_observed(wrapped_target=Model, device="cpu")
    assert type(by_class) is Model
    assert "loss_part" in by_class(inputs())
    linear = build_observed(wrapped_target="torch.nn.Linear", in_features=2, out_features=3)
    assert isinstance(linear, nn.Linear)
    for name in ("torch.nn.Lineal", "no_such_package.Model", "Model"):
        with pytest.raises(ImportError, match=name):
            build_observed(wrapped_target=name)


def train_rank(rank: int, folder: str) -> None:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(observe(Model()))
    torch.manual_seed(1)
    records = inputs(2)
    losses = model(records[rank : rank + 1])
    sum(losses.values()).backward()
    gradient = model.module.part.linear.weight.grad
    torch.save((sorted(losses), gradient), f"{folder}/{rank}.pth")


@pytest.mark.slow
def test_ddp_averages_the_gradients_of_added_losses(tmp_path):
    run_two_processes(train_rank, tmp_path)
    torch.manual_seed(0)
    model = observe(Model())
    torch.manual_seed(1)
    for record in inputs(2):
        (sum(model([record]).values()) / 2).backward()
    for rank in (0, 1):
        names, gradient = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert names == ["loss_own", "loss_part"]
        torch.testing.assert_close(gradient, model.part.linear.weight.grad)
