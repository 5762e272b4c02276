"""Transformed models are exported, traced, saved whole and moved to bfloat16."""

import io
import pickle
import subprocess
import sys

import pytest
import torch

from tests.token_transforming import small_transformers
from tests.token_transforming.plain_vits import images as pictures
from tests.token_transforming.plain_vits import vit
from tests.token_transforming.small_swins import images as maps
from tests.token_transforming.small_swins import swin
from token_transforming import METHODS, restore, transform

HOW = {"layers": (1, 3), "keep_ratio": 0.6}


def classifier(**options):
    model = small_transformers.build("vit_classifier")
    transform(model, **HOW, **options)
    return model


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"selection": "distinct"}, {"method": "merging"}])
def test_a_transformed_transformer_exports_for_any_batch(options):
    model = classifier(**options)
    x, more = small_transformers.images(2), small_transformers.images(5, seed=3)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(x).logits, model(x).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(program(more).logits, model(more).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transformer", "map", "windows"])
@pytest.mark.filterwarnings("ignore")
def test_tracing_gives_the_models_own_result(kind):
    if kind == "transformer":
        model, x = classifier(), small_transformers.images()
        name = "logits"
    elif kind == "map":
        model, x, name = vit(), pictures(), "last_feat"
        transform(model, layers=(1, 2), keep_ratio=0.6, recovery="residual")
    else:
        model, x, name = swin(), maps((100, 140)), "p3"
        transform(model, layers=(4, 6), keep_ratio=0.6, recovery="residual")
    traced = torch.jit.trace(model, (x,), strict=False)
    torch.testing.assert_close(traced(x)[name], model(x)[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_nothing_and_any_other_is_refused():
    model = classifier()
    block, x = model.vit.layers[0], torch.randn(2, 37, 48)
    plain = block(x)
    everything = torch.ones(2, 1, 37, 37, dtype=torch.bool)
    assert torch.equal(block(x, everything), plain)
    assert torch.equal(block(x, torch.zeros(2, 1, 37, 37)), plain)
    hiding = everything.clone()
    hiding[1, 0, 3, 4] = False
    for mask in (hiding, torch.zeros(2, 1, 37, 37).masked_fill(~hiding, -1e4)):
        with pytest.raises(ValueError, match="ViTLayer is transformed and cannot take an att"):
            block(x, mask)


@torch.no_grad()
@pytest.mark.parametrize("build", ["vit_classifier", "dinov2", "map", "windows"])
def test_a_model_saved_whole_is_the_same_when_it_is_read(build):
    if build in ("map", "windows"):
        model = vit() if build == "map" else swin()
        x = pictures() if build == "map" else maps((100, 140))
        transform(model, layers=(1,) if build == "map" else (4,), keep_ratio=0.5)
    else:
        model, x = small_transformers.build(build), small_transformers.images()
        transform(model, **HOW)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    first = lambda out: next(v for v in torch.utils._pytree.tree_leaves(dict(out)) if v.dim() > 1)  # noqa: E731
    assert torch.equal(first(again(x)), first(model(x)))
    assert torch.equal(first(restore(again)(x)), first(restore(model)(x)))


def test_another_process_reads_what_was_pickled(tmp_path):
    model = classifier()
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys; from tests.token_transforming import small_transformers as s;"
        "model = pickle.load(open(sys.argv[1], 'rb'));"
        "print(repr(float(model(s.images()).logits.double().sum())))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    ).stdout
    expected = float(model(small_transformers.images()).logits.double().sum().detach())
    assert float(said) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("recovery", ["paper", "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_work_in_bfloat16(method, recovery):
    layers = (1,) if method == "clustering" else (1, 2)
    how = {"keep_ratio": 0.6, "method": method, "recovery": recovery}
    sequence, x = small_transformers.build("dinov2_backbone"), small_transformers.images()
    windowed, relative = swin(), vit(use_rel_pos=True, window_size=4, window_block_indexes=(2,))
    transform(sequence, layers=layers, **how)
    transform(relative, layers=layers[:1], **how)
    transform(windowed, layers=(4, 6), **how)
    results = [
        sequence.bfloat16()(x.bfloat16()).feature_maps[-1],
        relative.bfloat16()(pictures().bfloat16())["last_feat"],
        windowed.bfloat16()(maps((100, 140)).bfloat16())["p3"],
    ]
    for result in results:
        assert result.dtype == torch.bfloat16
        assert result.isfinite().all()
