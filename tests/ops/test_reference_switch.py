"""``use_reference`` and the names of ``tokendetr.ops``."""

import importlib
import threading

import pytest
import torch

import tokendetr.ops
from tests.ops.cases import random_case
from tests.patience import patience
from tokendetr.ops import extension_available, fallback, library, ms_deform_attn, use_reference
from tokendetr.ops.fallback import use_extension


@pytest.mark.skipif(not extension_available(), reason="no compiled kernels")
def test_a_thread_keeps_the_kernels_while_another_uses_plain_pytorch() -> None:
    tensor = torch.zeros(1)
    entered, finish = threading.Event(), threading.Event()
    inside = []

    def other() -> None:
        with use_reference():
            inside.append(use_extension(tensor))
            entered.set()
            finish.wait(patience(5))
            inside.append(use_extension(tensor))
        inside.append(use_extension(tensor))

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(patience(5))
    here = use_extension(tensor)
    with use_reference(), use_reference():
        nested = use_extension(tensor)
    after = use_extension(tensor)
    finish.set()
    thread.join(patience(5))
    assert inside == [False, False, True]
    assert (here, nested, after) == (True, False, True)


@pytest.mark.skipif(not extension_available(), reason="no compiled kernels")
def test_compiled_code_follows_the_switch() -> None:
    case = random_case(1, dtype=torch.float32)
    graphs = []

    def backend(graph, inputs):
        graphs.append("tokendetr" in graph.code)
        return graph

    @torch.compile(fullgraph=True, backend=backend)
    def run(value, locations, weights):
        return ms_deform_attn(value, case.shapes, locations, weights)

    outputs = [run(*case.tensors)]
    with use_reference():
        outputs.append(run(*case.tensors))
    outputs.append(run(*case.tensors))
    assert graphs == [True, False]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["ms_deform_attn", "packed_attention"])
def test_an_operator_is_a_function_whatever_was_imported_before(name: str) -> None:
    importlib.import_module(f"tokendetr.ops.{name}.reference")
    assert getattr(tokendetr.ops, name) is getattr(
        importlib.import_module(f"tokendetr.ops.{name}"), name
    )


def test_a_missing_library_is_reported_once(monkeypatch, caplog) -> None:
    case = random_case(1, dtype=torch.float32)
    expected = ms_deform_attn(case.value, case.shapes, case.locations, case.weights)
    monkeypatch.setattr(library, "_FACTS", library.LibraryFacts(load_error="no such file"))
    monkeypatch.setattr(fallback._Process, "announced", False)
    for _ in range(2):
        actual = ms_deform_attn(case.value, case.shapes, case.locations, case.weights)
        torch.testing.assert_close(actual, expected)
    assert len(caplog.records) == 1
    assert "no such file" in caplog.text
