"""The pages of a project that hold tables of results."""

from pathlib import Path

from tokendetr.analysis.tables import Table, splice

__all__ = ["project_pages", "splice_project"]


def project_pages(project: str, projects: Path) -> list[Path]:
    """Return the pages that may show a project's tables, those that exist.

    Args:
        project: name of a folder under ``projects``.
        projects: that folder; ``docs`` lies beside it in a checkout.
    """
    docs = projects.parent / "docs"
    pages = (
        projects / project / "README.md",
        docs / "methods" / f"{project}.md",
        docs / "reproduction" / "measurements" / f"{project}.md",
    )
    return [page for page in pages if page.is_file()]


def splice_project(project: str, projects: Path, table: Table) -> tuple[Path, bool]:
    """Put a table into the page of a project that has its markers.

    Returns:
        The page, and whether it changed.

    Raises:
        FileNotFoundError: the project has no page.
        ValueError: no page has the markers, or a page has them twice.
    """
    pages = project_pages(project, projects)
    if not pages:
        raise FileNotFoundError(f"{projects / project / 'README.md'} does not exist")
    marker = f"<!-- table: {table.name} -->"
    marked = [page for page in pages if marker in page.read_text(encoding="utf-8").splitlines()]
    page = marked[0] if marked else pages[0]
    return page, splice(page, table)
