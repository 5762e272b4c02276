import torch

from tokendetr.compat.cached_property import cached_property
from tokendetr.tokens import LevelLayout


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    @cached_property
    def number(self) -> int:
        """The number of calls."""
        self.calls += 1
        return self.calls


def test_a_value_is_computed_once_per_object():
    one, other = Counted(), Counted()
    assert (one.number, one.number, other.number) == (1, 1, 1)
    del one.number
    assert one.number == 2
    assert Counted.number.__doc__ == "The number of calls."


def test_a_compiled_program_reads_the_geometry_of_a_pyramid_in_one_graph():
    def read(x: torch.Tensor) -> torch.Tensor:
        layout = LevelLayout.from_masks([torch.zeros(1, 3, 4, dtype=torch.bool)])
        return x + layout.num_tokens + layout.padding_BN.sum()

    x = torch.ones(1)
    torch.compiler.reset()
    compiled = torch.compile(read, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), read(x))
