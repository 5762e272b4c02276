"""A page of the interface per package of the library and per method, written before a build.

A package that exports names has them on its page; of one that does not, every module with an
``__all__`` is a section.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

from tokendetr._projects import methods

NOT_PUBLIC = ("cli", "compat")
FOLDER = Path("docs/api/packages")


def documented() -> list[str]:
    """Return the names of the documented packages and modules."""
    import tokendetr

    found = [
        f"tokendetr.{module.name}"
        for module in pkgutil.iter_modules(tokendetr.__path__)
        if not module.name.startswith(("_", "lib")) and module.name not in NOT_PUBLIC
    ]
    return ["tokendetr", *found, *methods()]


def _modules(name: str) -> Iterator[str]:
    """Yield the package if it says what it exports, else the modules in it that do."""
    module = importlib.import_module(name)
    if getattr(module, "__all__", None):
        yield name
    elif hasattr(module, "__path__"):
        for inner in pkgutil.iter_modules(module.__path__, f"{name}."):
            yield from _modules(inner.name)


def page(name: str) -> str:
    """Return the source of a package's page."""
    lines = [f"# {name}", ""]
    modules = list(_modules(name)) or [name]
    if modules != [name]:
        summary = (importlib.import_module(name).__doc__ or "").splitlines()[0]
        lines += [summary, ""]
    for module in modules:
        if module != name:
            lines += [f"## {module}", ""]
        lines += ["```{eval-rst}", f".. automodule:: {module}", "   :members:"]
        lines += ["   :imported-members:", "   :show-inheritance:"]
        if name == "tokendetr":  # every name is on its own package's page too
            lines.append("   :no-index:")
        lines += ["```", ""]
    return "\n".join(lines)


def write_pages(app: Sphinx) -> None:
    """Write the pages that changed, and remove those of packages that are gone."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{name}.md": page(name) for name in documented()}
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, config: write_pages(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
