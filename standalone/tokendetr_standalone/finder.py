"""Find the stand-ins for detectron2 and detrex if the real packages are absent.

``tokendetr_standalone.pth`` imports this module at every start of the interpreter, so its imports
are kept to a minimum. The finder is at the front of ``sys.meta_path``: a finder at the back would
never be called when the working folder holds a clone's folder ``detectron2/``, which is an empty
namespace package. For its two names it calls all other finders first, including later ones, and
answers only if none of them finds a real package.
"""

import os.path
import sys

TYPE_CHECKING = False  # the module typing is not needed in every interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

STAND_INS = ("detectron2", "detrex")
"""Top-level packages with a stand-in."""


def stand_in_folder(name: str) -> str:
    """Return the folder of a stand-in: inside this package, or beside it in a source checkout."""
    here = os.path.dirname(os.path.realpath(__file__))
    installed = os.path.join(here, "packages", name)
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(here), name)


class StandInFinder:
    """Meta path finder for the names in :data:`STAND_INS` that defers to all other finders."""

    is_stand_in_finder = True
    """Marks all copies of this class, which must not call each other."""

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of the real package, or else of the stand-in; None for other names."""
        if name not in STAND_INS:
            return None
        for finder in [*sys.meta_path]:
            if _is_stand_in_finder(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            # The spec of a folder without __init__.py has no loader: not a real package.
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
