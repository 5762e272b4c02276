"""Random tokens from which a reduction chooses."""

import torch

from token_transforming import (
    Candidates,
)


def random_candidates(seed=0, *, batch=3, grid=(6, 6), kept=(4, 4), padding=False, size=False):
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]

    def noise(*shape):
        return torch.rand(*shape, generator=generator)

    valid = kept_B = None
    if padding:
        valid = torch.ones(batch, *grid, dtype=torch.bool)
        valid[0, :, 4:] = False
        valid[1, 1:] = False
        valid = valid.flatten(1)
        real = valid.sum(dim=1)
        kept_B = real.clamp_max(kept[0] * kept[1] - (real < tokens).long())
    return Candidates(
        x_BNC=noise(batch, tokens, 8) - 0.3,
        received_BN=noise(batch, tokens),
        class_BN=noise(batch, tokens),
        key_BND=noise(batch, tokens, 4) - 0.5,
        kept=kept[0] * kept[1],
        grid=grid,
        kept_grid=kept,
        size_BN=noise(batch, tokens) + 0.5 if size else None,
        valid_BN=valid,
        kept_B=kept_B,
    )
