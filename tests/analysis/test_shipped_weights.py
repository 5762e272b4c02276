"""Weights of measured models."""

from tokendetr.analysis.inputs import with_shipped_weights
from tokendetr.config import zoo


def test_weights_that_come_with_a_config_are_used_unless_others_are_named():
    shipped = f'train.init_checkpoint="{zoo.get_checkpoint("dino_shapes")}"'
    assert with_shipped_weights("dino_shapes", ["a=1"]) == ["a=1", shipped]
    named = ["train.init_checkpoint=mine.pth"]
    assert with_shipped_weights("dino_shapes", named) == named
    assert with_shipped_weights("dino_r50_4scale_12ep", []) == []
