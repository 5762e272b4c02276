"""Offer ``import projects...`` to interpreters where nobody else has it.

``tokendetr.pth`` runs this module when an interpreter starts, in every program of the environment.
So it imports nothing but ``sys``; the package is first imported when somebody asks for
``projects``. See ``tokendetr/_projects.py`` for what is found, and why.
"""

import sys

TYPE_CHECKING = False  # the module typing is not needed in every interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec


class ProjectsFinder:
    """A meta path finder for ``projects`` and what is below it, to be asked last."""

    is_projects_finder = True

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: object = None
    ) -> "ModuleSpec | None":
        """Return the spec of a folder, package or module of ours, None for all other names."""
        if name.partition(".")[0] != "projects":
            return None
        from tokendetr._projects import find_project

        return find_project(name)


def install() -> None:
    """Put the finder to the end of ``sys.meta_path``, once."""
    if not any(getattr(finder, "is_projects_finder", False) for finder in sys.meta_path):
        sys.meta_path.append(ProjectsFinder)
