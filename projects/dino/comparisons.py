"""Comparisons of the methods in DINO, on the shapes data set and on real photographs.

Every row, the dense detector's too, starts from the same dense weights and gets the same training.
Options were chosen on the validation sets; results are those of the test sets, on which nothing was
chosen.
"""

import itertools
from collections.abc import Iterable

from tokendetr.analysis.comparison import Claim, Comparison, Contestant
from tokendetr.config import checkpoint_file

_SPARSIFIER = "model.transformer.encoder.sparsifier"
_MAPS = ("--max-images", "128")
_NO_CONTEXT = (*_MAPS, "--no-context")
_DISTILLED = ("--distill", "400", "--targets", "memory")
_SIZES = {"256": 256, "1.2x": 307, "1.4x": 358}
TRAINING = (
    "train.max_iter=600",
    "train.eval_period=1000",
    "train.amp.enabled=True",
    "train.amp.dtype=bfloat16",
    "train.checkpointer.period=200",
    "train.clip_grad.params.max_norm=0.1",
    "optimizer.lr=2e-4",
    "train.init_checkpoint_strict=False",
)
FURTHER = ("optimizer.lr=1e-4",)
"""A second training, of weights that were trained already: half the learning rate, of 2e-5, 5e-5
and 1e-4 the best on the validation set (of the sparse detector at 30 %, seed 0)."""
_DENSE_FURTHER = "dense, trained further"

CLAIMS = (
    Claim("Sparse DETR 30%", "random tokens 30%", "Sparse DETR: 46.0, 44.0 (Deformable DETR)"),
    Claim("Focus-DETR 30%", "Sparse DETR 30%", "Focus-DETR: 50.4, 48.2 (DINO)"),
    Claim("Dynamic DETR 30%", "Sparse DETR 30%", "Dynamic DETR 50.2, Sparse DETR 48.2 (DINO)"),
    Claim("dense", "Focus-DETR 30%", "Focus-DETR: 50.9, 50.4 (DINO)"),
    Claim("dense", "Sparse DETR 30%", "Focus-DETR: 50.9, 48.2 (DINO)"),
    Claim("dense", "Dynamic DETR 30%", "Dynamic DETR: 50.9, 50.2 (DINO)"),
)
"""Dynamic DETR's row has its ratios .5, .4, .3, .2, which here fall around the mean .3."""


def _options(**values: object) -> list[str]:
    return [f"{_SPARSIFIER}.{name}={value}" for name, value in values.items()]


def _dynamic(keep: float) -> list[str]:
    """Return options of ratios that fall by stage as the paper's do, with the mean ``keep``."""
    ratios = ",".join(f"{keep + shift:.2f}" for shift in (0.15, 0.05, -0.05, -0.15))
    return _options(keep_ratios=f"[{ratios}]")


def _methods(keep: float, data: str) -> Iterable[Contestant]:
    share, ratio = f"{keep:.0%}", _options(keep_ratio=keep)
    one_choice = _options(keep_ratios=f"[{keep},{keep},{keep},{keep}]", stages=1, merge="retain")
    sparse, dynamic = f"sparse_dino_{data}", f"dynamic_dino_{data}"
    yield Contestant(f"random tokens {share}", sparse, [*ratio, *_options(selection="random")])
    yield Contestant(f"Sparse DETR {share}", sparse, ratio)
    bypass, mapped = f"Sparse DETR {share} with bypass", f"{sparse}_bypass"
    yield Contestant(bypass, mapped, ratio, _NO_CONTEXT)
    # Fresh heads on the encoder's layers: their gradients would take most of the clipped step.
    headless = [*ratio, *_options(auxiliary_heads=False)]
    context = [*headless, *_options(**{"bypass.context": True})]
    for more, options, fit in (
        ("", headless, _NO_CONTEXT),
        (", distilled first", headless, (*_NO_CONTEXT, *_DISTILLED)),
        (" and context", context, _MAPS),
    ):
        yield Contestant(f"{bypass}{more}, no auxiliary heads", mapped, options, fit)
    for more, options, fit in (("", headless, _NO_CONTEXT), (" with context", context, _MAPS)):
        yield Contestant(
            _without_labels(f"{share}{more}"),
            mapped,
            options,
            (*fit, "--distill", "1000"),
            trained=False,
            origin="dense",
        )
    yield Contestant(
        _trained_further(share),
        mapped,
        [*context, *FURTHER],
        origin=_without_labels(f"{share} with context"),
    )
    yield Contestant(f"Focus-DETR {share}", f"focus_dino_{data}", ratio)
    yield Contestant(f"Dynamic DETR {share}", dynamic, _dynamic(keep))
    yield Contestant(f"Dynamic DETR {share}, one choice, retained", dynamic, one_choice)


def _asked(keep: float) -> Iterable[tuple[str, str]]:
    """Yield the differences that a reader asks about: of what a row adds to the one before it."""
    share = f"{keep:.0%}"
    sparse, bypass = f"Sparse DETR {share}", f"Sparse DETR {share} with bypass"
    headless, without_labels = f"{bypass}, no auxiliary heads", _without_labels(share)
    dynamic = f"Dynamic DETR {share}"
    yield sparse, f"random tokens {share}"
    yield bypass, sparse
    yield headless, bypass
    yield f"{bypass}, distilled first, no auxiliary heads", headless
    yield f"{bypass} and context, no auxiliary heads", headless
    yield without_labels, sparse
    yield without_labels, headless
    yield _without_labels(f"{share} with context"), without_labels
    yield _trained_further(share), _without_labels(f"{share} with context")
    yield _trained_further(share), _DENSE_FURTHER
    yield f"Focus-DETR {share}", sparse
    yield dynamic, sparse
    yield f"{dynamic}, one choice, retained", dynamic
    yield "Lite DETR", sparse


def _without_labels(share: str) -> str:
    return f"dense made sparse {share} after training, without labels"


def _trained_further(share: str) -> str:
    return f"dense made sparse {share} with context after training, then trained further"


_HEADLINE = (
    "dense",
    _without_labels("50% with context"),
    _without_labels("30% with context"),
    "Sparse DETR 30%",
    _DENSE_FURTHER,
    _trained_further("50%"),
    _trained_further("30%"),
)


def _asked_of_resolution() -> Iterable[tuple[str, str]]:
    """Yield the differences between budgets at one size, and between sizes of one budget."""
    sizes = list(_SIZES)
    for size in sizes:
        yield f"sparse 30% at {size}", f"dense at {size}"
        yield f"sparse 20% at {size}", f"sparse 30% at {size}"
    for smaller, larger in itertools.pairwise(sizes):
        for budget in ("dense", "sparse 30%", "sparse 20%"):
            yield f"{budget} at {larger}", f"{budget} at {smaller}"


def _resolution() -> Iterable[Contestant]:
    for size, pixels in _SIZES.items():
        resize = [
            f"dataloader.test.mapper.augmentation.0.{side}={pixels}"
            for side in ("short_edge_length", "max_size")
        ]
        yield Contestant(f"dense at {size}", "dino_shapes", resize, trained=False)
        for keep in (0.3, 0.2):
            yield Contestant(
                f"sparse {keep:.0%} at {size}",
                "sparse_dino_shapes_bypass",
                [*_options(keep_ratio=keep), *resize],
                sparsified=(*_NO_CONTEXT, *_DISTILLED),
                trained=False,
            )


def comparisons() -> Iterable[Comparison]:
    """Return the methods on two data sets, and tokens spent on resolution instead."""
    for data, what in (
        ("shapes", "2,000 test images of shapes"),
        ("bccd", "BCCD's 72 test images, which cannot decide one AP"),
    ):
        dense = f"dino_{data}"
        yield Comparison(
            name=f"{data}_methods",
            title=f"DINO and each method after the same training, on {what}",
            dense=dense,
            weights=checkpoint_file(dense),
            images=f"{data}_train",
            test=f"{data}_test",
            contestants=(
                Contestant("dense", dense),
                Contestant(_DENSE_FURTHER, dense, FURTHER, origin="dense"),
                *_methods(0.3, data),
                *_methods(0.5, data),
                Contestant("Lite DETR", f"lite_dino_{data}"),  # all tokens, in turns
            ),
            overrides=TRAINING,
            claims=CLAIMS if data == "shapes" else (),
            asked=(*_asked(0.3), *_asked(0.5)),
            headline=_HEADLINE if data == "shapes" else (),
        )
    yield Comparison(
        name="shapes_resolution",
        title="Tokens spent on resolution: label-free sparse detectors on larger images of shapes",
        dense="dino_shapes",
        weights=checkpoint_file("dino_shapes"),
        images="shapes_train",
        test="shapes_test",
        contestants=tuple(_resolution()),
        asked=tuple(_asked_of_resolution()),
        is_drawn=True,
    )
