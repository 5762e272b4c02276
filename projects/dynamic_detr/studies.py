"""The paper's ablations and the open readings, on the shapes data set.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import FINE_TUNING, Study, Variant, sparsifier_options

COMMON = (*sparsifier_options(keep_ratios="[.5,.4,.3,.2]"), *FINE_TUNING)

VARIANTS = (
    Variant("the defaults: windows (4,2,2), mean, T 3, anchor only, two-pass .1"),
    Variant(
        "random tokens, no aggregation, no alignment",
        sparsifier_options(selection="random_tokens", alignment="off"),
        "table 5",
    ),
    Variant(
        "static .3, no alignment",
        sparsifier_options(keep_ratios="[.3,.3,.3,.3]", alignment="off"),
        "table 5",
    ),
    Variant("no affinity match", sparsifier_options(affinity_matching=False), "table 5"),
    Variant("no alignment", sparsifier_options(alignment="off"), "table 5"),
    Variant("static .3", sparsifier_options(keep_ratios="[.3,.3,.3,.3]"), "parts"),
    Variant("random windows", sparsifier_options(selection="random"), "parts"),
    Variant("one choice for all layers", sparsifier_options(stages=1), "stages"),
    Variant("two choices", sparsifier_options(stages=2), "stages"),
    Variant("one choice, retain", sparsifier_options(stages=1, merge="retain"), "stages"),
    Variant(
        "one choice, static .3, retain",
        sparsifier_options(stages=1, merge="retain", keep_ratios="[.3,.3,.3,.3]"),
        "stages",
    ),
    Variant("retain", sparsifier_options(merge="retain"), "merging"),
    Variant("sum", sparsifier_options(merge="sum"), "merging"),
    Variant("max", sparsifier_options(merge="max"), "merging"),
    *(
        Variant(f"{value}", sparsifier_options(alignment_weight=value), "alignment weight")
        for value in (0.01, 0.03, 0.8, 1.0)
    ),
    *(
        Variant(f"{value}", sparsifier_options(num_neighbors=value), "neighbors T")
        for value in (1, 5, 7, 9)
    ),
    Variant("(8,4,2)", sparsifier_options(window_sizes="[8,4,2]"), "reading: windows"),
    Variant("(4,2,1)", sparsifier_options(window_sizes="[4,2,1]"), "reading: windows"),
    Variant("broadcast", sparsifier_options(window_update="broadcast"), "reading: other cells"),
    Variant("center", sparsifier_options(anchor="center"), "reading: place of a window"),
    Variant("gather", sparsifier_options(ratio_order="gather"), "reading: equation 3"),
    Variant(
        "importance as share of the set",
        sparsifier_options(level_orders="[[1,2,3,4],[1,2,3,4],[1,2,3,4]]"),
        "reading: level orders",
    ),
    Variant(
        "importance as share of a level's own tokens",
        sparsifier_options(level_orders="[[2,3,4,1],[4,3,2,1],[4,3,2,1]]"),
        "reading: level orders",
    ),
    Variant("per merge", sparsifier_options(alignment="per_merge"), "reading: alignment"),
)


def studies() -> Iterable[Study]:
    """Return the ablations of the paper's Tables 5 and 7, with the readings it leaves open."""
    yield Study(
        name="ablations",
        title="Ablations and readings of Dynamic-DINO on shapes",
        config="dynamic_dino_shapes",
        overrides=COMMON,
        variants=VARIANTS,
    )
