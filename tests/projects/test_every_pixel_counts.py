"""Every pixel row and column of an image can change an encoder's memory."""

import pytest
import torch
from detectron2.config import instantiate

from tokendetr.config import zoo
from tokendetr.config.files import PROJECTS_DIR, config_files

SIZES = [(255, 250), (160, 256), (97, 131)]
SPARSIFIERS = {path.parts[-4] for path in PROJECTS_DIR.glob("*/configs/models/*_sparsifier.py")}
NAMES = ["dino_shapes"] + [
    name
    for name, path in config_files().items()
    if name.endswith("_dino_shapes") and path.parent.parent.name in SPARSIFIERS
]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    config = zoo.get_config(request.param).model
    config.device = "cpu"
    torch.manual_seed(0)
    return instantiate(config).eval()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_pixel_row_and_column_can_change_the_memory(model, size):
    memories = []
    hook = model.transformer.encoder.register_forward_hook(
        lambda module, args, output: memories.append(output)
    )
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)).mul(255)
    image.requires_grad_()
    model([{"image": image, "height": size[0], "width": size[1]}])
    hook.remove()
    weights = torch.randn(memories[0].shape, generator=torch.Generator().manual_seed(2))
    (memories[0] * weights).sum().backward()
    touched = image.grad.abs().sum(dim=0) > 0
    assert touched.any(dim=1).all(), "a row of pixels changes nothing"
    assert touched.any(dim=0).all(), "a column of pixels changes nothing"
