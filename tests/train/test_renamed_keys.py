"""The refusal of a checkpoint names the parts of names by which its keys differ."""

import pytest

from tokendetr.checkpoint.key_names import Renaming, likely_renamings

LAYERS = {
    f"encoder.layers.{layer}.{part}.{kind}": shape
    for layer in range(6)
    for part, size in (("attentions.0.value_proj", 8), ("norms.0", 4), ("norms.1", 4))
    for kind, shape in (("weight", (size, 4)), ("bias", (size,)))
}
HEADS = {f"class_embed.{i}.{kind}": (7,) for i in range(4) for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("in_model", "in_file"),
    [
        ("attentions.0", "self_attn"),
        ("encoder", "transformer.encoder"),
        ("value_proj", "value_proj.linear"),
        ("encoder.layers", "layers"),
        ("norms.1", "norm2"),
    ],
)
def test_a_renamed_part_is_found_in_every_key_that_has_it(in_model, in_file):
    renamed = {
        f".{key}.".replace(f".{in_model}.", f".{in_file}.", 1).strip("."): shape
        for key, shape in LAYERS.items()
    }
    missing = {key: shape for key, shape in LAYERS.items() if key not in renamed}
    unexpected = {key: shape for key, shape in renamed.items() if key not in LAYERS}
    (found,) = likely_renamings(missing, unexpected)
    assert found.count == len(unexpected)


def test_several_renamed_parts_are_found_most_keys_first():
    unexpected = {key.replace("encoder", "enc"): shape for key, shape in LAYERS.items()}
    unexpected |= {key.replace("class_embed", "cls_head"): shape for key, shape in HEADS.items()}
    assert likely_renamings(LAYERS | HEADS, unexpected) == [
        Renaming("enc", "encoder", len(LAYERS)),
        Renaming("cls_head", "class_embed", len(HEADS)),
    ]


def test_keys_of_other_shapes_are_no_renamed_ones():
    unexpected = {key.replace("class_embed", "cls_head"): (9,) for key in HEADS}
    assert likely_renamings(HEADS, unexpected) == []


def test_a_chance_match_among_many_keys_is_not_reported():
    strangers = {f"a{i}.b{i}.c{i}": (3,) for i in range(40)} | {"other.weight": (4, 4)}
    wanted = {f"d{i}.e{i}.f{i}": (3,) for i in range(40)} | {"own.weight": (4, 4)}
    assert likely_renamings(wanted, strangers) == []
    assert likely_renamings({"own.weight": (4, 4)}, {"other.weight": (4, 4)}) == [
        Renaming("other", "own", 1)
    ]


def test_a_part_that_the_model_lacks_is_said_to_be_left_out():
    (found,) = likely_renamings({"stem.conv.bias": (2,)}, {"stem.body.conv.bias": (2,)})
    assert str(found) == "'body' in the file is left out in the model (1 key)"
