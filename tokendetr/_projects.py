"""Locate ``projects`` and the methods, and resolve upstream's ``import projects...``.

Upstream's configs import their detectors from ``projects.<name>.modeling``. Ours re-export
``tokendetr.models`` under that name but must never shadow a real one, such as that of a detrex
clone on the path. They are therefore installed outside of every import path, and a finder at the
end of ``sys.meta_path`` (``tokendetr_startup.py``, registered by ``tokendetr.pth`` when an
interpreter starts) offers them only for names that no other finder resolves.
"""

import os.path
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

_PACKAGE = os.path.dirname(os.path.realpath(__file__))


def projects_folder() -> str:
    """Return the ``projects`` folder: inside the package, or beside it in a source checkout."""
    installed = os.path.join(_PACKAGE, "projects")
    if os.path.isdir(installed):
        return installed
    return os.path.join(os.path.dirname(_PACKAGE), "projects")


def methods() -> list[str]:
    """Return the packages of the methods: those beside this one that have a project of their name.

    This is the only list of them: builds, checks, pages and tests take it from here. ``setup.py``
    runs this file on its own, so it imports nothing of the project.
    """
    beside = os.path.dirname(_PACKAGE)
    return sorted(
        name
        for name in os.listdir(projects_folder())
        if os.path.isfile(os.path.join(beside, name, "__init__.py"))
    )


def find_project(name: str) -> ModuleSpec | None:
    """Return the import spec of one of our folders, packages or modules, or None.

    Args:
        name: dotted name that starts with ``projects``.
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
