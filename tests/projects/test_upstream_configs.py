"""Config files in upstream's style load unmodified, with the same values as ours."""

from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tests.projects.upstream_files import write, write_run
from tokendetr.compat.meta import meta_device
from tokendetr.config import zoo

RUNS = {
    "dino_r50_4scale_12ep": ("dino", 12, {}),
    "deformable_detr_r50_50ep": ("deformable_detr", 50, {}),
    "dab_deformable_detr_r50_50ep": ("dab_deformable_detr", 50, {"seed": 42}),
    "dn_deformable_detr_r50_12ep": ("dn_deformable_detr", 12, {}),
    "h_deformable_detr_r50_50ep": ("h_deformable_detr", 50, {}),
}
"""Config: project, epochs, further settings."""
DERIVED = {
    "dino_r50_5scale_12ep": (
        "dino_r50_4scale_12ep",
        """
from detectron2.layers import ShapeSpec
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.input_shapes = {
    "res2": ShapeSpec(channels=256),
    "res3": ShapeSpec(channels=512),
    "res4": ShapeSpec(channels=1024),
    "res5": ShapeSpec(channels=2048),
}
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.num_outs = 5
model.transformer.num_feature_levels = 5
""",
    ),
    "dino_swin_tiny_224_4scale_12ep": (
        "dino_r50_4scale_12ep",
        """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import SwinTransformer
model.backbone = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    drop_path_rate=0.1,
    window_size=7,
    out_indices=(1, 2, 3),
)
model.neck.input_shapes = {
    "p1": ShapeSpec(channels=192),
    "p2": ShapeSpec(channels=384),
    "p3": ShapeSpec(channels=768),
}
model.neck.in_features = ["p1", "p2", "p3"]
""",
    ),
    "deformable_detr_r50_two_stage_50ep": (
        "deformable_detr_r50_50ep",
        "model.with_box_refine = True\nmodel.as_two_stage = True\n",
    ),
    "dab_deformable_detr_r50_two_stage_50ep": (
        "dab_deformable_detr_r50_50ep",
        "model.as_two_stage = True\n",
    ),
    "h_deformable_detr_r50_two_stage_12ep": (
        "h_deformable_detr_r50_50ep",
        """
from detrex.config import get_config
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep
model.with_box_refine = True
model.as_two_stage = True
train.max_iter = 90000
""",
    ),
}
"""Config: the one that it derives from, and its changes."""
NAMES = "dataloader, lr_multiplier, model, optimizer, train"


def write_config(folder: Path, name: str) -> Path:
    base, changes = DERIVED.get(name, (name, None))
    project, epochs, settings = RUNS[base]
    path = write_run(folder, project, name=base, epochs=epochs, **settings)
    if changes is None:
        return path
    head = f"from .{base} import {NAMES}\n"
    tail = f'train.output_dir = "./output/{name}"\n'
    return write(folder / f"{name}.py", head + changes + tail)


def build(model: DictConfig) -> nn.Module:
    model.device = "cpu"
    with meta_device():
        return instantiate(model)


def rates(config: DictConfig, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of every trained parameter."""
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (round(group["lr"], 9), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def plain(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def numbers(module: nn.Module) -> dict[str, object]:
    """Return every number, text and flag in the parts of a model."""
    return {
        f"{path}.{key}": value
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, int | float | str)
    }


@pytest.mark.parametrize("name", [*RUNS, *DERIVED])
def test_a_config_file_in_upstreams_style_has_the_values_of_ours(name, tmp_path):
    theirs, ours = LazyConfig.load(str(write_config(tmp_path, name))), zoo.get_config(name)
    built, expected = build(theirs.model), build(ours.model)
    shapes = [(key, value.shape) for key, value in expected.state_dict().items()]
    assert [(key, value.shape) for key, value in built.state_dict().items()] == shapes
    assert numbers(built) == numbers(expected)
    weights = [dict(model.criterion.weight_dict) for model in (built, expected)]
    shared = weights[0].keys() & weights[1].keys()
    assert [weights[0][key] for key in shared] == [weights[1][key] for key in shared]
    # Of losses that a detector of one stage never has.
    assert all(key.endswith("_enc") for key in weights[0].keys() ^ weights[1].keys())
    assert rates(theirs, built) == rates(ours, expected)
    schedules = [instantiate(config.lr_multiplier) for config in (theirs, ours)]
    moments = [step / 1000 for step in range(1000)]
    assert [schedules[0](x) for x in moments] == [schedules[1](x) for x in moments]
    for config in (theirs, ours):
        # Ours writes results to the run's folder even if a derived config omits the option.
        config.dataloader.evaluator.output_dir = config.train.output_dir
        config.train.init_checkpoint = ""  # which upstream has as a path to fill in for Swin
    assert plain(theirs.dataloader) == plain(ours.dataloader)
    assert plain(theirs.train) == plain(ours.train)


def test_edits_of_users_take_effect(tmp_path):
    write_config(tmp_path, "dino_r50_4scale_12ep")
    path = write(
        tmp_path / "mine.py",
        f"from .dino_r50_4scale_12ep import {NAMES}\n"
        """
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
model.backbone.freeze_at = -1
model.dn_number = 300
model.criterion.weight_dict = {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[80000, 90000]),
    warmup_length=250 / train.max_iter,
    warmup_factor=0.001,
)
optimizer.params.overrides = {}
optimizer.params.weight_decay_norm = None
""",
    )
    config = LazyConfig.load(str(path))
    model = build(config.model)
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())
    assert model.criterion.weight_dict == {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    assert rates(config, model)["backbone.stem.conv1.weight"] == (1e-5, 1e-4)
    schedule = instantiate(config.lr_multiplier)
    assert (schedule(0.0), schedule(0.5), schedule(0.9)) == pytest.approx((0.001, 1.0, 0.1))
