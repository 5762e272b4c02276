"""Transforming vision transformers of one sequence: Hugging Face models."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.token_transforming.small_transformers import PREFIX, build, images, tokens_of
from token_transforming import TokenState, UnsupportedModelError, restore, supported, transform
from token_transforming.block_states import end_pass, states_for_block

SEQUENCES = ("vit", "deit", "dinov2", "dinov2_registers", "clip")


def reference_vit(model, x, layer, kept, threshold, temperature):
    """Run a ViT with one transform, in float64 and without anything of the package."""
    model = copy.deepcopy(model).double()
    hidden = model.embeddings(x.double())
    log_size = torch.zeros(hidden.shape[:2], dtype=torch.float64)
    for index, block in enumerate(model.layers):
        attention = block.attention
        normed = block.layernorm_before(hidden)
        query, key, value = (
            projection(normed).unflatten(-1, (3, 16)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = query @ key.transpose(2, 3) / 4 + log_size[:, None, None]
        weights = logits.softmax(dim=-1)
        hidden = hidden + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
        if index == layer:
            reduced, sizes = [], []
            for image in range(len(x)):
                patches = hidden[image, 1:]
                score = weights[image].mean(dim=0).sum(dim=0)[1:]
                chosen = score.topk(kept).indices.sort().values
                unit = patches / patches.norm(dim=-1, keepdim=True)
                cosine = unit[chosen] @ unit.T
                share = (temperature * cosine * (cosine >= threshold)).softmax(dim=0)
                size = share.sum(dim=1)
                mixed = share @ patches / size[:, None]
                reduced.append(torch.cat([hidden[image, :1], mixed]))
                sizes.append(torch.cat([torch.ones(1), size]))
            hidden, log_size = torch.stack(reduced), torch.stack(sizes).log()
        hidden = hidden + block.mlp(block.layernorm_after(hidden))
    return model.layernorm(hidden)


@torch.no_grad()
def test_a_transformed_vit_is_the_float64_loop():
    model, x = build("vit"), images()
    expected = reference_vit(model, x, layer=2, kept=18, threshold=0.2, temperature=20.0)
    transform(model, layers=(2,), keep_ratio=0.5, threshold=0.2, temperature=20.0)
    torch.testing.assert_close(tokens_of(model, x).double(), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", SEQUENCES)
def test_keeping_all_tokens_is_the_dense_model_and_restore_is_exact(kind):
    model, x = build(kind), images()
    dense = tokens_of(model, x)
    keys = list(model.state_dict())
    transform(model, layers=(1, 3), keep_ratio=1.0, temperature=1e5)
    torch.testing.assert_close(tokens_of(model, x), dense, rtol=1e-4, atol=1e-4)
    report = transform(model, layers=(1, 3), keep_ratio=0.5)
    reduced = tokens_of(model, x)
    assert reduced.shape[1] == PREFIX[kind] + 9 == report.tokens(36)[-1]
    assert report.prefix == PREFIX[kind] and not report.restored
    assert list(model.state_dict()) == keys
    restore(model)
    assert torch.equal(tokens_of(model, x), dense)
    assert not [m for m in model.modules() if type(m).__name__.startswith("Transformed")]
    restore(model)


@torch.no_grad()
def test_transforming_twice_is_transforming_once():
    model, x = build("vit"), images()
    transform(model, layers=(1, 3), keep_ratio=0.6)
    once = tokens_of(model, x)
    transform(model, layers=(1, 3), keep_ratio=0.6)
    assert torch.equal(tokens_of(model, x), once)
    transform(model, layers=(2,), keep_ratio=0.5)
    assert tokens_of(model, x).shape[1] == 19
    restore(model)
    assert tokens_of(model, x).shape[1] == 37


@torch.no_grad()
def test_copies_threads_and_saved_states(tmp_path):
    model, x = build("vit"), images(4)
    report = transform(model, layers=(1, 3), keep_ratio=(0.7, 0.5))
    expected = tokens_of(model, x)
    clone = copy.deepcopy(model)
    restore(model)
    assert torch.equal(tokens_of(clone, x), expected)
    torch.save(clone.state_dict(), tmp_path / "state.pth")
    fresh = build("vit")
    transform(fresh, layers=report.layers, keep_ratio=[how.keep_ratio for how in report.reductions])
    fresh.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert torch.equal(tokens_of(fresh, x), expected)
    results = {}

    def run(number):
        with torch.no_grad():
            for _ in range(5):
                results[number] = tokens_of(clone, x[number : number + 1])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        torch.testing.assert_close(results[number][0], expected[number], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "method", ["transforming", pytest.param("merging", marks=pytest.mark.slow)]
)
def test_compiling_a_transformed_model_needs_no_graph_break(method):
    torch.compiler.reset()
    model, x = build("vit"), images()
    transform(model, layers=(1, 3), keep_ratio=0.5, method=method)
    expected = tokens_of(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tokens_of(compiled, x), expected)
    assert torch.equal(tokens_of(model, x), expected), "eager still works after compiling"
    torch.compiler.reset()


def test_a_pass_of_compiled_code_belongs_to_its_thread(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    states = states_for_block(0)
    states.entering[1] = TokenState()

    def another_pass():
        with pytest.raises(RuntimeError, match="block 1 .* runs outside of a forward pass"):
            states_for_block(1)
        assert states_for_block(0) is not states
        end_pass()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(another_pass).result()
    assert states_for_block(1) is states
    end_pass()


@torch.no_grad()
@pytest.mark.parametrize("method", ["pruning", "merging", "fusing", "transforming", "clustering"])
def test_every_method_restores_every_blocks_output(method):
    model, x = build("vit"), images()
    layers = (2,) if method == "clustering" else (1, 3)
    transform(model, layers=layers, keep_ratio=0.5, method=method, recover="every")
    hidden = model(x, output_hidden_states=True).hidden_states
    assert {state.shape for state in hidden} == {torch.Size((2, 37, 48))}
    assert len(hidden) == 7
    # A restored token is one of the reduced ones, so few are distinct.
    if method != "clustering":
        assert len(hidden[-1][0, 1:].unique(dim=0)) <= 9


@torch.no_grad()
def test_restoring_for_good_after_a_block_and_reducing_again():
    model, x = build("vit"), images()
    transform(model, layers=(1,), keep_ratio=0.5, recover=2)
    hidden = model(x, output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in hidden] == [37, 37, 19, 37, 37, 37, 37]
    transform(model, layers=(1, 4), keep_ratio=0.5, recover=2)
    assert tokens_of(model, x).shape[1] == 19


@torch.no_grad()
def test_dpt_and_backbones_read_dense_maps_by_default():
    model, x = build("dpt"), images()
    dense = model(x).predicted_depth
    report = transform(model, layers=(1, 3), keep_ratio=0.5)
    assert report.restored and report.name == "dpt"
    assert model(x).predicted_depth.shape == dense.shape
    transform(model, layers=(1, 3), keep_ratio=1.0, temperature=1e5)
    torch.testing.assert_close(model(x).predicted_depth, dense, rtol=1e-3, atol=1e-3)
    backbone = build("dinov2_backbone")
    transform(backbone, layers=(1, 3), keep_ratio=0.5)
    assert {m.shape for m in backbone(x).feature_maps} == {torch.Size((2, 48, 6, 6))}


class Segmenter(torch.nn.Module):
    """A ViT with a linear decoder of its patches, or with one in which class tokens attend."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.vit = build("vit")
        self.classes = torch.nn.Parameter(torch.randn(5, 48))
        layer = torch.nn.TransformerEncoderLayer(48, 3, 96, batch_first=True)
        self.decoder = (
            torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) if masks else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches, classes = tokens_of(self.vit, x)[:, 1:], self.classes.expand(len(x), -1, -1)
        if self.decoder is not None:
            patches, classes = self.decoder(torch.cat([patches, classes], dim=1)).split([36, 5], 1)
        return (patches @ classes.transpose(1, 2)).unflatten(1, (6, 6))


@torch.no_grad()
@pytest.mark.parametrize("masks", [False, True])
def test_segmentation_decoders_read_restored_patches(masks):
    model, x = Segmenter(masks).eval(), images()
    dense = model(x)
    transform(model, layers=(2, 4), keep_ratio=1.0, temperature=1e6, recover="end")
    torch.testing.assert_close(model(x), dense, rtol=1e-3, atol=1e-3)
    transform(model, layers=(2, 4), keep_ratio=0.7, recover="end")
    logits = model(x)
    assert logits.shape == dense.shape
    kinds = [len(image.flatten(0, 1).round(decimals=4).unique(dim=0)) for image in logits]
    assert all(9 < count <= 19 for count in kinds)  # 36 patches, 26, 19
    assert torch.equal(restore(model)(x), dense)


def test_fine_tuning_reaches_all_parameters_and_lowers_the_loss():
    model, x = build("vit_classifier"), images(4)
    transform(model, layers=(1, 3), keep_ratio=0.5, temperature=5.0)
    labels = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = model(x, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_checkpointing_recomputes_the_same_gradients():
    gradients = []
    for use in (False, True):
        model, x = build("vit"), images()
        transform(model, layers=(1, 3), keep_ratio=0.5, temperature=5.0)
        model.train()
        if use:
            model.activation_checkpointing_enable({"use_reentrant": False})
        tokens_of(model, x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models(dtype):
    model, x = build("vit").to(dtype), images().to(dtype)
    transform(model, layers=(1, 3), keep_ratio=0.5)
    out = tokens_of(model, x)
    assert out.dtype == dtype and out.isfinite().all()


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    model, x = build("vit"), images(3)
    transform(model, layers=(1, 3), keep_ratio=0.5)
    together = tokens_of(model, x)
    for image in range(3):
        alone = tokens_of(model, x[image : image + 1])[0]
        torch.testing.assert_close(alone, together[image], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_carried_sizes_count_all_tokens_and_literal_ones_only_the_last(monkeypatch):
    from token_transforming import sequence

    seen = []
    original = sequence.size_bias

    def spy(size, valid, *, first=0):
        seen.append(size)
        return original(size, valid, first=first)

    monkeypatch.setattr(sequence, "size_bias", spy)
    model, x = build("vit"), images(1)
    for sizes, total in (("carried", 36.0), ("literal", 18.0)):
        seen.clear()
        transform(model, layers=(1, 3), keep_ratio=0.5, sizes=sizes)
        tokens_of(model, x)
        assert seen[1] is None
        assert seen[2].sum().item() == pytest.approx(36.0, rel=1e-5)
        assert seen[5].sum().item() == pytest.approx(total, rel=1e-5)


def test_unsupported_models_and_wrong_values_are_named():
    with pytest.raises(UnsupportedModelError, match=r"Linear cannot.*ViTModel.*SwinTransformer"):
        transform(torch.nn.Linear(2, 2))
    two = torch.nn.ModuleList([build("vit"), build("deit")])
    with pytest.raises(UnsupportedModelError, match=r"several.*0 \(ViTModel\), 1 \(DeiTModel\)"):
        transform(two, layers=(1,))
    model = build("vit")
    for wrong, message in (
        ({"layers": (7,)}, "blocks 0 to 5"),
        ({"layers": (3, 1)}, "ascending"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, 2), "keep_ratio": (0.5,)}, "1 values for 2"),
        ({"layers": (1, 2, 3), "keep_ratio": "0.7"}, "keep_ratio must lie in .* got '0.7'"),
        ({"layers": (1,), "recover": "sometimes"}, "sometimes"),
        ({"layers": (3,), "recover": 1}, "recover=1"),
        ({"layers": (1,), "method": "magic"}, "magic"),
    ):
        with pytest.raises(ValueError, match=message):
            transform(model, **wrong)
    assert tokens_of(model, images()).shape[1] == 37, "a refused transform changes nothing"
    assert any("CLIPVisionModel" in name for name in supported())


def test_attention_masks_and_blocks_run_alone_are_refused():
    model, x = build("vit"), images()
    transform(model, layers=(1,), keep_ratio=0.5)
    with pytest.raises(ValueError, match="attention mask"):
        model(x, attention_mask=torch.tensor([[1] * 36 + [0]] * 2))
    with pytest.raises(RuntimeError, match="block 2"):
        model.layers[2](torch.randn(1, 37, 48))


def test_clip_inside_a_larger_model_leaves_the_text_tower_alone():
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3}
    text = {**small, "num_attention_heads": 3, "vocab_size": 50}
    vision = {**small, "num_attention_heads": 3, "image_size": 48, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()
    report = transform(model, layers=(1,), keep_ratio=0.5)
    assert report.name == "vision_model"
    out = model(input_ids=torch.ones(2, 5).long(), pixel_values=images())
    assert out.vision_model_output.last_hidden_state.shape[1] == 19
    assert out.text_model_output.last_hidden_state.shape[1] == 5
