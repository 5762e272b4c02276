"""A few cases of every row; ``make nightly`` runs them all."""

import pytest

from tests.reliability import campaign

CASES = [
    (name, seed) for name, chosen in campaign.load_rows().items() for seed in range(chosen.default)
]


@pytest.mark.parametrize(("name", "seed"), CASES, ids=[f"{n}-{s}" for n, s in CASES])
def test_row(name, seed, tmp_path):
    try:
        campaign.ROWS[name].case(seed, tmp_path)
    except campaign.Unavailable as error:
        pytest.skip(str(error))
    except BaseException:
        print(f"again with: {campaign.replay_command(name, seed)}")
        raise
