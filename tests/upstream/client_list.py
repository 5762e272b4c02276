"""Detectors of other people, each built as it is or with a method in its encoder.

Checkouts, by the names of their folders, of these repositories on github.com; what they import
beyond detrex's requirements must be installed (PROB: pandas, seaborn; DINO: addict, yapf).
Mask2Former and its authors' MaskDINO register backbones of one name: each needs a run of its own.

    rank_detr          LeapLabTHU/Rank-DETR
    mr_detr            Visual-AI/Mr.DETR
    stable_dino        IDEA-Research/Stable-DINO
    mask2former        facebookresearch/Mask2Former
    maskdino           IDEA-Research/MaskDINO
    deformable_detr    fundamentalvision/Deformable-DETR
    ms_detr            Atten4Vis/MS-DETR
    h_deformable_detr  HDETR/H-Deformable-DETR
    dac_detr           huzhengdongcs/DAC-DETR
    prob               orrzohar/PROB
    deta               jozhang97/DETA
    dino               IDEA-Research/DINO
    relation_detr      xiuqhou/Relation-DETR
    dn_detr            IDEA-Research/DN-DETR
    cascade_dn_detr    SysCV/cascade-detr, its folder of that name
"""

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig
from torch import nn

from tests.upstream import first_code, relation_code
from tokendetr import encoder as encoder_api
from tokendetr.config import sparsify, sparsify_pixel_decoder

__all__ = ["CLIENTS", "SIZES", "Client", "Node"]

SIZES = ((256, 320), (224, 288))
Node = DictConfig | None
HYBRID = dict(with_box_refine=True, as_two_stage=True, transformer__two_stage_num_proposals=150)
HYBRID |= dict(num_queries_one2one=50, num_queries_one2many=100)  # fewer than tokens


def config_of(module: str, **changes: Any) -> DictConfig:
    """The model of a config file, with a few queries and other changes by dotted key."""
    model = importlib.import_module(module).model
    for key, value in ({"device": "cpu"} | changes).items():
        node: Any = model
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        if last in node or last == "device":
            node[last] = value
    return model


def swapped(model: DictConfig, node: Node) -> nn.Module:
    """A model whose encoder is at ``transformer.encoder``."""
    model = copy.deepcopy(model)
    return instantiate(model if node is None else sparsify(model, node))


def r50(name: str) -> DictConfig:
    return config_of(f"projects.{name}.configs.models.{name}_r50", num_queries=100)


def rank_detr() -> DictConfig:
    return config_of("projects.rank_detr.configs.models.rank_detr_r50", **HYBRID)


def mr_detr() -> DictConfig:
    # Its denoising needs its mixed selection, which only this config sets.
    return config_of("projects.mr_detr_dino.configs.deformable_detr_r50_two_stage_12ep_plusplus")


def stable_dino() -> DictConfig:
    model = config_of("projects.stabledino.configs.models.stabledino_r50", num_queries=100)
    model.transformer.encoder.pop("multi_level_fusion", None)
    return model


def align_detr() -> DictConfig:
    return config_of("projects.align_detr.configs.models.aligndetr_r50", num_queries=100)


def deta() -> DictConfig:
    return config_of("projects.deta.configs.models.deta_r50", num_queries=300)


def dino_eva() -> DictConfig:
    side = max(max(size) for size in SIZES)  # it pads every image to its square
    return config_of(
        "projects.dino_eva.configs.models.dino_eva_02",
        num_queries=100,
        backbone__square_pad=side,
        backbone__net__img_size=side,
    )


def h_deformable_detr() -> DictConfig:
    return config_of("projects.h_deformable_detr.configs.models.h_deformable_detr_r50", **HYBRID)


def maskdino(node: Node) -> nn.Module:
    model = importlib.import_module("projects.maskdino.configs.models.maskdino_r50").model
    model = copy.deepcopy(model)
    model.params.num_queries, model.params.dec_layers, model.params.dn_num = 40, 3, 10
    return instantiate(model if node is None else sparsify_pixel_decoder(model, node))


def of_detectron2(package: str, config: str, add: tuple[str, ...], node: Node) -> nn.Module:
    """A model from a yacs config of a package whose operator falls back to PyTorch on a CPU."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.projects.deeplab import add_deeplab_config

    first_code.without_compiled_operator()
    if package not in sys.modules:  # it registers data sets under names that detrex's have, too
        theirs = [n for n, f in DatasetCatalog.items() if not f.__module__.startswith("detectron2")]
        for name in theirs:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
    module = importlib.import_module(package)
    cfg = get_cfg()
    add_deeplab_config(cfg)
    for name in add:
        getattr(module, name)(cfg)
    folder = Path(module.__path__[0]).parent
    cfg.merge_from_file(str(folder / config))
    cfg.MODEL.DEVICE = "cpu"
    return with_method(build_model(cfg), node)


def mask2former(node: Node) -> nn.Module:
    config = "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    return of_detectron2("mask2former", config, ("add_maskformer2_config",), node)


def maskdino_of_its_authors(node: Node) -> nn.Module:
    config = "configs/coco/instance-segmentation/maskdino_R50_bs16_50ep_3s.yaml"
    return of_detectron2("maskdino", config, ("add_maskdino_config",), node)


def of_first_code(folder: str, *arguments: str, **options: Any) -> Callable[[Node], nn.Module]:
    """A detector on the code of the first Deformable DETR; options of ``first_code.build``."""

    def make(node: Node) -> nn.Module:
        return with_method(first_code.build(checkout(folder), *arguments, **options), node)

    return make


def of_relation_code(config: str) -> Callable[[Node], nn.Module]:
    """A detector of Relation-DETR's repository."""
    module = f"configs.{config}_800_1333"
    return lambda node: with_method(relation_code.build(checkout("relation_detr"), module), node)


def checkout(folder: str) -> Path:
    """The checkout of that name, which is on the path."""
    return next(Path(path) for path in sys.path if Path(path).name == folder)


def with_method(model: nn.Module, node: Node) -> nn.Module:
    """A built model as it is, or with a method in its encoder."""
    if node is None:
        return model
    return encoder_api.sparsify_pixel_decoder(model, instantiate(node))


@dataclass(frozen=True)
class Client:
    """A detector of other people.

    Attributes:
        make: builds it with a method's node, or as it is (None).
        offers: "two stages", "one stage", "pixel decoder", or "another criterion" (two stages).
        folder: of its checkout below ``--others``; "" for detrex's own.
        levels: of its encoder.
        classes: of its criterion.
        further: what its criterion's losses need besides classes and boxes.
    """

    make: Callable[[Node], nn.Module]
    offers: str
    folder: str = ""
    levels: int = 4
    classes: int = 80
    further: str = ""


def of_config(build: Callable[[], DictConfig]) -> Callable[[Node], nn.Module]:
    return lambda node: swapped(build(), node)


def first_code_client(
    folder: str,
    *arguments: str,
    levels: int = 4,
    classes: int = 91,
    further: str = "",
    **options: Any,
) -> Client:
    make = of_first_code(folder, *arguments, **options)
    return Client(make, "pixel decoder", folder, levels, classes, further)


CLIENTS = {
    "DINO": Client(of_config(lambda: r50("dino")), "two stages"),
    "Deformable DETR": Client(of_config(lambda: r50("deformable_detr")), "one stage"),
    "DAB-Deformable DETR": Client(of_config(lambda: r50("dab_deformable_detr")), "one stage"),
    "DN-Deformable DETR": Client(of_config(lambda: r50("dn_deformable_detr")), "one stage"),
    "H-Deformable DETR": Client(of_config(h_deformable_detr), "two stages"),
    "DETA": Client(of_config(deta), "another criterion", levels=5),
    "DINO, EVA-02": Client(of_config(dino_eva), "two stages"),
    "Align-DETR": Client(of_config(align_detr), "another criterion"),
    "MaskDINO": Client(maskdino, "pixel decoder", further="masks"),
    "Rank-DETR": Client(of_config(rank_detr), "another criterion", "rank_detr"),
    "Mr.DETR": Client(of_config(mr_detr), "two stages", "mr_detr"),
    "Stable-DINO": Client(of_config(stable_dino), "two stages", "stable_dino"),
    "Mask2Former": Client(mask2former, "pixel decoder", "mask2former", levels=3, further="masks"),
    "MaskDINO, its authors'": Client(
        maskdino_of_its_authors, "pixel decoder", "maskdino", further="masks"
    ),
    "Deformable DETR, its authors'": first_code_client("deformable_detr"),
    "MS-DETR, its authors'": first_code_client(
        "ms_detr", *first_code.TWO_STAGES, "--mixed_selection", "--use_ms_detr"
    ),
    "H-Deformable DETR, its authors'": first_code_client(
        "h_deformable_detr", *first_code.TWO_STAGES, "--mixed_selection"
    ),
    "DAC-DETR, its authors'": first_code_client(
        "dac_detr",
        *first_code.TWO_STAGES,
        "--mixed_selection",
        "--look_forward_twice",
        kind=first_code.DacDetector,
        further="the layer's number",
    ),
    "PROB, its authors'": first_code_client(
        "prob",
        "--backbone=resnet50",
        classes=81,
        further="objectness",
        program="main_open_world",
        mode="prob",
    ),
    "DETA, its authors'": first_code_client(
        "deta", *first_code.TWO_STAGES, "--num_queries", "300", levels=5
    ),
    "DINO, its authors'": first_code_client(
        "dino",
        kind=first_code.DenoisingDetector,
        package="models.dino",
        builder="build_dino",
        config="config/DINO/DINO_4scale.py",
    ),
    "DN-Deformable DETR, its authors'": first_code_client(
        "dn_detr",
        "--modelname=dn_dab_deformable_detr",
        "--coco_path=",
        "--transformer_activation=relu",
        kind=first_code.NoisedDetector,
        package="models.dn_dab_deformable_detr",
        builder="build_dab_deformable_detr",
        further="what was noised",
    ),
    "Cascade-DN-DETR, its authors'": first_code_client(
        "cascade_dn_detr",
        "--modelname=cascade_dn_detr",
        "--transformer_activation=relu",
        kind=first_code.CascadeDetector,
        package="models.cascade_dn_detr",
        builder="build_cascade_dn_detr",
        further="what was noised",
    ),
    "DINO, Relation-DETR's repository": Client(
        of_relation_code("dino_pp.dino_pp_resnet50"),
        "pixel decoder",
        "relation_detr",
        classes=91,
        further="another form of criterion",
    ),
    "Deformable DETR, Relation-DETR's repository": Client(
        of_relation_code("deformable_detr_pp.def_detr_pp_resnet"),
        "pixel decoder",
        "relation_detr",
        classes=91,
        further="another form of criterion",
    ),
}
