"""Budgets by score mass: counts against plain loops, the mean they are calibrated to, batches."""

import pytest
import torch

from tokendetr.tokens import MassBudget


def scores(count: int, sharpness: float, seed: int) -> torch.Tensor:
    """Return logits of an image: the sharper, the fewer tokens hold its mass."""
    generator = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(count, generator=generator) - sharpness


def loop_count(score_N: torch.Tensor, share: float) -> int:
    mass = sorted(score_N.double().sigmoid().tolist(), reverse=True)
    held = 0.0
    for number, one in enumerate(mass, start=1):
        held += one
        if held >= share * sum(mass) * (1 - 1e-12):
            return number
    return len(mass)


def counts(budget: MassBudget, score_BN: torch.Tensor, ratio: float) -> list[int]:
    batch, tokens = score_BN.shape
    return budget.counts(score_BN, ratio, valid_BN=None, valid_counts=[tokens] * batch)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.62, 0.95])
def test_an_image_keeps_the_fewest_tokens_that_hold_the_share(ratio):
    score_BN = torch.stack([scores(200, sharpness, 0) for sharpness in (0.5, 2, 6)])
    found = counts(MassBudget(), score_BN, ratio)
    assert found == [loop_count(score_N, ratio) for score_N in score_BN]
    assert found == sorted(found, reverse=True) and found[2] < found[0], "easy images keep fewer"
    assert counts(MassBudget(), score_BN, 1) == [200] * 3


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 0.8])
def test_calibrated_images_keep_the_ratio_on_their_mean(ratio):
    images = [scores(400, 0.5 + 0.3 * number, number) for number in range(24)]
    budget = MassBudget()
    budget.calibrate(images)
    found = counts(budget, torch.stack(images), ratio)
    assert sum(found) / (24 * 400) == pytest.approx(ratio, abs=0.01)
    assert max(found) > 1.2 * min(found)
    shares = budget.left_S.tolist()
    assert shares == sorted(shares, reverse=True) and (shares[0], shares[-1]) == (1, 0)


def test_padding_and_the_batch_change_nothing():
    budget = MassBudget()
    small, large = scores(60, 2, 1), scores(90, 3, 2)
    score_BN = torch.stack([torch.cat([small, torch.full((30,), 9.0)]), large])
    valid_BN = torch.arange(90) < torch.tensor([60, 90])[:, None]
    together = budget.counts(score_BN, 0.4, valid_BN=valid_BN, valid_counts=[60, 90])
    alone = [counts(budget, score[None], 0.4)[0] for score in (small, large)]
    assert together == alone


def test_no_scores_calibrate_nothing():
    with pytest.raises(ValueError, match="at least one image"):
        MassBudget().calibrate([])
