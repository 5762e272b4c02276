"""Register the project's own data sets on demand."""

from collections.abc import Callable

from detectron2.data import DatasetCatalog

from tokendetr.data.bccd import register_bccd
from tokendetr.data.bdd100k import register_bdd100k
from tokendetr.data.shapes import register_shapes

__all__ = ["register_if_known"]

_REGISTER: dict[str, Callable[[], None]] = {
    "shapes": register_shapes,
    "bccd": register_bccd,
    "bdd100k": register_bdd100k,
}


def register_if_known(name: str) -> None:
    """Register one of the project's data sets if it is not registered; ignore other names.

    Args:
        name: such as ``shapes_val``.
    """
    register = _REGISTER.get(name.rpartition("_")[0])
    if register is not None and name not in DatasetCatalog:
        register()
