"""Where configs, weights and documents are, and ``import projects...`` for upstream's config files.

Upstream's configs import their detectors from ``projects.<name>.modeling``. Ours re-export
``tokendetr.models`` under that name, but must never take the place of a real one, say of a detrex
clone on the path. So they are installed where no path leads, and a finder at the end of
``sys.meta_path`` (``tokendetr_startup.py``, registered by ``tokendetr.pth`` when an interpreter
starts) offers them for whatever nobody else has.
"""

import os.path
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

_PACKAGE = os.path.dirname(os.path.realpath(__file__))


def projects_folder() -> str:
    """Return the folder of the projects: inside the package, or beside it in a source checkout."""
    installed = os.path.join(_PACKAGE, "projects")
    if os.path.isdir(installed):
        return installed
    return os.path.join(os.path.dirname(_PACKAGE), "projects")


def find_project(name: str) -> ModuleSpec | None:
    """Return the spec of a folder, package or module of ours; None where there is none.

    Args:
        name: dotted, ``projects`` first.
    """
    place = os.path.join(projects_folder(), *name.split(".")[1:])
    if os.path.isfile(package := os.path.join(place, "__init__.py")):
        return spec_from_file_location(name, package, submodule_search_locations=[place])
    if os.path.isfile(f"{place}.py"):
        return spec_from_file_location(name, f"{place}.py")
    if not os.path.isdir(place):
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [place]
    return spec
