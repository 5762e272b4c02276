"""A sparsifier with a fixed schedule and an affine bypass, in a small encoder."""

import torch

from tests.plain_encoder import CHANNELS, make_encoder
from tokendetr.encoder import TokenPlan, TokenSparsifier
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.tokens import Keep, topk_valid

SIZES = [(16, 21), (9, 10), (16, 7)]
DEPTH = 4


class Scheduled(TokenSparsifier):
    """Keep per layer the tokens with the largest features in one channel of the input."""

    def __init__(self, shares, *, carry=False, **options):
        super().__init__(**options)
        self.shares, self.carry = shares, carry

    def kept(self, layer, x_NC):
        """One image's kept tokens in a layer."""
        score = x_NC[:, 0] if self.carry else x_NC[:, layer]
        count = max(1, int(self.shares[layer] * len(x_NC)))
        return score.sort(descending=True, stable=True).indices[:count]

    def plan(self, context):
        sparsifier = self

        class Plan(TokenPlan):
            def token_map(self, layer, memory_BNC):
                if sparsifier.shares[layer] == 1:
                    return self._identity
                x_BNC, valid_BN = self.context.memory_BNC, self.context.layout.valid_BN
                tokens = valid_BN.sum(dim=1).tolist()
                index_BK, valid_BK = topk_valid(
                    x_BNC[:, :, 0 if sparsifier.carry else layer],
                    [max(1, int(sparsifier.shares[layer] * count)) for count in tokens],
                    valid_BN=valid_BN,
                )
                return Keep(index_BK=index_BK, valid_BK=valid_BK)

        return Plan(context)


def random_bypass(
    *, layers=DEPTH, levels=4, channels=CHANNELS, scale=0.1, context=True
) -> AffineBypass:
    bypass = AffineBypass(embed_dim=channels, num_layers=layers, num_levels=levels, context=context)
    torch.manual_seed(11)
    for parameter in bypass.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return bypass


def scheduled(shares, *, bypass=True, context=True, carry=False, pre_norm=False, **options):
    order = (
        ("norm", "self_attn", "norm", "ffn") if pre_norm else ("self_attn", "norm", "ffn", "norm")
    )
    encoder = make_encoder(
        Scheduled(shares, carry=carry, **options), num_layers=DEPTH, operation_order=order
    )
    encoder.sparsifier.bypass = random_bypass(context=context) if bypass else None
    return encoder.double().eval()
