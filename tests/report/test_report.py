"""The page about runs: complete, of one file, and usable in a browser without network."""

import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.report.report_runs import NAMES, write_runs
from tests.source_tree import ROOT
from tokendetr.cli import report
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.errors import OutputError
from tokendetr.evaluation.error_analysis import analyze_results
from tokendetr.predict import load, read_rgb
from tokendetr.report import Run, write_page

pytest.importorskip("hotcoco", reason="hotcoco analyzes the results")
pytest.importorskip("plotly", reason="plotly draws the charts")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    folders = write_runs(root)
    output = root / "report.html"
    report.main([*folders, "--output", str(output), "--token-images", "1", "--random", "2"])
    return output


@pytest.fixture(scope="module")
def data(page) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>',
                      page.read_text(), flags=re.DOTALL)  # fmt: skip
    return json.loads(found.group(1))


def test_the_page_is_one_small_file_that_asks_for_nothing(page):
    text = page.read_text()
    assert len(text) < 8_000_000
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', markup)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses), addresses
    assert "default-src 'none'" in markup
    for name in NAMES:
        assert name in markup
    # The second run is an evaluation: its page does not pretend to know how weights were trained.
    assert markup.count("settings of training do not apply") == 1
    assert markup.count("train.<wbr>max_iter") == 1
    assert f"Difference from {NAMES[0]}" in markup and "+0.0 to +0.0" in markup  # equal results


def test_runs_charts_and_images_are_on_the_page(data):
    assert [run["name"] for run in data["runs"]] == list(NAMES)
    titles = [figure["layout"]["title"]["text"] for figure in data["figures"]["training"]]
    assert titles == ["Training loss", "Accuracy in training", "Learning rate"]
    loss = data["figures"]["training"][0]["data"]
    assert [trace["name"] for trace in loss] == list(NAMES)
    assert loss[0]["y"][:2] == [9.0, 4.5]
    assert len(data["figures"]["cost"]) == 2
    assert len(data["figures"]["run0"]) == 5
    for run in data["runs"]:
        assert len(run["images"]["random"]) == 2
        worst = [run["counts"][key] for key in run["images"]["worst"]]
        assert worst[0]["missed"] + worst[0]["wrong"] > 0
        key = run["images"]["worst"][0]
        missed = sum(not box["right"] for box in run["boxes"][key]["truth"])
        assert missed == run["counts"][key]["missed"]


@pytest.mark.parametrize("number", [0, 1])
def test_tokens_of_the_page_are_those_of_the_detector(page, data, number):
    (key, (record,)), = data["tokens"][number].items()  # fmt: skip
    assert record["name"] == "encoder"
    detector = load(str(page.parent / NAMES[number]))
    image = page.parent / "cells" / "images" / data["images"][key]["name"]
    with record_tokens() as trace:
        detector.predictor(read_rgb(image))
    forward = trace.forwards[-1]
    assert record["levels"] == [list(shape) for shape in forward.layout.level_shapes]
    for shown, layer in zip(record["layers"], forward.layers, strict=True):
        state_N = np.frombuffer(base64.b64decode(shown["state"]), dtype=np.uint8)
        assert len(state_N) == forward.layout.num_tokens
        anchors = layer.token_map.anchor_BK[0]
        assert shown["queries"] == len(anchors)
        assert (state_N[anchors.numpy()] > 0).all()
        if shown["query"]:
            query_N = np.frombuffer(base64.b64decode(shown["query"]), dtype="<u2")
            assert len(np.unique(query_N[query_N > 0])) == len(anchors)


def test_a_name_that_would_run_is_shown_as_text(page, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    val, folder = page.parent / "cells/val.json", page.parent / NAMES[0]
    analysis = analyze_results(val, folder / "coco_instances_results.json")
    results = folder / "coco_instances_results.json"
    settings = {"key": "</script>" + name}
    run = Run(name, settings, name, [], analysis, name, val.parent / "images", val, results)
    text = write_page([run], tmp_path / "r.html").read_text()
    assert "<img src=x" not in text
    assert text.count("</script>") == 3  # of the page's own three


def test_runs_of_one_name_and_a_folder_as_output_are_refused(page, tmp_path, capsys):
    runs = [str(page.parent / NAMES[0])] * 2
    with pytest.raises(SystemExit, match="have the same name"):
        report.main([*runs, "--output", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit):
        report.main([runs[0], "--output", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err
    assert issubclass(OutputError, OSError)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_the_page_works_in_a_browser_without_network(page, tmp_path):
    """Runs in a process of its own: a browser's loop does not mix with other tests'."""
    pytest.importorskip("playwright", reason="playwright drives the browser")
    done = subprocess.run(
        [sys.executable, "-m", "tests.report.browse", str(page), str(CHROMIUM), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
