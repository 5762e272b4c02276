"""The paper's ablations on the shapes data set, and readings that it leaves open.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import Study, Variant

_SPARSIFIER = "model.transformer.encoder.sparsifier"
_LEVEL = "[.3,.3,.3]"
"""Equal ratios of the three layers: no cascade."""

COMMON = (
    "train.max_iter=150",
    "train.eval_period=1000",
    "train.checkpointer.period=1000",
    "train.amp.enabled=True",
    "train.amp.dtype=bfloat16",
)


def _options(**values: object) -> list[str]:
    return [f"{_SPARSIFIER}.{name}={value}" for name, value in values.items()]


PARTS = (
    Variant("all parts"),
    Variant("no dual attention", _options(num_objects=0)),
    Variant("and no cascade", _options(num_objects=0, layer_ratios=_LEVEL)),
    Variant("and no modulation", _options(num_objects=0, layer_ratios=_LEVEL, modulation="none")),
    Variant(
        "and no supervision of the scores",
        _options(num_objects=0, layer_ratios=_LEVEL, modulation="none", loss_weight=0.0),
    ),
)
MODULATION = tuple(
    Variant(name.replace("_", "-"), _options(modulation=name))
    for name in ("top_down", "bottom_up", "none")
)
READINGS = (
    Variant("the defaults"),
    Variant("initial features", _options(value_policy="initial"), "reading: values"),
    Variant("raw logits", _options(fine_score="logits"), "reading: score of objects"),
    Variant("half the larger side", _options(distance="half_size"), "reading: distance"),
    Variant("random", _options(selection="random"), "selection"),
)


def studies() -> Iterable[Study]:
    """Return the paper's Tables 4 and 5, and the open readings."""
    for name, title, variants in (
        ("parts", "Parts of Focus-DETR on shapes (the paper's Table 4)", PARTS),
        ("modulation", "Modulation between levels on shapes (Table 5)", MODULATION),
        ("readings", "Readings of Focus-DINO on shapes", READINGS),
    ):
        yield Study(
            name=name,
            title=title,
            config="focus_dino_shapes",
            overrides=COMMON,
            variants=variants,
        )
