"""Lazy configs: loading, relative imports, overrides, saving, building."""

import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.config.instantiate import dump_dataclass
from detectron2.model_zoo import get_checkpoint_url, get_config
from omegaconf import DictConfig, OmegaConf
from torch import nn

MODEL = """
from types import SimpleNamespace
from detectron2.config import LazyCall as L
from torch import nn

model = L(SimpleNamespace)(
    width=8,
    head=L(nn.Linear)(in_features="${..width}", out_features=3),
    blocks=[L(nn.ReLU)(), L(nn.Linear)(in_features="${...width}", out_features=2)],
)
settings = dict(steps=3, nested=dict(a=1))
_private = dict(hidden=True)
number = 5
"""

EXPERIMENT = """
from .models.base import model, settings

model.width = 16
settings.nested.a = 2
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "models" / "base.py").write_text(MODEL)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    up = "from ...models.base import model\nmodel.width = 4\n"
    (tmp_path / "deep" / "er" / "up.py").write_text(up)
    return tmp_path


def test_loads_only_public_configs(project):
    cfg = LazyConfig.load(str(project / "models" / "base.py"))
    assert set(cfg) == {"model", "settings"}
    assert isinstance(cfg.settings.nested, DictConfig)
    assert cfg.model._target_ is SimpleNamespace


def test_keys_select_values(project):
    file = str(project / "models" / "base.py")
    assert LazyConfig.load(file, "settings").steps == 3
    settings, number = LazyConfig.load(file, ("settings", "number"))
    assert (settings.nested.a, number) == (1, 5)
    with pytest.raises(KeyError, match="base.py has no key 'absent'"):
        LazyConfig.load(file, "absent")


def test_relative_imports_load_fresh_config_files(project):
    cfg = LazyConfig.load(str(project / "experiment.py"))
    assert (cfg.model.width, cfg.settings.nested.a) == (16, 2)
    assert LazyConfig.load(str(project / "deep" / "er" / "up.py")).model.width == 4
    # what one importer changed does not leak into the next load
    assert LazyConfig.load(str(project / "models" / "base.py")).model.width == 8


def test_load_rel_starts_at_the_callers_file(project):
    script = project / "script.py"
    script.write_text(
        "from detectron2.config import LazyConfig\n"
        "cfg = LazyConfig.load_rel('./models/base.py', 'settings')\n"
    )
    namespace = {}
    exec(compile(script.read_text(), str(script), "exec"), namespace)  # noqa: S102
    assert namespace["cfg"].steps == 3


def test_imports_elsewhere_are_left_alone(project):
    with pytest.raises(ImportError, match="does not define"):
        bad = project / "bad.py"
        bad.write_text("from .models.base import nothing\n")
        LazyConfig.load(str(bad))
    # the hook is gone after a failure too
    with pytest.raises(ImportError, match="attempted relative import"):
        __import__("x", {"__package__": "", "__name__": "plain"}, {}, ("y",), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from .models.gone import x\n", r"gone\.py does not exist"),
        ("from .models import base\n", "is a directory"),
        ("from . import base\n", "names no file"),
        ("from .models.base import *\n", "Cannot import \\*"),
    ],
)
def test_bad_relative_imports_are_named(project, text, message):
    bad = project / "bad.py"
    bad.write_text(text)
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(str(bad))


def test_bad_config_files_are_named(project):
    with pytest.raises(FileNotFoundError, match="nowhere.py"):
        LazyConfig.load(str(project / "nowhere.py"))
    with pytest.raises(ValueError, match=r"python|\.py"):
        LazyConfig.load(str(project / "models"))
    (project / "broken.py").write_text("a = (")
    with pytest.raises(SyntaxError, match="broken.py"):
        LazyConfig.load(str(project / "broken.py"))


def test_overrides_follow_hydra_grammar(project):
    cfg = LazyConfig.load(str(project / "experiment.py"))
    returned = LazyConfig.apply_overrides(
        cfg,
        [
            "model.width=32",
            "settings.nested.new.deep=[1,2.5,true]",
            "+settings.name='two words'",
            'settings.quoted="a,b"',
            "settings.none=null",
            "settings.lr=1e-4",
            "settings.map={x:1,y:[a,b]}",
            "~settings.steps",
        ],
    )
    assert returned is cfg
    assert cfg.model.head.in_features == 32
    assert OmegaConf.to_container(cfg.settings) == {
        "nested": {"a": 2, "new": {"deep": [1, 2.5, True]}},
        "name": "two words",
        "quoted": "a,b",
        "none": None,
        "lr": 1e-4,
        "map": {"x": 1, "y": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("settings.steps.deeper=1", KeyError),
        ("~settings.absent", KeyError),
        ("~settings.steps=4", KeyError),
        ("settings.steps=1,2", ValueError),
    ],
)
def test_overrides_that_cannot_be_applied(project, override, error):
    cfg = LazyConfig.load(str(project / "experiment.py"))
    with pytest.raises(error, match="settings.(steps|absent)"):
        LazyConfig.apply_overrides(cfg, [override])
    assert cfg.settings.steps == 3


def test_overrides_reach_into_lists(project):
    cfg = LazyConfig.load(str(project / "experiment.py"))
    LazyConfig.apply_overrides(cfg, ["model.blocks.1.out_features=7"])
    assert instantiate(cfg.model).blocks[1].out_features == 7


def test_saved_config_builds_the_same(project):
    cfg = LazyConfig.load(str(project / "experiment.py"))
    file = str(project / "config.yaml")
    LazyConfig.save(cfg, file)
    assert sorted(os.listdir(project)).count("config.yaml") == 1
    assert not [name for name in os.listdir(project) if "tmp" in name or name.endswith(".pkl")]
    again = LazyConfig.load(file)
    assert again.model._target_ == "types.SimpleNamespace"
    assert again.model.head._target_ == "torch.nn.Linear"
    assert instantiate(again.model).head.weight.shape == instantiate(cfg.model).head.weight.shape
    # interpolations survive
    again.model.width = 5
    assert instantiate(again.model).blocks[1].in_features == 5
    # saving did not change the config itself
    assert cfg.model._target_ is SimpleNamespace


def test_what_yaml_cannot_hold_gets_a_pickle_twin(project, caplog):
    import pickle

    cfg = OmegaConf.create({"f": lambda x: x + 1, "a": 1}, flags={"allow_objects": True})
    file = project / "config.yaml"
    LazyConfig.save(cfg, str(file))
    assert file.exists() and (project / "config.yaml.pkl").exists()
    restored = pickle.loads((project / "config.yaml.pkl").read_bytes())
    assert restored.f(1) == 2


def test_failed_save_leaves_the_old_file(project, monkeypatch):
    file = project / "config.yaml"
    LazyConfig.save(OmegaConf.create({"a": 1}), str(file))

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        LazyConfig.save(OmegaConf.create({"a": 2}), str(file))
    monkeypatch.undo()
    assert LazyConfig.load(str(file)).a == 1
    assert not [name for name in os.listdir(project) if name.endswith(".tmp")]


def test_to_py_shows_calls_and_keys(project):
    text = LazyConfig.to_py(LazyConfig.load(str(project / "experiment.py")), prefix="my.")
    assert "my.settings.nested.a=2" in text.replace(" ", "")
    assert "torch.nn.Linear(in_features=16,out_features=3)" in text.replace(" ", "")


@dataclass
class Point:
    x: int = 1
    children: list = field(default_factory=list)


def test_instantiate_builds_nested_calls_lists_and_plain_dicts():
    cfg = L(SimpleNamespace)(
        by_name=L("torch.nn.Linear")(in_features=2, out_features=3),
        point=L(Point)(x=4),
        plain={"_target_": "types.SimpleNamespace", "a": 1},
        untouched={"a": {"b": 2}},
    )
    made = instantiate(cfg)
    assert isinstance(made.by_name, nn.Linear)
    assert made.point == Point(x=4)
    assert made.plain.a == 1
    assert made.untouched == {"a": {"b": 2}}
    assert instantiate([L(Point)(x=2), 3]) == [Point(x=2), 3]
    assert list(instantiate(OmegaConf.create([1, 2]))) == [1, 2]
    assert instantiate("text") == "text"


def test_recursive_false_hands_over_the_nodes():
    made = instantiate(L(SimpleNamespace)(inner=L(nn.ReLU)(), _recursive_=False))
    assert isinstance(made.inner, DictConfig)
    assert not hasattr(made, "_recursive_")


def test_structured_config_becomes_its_dataclass():
    assert instantiate(OmegaConf.structured(Point(x=3))) == Point(x=3)


def test_dumped_dataclass_builds_again():
    point = Point(x=2, children=[Point(x=5)])
    assert instantiate(dump_dataclass(point)) == point


def test_wrong_arguments_name_the_target_and_the_node(caplog):
    cfg = OmegaConf.create(
        {"model": {"head": L(nn.Linear)(width=3)}}, flags={"allow_objects": True}
    )
    with pytest.raises(TypeError, match="width"):
        instantiate(cfg.model.head)
    assert "torch.nn.modules.linear.Linear" in caplog.text
    assert "model.head" in caplog.text


def test_bad_targets_are_named():
    with pytest.raises(ImportError, match="no_such_module.thing"):
        instantiate({"_target_": "no_such_module.thing"})
    with pytest.raises(AssertionError, match="does not define a valid object"):
        instantiate({"_target_": 3})
    with pytest.raises(TypeError, match="callable"):
        L(3)


def test_model_zoo_says_what_is_missing():
    for call in (get_config, get_checkpoint_url):
        with pytest.raises(RuntimeError, match="COCO-Detection/x.py not available in Model Zoo"):
            call("COCO-Detection/x.py")
