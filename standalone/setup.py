"""Build of the distribution ``tokendetr-standalone``; the metadata is in pyproject.toml.

The stand-ins are installed in ``tokendetr_standalone/packages/``, outside the import path, so that
they cannot overwrite anything of a real installation.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PRIVATE = "tokendetr_standalone.packages"
STAND_INS = ("detectron2", "detrex")


class BuildWithPth(build_py):
    """Install the ``.pth`` file beside the packages, in editable wheels too."""

    def run(self) -> None:
        """Build the packages, then copy the file."""
        super().run()
        # An editable install takes nothing from build_lib.
        install = self.get_finalized_command("install")
        folder = install.install_lib if self.editable_mode else self.build_lib
        self.copy_file("tokendetr_standalone.pth", folder)


setup(
    packages=["tokendetr_standalone"]
    + [f"{PRIVATE}.{name}" for name in find_packages(include=[f"{n}*" for n in STAND_INS])],
    package_dir={f"{PRIVATE}.{name}": name for name in STAND_INS},
    package_data={f"{PRIVATE}.detrex": ["config/configs/**/*.py"]},
    cmdclass={"build_py": BuildWithPth},
)
