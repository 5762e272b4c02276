"""Selection and merging of tokens that tie, vanish, overflow, or lie at the edge of being kept."""

import random
from pathlib import Path

import torch

from tests.reliability.campaign import row
from tests.tokens.naive_selection import naive_topk
from tests.tokens.random_mixes import random_mix
from tokendetr.layers.score_head import ScoreHead
from tokendetr.tokens import match_by_affinity, topk_valid

PER_CASE = 25


@row(
    "TK3",
    "top-k among equal scores, NaN and infinity, with padding",
    target="the order of sorting by score, then place",
    default=1,
    nightly=40,
    unit="problems",
)
def ties(seed: int, folder: Path) -> int:
    rng = random.Random(seed)
    for _ in range(PER_CASE):
        batch, candidates = rng.randint(1, 4), rng.randint(1, 300)
        few = [0.0, -0.0, 1.0, -3.0, float("nan"), 1e-42]
        scores = [[rng.choice(few) for _ in range(candidates)] for _ in range(batch)]
        valid = [[rng.random() < 0.8 for _ in range(candidates)] for _ in range(batch)]
        counts = [rng.randint(0, candidates + 3) for _ in range(batch)]
        index, chosen = topk_valid(torch.tensor(scores), counts, valid_BN=torch.tensor(valid))
        for image in range(batch):
            own = index[image] if chosen is None else index[image][chosen[image]]
            assert own.tolist() == naive_topk(scores[image], valid[image], counts[image])
    return PER_CASE


def odd_tokens(generator: torch.Generator, batch: int, tokens: int, channels: int) -> torch.Tensor:
    """Random tokens, among them ones that are zero, constant, equal, huge or denormal."""
    x = torch.randn(batch, tokens, channels, generator=generator)
    kinds = torch.randint(0, 8, (batch, tokens), generator=generator)
    x[kinds == 0] = 0.0
    x[kinds == 1] = 1.0
    x[kinds == 2] = x[0, 0].clone()
    x[kinds == 3] *= 1e15
    x[kinds == 4] *= 1e-42
    return x


@row(
    "TK4",
    "tokens that are zero, constant, equal, huge or denormal: matching, mixing, scores",
    target="finite; padding changes nothing of a real token",
    default=1,
    nightly=40,
    unit="problems",
)
def odd_norms(seed: int, folder: Path) -> int:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = ScoreHead(embed_dim=8)
    for number in range(PER_CASE):
        x = odd_tokens(generator, 2, 19, 8)
        real = [19, int(torch.randint(1, 19, (), generator=generator))]
        valid = torch.arange(19) < torch.tensor(real)[:, None]
        other = torch.where(valid[..., None], x, odd_tokens(generator, 2, 19, 8))
        results = []
        for tokens in (x, other):
            match = match_by_affinity(
                tokens, important_counts=[4, 1], valid_BN=valid, valid_counts=real,
                num_neighbors=3, min_cosine=0.01,
            )  # fmt: skip
            assert match.score_BN[valid].isfinite().all(), number
            assert not match.important_BN[~valid].any() and not match.absorbs_BNT[~valid].any()
            taken = match.neighbor_index_BNT[match.absorbs_BNT]
            image = match.absorbs_BNT.nonzero()[:, 0]
            assert valid[image, taken].all(), number
            scores = head(tokens, valid)
            assert scores[valid].isfinite().all(), number
            results.append((match.score_BN[valid], match.absorbs_BNT[valid], scores[valid]))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two), number
        mixed, sizes, valid, _, mix = random_mix(
            seed * PER_CASE + number, padding=int(torch.randint(0, 5, (), generator=generator))
        )
        reduced, _ = mix.mix(odd_tokens(generator, *mixed.shape))
        assert reduced.isfinite().all(), number
    return PER_CASE


@row(
    "TK5",
    "float32 against float64 scores: what is kept differs only at the edge",
    target="the same set outside 1e-5 of the last score kept; at most 2 % of tokens within change",
    default=1,
    nightly=20,
    unit="problems",
)
def edges(seed: int, folder: Path) -> int:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = ScoreHead(embed_dim=16).double()
    flips = near = 0
    for _ in range(PER_CASE):
        tokens, keep = 2000, int(torch.randint(100, 1900, (), generator=generator))
        x = torch.randn(1, tokens, 16, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            exact, rounded = head.double()(x), head.float()(x.float())
        kept = [set(topk_valid(s, [keep])[0][0].tolist()) for s in (exact, rounded)]
        edge = float(exact[0].sort(descending=True).values[keep - 1])
        band = (exact[0] - edge).abs() <= 1e-5 * float(exact.std())
        changed = kept[0] ^ kept[1]
        assert all(bool(band[token]) for token in changed), "a token beyond the edge changed"
        flips, near = flips + len(changed), near + int(band.sum())
    assert flips <= max(2, 0.02 * near), f"{flips} of {near} tokens at the edge changed"
    return PER_CASE
