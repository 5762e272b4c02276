"""Read pickles of weights without running code from them."""

import io
import pickle
from typing import Any, BinaryIO

__all__ = ["load_arrays"]

_ALLOWED = {
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows containers, numbers, strings and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed global.

        Raises:
            pickle.UnpicklingError: for any other global.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def load_arrays(file: BinaryIO, filename: str) -> Any:
    """Unpickle plain data: dicts, lists, numbers, strings and numpy arrays.

    Args:
        file: opened for reading bytes.
        filename: for messages.

    Raises:
        ValueError: for anything else; nothing of the pickle was executed.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(file.read()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(
            f"{filename} is not a plain checkpoint and was not loaded: {error}. A .pkl file of "
            "weights may hold dicts, numbers, strings and numpy arrays only, because unpickling "
            "anything else can run arbitrary code."
        ) from error
