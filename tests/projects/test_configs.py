"""The detectors' configs: upstream's names, structure and numbers."""

import ast
import inspect
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from omegaconf import OmegaConf

from projects.dab_deformable_detr import modeling as dab
from projects.deformable_detr import modeling as deformable_detr
from projects.dino import modeling as dino
from projects.dn_deformable_detr import modeling as dn
from projects.h_deformable_detr import modeling as h

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
CONFIGS = sorted(
    path
    for project in (
        "dino",
        "deformable_detr",
        "dab_deformable_detr",
        "dn_deformable_detr",
        "h_deformable_detr",
        "dynamic_detr",
    )
    for path in (PROJECTS / project / "configs").rglob("*_*ep*.py")
)
DATA_SETS = {
    "coco": (("coco_2017_train", "coco_2017_val"), 80, 118287, COCOEvaluator),
    "lvis": (("lvis_v1_train", "lvis_v1_val"), 1203, 100170, LVISEvaluator),
    "voc2007": (("voc_2007_trainval", "voc_2007_test"), 20, 5011, PascalVOCDetectionEvaluator),
}
"""(names for training and testing), classes, training images, evaluator."""
DINO = "dino/configs/dino-resnet/dino_r50_4scale_12ep.py"
SPARSE = "sparse_detr/configs/sparse_deformable_detr_r50_50ep.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_complete_and_consistent(path):
    config = LazyConfig.load(str(path))
    for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train"):
        assert key in config
    epochs = int(path.stem.split("ep")[0].rsplit("_", 1)[1])
    data_set = next((name for name in DATA_SETS if f"_{name}_" in path.stem), "coco")
    names, num_classes, num_images, evaluator = DATA_SETS[data_set]
    assert config.dataloader.train.dataset.names == names[0]
    assert config.dataloader.test.dataset.names == names[1]
    assert config.dataloader.evaluator._target_ is evaluator
    assert config.train.max_iter / epochs == pytest.approx(num_images / 16, rel=0.03)
    assert config.train.output_dir == f"./output/{path.stem}"
    if evaluator is not PascalVOCDetectionEvaluator:  # it writes no files
        assert config.dataloader.evaluator.output_dir == config.train.output_dir
    assert config.dataloader.train.total_batch_size == 16
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 1e-4)
    assert OmegaConf.is_interpolation(config.model, "device")
    model = config.model
    assert model.neck.num_outs == model.transformer.num_feature_levels
    assert model.transformer.encoder.num_feature_levels == model.neck.num_outs
    assert set(model.neck.in_features) <= set(model.neck.input_shapes)
    assert model.criterion.num_classes == model.num_classes == num_classes
    for loss in ("loss_class", "loss_bbox_4"):
        assert loss in model.criterion.weight_dict


SOURCES = sorted(PROJECTS.glob("*/configs/**/*.py")) + sorted(PROJECTS.glob("common/**/*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_configs_reach_each_other_by_relative_imports(path):
    """So that another ``projects`` on the path cannot take their place."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert not f"{node.module}.".startswith(("projects.", "configs.")), node.module
        elif isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.startswith("projects")]


def test_no_two_configs_share_six_lines():
    found = {}
    for path in SOURCES:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        for start in range(len(lines) - 5):
            block = tuple(lines[start : start + 6])
            assert found.setdefault(block, path) == path, "\n".join(block)


def test_overrides_reach_every_dependent_place():
    config = LazyConfig.load(str(PROJECTS / DINO))
    config = LazyConfig.apply_overrides(
        config, ["model.num_classes=7", "model.num_queries=30", "train.device=cpu"]
    )
    assert config.model.criterion.num_classes == 7
    assert config.model.transformer.two_stage_num_proposals == 30
    assert config.train.device == config.model.device == "cpu"


def test_loading_twice_gives_independent_configs():
    path = str(PROJECTS / DINO)
    LazyConfig.load(path).model.neck.num_outs = 99
    assert LazyConfig.load(path).model.neck.num_outs == 4


@pytest.mark.parametrize(
    ("path", "module", "factor"),
    [
        (DINO, "backbone.res2", 0.1),
        (DINO, "transformer.encoder", 1.0),
        (SPARSE, "transformer.decoder.layers.0.attentions.1.sampling_offsets", 0.1),
        (SPARSE, "transformer.decoder.layers.0.attentions.1.value_proj", 1.0),
    ],
)
def test_learning_rate_factors(path, module, factor):
    config = LazyConfig.load(str(PROJECTS / path))
    assert instantiate(config.optimizer.params.lr_factor_func)(module) == factor


SIGNATURES = {
    dino.DINO: """backbone position_embedding neck transformer embed_dim num_classes num_queries
        criterion pixel_mean pixel_std aux_loss select_box_nums_for_evaluation device dn_number
        label_noise_ratio box_noise_scale input_format vis_period""",
    dino.DINOTransformer: """encoder decoder num_feature_levels two_stage_num_proposals
        learnt_init_query""",
    dino.DINOTransformerEncoder: """embed_dim num_heads feedforward_dim attn_dropout ffn_dropout
        num_layers post_norm num_feature_levels""",
    dino.DINOTransformerDecoder: """embed_dim num_heads feedforward_dim attn_dropout ffn_dropout
        num_layers return_intermediate num_feature_levels look_forward_twice use_checkpoint""",
    dino.DINOCriterion: """num_classes matcher weight_dict losses eos_coef loss_class_type alpha
        gamma two_stage_binary_cls""",
    deformable_detr.DeformableDETR: """backbone position_embedding neck transformer embed_dim
        num_classes num_queries criterion pixel_mean pixel_std aux_loss with_box_refine
        as_two_stage select_box_nums_for_evaluation device""",
    deformable_detr.DeformableDetrTransformer: """encoder decoder num_feature_levels as_two_stage
        two_stage_num_proposals""",
    deformable_detr.DeformableDetrTransformerEncoder: """embed_dim num_heads feedforward_dim
        attn_dropout ffn_dropout num_layers post_norm num_feature_levels""",
    deformable_detr.DeformableDetrTransformerDecoder: """embed_dim num_heads feedforward_dim
        attn_dropout ffn_dropout num_layers return_intermediate num_feature_levels""",
    deformable_detr.DeformableCriterion: """num_classes matcher weight_dict losses eos_coef
        loss_class_type alpha gamma""",
}

for module, prefix in ((dab, "DabDeformableDetr"), (dn, "DNDeformableDetr")):
    SIGNATURES[getattr(module, f"{prefix}Transformer")] = """encoder decoder as_two_stage
        num_feature_levels two_stage_num_proposals"""
    SIGNATURES[getattr(module, f"{prefix}TransformerEncoder")] = """embed_dim num_heads
        feedforward_dim attn_dropout ffn_dropout operation_order num_layers post_norm
        num_feature_levels"""
    SIGNATURES[getattr(module, f"{prefix}TransformerDecoder")] = """embed_dim num_heads
        feedforward_dim attn_dropout ffn_dropout num_layers return_intermediate
        num_feature_levels"""
SIGNATURES |= {
    dab.DabDeformableDETR: """backbone position_embedding neck transformer num_classes num_queries
        criterion pixel_mean pixel_std embed_dim aux_loss as_two_stage""",
    dab.TwoStageCriterion: SIGNATURES[dino.DINOCriterion],
    dn.DNDeformableDETR: """backbone position_embedding neck transformer num_classes num_queries
        criterion pixel_mean pixel_std embed_dim aux_loss as_two_stage denoising_groups
        label_noise_prob box_noise_scale with_indicator select_box_nums_for_evaluation device""",
    dn.DNCriterion: SIGNATURES[deformable_detr.DeformableCriterion],
    h.HDeformableDETR: """backbone position_embedding neck transformer embed_dim num_classes
        num_queries_one2one num_queries_one2many criterion pixel_mean pixel_std aux_loss
        with_box_refine as_two_stage select_box_nums_for_evaluation device mixed_selection
        k_one2many lambda_one2many""",
    h.HDeformableDetrTransformer: """encoder decoder num_feature_levels as_two_stage
        two_stage_num_proposals mixed_selection""",
    h.HDeformableDetrTransformerEncoder: SIGNATURES[
        deformable_detr.DeformableDetrTransformerEncoder
    ],
    h.HDeformableDetrTransformerDecoder: """embed_dim num_heads feedforward_dim attn_dropout
        ffn_dropout num_layers return_intermediate num_feature_levels look_forward_twice""",
}


@pytest.mark.parametrize("kind", SIGNATURES, ids=lambda kind: kind.__name__)
def test_constructors_take_upstreams_arguments_in_order(kind):
    ours = list(inspect.signature(kind).parameters)
    wanted = SIGNATURES[kind].split()
    assert ours[: len(wanted)] == wanted
