"""A detector of detrex's own made sparse, and evaluated by detrex's own script.

Runs beside the real detectron2 and detrex, with ``UPSTREAM_DETREX`` the path of detrex's checkout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokendetr.data.shapes import ShapesSpec, ensure_shapes

CHECKOUT = os.environ.get("UPSTREAM_DETREX", "")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not CHECKOUT, reason="UPSTREAM_DETREX names no checkout of detrex"),
]

CONFIG = '''"""detrex's own DINO with a narrow backbone and few queries, on the shapes data set."""
from pathlib import Path as _Path

import torch as _torch
from detectron2.config import LazyConfig as _LazyConfig, instantiate as _instantiate

from detectron2.layers import ShapeSpec as _ShapeSpec

from tests.small_configs import RESNET_CHANNELS as _CHANNELS, narrow_resnet as _narrow_resnet
from tokendetr.data.shapes import register_shapes as _register_shapes

_register_shapes(_Path({data!r}))
_base = _LazyConfig.load({base!r})
model, optimizer, lr_multiplier = _base.model, _base.optimizer, _base.lr_multiplier
dataloader, train = _base.dataloader, _base.train
_narrow_resnet(model.backbone)
model.neck.input_shapes = {{n: _ShapeSpec(channels=_CHANNELS[n]) for n in model.neck.in_features}}
model.num_classes, model.num_queries, model.device = 12, 30, "cpu"
dataloader.test.dataset.names = "shapes_val"
dataloader.test.num_workers = 0
dataloader.test.mapper.augmentation[0].short_edge_length = 96
dataloader.test.mapper.augmentation[0].max_size = 128
train.device, train.init_checkpoint = "cpu", {weights!r}
if not _Path({weights!r}).exists():
    _torch.manual_seed(0)
    _torch.save({{"model": _instantiate(model).state_dict()}}, {weights!r})
'''


@pytest.fixture
def folder(tmp_path):
    """A folder with detrex's projects and tools, a config of its DINO, and a few images.

    Not detrex's checkout itself: there its package without compiled operators would come first.
    """
    for name in ("projects", "tools"):
        (tmp_path / name).symlink_to(Path(CHECKOUT) / name)
    data = ensure_shapes(tmp_path / "shapes", ShapesSpec(num_train=4, num_val=3), workers=1)
    base = Path(CHECKOUT) / "projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py"
    values = {"data": str(data), "base": str(base), "weights": str(tmp_path / "dense.pth")}
    (tmp_path / "dense.py").write_text(CONFIG.format(**values))
    return tmp_path


def run(folder: Path, *command: str) -> str:
    """Run a program in the folder and return what it printed."""
    paths = os.pathsep.join(map(str, (folder, ROOT)))
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def detections(folder: Path, config: str, *overrides: str) -> list[dict]:
    """What detrex's script writes when it evaluates a config."""
    output = folder / "evaluated"
    places = [f"train.output_dir={output}", f"dataloader.evaluator.output_dir={output}"]
    arguments = ["--config-file", config, "--eval-only", *places, *overrides]
    run(folder, "tools/train_net.py", *arguments)
    return json.loads((output / "coco_instances_results.json").read_text())


def test_detrex_s_dino_is_made_sparse_and_evaluated_by_detrex(folder):
    show = (
        "from detectron2.config import LazyConfig, instantiate; import sys;"
        "c = LazyConfig.load('dense.py'); m = instantiate(c.model);"
        "print('FROM', sys.modules[type(m).__module__].__file__)"
    )
    assert f"FROM {folder / 'projects'}" in run(folder, "-c", show), "not detrex's own DINO"
    dense = detections(folder, "dense.py")
    before = (folder / "dense.pth").read_bytes()
    command = [
        "-m",
        "tokendetr.cli",
        "sparsify",
        "dense.py",
        f"train.init_checkpoint={folder}/dense.pth",
    ]
    command += ["--images", "shapes/train", "--output", "sparse", "--score-iterations", "1"]
    run(folder, *command, "--batch-size", "2", "--keep", "0.3")
    assert (folder / "dense.pth").read_bytes() == before
    rows = json.loads((folder / "sparse" / "report.json").read_text())["rows"]
    assert rows[1]["encoder_gflops"] < 0.8 * rows[0]["encoder_gflops"]
    weights = f"train.init_checkpoint={folder}/sparse/model.pth"
    sparse = detections(folder, "sparse/config.py", weights)
    ratio = "model.transformer.encoder.sparsifier.keep_ratio=1.0"
    full = detections(folder, "sparse/config.py", weights, ratio)
    assert len(dense) == len(full) > 0 and sparse != full
    for ours, theirs in zip(full, dense, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-2)


def test_the_decoders_of_detrex_repeat_their_pass(folder):
    names = ("dino", *(f"{kind}deformable_detr" for kind in ("", "dab_", "dn_", "h_")))
    printed = run(folder, "-m", "tests.upstream.repeat_decoders", *names)
    rows = [line.split() for line in printed.splitlines() if line.startswith(names)]
    assert [row[0] for row in rows] == list(names)
    for _, file, same, other, score in rows:
        assert file.startswith(str(folder / "projects")), "not detrex's own detector"
        assert float(same) == 0 and float(other) > 1e-3 and float(score) < 1e-6
