"""Compare detectors with equal budgets, several seeds, a held-out test set and paired intervals.

A project defines comparisons in ``projects.<name>.comparisons.comparisons()``; ``tools/study.py``
runs them. The measurements of a comparison are kept in one JSON file with the bootstrap replicates,
so that every interval can be recomputed.

Shapes: R bootstrap replicate.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokendetr.analysis.significance import Difference, compare, holm, seed_variance
from tokendetr.analysis.tables import Table
from tokendetr.io.csv_tables import csv_table

REPLICATES = 500
SIGNIFICANT = 0.05
AREAS = ("all", "small")
METRICS = ("AP", "APs", "APm", "APl")

_PAIR_COLUMNS = (
    "rows",
    "AP",
    "95 % interval",
    "p (Holm)",
    "p < .05",
    "smallest visible difference",
)

Measured = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Row slug -> seed -> measurements."""
Pairs = dict[tuple[str, str], Difference]
"""Names of a better and a worse row (or the other way round) -> difference, with corrected p."""


@dataclass(frozen=True)
class Contestant:
    """A row of a comparison: a detector, and how its weights are obtained.

    Attributes:
        name: name of the row.
        config: name of the config.
        overrides: overrides of the config.
        sparsified: arguments of ``tokendetr sparsify``, which converts the comparison's dense
            weights without labels; empty to use the dense weights.
        trained: fine-tune these weights with labels; False measures them as they are.
        origin: name of the row whose weights, of the same seed, this one starts from; empty for
            the comparison's dense weights.
    """

    name: str
    config: str
    overrides: Sequence[str] = ()
    sparsified: Sequence[str] = ()
    trained: bool = True
    origin: str = ""

    @property
    def slug(self) -> str:
        """Name of the row's folder."""
        return "".join(c if c.isalnum() or c in ".-" else "_" for c in self.name.lower())


@dataclass(frozen=True)
class Claim:
    """An order of two rows that a paper reports.

    Attributes:
        better, worse: names of the rows.
        source: the paper and its figures.
    """

    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Comparison:
    """Comparison of detectors that start from one dense checkpoint.

    Attributes:
        name: name of the table and of the file of results.
        title: heading of the table.
        dense: name of the dense detector's config, whose weights every row starts from that names
            no other origin.
        weights: file of these weights.
        images: images for sparsification: a folder, or a data set whose labels are not read.
        test: registered name of the test set.
        contestants: the rows; the first one is the reference.
        overrides: overrides that all trainings share, such as iterations and learning rate.
        seeds: seeds; every row is made once with each.
        claims: orders of rows that papers report.
        asked: pairs of rows whose difference the page shows, besides each row's to the first one;
            all pairs are in :meth:`pairs_csv`.
        headline: rows that the README shows.
        is_drawn: the page has a chart of it, for rows of several budgets or sizes
            (:func:`tokendetr.analysis.comparison_chart.draw_comparison`).
    """

    name: str
    title: str
    dense: str
    weights: str
    images: str
    test: str
    contestants: Sequence[Contestant]
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    claims: Sequence[Claim] = ()
    asked: Sequence[tuple[str, str]] = ()
    headline: Sequence[str] = ()
    is_drawn: bool = False

    def __post_init__(self) -> None:
        slugs = [contestant.slug for contestant in self.contestants]
        if len(set(slugs)) < len(slugs) or not slugs:
            raise ValueError(f"comparison {self.name!r} needs distinct rows, has {slugs}")
        names = {contestant.name for contestant in self.contestants}
        if strange := {n for c in self.claims for n in (c.better, c.worse)} - names:
            raise ValueError(
                f"comparison {self.name!r} has claims on unknown rows: {sorted(strange)}"
            )
        asked = {name for pair in self.asked for name in pair} | {*self.headline}
        if strange := asked - names:
            raise ValueError(f"comparison {self.name!r} shows unknown rows: {sorted(strange)}")
        if strange := {c.origin for c in self.contestants} - names - {""}:
            raise ValueError(
                f"comparison {self.name!r} starts from unknown rows: {sorted(strange)}"
            )

    def tables(self, measured: Measured, notes: Sequence[str] = ()) -> list[Table]:
        """Return accuracy with intervals, the differences that are asked about, and the claims.

        They are empty, but for one sentence, if nothing has been measured.
        """
        pairs = self._differences(measured)
        rows = [self._row(c, measured, pairs) for c in self.contestants if measured.get(c.slug)]
        missing = [c.name for c in self.contestants if not measured.get(c.slug)]
        if missing:
            notes = [f"Not measured yet: {', '.join(missing)}.", *notes]
        accuracy = Table(
            name=self.name,
            title=self.title if rows else f"Not measured yet: {self.title}.",
            columns=("", *METRICS, "95 % interval", "seeds", "against the first row", "GFLOPs"),
            rows=rows,
            notes=[
                "Means over seeds. Intervals of a row are over images (bootstrap, "
                f"{REPLICATES} replicates, the same images for all rows); "
                "after the semicolon, the smallest and largest AP of the seeds. A difference to "
                "the first row is significant (p < .05, see below) unless it is called open.",
                *notes,
            ]
            if rows
            else (),
        )
        claims = [self._claims(pairs)] if self.claims else []
        return [accuracy, self._pairs(pairs), *claims]

    def headline_table(self, measured: Measured, notes: Sequence[str] = ()) -> Table:
        """Return the measured rows of ``headline`` with AP, difference to the first row, GFLOPs."""
        accuracy = self.tables(measured, notes)[0]
        columns = ("AP", "against the first row", "GFLOPs")
        measured_rows = {row[0]: row for row in accuracy.rows}
        shown = [measured_rows[name] for name in self.headline if name in measured_rows]
        places = [0, *(list(accuracy.columns).index(name) for name in columns)]
        if any("open" in str(row[places[2]]) for row in shown):
            open_note = "Open: not significant (p < .05) once corrected for all pairs of rows."
            notes = [open_note, *notes]
        return Table(
            name=f"{self.name}_headline",
            title="",
            columns=(self.title, *columns),
            rows=[[row[i] for i in places] for row in shown],
            notes=notes,
        )

    def pairs_csv(self, measured: Measured) -> bytes:
        """Return the differences of all pairs of rows as a CSV file; empty if there are none."""
        pairs = self._differences(measured)
        columns = ("row", "minus", *_PAIR_COLUMNS[1:])
        rows = ((*names, *_pair_cells(found)) for names, found in pairs.items())
        return csv_table(columns, rows) if pairs else b""

    def _row(self, contestant: Contestant, measured: Measured, pairs: Pairs) -> list[str | None]:
        own = measured[contestant.slug]
        means = [statistics.mean(run[metric] for run in own.values()) for metric in METRICS]
        low, high = np.percentile(_replicates(own, sorted(own)), (2.5, 97.5))
        scores = [run["AP"] for run in own.values()]
        interval = f"{low:.1f} to {high:.1f}"
        if len(scores) > 1:
            interval += f"; {min(scores):.1f}, {max(scores):.1f}"
        first = self.contestants[0]
        difference = "" if contestant is first else None
        if found := pairs.get((contestant.name, first.name)):
            difference = f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
            difference += "" if found.p_value < SIGNIFICANT else ", open"
        gflops = next(iter(own.values()))["gflops"]
        cells = [f"{mean:.1f}" for mean in means]
        return [contestant.name, *cells, interval, str(len(own)), difference, f"{gflops:.3f}"]

    def _differences(self, measured: Measured) -> Pairs:
        found: Pairs = {}
        for one, other in itertools.combinations(self.contestants, 2):
            difference = self._difference(measured, other, one)
            if difference is not None:
                found[other.name, one.name] = difference
        corrected = holm([difference.p_value for difference in found.values()])
        return {
            names: replace(difference, p_value=p_value)
            for (names, difference), p_value in zip(found.items(), corrected, strict=True)
        }

    def _pairs(self, pairs: Pairs) -> Table:
        rows = []
        for one, other in self.asked:
            found = _between(pairs, one, other)
            if found is not None:
                rows.append([f"{one} - {other}", *_pair_cells(found)])
        note = (
            "Mean over the seeds that both rows have. The standard error is that of a paired "
            "bootstrap over images and of the seeds, whose variance is pooled over the rows with "
            "several; p and interval are its normal approximation, and p is corrected for the "
            "number of all pairs. The smallest visible difference is found in 80 of 100 such "
            f"experiments. All {len(pairs)} pairs: [{self.name}_pairs.csv]"
            f"(evidence/{self.name}_pairs.csv)."
        )
        return Table(
            name=f"{self.name}_pairs",
            title="Differences between rows" if rows else "",
            columns=_PAIR_COLUMNS,
            rows=rows,
            notes=(note,) if pairs else (),
        )

    def _claims(self, pairs: Pairs) -> Table:
        rows = []
        for claim in self.claims:
            found = _between(pairs, claim.better, claim.worse)
            if found is None:
                continue
            verdict = "open"
            if found.p_value < SIGNIFICANT:
                verdict = "holds" if found.mean > 0 else "reversed"
            here = f"{found.mean:+.1f}"
            rows.append([f"{claim.better} above {claim.worse}", claim.source, here, verdict])
        return Table(
            name=f"{self.name}_claims",
            title="Orders that the papers report, and what holds here" if rows else "",
            columns=("order", "the paper, on COCO", "AP here", "with p < .05"),
            rows=rows,
        )

    def _difference(
        self, measured: Measured, one: Contestant, other: Contestant
    ) -> Difference | None:
        own, others = measured.get(one.slug, {}), measured.get(other.slug, {})
        seeds = sorted(set(own) & set(others))
        if not seeds:
            return None
        mean = statistics.mean(own[seed]["AP"] - others[seed]["AP"] for seed in seeds)
        variance = seed_variance([run["AP"] for run in row.values()] for row in measured.values())
        replicates_R = _replicates(own, seeds) - _replicates(others, seeds)
        return compare(mean, replicates_R, 2 * variance / len(seeds))


def _between(pairs: Pairs, one: str, other: str) -> Difference | None:
    """Return the difference of one row to another, in whichever order ``pairs`` has them."""
    found = pairs.get((one, other))
    if found is None and (reverse := pairs.get((other, one))):
        found = replace(reverse, mean=-reverse.mean, low=-reverse.high, high=-reverse.low)
    return found


def _pair_cells(difference: Difference) -> list[str]:
    return [
        f"{difference.mean:+.1f}",
        f"{difference.low:+.1f} to {difference.high:+.1f}",
        "< .001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}",
        "yes" if difference.p_value < SIGNIFICANT else "open",
        f"{difference.smallest_visible:.1f}",
    ]


def _replicates(own: Mapping[str, Mapping[str, Any]], seeds: Sequence[str]) -> Any:
    return np.mean([own[seed]["replicates"]["all"] for seed in seeds], axis=0)
