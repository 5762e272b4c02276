"""What a transform did to a model."""

from dataclasses import dataclass

from torch import nn

from token_transforming.settings import Reduction


class UnsupportedModelError(TypeError):
    """A model has no part that can be transformed."""


@dataclass(frozen=True)
class TransformReport:
    """What :func:`token_transforming.transform` did.

    Attributes:
        model: class name of the transformed (part of the) model.
        name: where it is in the model that was given; "" where it is that model.
        num_layers: its blocks.
        layers: the blocks that reduce tokens, from 0.
        reductions: how each of them does.
        prefix: class and register tokens, which are never reduced.
        restored: whether the output has all tokens again.
    """

    model: str
    name: str
    num_layers: int
    layers: tuple[int, ...]
    reductions: tuple[Reduction, ...]
    prefix: int
    restored: bool

    def tokens(self, tokens: int) -> tuple[int, ...]:
        """Return how many tokens enter the feed-forward network of each block.

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
            f"{layer}: {how.method} {how.keep_ratio:g}"
            for layer, how in zip(self.layers, self.reductions, strict=True)
        )
        place = f" at {self.name}" if self.name else ""
        end = "restored" if self.restored else "reduced"
        return f"{self.model}{place}, {self.num_layers} blocks; reductions at {ways}; output {end}"


def check_layers(layers: tuple[int, ...], count: int, owner: nn.Module) -> None:
    """Stop where layers are none, unsorted, repeated or outside of the model.

    Raises:
        ValueError: naming them.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(
            f"layers must be some of the blocks 0 to {count - 1} of {type(owner).__name__}, "
            f"ascending, got {layers}"
        )
