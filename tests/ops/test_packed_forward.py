"""Packed attention against one dense attention per segment in float64, and its laws."""

from tests.ops.packed_cases import packed_oracle, random_packed
from tests.ops.test_forward import relative
from tokendetr.ops import use_reference


def test_reference_matches_oracle() -> None:
    with use_reference():
        for seed in range(1, 65):
            case = random_packed(seed)
            assert relative(case.run(), packed_oracle(case)) <= 1e-12
