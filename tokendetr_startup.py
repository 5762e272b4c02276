"""Make ``import projects...`` work in interpreters that have no other package of that name.

``tokendetr.pth`` runs this module at the start of every interpreter of the environment. So it
imports nothing but ``sys``; ``tokendetr`` itself is imported when ``projects`` first is.
``tokendetr/_projects.py`` says what is found, and why.
"""

import sys

TYPE_CHECKING = False  # the module typing is not needed in every interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec


class ProjectsFinder:
    """Meta path finder for ``projects`` and its submodules; meant to be the last one."""

    is_projects_finder = True

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: object = None
    ) -> "ModuleSpec | None":
        """Return the import spec of one of our folders, packages or modules, else None."""
        if name.partition(".")[0] != "projects":
            return None
        from tokendetr._projects import find_project

        return find_project(name)


def install() -> None:
    """Append the finder to ``sys.meta_path``, once."""
    if not any(getattr(finder, "is_projects_finder", False) for finder in sys.meta_path):
        sys.meta_path.append(ProjectsFinder)
