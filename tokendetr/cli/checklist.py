"""Check the checklists of the papers, and write the pages of docs/reproduction from them.

Examples:
    python tools/checklist.py            # print counts per paper, and faults
    python tools/checklist.py --write    # docs/reproduction/<paper>.md from checklist/<paper>.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tokendetr.analysis.checklist import Checklist, read_checklist
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.config.files import PROJECTS_DIR
from tokendetr.io.atomic import write_atomically

ROOT = PROJECTS_DIR.parent
PAGES = ROOT / "docs" / "reproduction"


def checklists() -> list[Checklist]:
    """Return the checklists of all papers."""
    return [read_checklist(path) for path in sorted((PAGES / "checklist").glob("*.json"))]


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="write the pages")
    args = parser.parse_args(arguments)
    faults: list[str] = []
    for checklist in checklists():
        states = [row.state for row in checklist.rows]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("covered", "decided", "open"))
        print(f"{checklist.title}: {counts}")
        faults += checklist.faults(ROOT)
        if args.write:
            page = PAGES / f"{checklist.name}.md"
            write_atomically(str(page), checklist.markdown().encode())
            print(f"wrote {page.relative_to(ROOT)}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
