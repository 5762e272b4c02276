"""Cases of deformable attention on a GPU, and the error that each dtype is allowed."""

import torch

from tests.ops.cases import Case
from tokendetr.ops import ms_deform_attn

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BOUND = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def on_gpu(case: Case) -> Case:
    return Case(case.shapes, *[x.cuda() for x in case.tensors])


def attention(case: Case):
    return lambda *x: ms_deform_attn(x[0], case.shapes, *x[1:])
