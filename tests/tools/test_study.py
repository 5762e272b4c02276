"""Comparisons as evidence: every row builds, and the tool runs only what is missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import instantiate
from PIL import Image

from projects.dino.comparisons import comparisons
from tests.source_tree import ROOT
from tokendetr.analysis.comparison import METRICS, Claim, Comparison, Contestant
from tokendetr.cli import study
from tokendetr.config import zoo
from tokendetr.config.load import load_config

TRIED = Comparison(
    name="tried",
    title="A comparison",
    dense="dino_shapes",
    weights="dense.pth",
    images="images",
    test="shapes_test",
    contestants=(
        Contestant("dense", "dino_shapes"),
        Contestant("Sparse", "sparse_dino_shapes", ["a=1"]),
        Contestant(
            "label-free", "sparse_dino_shapes_bypass", (), ("--distill", "4"), trained=False
        ),
    ),
    overrides=("train.max_iter=7",),
    seeds=(0, 1),
)

DIFFERENCE = "-2.0 (-2.0 to -2.0)"


def measured(ap: float, spread: float = 0.5) -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(0, spread, 200)
    return {
        **dict.fromkeys(METRICS, 10.0),
        "AP": ap,
        "gflops": 1.25,
        "replicates": {"all": list(ap + noise), "small": [10.0] * 200},
    }


def test_differences_are_paired() -> None:
    accuracy, pairs = TRIED.tables({"dense": {"0": measured(50)}, "sparse": {"0": measured(48)}})
    # Both rows vary with the images in the same way, so their difference is constant.
    assert accuracy.rows[1][7] == DIFFERENCE
    assert len(accuracy.rows) == 2
    assert "Not measured yet: label-free." in accuracy.notes
    assert not pairs.rows, "differences to the first row are in its table"


def test_the_page_has_the_pairs_that_are_asked_about_and_a_file_has_all() -> None:
    asked = replace(TRIED, asked=[("dense", "Sparse"), ("label-free", "Sparse")])
    rows = {"dense": {"0": measured(50)}, "sparse": {"0": measured(48)}}
    _, pairs = asked.tables(rows)
    assert [row[:5] for row in pairs.rows] == [
        ["dense - Sparse", "+2.0", "+2.0 to +2.0", "< .001", "yes"]
    ]
    rows["label-free"] = {"0": measured(48.01, spread=2.0)}
    assert len(asked.tables(rows)[1].rows) == 2
    lines = asked.pairs_csv(rows).decode().splitlines()
    assert len(lines) == 1 + 3 and lines[1].startswith("Sparse,dense,-2.0,")
    with pytest.raises(ValueError, match="shows unknown rows"):
        replace(TRIED, asked=[("dense", "nothing")])


def test_the_readme_has_a_few_rows_with_their_difference() -> None:
    rows = {"dense": {"0": measured(50)}, "sparse": {"0": measured(48)}}
    table = replace(TRIED, headline=["dense", "Sparse", "label-free"]).headline_table(rows, ["a"])
    assert table.rows == [["dense", "50.0", "", "1.250"], ["Sparse", "48.0", DIFFERENCE, "1.250"]]
    assert table.columns[0] == "A comparison" and list(table.notes) == ["a"]


def test_what_was_not_measured_is_one_sentence() -> None:
    claimed = replace(TRIED, claims=[Claim("dense", "Sparse", "a paper")])
    texts = [table.markdown().strip() for table in claimed.tables({}, ["a note"])]
    assert texts == ["Not measured yet: A comparison.", "", ""] and not claimed.pairs_csv({})


def test_files_beside_the_page_are_written_with_it(tmp_path: Path) -> None:
    record = study.Record(tmp_path / "evidence" / "tried.json")
    for ap, slug in ((50.0, "dense"), (48.0, "sparse")):
        record.add(slug, 0, measured(ap), "command")
    study.write_files(replace(TRIED, is_drawn=True), record, tmp_path / "evidence")
    assert (tmp_path / "evidence" / "tried_pairs.csv").read_text().count("\n") == 2
    with Image.open(tmp_path / "images" / "tried.png") as chart:
        assert chart.width > chart.height > 100


def test_claims_are_judged_by_significant_differences() -> None:
    claims = [
        Claim("dense", "Sparse", "a paper"),
        Claim("label-free", "dense", "a paper"),
        Claim("Sparse", "label-free", "a paper"),
    ]
    rows = {name: {"0": measured(ap)} for name, ap in (("dense", 50), ("sparse", 48))}
    rows["label-free"] = {"0": measured(48.01, spread=2.0)}
    _, _, judged = replace(TRIED, claims=claims).tables(rows)
    assert [row[2:] for row in judged.rows] == [
        ["+2.0", "holds"],
        ["-2.0", "open"],
        ["-0.0", "open"],
    ]
    rows["label-free"] = {"0": measured(40)}
    _, _, judged = replace(TRIED, claims=claims).tables(rows)
    assert [row[3] for row in judged.rows] == ["holds", "reversed", "holds"]


def test_claims_are_of_rows() -> None:
    with pytest.raises(ValueError, match="unknown rows"):
        replace(TRIED, claims=[Claim("dense", "nothing", "a paper")])


def test_only_seeds_in_common_are_compared() -> None:
    rows = {"dense": {"0": measured(50)}, "sparse": {"1": measured(48)}}
    accuracy, pairs = TRIED.tables(rows)
    assert accuracy.rows[1][7] is None
    assert not pairs.rows


def test_rows_must_differ() -> None:
    with pytest.raises(ValueError, match="distinct rows"):
        Comparison("a", "", "x", "w", "i", "t", (Contestant("A", "x"), Contestant("a", "x")))


def test_a_run_is_three_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(study.Run, "command", lambda self, module, a: ran.append((module, [*a])))
    monkeypatch.setattr(study.Run, "accuracy", lambda self, test: {"AP": 1.0})
    monkeypatch.setattr(study.Run, "gflops", lambda self, overrides: 2.0)
    study.Run(TRIED, TRIED.contestants[1], 1, tmp_path).measure()
    (train, training), (test, testing) = ran
    assert (train, test) == ("train_net", "train_net")
    weights = f"train.init_checkpoint={tmp_path}/tried/sparse/seed1/model_final.pth"
    assert {"train.max_iter=7", "a=1", "train.init_checkpoint=dense.pth"} < set(training)
    assert {"--eval-only", "a=1", weights, "dataloader.test.dataset.names=shapes_test"} < set(
        testing
    )
    ran.clear()
    study.Run(TRIED, TRIED.contestants[2], 0, tmp_path).measure()
    (fit, fitting), (_, testing) = ran
    assert (fit, fitting[:2]) == ("main", ["sparsify", "dino_shapes"])
    assert {"--distill", "4", "--seed"} < set(fitting)
    assert any(given.endswith("seed0/model.pth") for given in testing)
    fitted = Path(fitting[fitting.index("--output") + 1])
    fitted.mkdir(parents=True)
    (fitted / "report.md").touch()
    ran.clear()
    study.Run(TRIED, TRIED.contestants[2], 0, tmp_path).measure()
    assert [module for module, _ in ran] == ["train_net"], "a finished fit is used again"


def test_a_row_starts_from_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = replace(TRIED.contestants[2], name="after", origin="dense")
    tried = replace(TRIED, contestants=(*TRIED.contestants, after))
    ran: list[list[str]] = []
    monkeypatch.setattr(study.Run, "command", lambda self, module, a: ran.append([*a]))
    study.Run(tried, after, 1, tmp_path).weights()
    training, fitting = ran
    assert f"train.output_dir={tmp_path}/tried/dense/seed1" in training
    assert f"train.init_checkpoint={tmp_path}/tried/dense/seed1/model_final.pth" in fitting
    other = study.Run(tried, TRIED.contestants[2], 1, tmp_path)
    assert other.start != study.Run(tried, after, 1, tmp_path).start
    with pytest.raises(ValueError, match="starts from unknown rows"):
        replace(TRIED, contestants=(after, replace(after, name="dense", origin="sparse")))


def test_what_is_recorded_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "chosen", lambda project, only, rows: [TRIED])
    monkeypatch.setattr(study.Run, "measure", lambda self: measured(40.0))
    command = ["dino", "--records", str(tmp_path), "--rows", "dense", "sparse"]
    study.main([*command, "--seeds", "0"])
    assert "[2/2]" in capsys.readouterr().out
    study.main(command)
    assert "[2/2]" in capsys.readouterr().out, "seed 1 alone is missing"
    study.main(command)
    assert "/2]" not in capsys.readouterr().out
    assert set(json.loads((tmp_path / "tried.json").read_text())["rows"]) == {"dense", "sparse"}


@pytest.mark.checkout
@pytest.mark.parametrize("comparison", list(comparisons()), ids=lambda comparison: comparison.name)
def test_pages_show_what_is_recorded(comparison: Comparison) -> None:
    record = study.Record(study.RECORDS / f"{comparison.name}.json")
    page, readme = ((ROOT / name).read_text() for name in ("docs/comparison.md", "README.md"))
    for table in comparison.tables(record.rows, record.notes()):
        assert table.markdown() in page, "run tools/study.py dino --table --write"
    if comparison.headline:
        assert comparison.headline_table(record.rows, record.notes()).markdown() in readme
    if pairs := comparison.pairs_csv(record.rows):
        assert (study.RECORDS / f"{comparison.name}_pairs.csv").read_bytes() == pairs


def test_a_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"no row \['sparse'\]; .*'dense', .*'lite_detr'"):
        study.main(["dino", "--list", "--rows", "dense", "sparse"])


@pytest.mark.parametrize("comparison", list(comparisons()), ids=lambda comparison: comparison.name)
def test_every_row_can_be_built(comparison: Comparison) -> None:
    for row in comparison.contestants:
        training = comparison.overrides if row.trained else ()
        config = str(zoo.get_config_file(row.config))
        instantiate(load_config(config, [*training, *row.overrides]).model)
