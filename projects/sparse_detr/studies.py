"""The paper's ablations on the shapes data set, and readings that it leaves open.

Every variant starts from the dense detector's weights and is fine-tuned for equally many
iterations.
"""

from collections.abc import Iterable

from tokendetr.analysis.ablations import Study, Variant, sparsifier_options, studies_of

_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)


def _ratios(**options: object) -> list[tuple[float, list[str]]]:
    return [(ratio, sparsifier_options(keep_ratio=ratio, **options)) for ratio in _RATIOS]


SELECTION = (
    Variant("100 %", sparsifier_options(keep_ratio=1.0)),
    Variant("0 %", sparsifier_options(keep_ratio=0.0), "no update"),
    *(
        Variant(f"{ratio:.0%}", options, selection)
        for selection in ("random", "objectness", "dam")
        for ratio, options in _ratios(selection=selection)
    ),
)
AUXILIARY = (
    Variant("100 %, with the loss", sparsifier_options(keep_ratio=1.0)),
    Variant("100 %, without", sparsifier_options(keep_ratio=1.0, auxiliary_heads=False)),
    *(
        Variant(f"{ratio:.0%}", options, "with" if heads else "without")
        for heads in (True, False)
        for ratio, options in _ratios(auxiliary_heads=heads)
    ),
)
OBJECTIVE = (
    Variant("100 %", sparsifier_options(keep_ratio=1.0)),
    *(
        Variant(f"{ratio:.0%}", options, objective)
        for objective in ("smooth_l1", "ranking", "bce")
        for ratio, options in _ratios(objective=objective)[:4]
    ),
)
ATTENDED = (
    Variant("100 %", sparsifier_options(keep_ratio=1.0)),
    *(Variant(f"{ratio:.0%}", options) for ratio, options in _ratios()),
)
OBJECTS = (
    Variant("no dual attention"),
    Variant("dual attention", sparsifier_options(num_objects=60)),
)
READINGS = (
    Variant("the defaults"),
    Variant("half a cell off", sparsifier_options(half_cell=False), "reading: the map's grid"),
    Variant("counted", sparsifier_options(padding="counted"), "reading: padding"),
    Variant("initial features", sparsifier_options(value_policy="initial"), "reading: values"),
)


def studies() -> Iterable[Study]:
    """Return the paper's ablations: Tables 2 to 4 and 7, and what the papers leave open.

    Figures 4 and 8 show Tables 3 and 2; "objects" is Focus-DETR's appendix A.2.3.
    """
    yield from studies_of(
        "sparse_dino_shapes",
        (
            (
                "objective",
                "What scores are trained for, on shapes (the paper's Table 2)",
                OBJECTIVE,
            ),
            (
                "selection",
                "What tokens are selected by, on shapes (the paper's Table 3)",
                SELECTION,
            ),
            ("auxiliary", "The encoder's auxiliary loss on shapes (Table 4)", AUXILIARY),
            ("objects", "Focus-DETR's dual attention in Sparse-DINO on shapes", OBJECTS),
            ("readings", "Readings of Sparse-DINO on shapes", READINGS),
        ),
    )
    yield from studies_of(
        "dino_shapes_attended",
        (
            (
                "attended",
                "A trained detector chooses the tokens, on shapes (the paper's Table 7)",
                ATTENDED,
            ),
        ),
    )
