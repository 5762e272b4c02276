"""The affine bypass in whole detectors, training and configs."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.encoder.scheduled_bypass import DEPTH, SIZES, Scheduled, random_bypass, scheduled
from tests.plain_encoder import CHANNELS, make_encoder
from tests.processes import (
    assert_gradients_of_whole_batch,
    run_two_processes,
    save_common_gradients,
)
from tests.pyramids import make_batch
from tests.small_detectors import (
    CLASSES,
    LAYERS,
    LEVELS,
    WIDTH,
    assert_compiled_equals_eager,
    build,
    record,
)
from tests.sparse_detr.sparse_detectors import RECORDS, run_encoder, sparse
from tokendetr.analysis.flops import count_flops
from tokendetr.config import add_bypass, zoo
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.forward_context import observe


def sparse_with_bypass(name="dino", **options):
    return sparse(
        name,
        bypass=AffineBypass(embed_dim=WIDTH, num_layers=LAYERS, num_levels=LEVELS, context=True),
        **options,
    )


@pytest.mark.parametrize("name", ["dino", "deformable", "dab", "dn_two_stage", "h_two_stage"])
def test_keep_ratio_one_is_bitwise_the_dense_detector(name):
    options = {} if name.endswith("two_stage") or name == "dino" else {"projection": "own"}
    dense, ours = build(name).eval(), sparse_with_bypass(name, keep_ratio=1.0, **options).eval()
    assert ours.transformer.encoder.sparsifier.bypass.weight.abs().sum() > 0
    with torch.no_grad():
        for a, b in zip(ours(RECORDS), dense(RECORDS), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
            assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_an_image_does_not_depend_on_its_batch_and_padding_never_leaks():
    model = sparse_with_bypass().double().eval()
    model.pixel_mean, model.pixel_std = model.pixel_mean.double(), model.pixel_std.double()
    records = [{**r, "image": r["image"].double()} for r in RECORDS]
    with torch.no_grad():
        together = model(records)
        for record, result in zip(records, together, strict=True):
            alone = model([record])[0]["instances"]
            torch.testing.assert_close(result["instances"].scores, alone.scores)
            torch.testing.assert_close(
                result["instances"].pred_boxes.tensor, alone.pred_boxes.tensor
            )


def test_a_state_dict_holds_the_maps_under_their_own_prefix():
    model, prefix = sparse_with_bypass(), "transformer.encoder.sparsifier.bypass."
    names = {name for name in model.state_dict() if name.startswith(prefix)}
    assert names == {f"{prefix}{name}" for name in ("weight", "bias", "context_weight")}
    others = {name for name in model.state_dict() if not name.startswith(prefix)}
    assert others == set(sparse().state_dict())


def test_transformers_that_initialize_all_matrices_leave_a_new_bypass_alone():
    model = build("dino")
    bypass = AffineBypass(embed_dim=WIDTH, num_layers=LAYERS, num_levels=LEVELS)
    model.transformer.encoder.sparsifier = SparseSparsifier(
        embed_dim=WIDTH, num_classes=CLASSES, num_layers=LAYERS, bypass=bypass
    )
    model.transformer.init_weights()
    assert not bypass.weight.any()


def test_folded_matrices_follow_the_parameters():
    encoder = scheduled([0.3] * DEPTH).float()
    batch, _ = make_batch(SIZES, CHANNELS)
    with torch.no_grad():
        before = encoder(**batch.inputs)
        encoder.layers[1].attentions[0].value_proj.weight.mul_(1.5)
        changed = encoder(**batch.inputs)
        fresh = copy.deepcopy(encoder).eval()(**batch.inputs)
        assert not torch.allclose(before, changed) and torch.equal(changed, fresh)
        other = random_bypass(scale=0.3)
        encoder.sparsifier.bypass.load_state_dict(other.state_dict())
        loaded = encoder(**batch.inputs)
        assert torch.equal(loaded, copy.deepcopy(encoder).eval()(**batch.inputs))
        half = encoder.double()(
            **{**batch.inputs, "query": batch.x_BNC.double(), "query_pos": None}
        )
        assert half.dtype == torch.float64


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_its_cost_is_one_product_of_each_left_out_token_and_two_of_each_block(ratio):
    """Against the encoder without one; padding is not projected."""
    record = RECORDS[:1]
    with_maps = sparse_with_bypass(keep_ratio=ratio).eval()
    without = copy.deepcopy(with_maps)
    without.transformer.encoder.sparsifier.bypass = None
    ours, theirs = count_flops(with_maps, record), count_flops(without, record)
    tokens = run_encoder(without, record).shape[1]
    assert tokens == 12 * 16 + 6 * 8 + 3 * 4
    blocks, spread = 6 * 8 + 3 * 4, 12 * 16 + 6 * 8  # on four neighbors each
    kept = without.transformer.encoder.sparsifier.kept_tokens(tokens)
    extra = ours.by_part["encoder"] - theirs.by_part["encoder"]
    assert extra == (tokens - kept) * WIDTH**2 + 2 * blocks * WIDTH**2 + 4 * spread * WIDTH
    # Counting leaves no trace.
    fresh = copy.deepcopy(with_maps).eval()
    count_flops(with_maps, record, arithmetic=False)
    with torch.no_grad():
        assert torch.equal(run_encoder(with_maps, record), run_encoder(fresh, record))


def test_training_in_bf16_gives_finite_gradients():
    model = sparse_with_bypass().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(RECORDS)
    sum(losses.values()).backward()
    bypass = model.transformer.encoder.sparsifier.bypass
    assert bypass.weight.grad.isfinite().all() and bypass.weight.grad[0].any()
    assert bypass.weight.grad[-1].any()


def test_autocast_is_near_full_precision():
    encoder = scheduled([0.5, 0.4, 0.3, 0.2], carry=True).float()
    batch, _ = make_batch(SIZES, CHANNELS)
    real = batch.layout.valid_BN
    with torch.no_grad():
        exact = encoder(**batch.inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = encoder(**batch.inputs)
    assert (exact - half)[real].abs().max() < 0.02 * exact[real].abs().max()


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_every_parameter_is_in_the_graph(ratio):
    model = sparse_with_bypass(keep_ratio=ratio).train()
    sum(model(RECORDS).values()).backward()
    bypass = model.transformer.encoder.sparsifier.bypass
    assert bypass.weight.grad is not None and bypass.bias.grad is not None


def test_activation_checkpoints_change_no_gradient():
    plain = sparse_with_bypass().train()
    stored = copy.deepcopy(plain)
    stored.transformer.encoder.use_checkpoint = True
    grads = []
    for model in (plain, stored):
        torch.manual_seed(0)
        sum(model(RECORDS).values()).backward()
        grads.append(model.transformer.encoder.sparsifier.bypass.weight.grad)
    torch.testing.assert_close(*grads)


def test_focus_detr_carries_one():
    model = build("dino")
    torch.manual_seed(4)
    focus = FocusSparsifier(
        embed_dim=WIDTH,
        num_heads=2,
        num_layers=LAYERS,
        num_levels=LEVELS,
        strides=(8, 16, 32),
        num_objects=4,
        bypass=random_bypass(layers=LAYERS, levels=LEVELS, channels=WIDTH),
    )
    model.transformer.encoder.sparsifier = focus
    observe(model).eval()
    with torch.no_grad():
        moved = run_encoder(model, RECORDS)
        nn.init.zeros_(focus.bypass.weight)
        nn.init.zeros_(focus.bypass.bias)
        stood = run_encoder(model, RECORDS)
    assert not torch.equal(moved, stood)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="must be positive"):
        AffineBypass(num_levels=0)
    with pytest.raises(ValueError, match="bypass has num_layers=2, the encoder 3"):
        make_encoder(Scheduled([0.3] * 3, bypass=AffineBypass(embed_dim=CHANNELS, num_layers=2)))
    encoder = make_encoder(Scheduled([0.3] * 3))
    encoder.sparsifier.bypass = AffineBypass(embed_dim=CHANNELS, num_layers=3, num_levels=3)
    batch, _ = make_batch(SIZES, CHANNELS)
    with pytest.raises(ValueError, match="num_levels=3, the encoder got 4"):
        encoder(**batch.inputs)


@pytest.mark.parametrize("name", ["sparse_dino_shapes", "focus_dino_shapes"])
def test_a_config_gets_one_with_the_encoders_sizes(name):
    config = zoo.get_config(name)
    model = instantiate(add_bypass(config.model))
    bypass, encoder = model.transformer.encoder.sparsifier.bypass, model.transformer.encoder
    assert bypass.weight.shape == (encoder.num_layers, 4, encoder.embed_dim, encoder.embed_dim)
    assert not bypass.weight.any()
    with pytest.raises(KeyError, match="sparsifier"):
        add_bypass(zoo.get_config("dino_shapes").model)


PER_PROCESS = [RECORDS[:1], [record(96, 128, seed=4)]]  # one image without boxes


def _double():
    return sparse_with_bypass(detector={"dn_number": 0}).double().train()


def _worker(rank: int, folder: str) -> None:
    save_common_gradients(rank, _double(), PER_PROCESS[rank], Path(folder, "gradients.pth"))


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    run_two_processes(_worker, tmp_path)
    records = [one for records in PER_PROCESS for one in records]
    assert_gradients_of_whole_batch(tmp_path / "gradients.pth", _double(), records)


@pytest.mark.slow
def test_compiled_evaluation_gives_the_same_detections():
    assert_compiled_equals_eager(sparse_with_bypass("deformable_two_stage"), RECORDS)
