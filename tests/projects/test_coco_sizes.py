"""Laws of every method and backbone at the sizes of COCO's images, on narrow networks."""

import pytest
import torch

from tests import small_configs
from tests.small_detectors import record
from tokendetr.config import zoo

SIZES = [(800, 1066), (750, 1333), (800, 800), (480, 640)]
METHODS = ("dino", "dynamic_dino", "focus_dino", "lite_dino", "sparse_dino")
BACKBONES = (
    "spt_dino_shapes",
    "token_transforming_dino_shapes",
    "token_transforming_dino_shapes_vit",
)
NAMES = (*(f"{method}_shapes" for method in METHODS), *BACKBONES)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return small_configs.build(small_configs.shrink(zoo.get_config(request.param).model)).eval()


def memory_of(model, images):
    """Return the encoder's memory [B, N, C] and the layout of its tokens."""
    seen = {}
    hook = model.transformer.encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(kwargs, memory=output), with_kwargs=True
    )
    model([{"image": image} for image in images])
    hook.remove()
    return seen["memory"], seen["layout"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_pixel_row_and_column_can_change_the_memory(model, size):
    image = record(*size, seed=1)["image"].requires_grad_()
    # PyTorch 2.13's oneDNN crashes in the gradient of a narrow convolution of 750 x 1333 pixels.
    with torch.backends.mkldnn.flags(enabled=False):
        memory_BNC, _ = memory_of(model.float(), [image])
        weights = torch.randn(memory_BNC.shape, generator=torch.Generator().manual_seed(2))
        (memory_BNC * weights).sum().backward()
    touched = image.grad.abs().sum(dim=0) > 0
    assert touched.any(dim=1).all(), "a row of pixels changes nothing"
    assert touched.any(dim=0).all(), "a column of pixels changes nothing"


@torch.no_grad()
def test_an_images_memory_does_not_depend_on_the_sizes_in_its_batch(model):
    model.double()
    images = [record(*size, seed=seed)["image"].double() for seed, size in enumerate(SIZES)]
    together_BNC, layout = memory_of(model, images)
    for index, image in enumerate(images):
        alone_BNC, own = memory_of(model, [image])
        real = layout.valid_BN[index]
        assert int(real.sum()) == int(own.valid_BN.sum())
        alike = torch.isclose(
            together_BNC[index][real], alone_BNC[0][own.valid_BN[0]], rtol=1e-4, atol=1e-4
        ).all(dim=1)
        # Reference points are float32: scores that differ by rounding alone may change places. A
        # column of a level's border would be one in 200 tokens or more.
        assert alike.double().mean() > 0.995
