"""An affine bypass for the tokens that a sparse encoder leaves out.

A dense encoder changes every token in every layer, including those without an object, and most of
that change depends on the token's own features alone. Instead of leaving a skipped token unchanged,
the bypass replaces it by an affine map of its features at the encoder's input: one map per layer
and level, fitted by least squares without labels (:mod:`tokendetr.sparsification`) or trained with
the detector.

Nearly all of it is free: a skipped token passes through the next layer's value projection anyway,
and the projection of an affine map is an affine map, so the maps of inner layers are folded into
the projections. Only the last layer's maps are extra work, C^2 multiply-adds per skipped token.

Such maps miss what a layer gathers from a token's neighbors. With context, the token first takes in
its surroundings (:mod:`tokendetr.encoder.surroundings`), by one linear map per level for
all layers: C^2 / 2 multiply-adds per token, once.

Source: linear shortcuts between layers are known from language models (Din et al., "Jump to
Conclusions: Short-Cutting Transformers With Linear Transformations", 2023). Their use for skipped
tokens of detectors, the fit per level, the context and the folding into the value projection are
this project's.
Shapes: B image, N all tokens, R any rows, C channel.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import disable_current_modes
from tokendetr.encoder.surroundings import spread, surroundings
from tokendetr.layers.cached import Cached
from tokendetr.tokens import LevelLayout


class AffineBypass(nn.Module):
    """Affine maps for the tokens that a sparsifier of :class:`~tokendetr.tokens.Keep` maps skips.

    The map of layer l and level v takes an entry x to ``x + weight[l, v] @ x + bias[l, v]``, an
    approximation of the token after layer l. The entry is the token of the encoder's input; with
    context, plus ``context_weight[v]`` [C, 2 C] @ the token's surroundings, on all levels but the
    last. A new bypass is zero, so that tokens stay unchanged as without one. A token that was
    updated in earlier layers changes by the difference of two consecutive layers' maps.

    Args:
        embed_dim: channels C.
        num_layers: layers of the encoder.
        num_levels: feature levels L.
        context: let tokens take in their surroundings. Levels must halve from one to the next.

    Raises:
        ValueError: a number is not positive.
    """

    context_weight: nn.Parameter | None

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_layers: int = 6,
        num_levels: int = 4,
        context: bool = False,
    ) -> None:
        super().__init__()
        if min(embed_dim, num_layers, num_levels) < 1:
            raise ValueError(
                "embed_dim, num_layers and num_levels must be positive, "
                f"got {embed_dim}, {num_layers} and {num_levels}"
            )
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_levels = num_levels
        self.weight = nn.Parameter(torch.zeros(num_layers, num_levels, embed_dim, embed_dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_levels, embed_dim))
        if context:
            zeros = torch.zeros(num_levels - 1, embed_dim, 2 * embed_dim)
            self.context_weight = nn.Parameter(zeros)
        else:
            self.register_parameter("context_weight", None)
        self._folded: defaultdict[tuple[int, int], Cached[tuple[Tensor, Tensor]]]
        self._folded = defaultdict(Cached)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Reset to zero, after a transformer has initialized every matrix by Xavier."""
        for parameter in self.parameters():
            parameter.zero_()

    def train(self, mode: bool = True) -> "AffineBypass":
        """Set the mode and drop the folded matrices."""
        self._folded.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "AffineBypass":
        self._folded.clear()
        return super()._apply(fn, recurse)

    def entry(self, layout: LevelLayout, memory_BNC: Tensor) -> Tensor:
        """Return what the maps take of the encoder's input, for all tokens [B, N, C].

        Raises:
            ValueError: there is a context, and levels do not halve.
        """
        if self.context_weight is None:
            return memory_BNC
        levels = list(layout.split(memory_BNC))
        for level, weight in enumerate(self.context_weight):
            around_BHWC = F.linear(surroundings(layout, level, memory_BNC), weight)
            levels[level] = levels[level] + spread(layout, level, around_BHWC)
        return torch.cat(levels, dim=1).to(memory_BNC.dtype)

    def moved(self, layer: int, level: int, x_RC: Tensor) -> Tensor:
        """Return the approximation, after a layer, of entries."""
        return x_RC + F.linear(x_RC, self.weight[layer, level], self.bias[layer, level])

    def step(self, layer: int, level: int, x_RC: Tensor) -> Tensor:
        """Return the approximate change of entries in one layer."""
        weight_CC, bias_C = self.weight[layer, level], self.bias[layer, level]
        if layer:
            weight_CC = weight_CC - self.weight[layer - 1, level]
            bias_C = bias_C - self.bias[layer - 1, level]
        return F.linear(x_RC, weight_CC, bias_C)

    def folded(self, layer: int, level: int, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight and bias of ``projection`` applied to :meth:`moved`.

        Without gradients they are computed once, in float64, and cached until a parameter changes.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            with torch.autocast(self.weight.device.type, enabled=False):
                return self._fold(layer, level, projection, self.weight.dtype)
        outer = projection.weight, projection.bias
        # FLOP counters and fake tensors must neither see nor enter the cache of later passes.
        with disable_current_modes():
            return self._folded[layer, level].get(
                outer[0].dtype,
                (self.weight, self.bias, *outer),
                lambda: self._fold(layer, level, projection, torch.float64),
            )

    def _fold(
        self, layer: int, level: int, projection: nn.Linear, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        weight_CC, bias_C = self.weight[layer, level].to(dtype), self.bias[layer, level].to(dtype)
        outer_CC = projection.weight.to(dtype)
        folded_CC = outer_CC + outer_CC @ weight_CC
        folded_C = outer_CC @ bias_C
        if projection.bias is not None:
            folded_C = folded_C + projection.bias.to(dtype)
        kind = projection.weight.dtype
        return folded_CC.to(kind), folded_C.to(kind)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return (
            f"embed_dim={self.embed_dim}, num_layers={self.num_layers}, "
            f"num_levels={self.num_levels}, context={self.context_weight is not None}"
        )
