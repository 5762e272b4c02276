"""Geometry of a batch of feature pyramids, flattened into one token sequence.

Shapes: B image, N all tokens (finest level first, row by row), L level, H and W a level's height
    and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tokendetr.compat.cached_property import cached_property
from tokendetr.errors import ExportError
from tokendetr.tokens.constants import kept_tensors
from tokendetr.tokens.counts import Counts, TracedCounts
from tokendetr.tokens.geometry import (
    LevelShapes,
    proposals,
    reference_points,
    token_levels,
    valid_ratios_of,
    valid_tokens,
)


@dataclass(frozen=True)
class LevelLayout:
    """Position and validity of every token of a flattened pyramid.

    Sizes are Python integers, so nothing here synchronizes with a device, except the first
    :attr:`valid_counts` or :attr:`valid_sizes` of a layout that was made from masks.

    Attributes:
        level_shapes: ``(height, width)`` of each level, finest first.
        valid_BN: bool, True where a token is real and False where it is padding.
        valid_ratios_BL2: float, real width / width and real height / height of each level.
        known_sizes: real ``(height, width)`` per image and level, if they were given as integers.
        traced_sizes_BL2: the same as a long tensor in a program that is being exported. Sizes are
            an input of that program, so they are not available as Python integers.
    """

    level_shapes: LevelShapes
    valid_BN: Tensor
    valid_ratios_BL2: Tensor
    known_sizes: tuple[LevelShapes, ...] | None = None
    traced_sizes_BL2: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.level_shapes or any(h < 1 or w < 1 for h, w in self.level_shapes):
            raise ValueError(
                f"level_shapes must be positive (height, width) pairs, got {self.level_shapes}"
            )
        if self.valid_BN.dim() != 2 or self.valid_BN.shape[1] != self.num_tokens:
            raise ValueError(
                f"level shapes {self.level_shapes} make {self.num_tokens} tokens, "
                f"the mask has shape {list(self.valid_BN.shape)}"
            )
        expected, given = [self.batch_size, self.num_levels, 2], list(self.valid_ratios_BL2.shape)
        if given != expected:
            raise ValueError(f"valid_ratios must have shape {expected}, got {given}")

    @classmethod
    def from_masks(cls, padding_masks: Sequence[Tensor]) -> "LevelLayout":
        """Make a layout from padding masks.

        Args:
            padding_masks: per level, finest first, bool [B, H, W] with True = padding. Padding must
                lie at the right and the bottom: upstream's valid ratios are read from the first row
                and column.
        """
        masks = [mask.bool() for mask in padding_masks]
        return cls(
            level_shapes=tuple((int(mask.shape[1]), int(mask.shape[2])) for mask in masks),
            valid_BN=~torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios_BL2=valid_ratios_of(masks),
        )

    @classmethod
    def from_valid_sizes(
        cls,
        level_shapes: Sequence[Sequence[int]],
        valid_sizes: Sequence[Sequence[Sequence[int]]],
        *,
        device: torch.device | str = "cpu",
    ) -> "LevelLayout":
        """Make a layout from real sizes as Python integers, without synchronizing with a device.

        Args:
            level_shapes: ``(height, width)`` of each level, finest first.
            valid_sizes: per image and level the real ``(height, width)``, at the upper left.
            device: of the masks.
        """
        shapes = tuple((int(height), int(width)) for height, width in level_shapes)
        sizes = tuple(tuple((int(h), int(w)) for h, w in image) for image in valid_sizes)
        return _of_valid_sizes(shapes, sizes, torch.device(device))

    @classmethod
    def from_traced_sizes(
        cls, level_shapes: Sequence[Sequence[int]], sizes_BL2: Tensor
    ) -> "LevelLayout":
        """Make a layout whose real sizes are an input of a program that is being exported.

        Args:
            level_shapes: ``(height, width)`` of each level, finest first.
            sizes_BL2: long, per image and level the real ``(height, width)``, at the upper left.
        """
        shapes = tuple((int(height), int(width)) for height, width in level_shapes)
        shape_L2 = torch.tensor(shapes, dtype=torch.float32, device=sizes_BL2.device)
        return cls(
            level_shapes=shapes,
            valid_BN=valid_tokens(shapes, sizes_BL2),
            valid_ratios_BL2=(sizes_BL2.to(torch.float32) / shape_L2).flip(-1),
            traced_sizes_BL2=sizes_BL2,
        )

    @classmethod
    def from_upstream(
        cls,
        *,
        spatial_shapes: Tensor | Sequence[Sequence[int]],
        valid_ratios: Tensor | None,
        query_key_padding_mask: Tensor | None,
        like_BNC: Tensor,
    ) -> "LevelLayout":
        """Make a layout from what upstream's transformers pass to their encoder.

        Reads ``spatial_shapes`` from its device, which synchronizes.

        Args:
            spatial_shapes: integer [L, 2], (height, width).
            valid_ratios: [B, L, 2] (width, height); None: those of the padding mask.
            query_key_padding_mask: bool [B, N], True = padding; None: no padding.
            like_BNC: the tokens, which give batch size and device.
        """
        pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
        shapes = tuple((int(height), int(width)) for height, width in pairs)
        batch, tokens = like_BNC.shape[0], sum(height * width for height, width in shapes)
        if like_BNC.dim() != 3 or like_BNC.shape[1] != tokens:
            expected, given = f"[B, {tokens}, C], batch first", list(like_BNC.shape)
            raise ValueError(f"features of levels {shapes} have shape {expected}; got {given}")
        sizes = None
        if query_key_padding_mask is None:
            valid_BN = torch.ones(batch, tokens, dtype=torch.bool, device=like_BNC.device)
            sizes = (shapes,) * batch
        else:
            valid_BN = ~query_key_padding_mask.bool()
        full_BL2 = torch.ones(valid_BN.shape[0], len(shapes), 2, device=like_BNC.device)
        layout = cls(shapes, valid_BN, full_BL2 if valid_ratios is None else valid_ratios, sizes)
        if valid_ratios is None and query_key_padding_mask is not None:
            masks = [layout.grid(layout.padding_BN, level) for level in range(layout.num_levels)]
            return replace(layout, valid_ratios_BL2=valid_ratios_of(masks))
        return layout

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.level_shapes)

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens N of all levels, padding included."""
        return sum(self.level_sizes)

    @property
    def batch_size(self) -> int:
        """Number of images B."""
        return self.valid_BN.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the masks."""
        return self.valid_BN.device

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Tokens of each level, padding included."""
        return tuple(height * width for height, width in self.level_shapes)

    @cached_property
    def level_starts(self) -> tuple[int, ...]:
        """Index of each level's first token."""
        sizes = self.level_sizes
        return tuple(sum(sizes[:level]) for level in range(len(sizes)))

    @property
    def level_N(self) -> Tensor:
        """Long, the level of each token. Do not write to it."""
        return token_levels(self.level_sizes, self.device)

    @cached_property
    def may_have_padding(self) -> bool:
        """False if every token is known to be real without synchronizing with a device."""
        return self.known_sizes is None or any(
            sizes != self.level_shapes for sizes in self.known_sizes
        )

    @property
    def valid_if_padded_BN(self) -> Tensor | None:
        """``valid_BN``; None if every token is known to be real."""
        return self.valid_BN if self.may_have_padding else None

    @cached_property
    def padding_BN(self) -> Tensor:
        """Upstream's mask: True = padding. Do not write to it."""
        with torch.inference_mode(False):
            return ~self.valid_BN

    @cached_property
    def token_counts(self) -> Counts:
        """Real tokens of each image; traced in a program that is being exported."""
        if self.traced_sizes_BL2 is None:
            return [sum(levels) for levels in self.valid_counts]
        return TracedCounts(self.traced_sizes_BL2.prod(dim=2).sum(dim=1), self.num_tokens)

    def level_counts(self, level: int) -> Counts:
        """Return the real tokens of each image in one level; traced as ``token_counts`` are."""
        if self.traced_sizes_BL2 is None:
            return [levels[level] for levels in self.valid_counts]
        return TracedCounts(self.traced_sizes_BL2[:, level].prod(dim=1), self.level_sizes[level])

    @cached_property
    def valid_counts(self) -> tuple[tuple[int, ...], ...]:
        """Real tokens of each image and level, as Python integers."""
        self._check_known()
        if self.known_sizes is not None:
            return tuple(tuple(h * w for h, w in sizes) for sizes in self.known_sizes)
        counts_BL = torch.stack([valid.sum(dim=1) for valid in self.split(self.valid_BN)], dim=1)
        return tuple(tuple(row) for row in counts_BL.tolist())

    @cached_property
    def valid_sizes(self) -> tuple[LevelShapes, ...]:
        """Real ``(height, width)`` of each image and level, as Python integers.

        Raises:
            ValueError: padding lies elsewhere than at the right and the bottom.
        """
        self._check_known()
        if self.known_sizes is not None:
            return self.known_sizes
        sizes = []
        for level in range(self.num_levels):
            valid_BHW = self.grid(self.valid_BN, level)
            sizes.append(torch.stack([valid_BHW[:, :, 0].sum(1), valid_BHW[:, 0].sum(1)], dim=1))
        sizes_BL2 = torch.stack(sizes, dim=1).tolist()
        for image, counts in zip(sizes_BL2, self.valid_counts, strict=True):
            if [height * width for height, width in image] != list(counts):
                raise ValueError(
                    "padding must lie at the right and the bottom of an image, in whole rows and "
                    f"columns: levels of {image} have {list(counts)} real tokens"
                )
        return tuple(tuple((h, w) for h, w in image) for image in sizes_BL2)

    def _check_known(self) -> None:
        if self.traced_sizes_BL2 is not None:
            raise ExportError(
                "a part of the model needs the sizes of images as numbers while it is exported: "
                "export it for images that fill the canvas (padding=False, --no-padding)"
            )

    def spatial_shapes(self, device: torch.device | str | None = None) -> Tensor:
        """Return the level shapes as upstream's LongTensor [L, 2] of (height, width).

        Do not write to it.
        """
        return self._spatial_shapes.to(device or self.device)

    @cached_property
    def _spatial_shapes(self) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(self.level_shapes, dtype=torch.long).to(self.device)

    def level_start_index(self, device: torch.device | str | None = None) -> Tensor:
        """Return the level starts as upstream's LongTensor [L]. Do not write to it."""
        return self._level_start_index.to(device or self.device)

    @cached_property
    def _level_start_index(self) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(self.level_starts, dtype=torch.long).to(self.device)

    def split(self, x_BN: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor [B, N, ...] into its levels [B, H * W, ...]."""
        return x_BN.split(self.level_sizes, dim=1)

    def grid(self, x_BN: Tensor, level: int) -> Tensor:
        """Return one level of a tensor [B, N, ...] as an image [B, H, W, ...] (a view)."""
        start, size = self.level_starts[level], self.level_sizes[level]
        return x_BN[:, start : start + size].unflatten(1, self.level_shapes[level])

    def reference_points_BNL2(self) -> Tensor:
        """Return each token's center as normalized (x, y) in every level.

        0 and 1 are the borders of a level with its padding. Centers are first divided by the real
        size of the token's own level, then multiplied by the valid ratio of the target level: with
        padding, levels round their real sizes differently, and only so does a token point at the
        same place of the image in all of them.

        Source: ``get_reference_points`` of Deformable DETR and detrex.
        """
        return self._reference_points_BNL2

    @cached_property
    def _reference_points_BNL2(self) -> Tensor:
        with torch.inference_mode(False):  # later passes may need gradients
            return reference_points(self.level_shapes, self.valid_ratios_BL2)

    def proposals(self) -> tuple[Tensor, Tensor]:
        """Return the two-stage head's anchors: a box centered on each token.

        Its sides are 0.05 * 2^level.

        Returns:
            Logits of normalized cxcywh boxes [B, N, 4], relative to the real part of an image and
            infinite for unusable ones; and bool [B, N], True for usable boxes: of real tokens, with
            all four numbers in (0.01, 0.99).

        Source: ``gen_encoder_output_proposals`` of Deformable DETR and detrex.
        """
        return self._proposals

    @cached_property
    def _proposals(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            return proposals(self.level_shapes, self.valid_BN)


def _layout_bytes(layout: LevelLayout) -> int:
    """Return the bytes of a layout's masks, reference points and proposals."""
    return layout.valid_BN.numel() * (2 + 8 * layout.num_levels + 17)


@partial(kept_tensors, measure=_layout_bytes)
def _of_valid_sizes(
    shapes: LevelShapes, valid_sizes: tuple[LevelShapes, ...], device: torch.device
) -> LevelLayout:
    sizes_BL2 = torch.tensor(valid_sizes, dtype=torch.long).to(device)
    sizes_BL2 = sizes_BL2.view(len(valid_sizes), len(shapes), 2)
    ratios = [
        [
            (size[1] / shape[1], size[0] / shape[0])
            for size, shape in zip(image, shapes, strict=True)
        ]
        for image in valid_sizes
    ]
    ratios_BL2 = torch.tensor(ratios, dtype=torch.float32).view(-1, len(shapes), 2)
    valid_BN = valid_tokens(shapes, sizes_BL2)
    return LevelLayout(shapes, valid_BN, ratios_BL2.to(device), known_sizes=valid_sizes)
