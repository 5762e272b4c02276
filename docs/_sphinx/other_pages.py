"""Pages that the start page does not name are listed at its end, without an edit."""

from pathlib import Path

from sphinx.application import Sphinx

START = "docs/index"
PLACE = "<!-- other pages -->"


def list_other_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a table of contents of the other pages in its place."""
    if docname != START:
        return
    named = set(source[0].split())
    pages = sorted(path.stem for path in (Path(app.srcdir) / "docs").glob("*.md"))
    others = [page for page in pages if page not in named and f"docs/{page}" != START]
    table = ["```{toctree}", ":caption: More", ":maxdepth: 1", "", *others, "```"]
    source[0] = source[0].replace(PLACE, "\n".join(table) if others else "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Change the start page when it is read."""
    app.connect("source-read", list_other_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
