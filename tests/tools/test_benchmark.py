import json

import pytest
import torch

from tests.tools.configs import write_config
from tokendetr.cli import benchmark

SIZE = ("--input-size", "64", "64")
QUICK = ("--repeats", "3", "--warmup", "1")


@pytest.fixture
def configs(tmp_path) -> tuple[str, str]:
    return write_config(tmp_path), write_config(tmp_path, "deformable")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measured(capsys, *arguments: str) -> list[dict]:
    """Return the tool's stdout, which must be JSON and nothing else."""
    benchmark.main(("--json", *arguments))
    return json.loads(capsys.readouterr().out)["results"]


def refused(capsys, *arguments: str) -> str:
    """Return the message that the tool stops with."""
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code not in (0, None)
    return f"{stop.value.code}{capsys.readouterr().err}"


def test_two_configs_are_timed_by_part(capsys, configs):
    first, second = configs
    results = measured(
        capsys, "--task", "eval", "--config-file", first, "--config-file", second, *SIZE, *QUICK
    )
    assert [result["config"] for result in results] == [first, second]
    for result in results:
        times = result["milliseconds"]
        assert set(times) == {"backbone", "encoder", "decoder", "rest", "total"}
        for summary in times.values():
            assert summary["count"] == 3
            assert 0 < summary["p10"] <= summary["median"] <= summary["p90"]
        assert times["total"]["median"] > times["encoder"]["median"]
        assert result["images_per_second"] == pytest.approx(1e3 / times["total"]["median"])
        assert result["peak_memory_mb"] > 50


def test_configs_take_turns(monkeypatch):
    turns: list[str] = []

    def contender(args, cfg, name, runs):
        def step() -> dict[str, float]:
            turns.append(name)
            return {"total": 1.0}

        return benchmark.Contender(name, torch.device("cpu"), step)

    monkeypatch.setattr(benchmark, "eval_contender", contender)
    args = benchmark.parse_arguments(
        ("--task", "eval", "--config-file", "a", "--config-file", "b", *QUICK)
    )
    benchmark.time_models(args, [{}, {}])
    assert turns == ["a", "b"] + ["a", "b"] + ["b", "a"] + ["a", "b"]


def test_each_shape_of_image_passes_once_before_the_measurement():
    shapes = [((96, 64),), ((64, 64),), ((96, 64),), ((64, 96),), ((64, 64),)]
    passed: list[int] = []

    def step() -> dict[str, float]:
        passed.append(len(passed))
        return {"total": 1.0}

    contender = benchmark.Contender("a", torch.device("cpu"), step, shapes)
    contender.warm_up(1)
    assert {shapes[i] for i in passed} == set(shapes)
    contender.warm_up(0)
    assert len(passed) == 4
    contender.warm_up(7)
    assert len(passed) == 4 + 7


def test_images_of_different_sizes_are_named(capsys, monkeypatch):
    def contender(args, cfg, name, runs):
        return benchmark.Contender(
            name, torch.device("cpu"), lambda: {"total": 1.0}, [((64, 64 if name == "a" else 96),)]
        )

    monkeypatch.setattr(benchmark, "eval_contender", contender)
    for names, noted in ((("a", "b"), True), (("a", "a"), False)):
        options = [part for name in names for part in ("--config-file", name)]
        args = benchmark.parse_arguments(("--task", "eval", *options, *QUICK))
        benchmark.time_models(args, [{}, {}])
        assert ("--input-size" in capsys.readouterr().err) is noted


def test_a_run_is_named_by_its_folder():
    assert benchmark.shown_name("output/sparse/config.yaml") == "sparse"
    assert benchmark.shown_name("projects/dino/configs/dino_shapes.py") == "dino_shapes"
    assert benchmark.shown_name("config.py") == "config"


def test_table_compares_with_the_first_config(capsys, configs):
    arguments = ("--config-file", configs[0], "--config-file", configs[1], *SIZE, *QUICK)
    benchmark.main(("--task", "eval", *arguments, "--threads", "1"))
    header, *_ = (text := capsys.readouterr().out).splitlines()
    assert header.startswith("CPU, 1 threads; batches of 1")
    assert "speed-up" in text
    first, second = (line.split() for line in text.splitlines()[-2:])
    assert (first[0], second[0]) == ("small_dino", "small_deformable")


def test_inference_on_the_configs_test_images(capsys, configs):
    (result,) = measured(
        capsys, "--task", "eval", "--config-file", configs[0], *QUICK, "--batch-size", "2"
    )
    assert result["batch_size"] == 2
    total = result["milliseconds"]["total"]["median"]
    assert result["images_per_second"] == pytest.approx(2e3 / total)


@pytest.mark.parametrize("images", [SIZE, ()], ids=["synthetic", "loaded"])
def test_training_steps_are_timed(capsys, configs, images):
    (result,) = measured(capsys, "--task", "train", "--config-file", configs[0], *images, *QUICK)
    assert result["milliseconds"]["total"]["median"] > 0
    assert result["batch_size"] == 2


def test_the_loader_is_timed(capsys, configs):
    (result,) = measured(capsys, "--task", "data", "--config-file", configs[0], "--repeats", "4")
    (stage,) = result["stages"]
    assert stage["name"] == "loader, 0 workers, batch 2"
    assert stage["milliseconds"]["count"] == 4
    assert stage["images_per_second"] > 0


def test_every_stage_of_the_loader_is_timed(capsys, configs):
    (result,) = measured(
        capsys,
        *("--task", "data_advanced", "--config-file", configs[0], *QUICK),
        "dataloader.train.num_workers=1",
    )
    names = [stage["name"] for stage in result["stages"]]
    assert names == [
        "records",
        "records and mapper",
        "loader, 0 workers, batch 2",
        "loader, 1 workers, batch 2",
        "loader, 1 workers, batch 2, nothing sent",
    ]
    assert all(stage["milliseconds"]["median"] > 0 for stage in result["stages"])


def test_the_data_table_shows_start_up_and_loader(capsys, configs):
    benchmark.main(("--task", "data", "--config-file", configs[0], "--repeats", "2"))
    text = capsys.readouterr().out
    assert "loader, 0 workers, batch 2" in text
    assert "start-up" in text


def test_bad_command_lines_name_what_is_wrong(capsys, configs, tmp_path):
    one = ("--config-file", configs[0])
    assert "evaluate" in refused(capsys, *one, "--task", "evaluate")
    assert "nowhere.py" in refused(capsys, "--config-file", "nowhere.py", "--task", "eval")
    assert "--config-file" in refused(capsys, "--task", "eval")
    assert "num_queries" in refused(capsys, *one, "--task", "eval", "model.num_query=3")
    assert "--repeats" in refused(capsys, *one, "--task", "eval", "--repeats", "0")
    assert "--num-gpus" in refused(capsys, *one, "--task", "eval", "--num-gpus", "2")


def test_a_gpu_that_is_not_there_is_an_error_only_where_it_is_asked_for(
    capsys, configs, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with open(configs[0], "a") as file:
        file.write("\ntrain.device = 'cuda'\n")
    arguments = ("--task", "eval", "--config-file", configs[0], *SIZE, *QUICK)
    (result,) = measured(capsys, *arguments)
    assert result["device"].startswith("CPU")
    assert "no GPU" in refused(capsys, *arguments, "train.device=cuda")
