"""The paper's ablations on the shapes data set, and readings that it leaves open.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import Study, Variant, sparsifier_options, studies_of

_LEVEL = "[.3,.3,.3]"
"""Equal ratios of the three layers: no cascade."""

PARTS = (
    Variant("all parts"),
    Variant("no dual attention", sparsifier_options(num_objects=0)),
    Variant("and no cascade", sparsifier_options(num_objects=0, layer_ratios=_LEVEL)),
    Variant(
        "and no modulation",
        sparsifier_options(num_objects=0, layer_ratios=_LEVEL, modulation="none"),
    ),
    Variant(
        "and no supervision of the scores",
        sparsifier_options(num_objects=0, layer_ratios=_LEVEL, modulation="none", loss_weight=0.0),
    ),
)
MODULATION = tuple(
    Variant(name.replace("_", "-"), sparsifier_options(modulation=name))
    for name in ("top_down", "bottom_up", "none")
)
READINGS = (
    Variant("the defaults"),
    Variant("initial features", sparsifier_options(value_policy="initial"), "reading: values"),
    Variant("raw logits", sparsifier_options(fine_score="logits"), "reading: score of objects"),
    Variant("half the larger side", sparsifier_options(distance="half_size"), "reading: distance"),
    Variant("random", sparsifier_options(selection="random"), "selection"),
)


def studies() -> Iterable[Study]:
    """Return the paper's Tables 4 and 5, and the open readings."""
    return studies_of(
        "focus_dino_shapes",
        (
            ("parts", "Parts of Focus-DETR on shapes (the paper's Table 4)", PARTS),
            ("modulation", "Modulation between levels on shapes (Table 5)", MODULATION),
            ("readings", "Readings of Focus-DINO on shapes", READINGS),
        ),
    )
