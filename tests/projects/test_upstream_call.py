"""Our encoders, called by upstream's transformers, give the same memory and losses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests import small_configs
from tests.small_configs import DETECTORS, put_into
from tests.small_detectors import record
from tokendetr.config import zoo
from tokendetr.encoder.forward_context import observe

ONE_STAGE = ("deformable", "deformable_refine", "dab", "dn", "h")
CASES = [
    (method, detector, training)
    for method in ("dense", "dynamic", "sparse", "focus")
    for detector in DETECTORS
    for training in (False, True)
    # losses that need the decoder, which the stand-in lacks
    if not (method == "sparse" and training)
    if not (method == "focus" and training and detector in ONE_STAGE)
]
BATCH = [
    record(96, 128, [[5, 5, 60, 50], [20, 10, 40, 30]], seed=1),
    record(113, 75, [[50, 20, 70, 60]], seed=2),
]


class UpstreamTransformer(nn.Module):
    """The transformers of detrex's five detectors up to the encoder's result.

    All five flatten, derive the geometry and call the encoder in the same way. Other parts have
    upstream's names.
    """

    def __init__(self, encoder: nn.Module, others: dict[str, nn.Module], level_embeds: Tensor):
        super().__init__()
        self.encoder = encoder
        for name, module in others.items():
            self.add_module(name, module)
        self.level_embeds = level_embeds

    @staticmethod
    def get_valid_ratio(mask_BHW: Tensor) -> Tensor:
        height, width = mask_BHW.shape[1:]
        rows, columns = (~mask_BHW[:, :, 0]).sum(1), (~mask_BHW[:, 0, :]).sum(1)
        return torch.stack([columns.float() / width, rows.float() / height], dim=-1)

    @staticmethod
    def get_reference_points(spatial_shapes: Tensor, valid_ratios_BL2: Tensor) -> Tensor:
        points = []
        for level, (height, width) in enumerate(spatial_shapes.tolist()):
            y, x = torch.meshgrid(
                torch.linspace(0.5, height - 0.5, height),
                torch.linspace(0.5, width - 0.5, width),
                indexing="ij",
            )
            y = y.reshape(-1)[None] / (valid_ratios_BL2[:, None, level, 1] * height)
            x = x.reshape(-1)[None] / (valid_ratios_BL2[:, None, level, 0] * width)
            points.append(torch.stack((x, y), dim=-1))
        return torch.cat(points, dim=1)[:, :, None] * valid_ratios_BL2[:, None]

    def forward(
        self,
        multi_level_feats: list[Tensor],
        multi_level_masks: list[Tensor],
        multi_level_pos_embeds: list[Tensor],
        **kwargs: object,
    ) -> Tensor:
        features, masks, positions, shapes = [], [], [], []
        for level, (feature, mask, position) in enumerate(
            zip(multi_level_feats, multi_level_masks, multi_level_pos_embeds, strict=True)
        ):
            shapes.append(feature.shape[2:])
            features.append(feature.flatten(2).transpose(1, 2))
            masks.append(mask.flatten(1))
            position = position.flatten(2).transpose(1, 2)
            positions.append(position + self.level_embeds[level].view(1, 1, -1))
        spatial_shapes = torch.as_tensor(shapes, dtype=torch.long)
        starts = spatial_shapes.prod(1).cumsum(0)[:-1]
        valid_ratios = torch.stack([self.get_valid_ratio(mask) for mask in multi_level_masks], 1)
        return self.encoder(
            query=torch.cat(features, 1),
            key=None,
            value=None,
            query_pos=torch.cat(positions, 1),
            query_key_padding_mask=torch.cat(masks, 1),
            spatial_shapes=spatial_shapes,
            reference_points=self.get_reference_points(spatial_shapes, valid_ratios),
            level_start_index=torch.cat((spatial_shapes.new_zeros((1,)), starts)),
            valid_ratios=valid_ratios,
            **kwargs,
        )


class UpstreamDetector(nn.Module):
    """An unmodified detector of upstream's around an encoder of ours, up to its memory."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        parts = dict(ours.transformer.named_children())
        encoder = parts.pop("encoder")
        self.transformer = UpstreamTransformer(encoder, parts, ours.transformer.level_embeds)
        self.criterion = ours.criterion
        self.device = ours.device

    def forward(self, batched_inputs: list[dict], pyramid) -> dict[str, Tensor] | Tensor:
        layout = pyramid.layout
        masks = [~layout.grid(layout.valid_BN, level) for level in range(len(layout.level_shapes))]
        memory = self.transformer(pyramid.features, masks, pyramid.positions)
        return {"loss_memory": memory.sum()} if self.training else memory


def watch(module: nn.Module, seen: list) -> Callable[[], None]:
    """Record a module's arguments and result, from a fixed random state."""
    before = module.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    after = module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output)), with_kwargs=True
    )
    return lambda: (before.remove(), after.remove())


def build(detector: str, method: str) -> nn.Module:
    config, changes = DETECTORS[detector]
    model = zoo.get_config(config).model
    model.update(changes)
    if method != "dense":
        put_into(model, zoo.get_config(f"{method}_dino_shapes").model)
    return small_configs.build(small_configs.shrink(model))


def run_both(ours: nn.Module) -> tuple[tuple, tuple, dict, dict]:
    """Return the encoder's call and the model's output, in our detector and in upstream's."""
    calls, outer = [], []
    stop = watch(ours.transformer.encoder, calls)
    stop_outer = watch(ours.transformer, outer)
    output = ours(BATCH)
    stop_outer()
    pyramid = outer[0][0][0]
    upstream = observe(UpstreamDetector(ours).train(ours.training))
    upstream_output = upstream(BATCH, pyramid)
    stop()
    assert len(calls) == 2
    return *calls, output, upstream_output


@pytest.mark.parametrize(("method", "detector", "training"), CASES)
def test_upstreams_call_gives_the_memory_of_our_detectors(training, method, detector):
    ours = build(detector, method).train(training)
    with torch.set_grad_enabled(training):
        (_, own_call, memory), (args, call, upstream_memory), losses, others = run_both(ours)
    assert "layout" in own_call
    assert not args
    assert all(value is None or isinstance(value, Tensor) for value in call.values())
    valid_BN = ~call["query_key_padding_mask"]
    assert not valid_BN.all()  # the batch is padded
    torch.testing.assert_close(upstream_memory[valid_BN], memory[valid_BN], rtol=1e-4, atol=1e-5)
    if training:
        added = set(others) - {"loss_memory"}
        assert (added != set()) == (method != "dense")
        for name in added:
            torch.testing.assert_close(others[name], losses[name], rtol=1e-4, atol=1e-6)
