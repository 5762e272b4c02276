"""Links as they are in a checkout: a folder means its README, what is no page is plain text."""

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_LINK_TO_FILE = re.compile(r'<a href="(?!https?:|#)[^"]*">')


class FolderLinks(SphinxTransform):
    """Leads links to a folder to its README, and drops links to what is not a page of the site."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Change the links of one page."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link.get("reftype") != "myst":
                continue
            if link.get("refdomain") is None:
                self._lead_to_readme(link)
            if link.get("refdomain") == "doc" and link["reftarget"] not in self.env.found_docs:
                link.replace_self(link.children)
        for raw in list(self.document.findall(nodes.raw)):
            html = _LINK_TO_FILE.sub("<a>", raw.astext())
            if html != raw.astext():
                raw.replace_self(nodes.raw("", html, format=raw["format"]))

    def _lead_to_readme(self, link: addnodes.pending_xref) -> None:
        folder, _, anchor = link["reftarget"].partition("#")
        path = Path(self.env.doc2path(self.env.docname)).parent / folder
        if not folder or not (path / "README.md").is_file():
            if folder and path.is_dir():
                link.replace_self(link.children)
            return
        readme = os.path.normpath(path / "README.md")
        link["refdomain"] = "doc"
        link["reftarget"] = self.env.path2doc(readme)
        link["reftargetid"] = anchor or None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(FolderLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
