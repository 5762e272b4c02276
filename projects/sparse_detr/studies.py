"""The paper's ablations on the shapes data set, and readings that it leaves open.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import Study, Variant

_SPARSIFIER = "model.transformer.encoder.sparsifier"
_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
COMMON = (
    "train.max_iter=150",
    "train.eval_period=1000",
    "train.checkpointer.period=1000",
    "train.amp.enabled=True",
    "train.amp.dtype=bfloat16",
)


def _options(**values: object) -> list[str]:
    return [f"{_SPARSIFIER}.{name}={value}" for name, value in values.items()]


def _ratios(**options: object) -> list[tuple[float, list[str]]]:
    return [(ratio, _options(keep_ratio=ratio, **options)) for ratio in _RATIOS]


SELECTION = (
    Variant("100 %", _options(keep_ratio=1.0)),
    Variant("0 %", _options(keep_ratio=0.0), "no update"),
    *(
        Variant(f"{ratio:.0%}", options, selection)
        for selection in ("random", "objectness", "dam")
        for ratio, options in _ratios(selection=selection)
    ),
)
AUXILIARY = (
    Variant("100 %, with the loss", _options(keep_ratio=1.0)),
    Variant("100 %, without", _options(keep_ratio=1.0, auxiliary_heads=False)),
    *(
        Variant(f"{ratio:.0%}", options, "with" if heads else "without")
        for heads in (True, False)
        for ratio, options in _ratios(auxiliary_heads=heads)
    ),
)
OBJECTIVE = (
    Variant("100 %", _options(keep_ratio=1.0)),
    *(
        Variant(f"{ratio:.0%}", options, objective)
        for objective in ("smooth_l1", "ranking", "bce")
        for ratio, options in _ratios(objective=objective)[:4]
    ),
)
READINGS = (
    Variant("the defaults"),
    Variant("half a cell off", _options(half_cell=False), "reading: the map's grid"),
    Variant("counted", _options(padding="counted"), "reading: padding"),
    Variant("initial features", _options(value_policy="initial"), "reading: values"),
)


def studies() -> Iterable[Study]:
    """Return the paper's Table 2 (and Figure 8), Table 3 (and Figure 4), Table 4, and the open
    readings."""
    for name, title, variants in (
        ("objective", "What scores are trained for, on shapes (the paper's Table 2)", OBJECTIVE),
        ("selection", "What tokens are selected by, on shapes (the paper's Table 3)", SELECTION),
        ("auxiliary", "The encoder's auxiliary loss on shapes (Table 4)", AUXILIARY),
        ("readings", "Readings of Sparse-DINO on shapes", READINGS),
    ):
        yield Study(
            name=name,
            title=title,
            config="sparse_dino_shapes",
            overrides=COMMON,
            variants=variants,
        )
