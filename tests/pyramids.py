"""Random feature pyramids of unequal images, alone and as one padded batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.tokens import LevelLayout


@dataclass
class Pyramid:
    layout: LevelLayout
    x_BNC: Tensor
    pos_BNC: Tensor

    @property
    def inputs(self) -> dict:
        return {"query": self.x_BNC, "query_pos": self.pos_BNC, "layout": self.layout}


def level_shapes(height: int, width: int, levels: int = 4) -> tuple[tuple[int, int], ...]:
    return tuple((-(-height // 2**level), -(-width // 2**level)) for level in range(levels))


def make_batch(
    sizes: list[tuple[int, int]], channels: int, *, seed: int = 0, dtype=torch.float32, noise=0.5
) -> tuple[Pyramid, list[Pyramid]]:
    """Return a padded batch of images of the given finest-level sizes, and each image alone.

    Features are smooth plus noise, so that windows differ in coherence; padding holds large
    rubbish.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [level_shapes(*size) for size in sizes]
    levels = len(shapes[0])
    padded = tuple(
        (max(s[level][0] for s in shapes), max(s[level][1] for s in shapes))
        for level in range(levels)
    )
    layout = LevelLayout.from_valid_sizes(padded, shapes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    alone, grids = [], [[], []]
    for image_shapes in shapes:
        flat = [[], []]
        for level, (height, width) in enumerate(image_shapes):
            coarse = draw(1, channels, 3, 3)
            smooth = torch.nn.functional.interpolate(
                coarse, size=(height, width), mode="bilinear", align_corners=False
            )
            tokens = smooth[0].permute(1, 2, 0) + noise * draw(height, width, 1) * draw(
                height, width, channels
            )
            for part, grid in enumerate((tokens, 0.3 * draw(height, width, channels))):
                grid = grid.to(dtype)
                flat[part].append(grid.flatten(0, 1))
                whole = (1e3 * draw(*padded[level], channels)).to(dtype)
                whole[:height, :width] = grid
                grids[part].append(whole.flatten(0, 1))
        alone.append(
            Pyramid(
                LevelLayout.from_valid_sizes(image_shapes, [image_shapes]),
                torch.cat(flat[0])[None],
                torch.cat(flat[1])[None],
            )
        )
    merged = [
        torch.stack([torch.cat(part[i : i + levels]) for i in range(0, len(part), levels)])
        for part in grids
    ]
    return Pyramid(layout, *merged), alone


def valid_rows(layout: LevelLayout, x_BNC: Tensor, image: int) -> Tensor:
    """Return one image's real tokens, in order."""
    return x_BNC[image][layout.valid_BN[image]]
