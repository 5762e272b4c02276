"""Models around a transformed vision tower that read its blocks as maps of all patches."""

import pytest
import torch

from tests.token_transforming import small_transformers
from token_transforming import restore, transform

HOW = {"layers": (1, 3), "keep_ratio": 0.5}
IMAGE_TOKEN = 7


def llava(layer=-2):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(**small_transformers.SIZES, intermediate_size=96)
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=layer,
    )
    return LlavaForConditionalGeneration(config).eval()


def prompt(patches, batch=2):
    return torch.tensor([[1, *[IMAGE_TOKEN] * patches, 3, 4]] * batch)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, -1, 3, [1, -2]])
def test_llava_reads_all_patches(layer):
    model, x = llava(layer), small_transformers.images()
    dense = model(input_ids=prompt(36), pixel_values=x).logits
    transform(model, **HOW)
    found = model(input_ids=prompt(36), pixel_values=x).logits
    assert found.shape == dense.shape
    assert not torch.equal(found, dense)
    transform(model, layers=(1, 3), keep_ratio=1.0, temperature=1e6)
    again = model(input_ids=prompt(36), pixel_values=x).logits
    torch.testing.assert_close(again, dense, rtol=1e-4, atol=1e-4)
    assert torch.equal(restore(model)(input_ids=prompt(36), pixel_values=x).logits, dense)


@torch.no_grad()
def test_llava_reads_fewer_patches_where_its_prompt_has_as_many_places():
    model, x = llava(), small_transformers.images()
    report = transform(model, **HOW, recover="never")
    left = report.tokens(36)[-1] - report.prefix
    assert left == 9
    assert model(input_ids=prompt(left), pixel_values=x).logits.shape == (2, 12, 32)


def siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(**small_transformers.SIZES, intermediate_size=96)
    model = SiglipVisionModel(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@torch.no_grad()
def test_siglip_has_no_class_token_and_goes_on_with_fewer_patches():
    model, x = siglip(), small_transformers.images()
    dense = model(x)
    transform(model, layers=(1, 3), keep_ratio=1.0, temperature=1e6)
    same = model(x)
    torch.testing.assert_close(
        same.last_hidden_state, dense.last_hidden_state, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(same.pooler_output, dense.pooler_output, rtol=1e-2, atol=2e-3)
    report = transform(model, **HOW)
    assert report.prefix == 0
    assert model(x).last_hidden_state.shape == (2, 9, 48)
    with pytest.raises(ValueError, match="needs a class token"):
        transform(model, **HOW, selection="class_attention")
        model(x)
    assert torch.equal(restore(model)(x).pooler_output, dense.pooler_output)
