"""Build deformable attention as an extension of the installed OpenVINO.

    python csrc/openvino [FOLDER]        # build/openvino/libtokendetr_openvino.so

Needs CMake, a C++ compiler and the ``openvino`` wheel, which carries headers and CMake files.
"""

import argparse
import subprocess
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).resolve().parent


def build(folder: Path) -> Path:
    """Build the library in a folder and return its path.

    Raises:
        SystemExit: OpenVINO, CMake or a compiler is missing, or the compiler fails.
    """
    spec = find_spec("openvino")
    if spec is None or spec.origin is None:
        raise SystemExit("error: openvino is not installed: pip install openvino")
    packages = Path(spec.origin).parent / "cmake"
    configure = ["cmake", "-S", str(SOURCES), "-B", str(folder), f"-DOpenVINO_DIR={packages}"]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel"]):
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit("error: there is no cmake on the PATH: pip install cmake") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"error: {' '.join(command)} failed ({error.returncode})") from None
    return folder / "libtokendetr_openvino.so"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = SOURCES.parents[1] / "build" / "openvino"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of the build")
    print(build(parser.parse_args().folder))
