"""One build of the kernels under other releases of PyTorch, each in an environment of its own.

``TOKENDETR_OTHER_PYTHONS`` names their interpreters, separated like the folders of a path.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.patience import patience
from tokendetr.ops import library_facts

ROOT = Path(__file__).resolve().parents[2]
INTERPRETERS = [x for x in os.environ.get("TOKENDETR_OTHER_PYTHONS", "").split(os.pathsep) if x]

SCRIPT = """
import sys
import torch
from tokendetr.ops import library_facts, ms_deform_attn_fused, packed_attention, use_reference

facts = library_facts()
assert facts.load_error is None, facts.load_error
g = torch.Generator().manual_seed(0)

def random(*shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

shapes = ((9, 7), (4, 5))
deformable = [random(2, 83, 4, 16), random(2, 11, 2, 4), random(2, 11, 4, 2, 3, 2)]
deformable.append(random(2, 11, 4, 2, 3))
packed = [random(3, 6, 2, 8) for _ in range(3)]
biases = dict(bias_table_MRR=random(2, 5, 5), key_bias_GT=random(3, 6))
segment = torch.tensor([[0, 0, 1, -1, 1, 1]] * 3, dtype=torch.int32)
position = torch.arange(36, dtype=torch.int32).reshape(3, 6, 2) % 7

def run(value, points, offsets, logits):
    return ms_deform_attn_fused(value, shapes, points, offsets, logits)

def attend():
    return packed_attention(*packed, segment, position_GT2=position, **biases)

def results():
    out = [run(*deformable), attend()]
    leaves = [*deformable, *packed, *biases.values()]
    return [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)]

actual = results()
compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(*deformable)
torch.testing.assert_close(compiled, actual[0])
with use_reference():
    expected = results()
for ours, theirs in zip(actual, expected, strict=True):
    torch.testing.assert_close(ours, theirs)
with torch.autocast("cpu", dtype=torch.bfloat16):
    assert run(*[x.float() for x in deformable]).dtype == torch.bfloat16
try:
    ms_deform_attn_fused(deformable[0], shapes, *[x.int() for x in deformable[1:]])
except TypeError:
    print("loaded by", torch.__version__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETERS, reason="TOKENDETR_OTHER_PYTHONS names no interpreter")
@pytest.mark.skipif(library_facts().load_error is not None, reason="no compiled kernels")
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_build_of_this_torch_serves_another(interpreter: str) -> None:
    result = subprocess.run(
        [interpreter, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert result.returncode == 0, result.stderr
    loaded_by = result.stdout.rpartition("loaded by ")[2].strip()
    assert loaded_by != torch.__version__ or interpreter == sys.executable


def test_a_library_that_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    from tokendetr.ops import library

    path = tmp_path / "libtokendetr_ops.so"
    assert "no file" in (library._load(path).load_error or "")
    path.write_bytes(b"\x7fELF damaged")
    path.with_suffix(".json").write_text('{"torch": "99.1.0", "cuda": null, "left_out": {}}')
    facts = library._load(path)
    assert "PyTorch 99.1.0, newer than this" in (facts.load_error or "")
    assert (facts.torch, facts.device_types) == ("99.1.0", ())
