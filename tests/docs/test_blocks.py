"""Every Python block of every page runs, in order, in a folder with the files that pages name."""

import shutil

import pytest
import torch
from sybil.region import Lexeme

from tests.docs.pages import REASONS, is_skipped, pages, python_blocks, skipped
from tests.source_tree import ROOT
from tokendetr.config import load_config
from tokendetr.data.shapes import ShapesSpec, ensure_shapes

WITH_BLOCKS = [page for page in pages() if python_blocks(page)]
# State that a page's text assumes before its first block.
BEFORE = {
    "docs/deploy.md": (
        "import pytest\n"
        "pytest.importorskip('onnxruntime'), pytest.importorskip('onnxscript')\n"
        "from tokendetr.cli import export_model\n"
        "options = ['--format', 'onnx', '--size', '256', '256', '--output', 'dino.onnx']\n"
        "export_model.main(['--config-file', 'dino_shapes', *options])\n"
    ),
    "docs/other_libraries.md": (
        "from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection\n"
        "from transformers import ResNetConfig\n"
        "from detectron2.config import LazyCall as L, instantiate\n"
        "from sparse_detr import SparseSparsifier\n"
        "from tokendetr import load_config, sparsify\n"
        "backbone = ResNetConfig(out_features=['stage2', 'stage3', 'stage4'])\n"
        "options = dict(two_stage=True, with_box_refine=True, num_labels=91)\n"
        "theirs = DeformableDetrConfig(backbone_config=backbone, **options)\n"
        "model = DeformableDetrForObjectDetection(theirs)\n"
        "name = 'deformable_detr_r50_two_stage_50ep'\n"
        "config = load_config(name, ['model.num_classes=91', 'train.device=cpu'])\n"
        "ours = instantiate(config.model)\n"
        "sparsify(config.model, L(SparseSparsifier)(num_classes=91, auxiliary_heads=False))\n"
        "trained = instantiate(config.model)\n"
    ),
    "projects/spt_backbone/README.md": (
        "from tokendetr import zoo\n"
        "config = zoo.get_config('dino_swin_tiny_224_4scale_12ep')\n"
        "model, dataloader = config.model, config.dataloader\n"
    ),
    "projects/token_transforming/README.md": (
        "from transformers import ViTConfig, ViTModel\n"
        "sizes = dict(hidden_size=64, num_attention_heads=4, intermediate_size=128)\n"
        "model = ViTModel(ViTConfig(**sizes))\n"
    ),
}
# A training that a test has no time for, made short.
SHORTER = {
    "docs/own_data.md": (
        '"train.data_folder=my_cells"',
        '"train.data_folder=my_cells", "train.max_iter=2", "train.device=cpu", '
        '"dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", '
        '"dataloader.test.num_workers=0"',
    ),
}
# Pages that train, export, or build networks of full size.
SLOW = (
    "README.md",
    "docs/deploy.md",
    "docs/other_libraries.md",
    "docs/own_data.md",
    "docs/in_your_own_detector.md",
    "docs/real_detrex.md",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a working folder: the shapes data set, a photo, and a checkpoint's name."""
    folder = tmp_path_factory.mktemp("reader")
    ensure_shapes(folder / "datasets" / "shapes", ShapesSpec(num_train=8, num_val=2), workers=1)
    (folder / "my_cells").symlink_to(folder / "datasets" / "shapes")
    shutil.copy(folder / "datasets" / "shapes" / "val" / "000001.jpg", folder / "photo.jpg")
    return folder


@pytest.fixture()
def published(folder):
    """Make a checkpoint of random weights under the name of a published one."""
    from detectron2.config import instantiate

    model = instantiate(load_config("dino_r50_4scale_12ep").model)
    torch.save({"model": model.state_dict()}, folder / "dino_r50_4scale_12ep.pth")
    yield
    (folder / "dino_r50_4scale_12ep.pth").unlink()


def run_config(source: str, tmp_path) -> None:
    """Load a block that is a config file, beside the config that it derives from."""
    projects = tmp_path / "projects"
    shutil.copytree(ROOT / "projects", projects, ignore=shutil.ignore_patterns("checkpoints"))
    beside = next(projects.rglob(source.split("from .", 1)[1].split(" ")[0] + ".py"))
    (beside.parent / "mine.py").write_text(source)
    assert load_config(str(beside.parent / "mine.py")).model


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in WITH_BLOCKS],
)
def test_the_blocks_of_a_page_run(page, folder, tmp_path, monkeypatch, request):
    if "dino_r50_4scale_12ep.pth" in "".join(block.parsed for block in python_blocks(page)):
        request.getfixturevalue("published")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    monkeypatch.syspath_prepend(str(ROOT))
    blocks = python_blocks(page)
    if page in BEFORE:
        exec(compile(BEFORE[page], page, "exec"), blocks[0].namespace)  # noqa: S102
    for block in blocks:
        if is_skipped(block):
            continue
        if "\nfrom ." in block.parsed:
            run_config(block.parsed, tmp_path)
        else:
            before, after = SHORTER.get(page, ("", ""))
            assert before in block.parsed
            if before:
                source = block.parsed
                shorter = source.text.replace(before, after)
                block.parsed = Lexeme(shorter, source.offset, source.line_offset)
            block.evaluate()


@pytest.mark.parametrize("page", pages())
def test_only_coco_or_a_gpu_is_a_reason_to_leave_a_block_out(page):
    assert set(skipped(page)) <= set(REASONS)
