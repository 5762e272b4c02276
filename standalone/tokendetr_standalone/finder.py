"""Let ``import detectron2`` and ``import detrex`` find stand-ins where the real ones are absent.

``tokendetr_standalone.pth`` imports this module when an interpreter starts, hence nothing here
imports more than it must. The finder goes to the front of ``sys.meta_path``, because an empty
namespace package (the working folder holds a clone's folder ``detectron2/``) would otherwise end
the search before a finder at the back is asked. It puts nobody at a disadvantage: for its two names
it asks all other finders first, also those that were registered later, and answers only where none
of them has a real package.
"""

import os.path
import sys

TYPE_CHECKING = False  # the module typing is not needed in every interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

STAND_INS = ("detectron2", "detrex")
"""Top-level names that are stood in for."""


def stand_in_folder(name: str) -> str:
    """Return the folder of a stand-in: inside this package, or beside it in a source checkout."""
    here = os.path.dirname(os.path.realpath(__file__))
    installed = os.path.join(here, "packages", name)
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(here), name)


class StandInFinder:
    """A meta path finder for the names of :data:`STAND_INS` that comes last wherever it stands."""

    is_stand_in_finder = True
    """By this, copies of this class know each other and do not ask each other in circles."""

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the real package's spec, or else the stand-in's; None for all other names."""
        if name not in STAND_INS:
            return None
        for finder in [*sys.meta_path]:
            if _is_stand_in_finder(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            # A folder without __init__.py makes a spec without loader: no real package.
            if spec is not None and spec.loader is not None and spec.origin is not None:
                return spec
        return _stand_in_spec(name)


def install() -> None:
    """Put the finder to the front of ``sys.meta_path``, once."""
    if not any(map(_is_stand_in_finder, sys.meta_path)):
        sys.meta_path.insert(0, StandInFinder)


def _is_stand_in_finder(finder: object) -> bool:
    return getattr(finder, "is_stand_in_finder", False)


def _stand_in_spec(name: str) -> "ModuleSpec | None":
    from importlib.util import spec_from_file_location  # not needed in every interpreter

    folder = stand_in_folder(name)
    return spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
