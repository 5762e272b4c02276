"""Report of a transform, and its errors."""

from dataclasses import dataclass

from torch import nn

from token_transforming.settings import Reduction


class UnsupportedModelError(TypeError):
    """A model has no part that can be transformed."""


@dataclass(frozen=True)
class TransformReport:
    """Result of :func:`token_transforming.transform`.

    Attributes:
        model: class name of the transformed (part of the) model.
        name: its dotted name in the given model; "" for the model itself.
        num_layers: number of its blocks.
        layers: the blocks that reduce tokens, from 0.
        reductions: the reduction of each of them.
        prefix: number of class and register tokens, which are never reduced.
        restored: True if the output has all tokens.
    """

    model: str
    name: str
    num_layers: int
    layers: tuple[int, ...]
    reductions: tuple[Reduction, ...]
    prefix: int
    restored: bool

    def tokens(self, tokens: int) -> tuple[int, ...]:
        """Return the number of tokens in the feed-forward network of each block.

        Args:
            tokens: patch tokens of an image (of a window, in a windowed backbone); class and
                register tokens are added.
        """
        by_layer = dict(zip(self.layers, self.reductions, strict=True))
        counts = []
        for layer in range(self.num_layers):
            if layer in by_layer:
                tokens = by_layer[layer].kept(tokens)
            counts.append(tokens + self.prefix)
        return tuple(counts)

    def __str__(self) -> str:
        ways = ", ".join(
            f"{layer}: {reduction.method} {reduction.keep_ratio:g}"
            for layer, reduction in zip(self.layers, self.reductions, strict=True)
        )
        place = f" at {self.name}" if self.name else ""
        end = "restored" if self.restored else "reduced"
        return f"{self.model}{place}, {self.num_layers} blocks; reductions at {ways}; output {end}"


def check_layers(layers: tuple[int, ...], count: int, owner: nn.Module) -> None:
    """Check that layers are ascending, without repetition, and blocks of the model.

    Raises:
        ValueError: they are not, or there are none.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(
            f"layers must be some of the blocks 0 to {count - 1} of {type(owner).__name__}, "
            f"ascending, got {layers}"
        )
