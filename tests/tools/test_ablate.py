"""Studies: the contents of their tables, and that the tool runs only what is missing."""

import json
from pathlib import Path

import pytest

from projects.dynamic_detr.studies import studies
from tokendetr.analysis.ablations import METRICS, Study, Variant
from tokendetr.cli import ablate
from tokendetr.config import zoo
from tokendetr.config.load import load_config
from tokendetr.errors import ConfigError

STUDY = Study(
    name="tried",
    title="A study",
    config="dynamic_dino_shapes",
    variants=(Variant("as it is"), Variant("1.0", ["a=1"], "weight"), Variant("never", ["b=1"])),
    seeds=(0, 1),
)


def metrics(ap: float) -> dict:
    return {**dict.fromkeys(METRICS.values(), 10.0), "bbox/AP": ap, "gflops": 1.25}


def save(root: Path, variant: int, seed: int, ap: float) -> None:
    folder = STUDY.cell_dir(root, STUDY.variants[variant], seed)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(metrics(ap)))


def test_a_row_has_means_spread_and_the_difference_at_equal_seeds(tmp_path):
    for variant, seed, ap in ((0, 0, 40.0), (0, 1, 44.0), (1, 0, 41.0), (1, 1, 43.0)):
        save(tmp_path, variant, seed, ap)
    rows = STUDY.table(STUDY.results(tmp_path)).rows
    assert rows[0] == ["", "as it is", "42.0", "10.0", "10.0", "10.0", "2", "4.0", "", "1.250"]
    assert rows[1][:3] == ["weight", "1.0", "42.0"]
    assert rows[1][7:9] == ["2.0", "+0.0 (-1.0 to +1.0)"]
    assert rows[2][2] == "not run"


def test_one_run_has_no_spread(tmp_path):
    save(tmp_path, 0, 1, 44.0)
    save(tmp_path, 1, 0, 41.0)
    rows = STUDY.table(STUDY.results(tmp_path)).rows
    assert rows[0][6:9] == ["1", "", ""]
    assert rows[1][6:9] == ["1", "", ""], "no seed in common with the first row"


def test_variants_must_differ():
    with pytest.raises(ValueError, match=r"tried.*repeated: \['a'\]"):
        Study(name="tried", title="", config="x", variants=(Variant("a"), Variant("A")))


def test_only_what_is_missing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "chosen_studies", lambda project, only: [STUDY])
    save(tmp_path, 0, 0, 40.0)
    ran = []

    def run_cell(study, variant, seed, root, opts):
        ran.append((variant.name, seed, list(opts)))

    monkeypatch.setattr(ablate, "run_cell", run_cell)
    ablate.main(["any", "--output", str(tmp_path), "train.max_iter=3"])
    assert [cell[:2] for cell in ran] == [
        ("1.0", 0),
        ("never", 0),
        ("as it is", 1),
        ("1.0", 1),
        ("never", 1),
    ]
    assert ran[0][2] == ["train.max_iter=3"]
    assert "| as it is | 40.0 |" in capsys.readouterr().out


def test_what_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"projects/dino has no studies\.py"):
        ablate.chosen_studies("dino", None)
    with pytest.raises(ConfigError, match=r"no study \['other'\]; .* \['ablations'\]"):
        ablate.chosen_studies("dynamic_detr", ["other"])


@pytest.mark.parametrize("study", list(studies()), ids=lambda study: study.name)
def test_every_override_of_the_shipped_studies_exists(study):
    file = str(zoo.get_config_file(study.config))
    for variant in study.variants:
        load_config(file, [*study.overrides, *variant.overrides])


@pytest.mark.slow
def test_a_cell_trains_evaluates_and_leaves_its_results(tmp_path):
    opts = ["train.max_iter=2", "dataloader.train.total_batch_size=2"]
    study = next(iter(studies()))
    ablate.run_cell(study, study.variants[0], 3, tmp_path, opts)
    folder = study.cell_dir(tmp_path, study.variants[0], 3)
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {*METRICS.values(), "gflops"}
    assert 0 <= results["bbox/AP"] <= 100
    assert not list(folder.glob("*.pth"))


def test_a_failed_run_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "count_gflops", lambda config, overrides: 1.0)
    broken = Study(
        name="broken",
        title="",
        config="dynamic_dino_shapes",
        variants=(Variant("x", ["no.key=1"]),),
    )
    with pytest.raises(RuntimeError, match=r"x \(seed 0\) ended with status 1: see .*train\.txt"):
        ablate.run_cell(broken, broken.variants[0], 0, tmp_path, [])
    assert "no.key" in (broken.cell_dir(tmp_path, broken.variants[0], 0) / "train.txt").read_text()


@pytest.mark.checkout
def test_the_study_of_sparsification_runs_for_detectors_with_weights(monkeypatch, capsys):
    ran = []

    class Done:
        returncode = 0

    monkeypatch.setattr(
        ablate.subprocess, "run", lambda command, **_: ran.append(command[1:]) or Done()
    )
    ablate.main(["sparsify", "train.device=cpu", "--only", "dino_shapes"])
    (command,) = ran
    assert command == ["-m", "benchmarks.sparsification", "dino_shapes", "train.device=cpu"]
    with pytest.raises(SystemExit, match="dino_shapes_vit has no trained weights yet"):
        ablate.main(["sparsify", "--only", "dino_shapes_vit"])
    Done.returncode = 1
    with pytest.raises(SystemExit, match="ended early"):
        ablate.main(["sparsify", "--only", "dino_shapes"])
