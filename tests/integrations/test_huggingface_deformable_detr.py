"""Hugging Face's Deformable DETR and ours are one network, and our encoder runs in theirs."""

import copy
import functools

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.integrations import small_huggingface
from tests.integrations.small_huggingface import CLASSES
from tokendetr.config import resize, zoo
from tokendetr.encoder import TokenEncoder
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.integrations import from_huggingface, sparsify_huggingface, to_huggingface

CONFIGS = {
    "deformable_detr": "deformable_detr_r50_50ep",
    "deformable_detr_refine": "deformable_detr_r50_with_box_refinement_50ep",
    "deformable_detr_two_stage": "deformable_detr_r50_two_stage_50ep",
}
EQUAL = ((96, 128), (96, 128))
PADDED = ((96, 128), (80, 96))  # ours keeps padding out of the backbone, theirs does not


def theirs(name: str) -> nn.Module:
    torch.manual_seed(0)
    refine = {} if name == "deformable_detr" else {"with_box_refine": True}
    stages = {"two_stage": True, "two_stage_num_proposals": 10} if "two" in name else {}
    model = small_huggingface.deformable_detr(**refine, **stages)
    with torch.no_grad():
        for key, value in model.named_buffers():
            if "running_var" in key:
                value.uniform_(0.5, 1.5)
    return model.eval()


def ours(name: str) -> nn.Module:
    """Our config of the same kind, as narrow as the model of transformers."""
    model = copy.deepcopy(zoo.get_config(CONFIGS[name]).model)
    resize(model, width=32, num_heads=2, feedforward_dim=32, num_layers=2)
    stages, channels = [], (8, 8, 12, 16, 24)
    for index, (before, after) in enumerate(zip(channels, channels[1:], strict=False)):
        stages.append(
            L(ResNet.make_stage)(
                block_class=BasicBlock,
                num_blocks=1,
                stride_per_block=[1 if index == 0 else 2],
                in_channels=before,
                out_channels=after,
                norm="FrozenBN",
            )
        )
    model.backbone = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=8, norm="FrozenBN"),
        stages=stages,
        out_features=["res3", "res4", "res5"],
    )
    widths = {"res3": 12, "res4": 16, "res5": 24}
    model.neck.input_shapes = {key: ShapeSpec(channels=width) for key, width in widths.items()}
    model.neck.norm_layer.num_groups = 32  # as many as transformers always has
    model.num_classes, model.num_queries, model.device = CLASSES, 10, "cpu"
    return instantiate(model).eval()


def batch(sizes=EQUAL) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Two images, for us and, normalized and padded, for them."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, h, w, generator=generator) * 255 for h, w in sizes]
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    pixels, mask = torch.zeros(2, 3, *sizes[0]), torch.zeros(2, *sizes[0], dtype=torch.long)
    records = []
    for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        pixels[index, :, :height, :width] = (image - mean) / std
        mask[index, :height, :width] = 1
        records.append({"image": image, "height": height, "width": width})
    return records, {"pixel_values": pixels, "pixel_mask": mask}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_convert_to_the_same_network_and_back(name):
    model, converted = theirs(name), ours(name)
    state = model.state_dict()
    converted.load_state_dict(from_huggingface(state))
    records, inputs = batch()
    with torch.no_grad():
        expected, found = model(**inputs), converted(records)
    for logits_QV, boxes_Q4, result in zip(
        expected.logits, expected.pred_boxes, found, strict=True
    ):
        instances = result["instances"]
        best = logits_QV.sigmoid().flatten().sort(descending=True)
        count = len(instances)
        torch.testing.assert_close(instances.scores, best.values[:count], rtol=1e-4, atol=1e-5)
        center, size = boxes_Q4.split(2, dim=-1)
        corners_Q4 = torch.cat([center - size / 2, center + size / 2], dim=-1).clamp(0, 1)
        boxes = instances.pred_boxes.tensor / torch.tensor([128, 96, 128, 96])
        gap = (boxes[:, None] - corners_Q4[None]).abs().amax(dim=-1)
        assert gap.min(dim=1).values.max() < 1e-4  # each of ours is one of theirs
    back = to_huggingface(converted.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_names_of_older_files_and_of_timms_resnet():
    state = theirs("deformable_detr").state_dict()
    older = {}
    for key, value in state.items():
        key = key.replace("model.backbone.", "model.backbone.conv_encoder.")
        key = key.replace("self_attn.o_proj", "self_attn.out_proj").replace(".mlp.fc", ".fc")
        key = key.replace("embedder.embedder.convolution", "conv1")
        key = key.replace("embedder.embedder.normalization", "bn1")
        for stage in range(4):
            key = key.replace(f"encoder.stages.{stage}.layers.", f"layer{stage + 1}.")
        key = key.replace("shortcut.convolution", "downsample.0")
        key = key.replace("shortcut.normalization", "downsample.1")
        for conv in range(2):
            key = key.replace(f"layer.{conv}.convolution", f"conv{conv + 1}")
            key = key.replace(f"layer.{conv}.normalization", f"bn{conv + 1}")
        older[key] = value
    assert older.keys() != state.keys()
    expected, converted = from_huggingface(state), from_huggingface(older)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="DeformableDetrForObjectDetection"):
        from_huggingface({"model.encoder.layers.0.fc1.weight": torch.zeros(1)})
    quantized = "model.decoder.layers.0.self_attn.q_proj.scale"
    with pytest.raises(ValueError, match="q_proj.weight is missing"):
        from_huggingface({quantized: torch.tensor(1.0)})
    with pytest.raises(ValueError, match="other backbones are not supported"):
        to_huggingface({"backbone.patch_embed.proj.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="score_head"):
        to_huggingface({"transformer.encoder.sparsifier.score_head.weight": torch.zeros(1)})


METHODS = {
    "dense": lambda: None,
    "sparse": lambda: SparseSparsifier(
        embed_dim=32, num_classes=CLASSES, num_layers=2, keep_ratio=0.3, auxiliary_heads=False
    ),
    "focus": lambda: FocusSparsifier(
        embed_dim=32, num_heads=2, num_layers=2, num_levels=4, keep_ratio=0.3
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_our_encoder_in_their_detector_gives_what_ours_gives(method):
    torch.manual_seed(1)
    model, converted = theirs("deformable_detr_two_stage"), ours("deformable_detr_two_stage")
    converted.load_state_dict(from_huggingface(model.state_dict()))
    records, inputs = batch()
    with torch.no_grad():
        before = model(**inputs).logits
        encoder = sparsify_huggingface(model, METHODS[method]())
        for parameter in [] if method == "dense" else encoder.sparsifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        sparse = copy.deepcopy(encoder)
        sparse.forward = functools.partial(TokenEncoder.forward, sparse)
        converted.transformer.encoder = sparse
        seen = []
        sparse.register_forward_hook(lambda module, args, output: seen.append(output))
        converted(records)
        with record_tokens() as trace:
            after = model(**inputs)
    assert not [key for key in model.state_dict() if key.startswith("transformer")]
    torch.testing.assert_close(after.encoder_last_hidden_state, seen[0], rtol=1e-4, atol=1e-4)
    if method == "dense":
        torch.testing.assert_close(after.logits, before, rtol=1e-4, atol=1e-4)
    else:
        kept, tokens = trace.forwards[0].layers[1].token_map.num_tokens, seen[0].shape[1]
        assert kept < 0.5 * tokens
        assert not torch.allclose(after.logits, before, rtol=1e-3, atol=1e-3)


def test_padding_reaches_our_encoder_as_it_reaches_theirs():
    model, (_, inputs) = theirs("deformable_detr"), batch(PADDED)
    with torch.no_grad():
        before = model(**inputs)
        sparsify_huggingface(model)
        after = model(**inputs)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes, rtol=1e-4, atol=1e-4)


def test_calls_of_older_versions_give_the_same_and_unknown_tensors_are_refused():
    model = theirs("deformable_detr")
    encoder = sparsify_huggingface(model)
    shapes = torch.tensor([[8, 10], [4, 5], [2, 3], [1, 2]])
    tokens, positions = torch.randn(2, 2, 108, encoder.embed_dim)
    call = {"inputs_embeds": tokens, "spatial_shapes": shapes, "output_attentions": False}
    with torch.no_grad():
        today = encoder(
            **call, spatial_position_embeddings=positions, spatial_shapes_list=shapes.tolist()
        )
        of_version_4 = encoder(**call, position_embeddings=positions)
        assert torch.equal(today.last_hidden_state, of_version_4.last_hidden_state)
        with pytest.raises(TypeError, match="unexpected tensors: positions"):
            encoder(**call, positions=positions)
        with pytest.raises(TypeError, match="needs spatial_shapes_list or spatial_shapes"):
            encoder(inputs_embeds=tokens)


def test_frozen_parameters_of_the_encoder_stay_frozen_and_are_not_copied():
    model = theirs("deformable_detr").requires_grad_(False)
    before = {id(value) for value in model.parameters()}
    sparsify_huggingface(model)
    assert {id(value) for value in model.parameters()} == before
    assert not any(value.requires_grad for value in model.parameters())


def test_a_methods_missing_needs_are_named_and_nothing_is_changed():
    one_stage = theirs("deformable_detr")
    encoder = one_stage.model.encoder
    with pytest.raises(UnsupportedDetectorError, match="two-stage"):
        sparsify_huggingface(one_stage, METHODS["sparse"]())
    assert one_stage.model.encoder is encoder
    with pytest.raises(TypeError, match="Linear"):
        sparsify_huggingface(nn.Linear(2, 2))
    model = theirs("deformable_detr_two_stage")
    sparsify_huggingface(model, METHODS["sparse"]())
    with pytest.raises(UnsupportedDetectorError, match="trained"):
        model.train()(**batch()[1])
