"""Where configs, weights and documents are, and ``import projects...`` for upstream's config files.

Upstream's configs import their detectors from ``projects.<name>.modeling``. Ours re-export
``tokendetr.models`` under that name, but must never take the place of a real one, say of a detrex
clone on the path. So they are installed where no path leads, and a finder at the end of
``sys.meta_path`` offers them for whatever nobody else has. ``tokendetr.pth`` registers it when an
interpreter starts, hence nothing here imports more than it must.
"""

import os.path
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

_PACKAGE = os.path.dirname(os.path.realpath(__file__))


def projects_folder() -> str:
    """Return the folder of the projects: inside the package, or beside it in a source checkout."""
    installed = os.path.join(_PACKAGE, "projects")
    if os.path.isdir(installed):
        return installed
    return os.path.join(os.path.dirname(_PACKAGE), "projects")


class ProjectsFinder:
    """A meta path finder for ``projects`` and what is below it, to be asked last."""

    is_projects_finder = True

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Return the spec of a folder, package or module of ours, None for all other names."""
        if name.partition(".")[0] != "projects":
            return None
        from importlib.util import spec_from_file_location

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


def install() -> None:
    """Put the finder to the end of ``sys.meta_path``, once."""
    if not any(getattr(finder, "is_projects_finder", False) for finder in sys.meta_path):
        sys.meta_path.append(ProjectsFinder)
