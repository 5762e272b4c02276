"""The score head against naive loops, and its independence of padding."""

import pytest
import torch

from tokendetr.layers.score_head import ScoreHead


def naive(head: ScoreHead, x_NC: torch.Tensor, counted: list[int]) -> torch.Tensor:
    """Score one image token by token, with the mean over the counted ones."""
    hidden = [head.layer1(row) for row in x_NC]
    half = x_NC.shape[1] // 2
    mean = sum(hidden[i][half:] for i in counted) / len(counted)
    return torch.stack([head.layer2(torch.cat([h[:half], mean]))[0] for h in hidden])


@pytest.mark.parametrize("valid_mean", [True, False])
def test_scores_equal_naive_loops(valid_mean):
    torch.manual_seed(0)
    head = ScoreHead(embed_dim=16, valid_mean=valid_mean).double()
    x_BNC = torch.randn(2, 9, 16, dtype=torch.float64)
    valid_BN = torch.ones(2, 9, dtype=torch.bool)
    valid_BN[1, 5:] = False
    scores_BN = head(x_BNC, valid_BN)
    for image in range(2):
        counted = [i for i in range(9) if valid_BN[image, i] or not valid_mean]
        expected = naive(head, x_BNC[image], counted)
        torch.testing.assert_close(scores_BN[image], expected, rtol=1e-12, atol=1e-12)


def test_padding_changes_no_score():
    head = ScoreHead(embed_dim=8)
    x_BNC = torch.randn(1, 6, 8)
    padded_BNC = torch.cat([x_BNC, 100 * torch.randn(1, 4, 8)], dim=1)
    valid_BN = torch.arange(10)[None] < 6
    torch.testing.assert_close(head(padded_BNC, valid_BN)[:, :6], head(x_BNC))


def test_an_image_of_padding_alone_is_finite():
    head = ScoreHead(embed_dim=8)
    scores_BN = head(torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool))
    scores_BN.sum().backward()
    assert scores_BN.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_a_width_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        ScoreHead(embed_dim=10)
