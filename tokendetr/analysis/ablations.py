"""Ablation studies: variants of one config that are trained, evaluated and compared in a table.

A project defines its studies in ``projects.<name>.studies.studies()``; ``tools/ablate.py`` runs
them.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokendetr.analysis.tables import Table
from tokendetr.io.json_files import read_json

METRICS = {"AP": "bbox/AP", "APs": "bbox/APs", "APm": "bbox/APm", "APl": "bbox/APl"}
"""Column of a study's table -> the evaluators' name of the metric."""

FINE_TUNING = (
    "train.max_iter=150",
    "train.eval_period=1000",
    "train.checkpointer.period=1000",
    "train.amp.enabled=True",
    "train.amp.dtype=bfloat16",
)
"""Overrides for studies whose variants are fine-tuned from the dense detector's weights."""

Results = Mapping[int, Mapping[str, float]]
"""Seed -> metrics of the evaluation."""


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: name of the row.
        overrides: overrides of the study's config, as on the command line.
        group: the question that the variant answers; the rows of a group are adjacent.
    """

    name: str
    overrides: Sequence[str] = ()
    group: str = ""

    @property
    def slug(self) -> str:
        """Name of the variant's folder."""
        text = f"{self.group}-{self.name}".strip("-").lower()
        return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


def sparsifier_options(**values: object) -> list[str]:
    """Return overrides of the encoder's sparsifier, by argument."""
    return [f"model.transformer.encoder.sparsifier.{name}={x}" for name, x in values.items()]


@dataclass(frozen=True)
class Study:
    """An ablation study: variants of one config.

    Attributes:
        name: key of the table.
        title: heading of the table.
        config: name of the config (``tokendetr.config.zoo``).
        overrides: overrides that all variants share.
        variants: the rows; the first one is the reference.
        seeds: seeds; every variant is trained once with each.

    Raises:
        ValueError: two variants have the same name, or there are no variants or no seeds.
    """

    name: str
    title: str
    config: str
    variants: Sequence[Variant]
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1)

    def __post_init__(self) -> None:
        slugs = [variant.slug for variant in self.variants]
        repeated = sorted({slug for slug in slugs if slugs.count(slug) > 1})
        if repeated or not slugs:
            raise ValueError(f"study {self.name!r} needs distinct variants, repeated: {repeated}")
        if not self.seeds:
            raise ValueError(f"study {self.name!r} needs at least one seed")

    def cell_dir(self, root: Path, variant: Variant, seed: int) -> Path:
        """Return the folder of a variant's run with a seed."""
        return root / self.name / variant.slug / f"seed{seed}"

    def results(self, root: Path) -> dict[str, Results]:
        """Read the results so far.

        Returns:
            Variant slug -> seed -> metrics of the evaluation; seeds without results are missing.
        """
        found: dict[str, Results] = {}
        for variant in self.variants:
            seeds = {}
            for seed in self.seeds:
                file = self.cell_dir(root, variant, seed) / "results.json"
                if file.exists():
                    seeds[seed] = read_json(file)
            found[variant.slug] = seeds
        return found

    def table(self, results: Mapping[str, Results]) -> Table:
        """Return the comparison: mean and spread over seeds, and difference to the reference.

        The difference is taken seed by seed, and averaged over the seeds that both have.
        """
        reference = results[self.variants[0].slug]
        rows = [self._row(variant, results[variant.slug], reference) for variant in self.variants]
        return Table(
            name=self.name,
            title=self.title,
            columns=("", "variant", *METRICS, "runs", "AP spread", "difference", "GFLOPs"),
            rows=rows,
            notes=(
                "Means of the runs, each with its own seed; spread is their largest minus their "
                "smallest AP; difference is to the first row at equal seeds, with its smallest and "
                "largest value.",
            ),
        )

    def _row(self, variant: Variant, own: Results, reference: Results) -> list[str]:
        if not own:
            return [variant.group, variant.name, *["not run"] * len(METRICS), "0", "", "", ""]
        means = [statistics.mean(run[key] for run in own.values()) for key in METRICS.values()]
        scores = {seed: run[METRICS["AP"]] for seed, run in own.items()}
        differences = [
            scores[seed] - reference[seed][METRICS["AP"]] for seed in scores if seed in reference
        ]
        difference = ""
        if differences and own is not reference:
            difference = (
                f"{statistics.mean(differences):+.1f} "
                f"({min(differences):+.1f} to {max(differences):+.1f})"
            )
        gflops = next(iter(own.values())).get("gflops")
        return [
            variant.group,
            variant.name,
            *(f"{mean:.1f}" for mean in means),
            str(len(scores)),
            f"{max(scores.values()) - min(scores.values()):.1f}" if len(scores) > 1 else "",
            difference,
            "" if gflops is None else f"{gflops:.3f}",
        ]


def studies_of(
    config: str, tables: Sequence[tuple[str, str, Sequence[Variant]]]
) -> Iterator[Study]:
    """Yield the studies of one config, all of whose variants fine-tune.

    Args:
        config: name of the config.
        tables: (name, heading, variants) of each study.
    """
    for name, title, variants in tables:
        yield Study(name, title, config, variants, FINE_TUNING)
