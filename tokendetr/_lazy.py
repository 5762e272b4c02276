"""Import the public names of a package on first use, so that importing the package is cheap."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package (PEP 562).

    Type checkers read the names in ``__init__.pyi`` beside it.

    Args:
        package: its ``__name__``.
        homes: by module, the names that are imported from it. The last part of a module's own
            name stands for the module.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> object:
        """Import a public name on first use."""
        home = home_of.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(home)
            value = module if home.endswith(f".{name}") else getattr(module, name)
        except ModuleNotFoundError as error:
            from tokendetr.errors import UPSTREAM, upstream_missing

            if error.name not in UPSTREAM:
                raise
            raise ModuleNotFoundError(upstream_missing(error.name), name=error.name) from error
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        """Return the public names and whatever has been imported already."""
        return sorted({*vars(sys.modules[package]), *home_of})

    return get, names, sorted(home_of)
