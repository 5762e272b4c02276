"""The step: it stops before a bad update, accumulates like a large batch, clips, scales."""

import copy

import pytest
import torch
from detectron2.engine import hooks

from tests.train.toy import ToyDetector, batch, write_dataset
from tokendetr.errors import NonFiniteLossError
from tokendetr.layers.precision import parse_dtype
from tokendetr.train.trainer import Trainer


def make_model(**kwargs):
    torch.manual_seed(0)
    return ToyDetector(**kwargs)


def train_steps(model, batches, lr=1e-2, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    trainer = Trainer(model, batches, optimizer, **options)
    trainer.train(0, len(batches) // options.get("grad_accum_steps", 1))
    return trainer


@pytest.mark.parametrize("normalize", ["boxes", "images"])
@pytest.mark.parametrize("boxes", [(3, 0, 0, 0, 0, 0, 1, 2), (0,) * 8, None])
def test_accumulation_equals_one_large_batch(normalize, boxes):
    options = {"normalize": normalize, "dtype": "float64"}
    # Without clipping AdamW would be insensitive to a constant factor of the gradient.
    clip = {"max_norm": 0.05}
    large, small = make_model(**options), make_model(**options)
    batches = [batch(8, seed, boxes) for seed in range(5)]
    whole = train_steps(large, batches, clip_grad=clip)
    parts = [b[i : i + 2] for b in batches for i in range(0, 8, 2)]
    split = train_steps(
        small, parts, clip_grad=clip, grad_accum_steps=4, grad_accum_weighting=normalize
    )
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=0, atol=1e-10)
    for key in ("total_loss", "loss_bbox", "grad_norm"):
        values = [t.storage.history(key).latest() for t in (whole, split)]
        assert values[0] == pytest.approx(values[1], abs=1e-10), key


def test_non_finite_loss_stops_before_the_update():
    model = make_model(poison=5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteLossError) as caught:
        train_steps(model, [batch(8)])
    message = str(caught.value)
    assert "iteration 0" in message and "loss_class = nan" in message
    assert "image5.png (image id 5)" in message and "loss_bbox" not in message
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_non_finite_loss_in_a_later_micro_batch():
    model = make_model(poison=5)
    before = copy.deepcopy(model.state_dict())
    records = batch(8)
    with pytest.raises(NonFiniteLossError, match=r"image5\.png"):
        train_steps(model, [records[:4], records[4:]], grad_accum_steps=2)
    assert torch.equal(model.stem.weight, before["stem.weight"])


def test_non_finite_gradient_stops_before_the_update():
    model = make_model()
    model.bbox_embed.weight.register_hook(lambda grad: grad * float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteLossError, match="bbox_embed.weight.*image1.png"):
        train_steps(model, [batch(4)], clip_grad={"max_norm": 0.1})
    assert torch.equal(model.class_embed.weight, before["class_embed.weight"])


def test_run_stops_and_keeps_its_checkpoint(toy_run, tmp_path):
    """In a whole run: the last checkpoint is of good weights, and the log names the file."""
    root = tmp_path / "data"
    write_dataset(root)
    out = tmp_path / "out"
    toy_run(out, "train.max_iter=4", root=root)
    good = torch.load(out / "model_final.pth", weights_only=True)["model"]
    with pytest.raises(NonFiniteLossError, match=r"00\d\.png \(image id 5\)"):
        toy_run(out, "model.poison=5", "train.max_iter=9", root=root, resume=True)
    kept = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert all(torch.equal(kept[name], good[name]) for name in good)


def test_clipping_and_reported_norm():
    model = make_model(dtype="float64")
    other = copy.deepcopy(model)
    records = batch(4)
    losses = other.train()(records)
    sum(losses.values()).backward()
    norm = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]).norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(model, [records], optimizer, clip_grad={"max_norm": 0.01})
    trainer.train(0, 1)
    step = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()]).norm()
    assert trainer.storage.history("grad_norm").latest() == pytest.approx(norm.item())
    assert step.item() == pytest.approx(0.01, rel=1e-3) and norm > 0.01


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains_on_cpu(dtype):
    model, reference = make_model(), make_model()
    batches = [batch(4, seed % 3) for seed in range(30)]
    trainer = train_steps(model, batches, amp_dtype=parse_dtype(dtype))
    plain = train_steps(reference, batches)
    losses = [t.storage.history("total_loss") for t in (trainer, plain)]
    assert losses[0].latest() < 0.9 * losses[0].values()[0][0]
    assert losses[0].latest() == pytest.approx(losses[1].latest(), rel=0.1)
    assert model.stem.weight.dtype == torch.float32
    state = trainer.state_dict()
    assert ("grad_scaler" in state) == (dtype == "float16")


def test_float16_scaler_skips_overflow_and_survives_a_checkpoint():
    model = make_model()
    huge = [True]

    def overflow_once(grad):
        return grad * float("inf") if huge.pop() else grad

    handle = model.bbox_embed.weight.register_hook(overflow_once)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(model, [batch(4)], optimizer, amp_dtype=torch.float16)
    scale = trainer.grad_scaler.get_scale()
    trainer.train(0, 1)
    handle.remove()
    assert torch.equal(model.stem.weight, before["stem.weight"])
    assert trainer.grad_scaler.get_scale() == scale / 2
    other = Trainer(make_model(), [batch(4)], optimizer, amp_dtype=torch.float16)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == scale / 2


def test_float16_that_never_updates_ends_the_run():
    """A finite loss whose gradient never is: the scale would go down to 0 without a word."""
    model = make_model()
    model.class_embed.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, [batch(4)] * 100, optimizer, amp_dtype=torch.float16)
    with pytest.raises(NonFiniteLossError, match="32 updates in a row.*class_embed"):
        trainer.train(0, 100)
    assert trainer.iter == 31
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_training_keeps_the_last_values_of_its_metrics_alone(monkeypatch):
    monkeypatch.setattr("tokendetr.train.trainer.KEPT_VALUES", 4)
    monkeypatch.setattr("tokendetr.train.writers.KEPT_VALUES", 4)
    model = ToyDetector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, [batch(2)] * 11, optimizer)
    trainer.train(0, 11)
    losses = trainer.storage.history("total_loss")
    assert [iteration for _, iteration in losses.values()] == [4, 5, 6, 7, 8, 9, 10]
    assert losses.global_avg() == pytest.approx(losses.latest())
    assert all(len(h.values()) <= 7 for h in trainer.storage.histories().values())


def test_hooks_see_gradients():
    """``after_backward`` of upstream's hook protocol runs between backward pass and update."""
    seen = []

    class Look(hooks.HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.stem.weight.grad.norm().item())

    model = make_model()
    trainer = Trainer(model, [batch(4)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([Look()])
    trainer.train(0, 1)
    assert len(seen) == 1 and seen[0] > 0


@pytest.mark.parametrize("options", [{"grad_accum_steps": 0}, {"grad_accum_weighting": "pixels"}])
def test_bad_settings(options):
    model = make_model()
    with pytest.raises(ValueError, match="train.grad_accum"):
        Trainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"train\.amp\.dtype='int8'"):
        parse_dtype("int8")


@pytest.mark.parametrize(
    "error", [ValueError("matrix contains invalid numeric entries"), AssertionError()]
)
def test_outputs_that_are_not_finite_are_said_with_their_images(error):
    """Matchers refuse them before there is a loss; upstream's by an assertion without words."""
    model = ToyDetector()

    def losses(*args):
        with torch.no_grad():
            model.stem.weight.fill_(float("nan"))
        raise error

    model.losses = losses
    trainer = Trainer(model, [batch(2, 0)], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteLossError, match=r"iteration 0.*image id"):
        trainer.train(0, 1)


def test_other_errors_of_a_model_stay():
    model = ToyDetector()
    model.losses = lambda *args: (_ for _ in ()).throw(ValueError("3 boxes, 4 classes"))
    trainer = Trainer(model, [batch(2, 0)], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="3 boxes") as caught:
        trainer.train(0, 1)
    assert not isinstance(caught.value, NonFiniteLossError)
