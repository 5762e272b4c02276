"""What is made of weights follows them, wherever they lie."""

import copy

import torch

from tokendetr.layers.cached import Cached


def test_a_tensor_at_the_address_of_one_that_is_gone_is_another():
    """As weights that a parametrization computes at every call."""
    cached = Cached()
    for value in range(50):
        weight = torch.full((256,), float(value))
        assert cached.get(weight.dtype, [weight], weight.clone)[0] == value
        del weight  # the next one may get its memory


def test_it_is_made_once_for_the_same_weights_and_copies_start_empty():
    made, weight = [], torch.ones(3)

    def get(cached):
        return cached.get(weight.dtype, [weight, None], lambda: made.append(weight.sum()))

    cached = Cached()
    for _ in range(2):
        get(cached)
    assert len(made) == 1
    get(copy.deepcopy(cached))
    weight.add_(1)
    get(cached)
    assert len(made) == 3
