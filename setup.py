"""Build the distribution ``tokendetr``; its metadata is in pyproject.toml.

``csrc/setup`` builds the operators' library and lists the environment variables of its build.

The folder ``projects/`` is installed inside the package, as ``tokendetr/projects/``, where it
cannot be mixed up with another package of that name.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PROJECTS = Path("projects")
PROJECT_FILES = (".md", ".py", ".safetensors")


class BuildWithProjects(build_py):
    """Add the projects to the package, and the ``.pth`` file to the site folder."""

    def run(self) -> None:
        """Build the packages, then copy the rest; an editable install reads projects in place."""
        super().run()
        if self.editable_mode:
            self.copy_file("tokendetr.pth", self.get_finalized_command("install").install_lib)
            return
        self.copy_file("tokendetr.pth", self.build_lib)
        for path in sorted(PROJECTS.rglob("*")):
            if path.suffix in PROJECT_FILES:
                target = Path(self.build_lib, "tokendetr", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


ROOT = Path(__file__).resolve().parent
kernels = runpy.run_path(str(ROOT / "csrc" / "setup"))["options"]()
methods = runpy.run_path(str(ROOT / "tokendetr" / "_projects.py"))["methods"]()

setup(
    packages=find_packages(
        include=[f"{name}{end}" for name in ("tokendetr", *methods) for end in ("", ".*")]
    ),
    ext_modules=kernels["ext_modules"],
    cmdclass={**kernels["cmdclass"], "build_py": BuildWithProjects},
)
