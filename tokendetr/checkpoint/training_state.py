"""Check that a checkpoint's training state has the layout that resuming needs."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["training_state_fault"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_dicts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_dict, value))


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer": (_is_dict, "a dict"),
    "trainer.iteration": (_is_count, "a whole number of at least 0"),
    "trainer.optimizer": (_is_dict, "a dict"),
    "trainer.optimizer.state": (_is_dict, "a dict"),
    "trainer.optimizer.param_groups": (_are_dicts, "a list of dicts"),
    "trainer.hooks": (_is_dict, "a dict"),
    "trainer.metrics": (_is_dict, "a dict"),
    "trainer.grad_scaler": (_is_dict, "a dict"),
    "rng_state": (_is_dict, "a dict"),
    "data_state": (_is_dict, "a dict"),
    "data_state.seed": (_is_count, "a whole number of at least 0"),
    "data_state.images": (_is_count, "a whole number of at least 0"),
}
# Other programs do not write these, and a run without hooks or metrics has no state of them.
_MAY_LACK = {"trainer.hooks", "trainer.metrics", "trainer.grad_scaler", "rng_state", "data_state"}
_ABSENT = object()


def training_state_fault(checkpoint: Mapping[str, Any]) -> str:
    """Return why training cannot be resumed from a checkpoint, "" if it can.

    Args:
        checkpoint: the contents, as :func:`tokendetr.checkpoint.reading.read_checkpoint` returns
            them.
    """
    if "trainer" not in checkpoint:
        return "it has no training state"
    for path, (has_form, form) in _FORMS.items():
        value = _at(checkpoint, path)
        if value is not _ABSENT:
            if not has_form(value):
                return f"its {path} is {reprlib.repr(value)}, not {form}"
        elif path not in _MAY_LACK and _at(checkpoint, path.rpartition(".")[0]) is not _ABSENT:
            return f"its {path} is missing"
    return ""


def _at(content: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return _ABSENT
        content = content[key]
    return content
