"""The tables of the study of sparsification: which figure stands where."""

from benchmarks.sparsification_tables import tables


def entry(dense, seeds, ratios=("None", "0.5", "0.1")):
    return {
        "dense": dense,
        "seeds": {str(number): seed for number, seed in enumerate(seeds)},
        "gflops": {ratio: [1.0, 0.5] for ratio in ratios},
        "date": "2026-01-01",
        "command": "a command",
    }


def seed(**steps):
    return {"curve 0": [[32, 0.5], [64, 0.25]], **steps}


def test_other_detectors_share_a_table_and_steps_of_many_seeds_have_their_spread():
    first = seed(scores={"0.5": 10.0, "0.1": 1.0}, every={"0.5": 12.0})
    second = seed(scores={"0.5": 11.0, "0.1": 2.0})
    others = {
        "dn_deformable_detr_shapes": entry(40.0, [first]),
        "deformable_detr_shapes": entry(30.0, [second]),
    }
    dino, detectors = tables({"dino_shapes": entry(50.0, [first, second]), **others})
    assert dino.name == "bypass_dino_shapes" and "dense: 50.0" in dino.title
    assert dino.rows[0][1:] == ["10.5 (10.0–11.0)", "1.5 (1.0–2.0)"]
    assert dino.rows[1][1:] == ["12.0", None]  # one seed only
    assert dino.rows[-1] == ["GFLOPs of the encoder (dense 0.500)", "0.500", "0.500"]
    assert detectors.name == "bypass_detectors"
    assert [(row[0], *row[2:]) for row in detectors.rows] == [
        ("Deformable DETR, two stages (dense: 30.0)", "11.0", "2.0"),
        ("DN-Deformable DETR (dense: 40.0)", "10.0", "1.0"),
        ("DN-Deformable DETR (dense: 40.0)", "12.0", None),
    ]
    assert "explain 75, 75 %" in detectors.notes[1]


def test_there_is_no_table_of_other_detectors_before_one_is_recorded():
    (table,) = tables({"dino_bccd": entry(50.0, [seed(every={"0.1": 1.0})])})
    assert table.notes[0] == "One seed; – was not run."
