"""The paper's ablations and the open readings, on the shapes data set.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import Study, Variant

_SPARSIFIER = "model.transformer.encoder.sparsifier"


def _options(**values: object) -> list[str]:
    return [f"{_SPARSIFIER}.{name}={value}" for name, value in values.items()]


COMMON = (
    *_options(keep_ratios="[.5,.4,.3,.2]"),
    "train.max_iter=150",
    "train.eval_period=1000",
    "train.checkpointer.period=1000",
    "train.amp.enabled=True",
    "train.amp.dtype=bfloat16",
)

VARIANTS = (
    Variant("the defaults: windows (4,2,2), mean, T 3, stale, two-pass .1"),
    Variant(
        "random tokens, no aggregation, no alignment",
        _options(selection="random_tokens", alignment="off"),
        "table 5",
    ),
    Variant(
        "static .3, no alignment", _options(keep_ratios="[.3,.3,.3,.3]", alignment="off"), "table 5"
    ),
    Variant("no affinity match", _options(affinity_matching=False), "table 5"),
    Variant("no alignment", _options(alignment="off"), "table 5"),
    Variant("static .3", _options(keep_ratios="[.3,.3,.3,.3]"), "parts"),
    Variant("random windows", _options(selection="random"), "parts"),
    Variant("one choice for all layers", _options(stages=1), "stages"),
    Variant("two choices", _options(stages=2), "stages"),
    Variant("one choice, retain", _options(stages=1, merge="retain"), "stages"),
    Variant(
        "one choice, static .3, retain",
        _options(stages=1, merge="retain", keep_ratios="[.3,.3,.3,.3]"),
        "stages",
    ),
    Variant("retain", _options(merge="retain"), "merging"),
    Variant("sum", _options(merge="sum"), "merging"),
    Variant("max", _options(merge="max"), "merging"),
    *(
        Variant(f"{value}", _options(alignment_weight=value), "alignment weight")
        for value in (0.01, 0.03, 0.8, 1.0)
    ),
    *(Variant(f"{value}", _options(num_neighbors=value), "neighbours T") for value in (1, 5, 7, 9)),
    Variant("(8,4,2)", _options(window_sizes="[8,4,2]"), "reading: windows"),
    Variant("(4,2,1)", _options(window_sizes="[4,2,1]"), "reading: windows"),
    Variant("broadcast", _options(cells="broadcast"), "reading: other cells"),
    Variant("centre", _options(anchor="center"), "reading: place of a window"),
    Variant("gather", _options(ratio_order="gather"), "reading: equation 3"),
    Variant(
        "importance as share of the set",
        _options(level_orders="[[1,2,3,4],[1,2,3,4],[1,2,3,4]]"),
        "reading: level orders",
    ),
    Variant(
        "importance as share of a level's own tokens",
        _options(level_orders="[[2,3,4,1],[4,3,2,1],[4,3,2,1]]"),
        "reading: level orders",
    ),
    Variant("per merge", _options(alignment="per_merge"), "reading: alignment"),
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
