"""Events and writers, logging, processes, files, analysis, tracing."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    find_unused_parameters,
    flop_count_operators,
    parameter_count_table,
)
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from torch import nn

from tests.processes import run_two_processes


def test_storage_histories_and_smoothing():
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage(10) as storage:
        assert get_event_storage() is storage
        for value in (1.0, 100.0, 3.0):
            storage.put_scalar("loss", torch.tensor(value))
            storage.put_scalars(lr=value, smoothing_hint=False)
            storage.step()
        with storage.name_scope("bbox"):
            storage.put_scalar("AP", 40)
        assert storage.latest_with_smoothing_hint(20)["loss"] == (3.0, 12)
        assert storage.latest()["lr"] == (3.0, 12)
        assert storage.history("loss").global_avg() == pytest.approx(104 / 3)
        assert storage.history("bbox/AP").latest() == 40
        assert storage.count_samples("loss", 2) == 2
        with pytest.raises(KeyError, match="absent"):
            storage.history("absent")
        with pytest.raises(AssertionError, match="smoothing_hint"):
            storage.put_scalar("lr", 1)


def test_writers_report_each_value_once(tmp_path, caplog):
    logging.getLogger("detectron2").propagate = True
    caplog.set_level(logging.INFO)
    file = tmp_path / "metrics.json"
    board = TensorboardXWriter(str(tmp_path / "board"))
    writers = [CommonMetricPrinter(40), JSONWriter(str(file)), board]
    assert not (tmp_path / "board").exists()
    with EventStorage() as storage:
        for iteration in range(40):
            storage.put_scalars(total_loss=1.0 / (iteration + 1), time=0.5)
            storage.put_scalar("lr", 1e-4, smoothing_hint=False)
            if iteration == 25:
                storage.put_scalar("bbox/AP", 12.5, smoothing_hint=False)
                storage.put_image("picture", torch.zeros(3, 4, 4, dtype=torch.uint8))
                storage.put_histogram("weights", torch.arange(5.0))
            if iteration % 20 == 19:
                for writer in writers:
                    writer.write()
            storage.step()
        assert not storage._vis_data and not storage._histograms
        for writer in writers:
            writer.write()  # nothing new after the end
            writer.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row["iteration"] for row in rows) == [19, 25, 39]
    assert sum("bbox/AP" in row for row in rows) == 1
    assert rows[0]["total_loss"] == pytest.approx(np.median([1 / (i + 1) for i in range(20)]))
    lines = [r.getMessage() for r in caplog.records if "iter:" in r.getMessage()]
    assert len(lines) == 2
    assert lines[0].startswith(" eta: 0:00:10  iter: 19  total_loss: 0.09")
    assert "time: 0.5000  last_time: 0.5000" in lines[0] and "lr: 0.0001" in lines[0]
    assert list((tmp_path / "board").iterdir())


def test_logger_writes_once_and_per_rank(tmp_path, capsys):
    first = setup_logger(str(tmp_path), name="d2test")
    assert setup_logger(str(tmp_path), name="d2test") is first
    setup_logger(str(tmp_path), 2, name="d2test_rank")
    first.info("hello")
    logging.getLogger("d2test_rank").warning("from two")
    assert (tmp_path / "log.txt").read_text().count("d2test INFO: hello") == 1
    assert "from two" in (tmp_path / "log.txt.rank2").read_text()
    assert "hello" in capsys.readouterr().out


def test_rate_limited_logging(caplog):
    caplog.set_level(logging.INFO)
    for index in range(7):
        log_first_n(logging.INFO, f"first {index}", 2, name="limited")
        log_every_n(logging.INFO, f"every {index}", 3, name="limited")
        log_every_n_seconds(logging.INFO, f"seconds {index}", 60, name="limited")
        log_first_n(logging.INFO, f"message {index % 2}", 1, name="limited", key="message")
    texts = [record.getMessage() for record in caplog.records]
    assert [t for t in texts if "first" in t] == ["first 0", "first 1"]
    assert [t for t in texts if "every" in t] == ["every 0", "every 3", "every 6"]
    assert [t for t in texts if "seconds" in t] == ["seconds 0"]
    assert [t for t in texts if "message" in t] == ["message 0", "message 1"]


def test_a_small_table_has_a_column_per_entry():
    lines = create_small_table({"AP": 12.34567, "AP50": 30.0}).splitlines()
    assert lines[0].replace(" ", "") == "|AP|AP50|"
    assert lines[2].replace(" ", "") == "|12.346|30.000|"


def test_communication_without_processes():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.get_local_size() == 1 and comm.is_main_process()
    assert comm.all_gather("x") == ["x"] and comm.gather("x") == ["x"]
    comm.synchronize()
    losses = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) is losses
    np.random.seed(3)
    seed = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == seed


def _talk(rank, folder):
    comm.create_local_process_group(1)
    with_rank = {"b": torch.tensor(float(rank)), "a": torch.tensor(2.0 * rank)}
    result = {
        "all": comm.all_gather({"rank": rank, "text": "x" * (rank + 1)}),
        "one": comm.gather(rank),
        "seed": comm.shared_random_seed(),
        "reduced": {k: float(v) for k, v in comm.reduce_dict(with_rank).items()},
        "local": (comm.get_local_rank(), comm.get_local_size()),
    }
    comm.synchronize()
    with open(f"{folder}/{rank}.pkl", "wb") as file:
        pickle.dump(result, file)


def test_communication_between_two_processes(tmp_path):
    run_two_processes(_talk, tmp_path)
    first, second = (pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in (0, 1))
    assert first["all"] == second["all"] == [{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}]
    assert (first["one"], second["one"]) == ([0, 1], [])
    assert first["seed"] == second["seed"]
    assert first["reduced"] == {"a": 1.0, "b": 0.5}
    assert first["local"] == second["local"] == (0, 1)


def test_seeding_repeats_every_generator():
    import random

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    seed_all_rng(5)
    first = draw()
    seed_all_rng(5)
    assert draw() == first
    seed_all_rng(None)
    assert draw() != first


def test_files_and_names(tmp_path):
    file = tmp_path / "a.txt"
    with PathManager.open(str(file), "w") as stream:
        stream.write("x")
    assert PathManager.isfile(str(file)) and PathManager.get_local_path(str(file)) == str(file)
    assert locate("torch.nn.Linear") is nn.Linear
    with pytest.raises(ImportError, match="torch.nn.Nothing"):
        locate("torch.nn.Nothing")
    registry = Registry("TEST")
    registry.register(nn.Linear)
    assert registry.get("Linear") is nn.Linear
    offset = 3
    restored = pickle.loads(pickle.dumps(PicklableWrapper(lambda x: x + offset)))
    assert restored(1) == 4
    info = collect_env_info()
    assert "PyTorch" in info and "detectron2" in info


def test_remote_names_resolve_through_the_model_repository(monkeypatch, tmp_path):
    from detectron2.utils import file_io

    asked = []

    def fetch(path, force=False, **kwargs):
        asked.append(path)
        return str(tmp_path / "local.pkl")

    handler = file_io.Detectron2Handler()
    monkeypatch.setattr(file_io.PathManager, "get_local_path", fetch)
    assert handler._get_local_path("detectron2://ImageNet/R-50.pkl") == str(tmp_path / "local.pkl")
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNet/R-50.pkl"]


class TinyDetector(nn.Module):
    """A model with the inputs and outputs of detectors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, batched_inputs):
        image = batched_inputs[0]["image"]
        scores = self.conv(image[None]).mean(dim=(2, 3))[0]
        if self.training:
            return {"loss": scores.sum()}
        size = (batched_inputs[0]["height"], image.shape[2])
        instances = Instances(size, pred_boxes=Boxes(scores[None] * 2), scores=scores[:1])
        return [{"instances": instances}]


def test_flops_of_models_with_detection_inputs():
    model = TinyDetector().eval()
    inputs = [{"image": torch.rand(3, 8, 10), "height": 8, "file_name": "x.jpg"}]
    macs = 8 * 10 * 4 * 3 * 9
    assert FlopCountAnalysis(model, inputs).by_operator()["conv"] == macs
    assert flop_count_operators(model.train(), inputs)["conv"] == pytest.approx(macs / 1e9)
    assert model.training
    assert activation_count_operators(model.eval(), inputs)["conv"] == 8 * 10 * 4 / 1e6
    assert "conv" in parameter_count_table(model)
    assert find_unused_parameters(model.train(), inputs) == ["unused.weight", "unused.bias"]


def test_tracing_adapter_flattens_and_rebuilds():
    model = TinyDetector().eval()
    inputs = [{"image": torch.rand(3, 8, 10), "height": 8, "file_name": "x.jpg"}]
    with pytest.raises(ValueError, match="inputs made of tensors.*int"):
        TracingAdapter(model, inputs)
    adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
    assert len(adapter.flattened_inputs) == 1
    flat = adapter(*adapter.flattened_inputs)
    assert all(isinstance(leaf, torch.Tensor) for leaf in flat)
    rebuilt = adapter.outputs_schema(flat)[0]["instances"]
    with torch.no_grad():
        direct = model(inputs)[0]["instances"]
    assert rebuilt.image_size == (8, 10)
    assert torch.equal(rebuilt.pred_boxes.tensor, direct.pred_boxes.tensor)
