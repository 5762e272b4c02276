"""Random many-to-many token maps."""

import torch

from tokendetr.tokens import Mix, assign_by_similarity


def random_mix(
    seed, batch=2, tokens=17, kept=6, channels=5, temperature=20.0, padding=0, threshold=0.3
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, channels, generator=generator)
    size = torch.rand(batch, tokens, generator=generator) * 3 + 0.2
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    if padding:
        valid[0, -padding:] = False
        size = size * valid
    index = torch.stack(
        [
            torch.randperm(tokens - padding, generator=generator)[:kept].sort().values
            for _ in range(batch)
        ]
    )
    mix = Mix(
        assignment=assign_by_similarity(
            x, index, threshold=threshold, temperature=temperature, valid_BN=valid
        ),
        index_BK=index,
        size_BN=size,
    )
    return x, size, valid, index, mix
