"""The checkpoints that the authors of detrex, Focus-DETR and Sparse DETR offer, and their configs.

Addresses and AP are those of the authors' own tables: nothing here was downloaded or measured.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

__all__ = ["PublishedCheckpoint", "find_published", "published_checkpoints"]


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A file that somebody else offers.

    Attributes:
        url: its address; archives (``.zip``) have to be unpacked.
        config: name of the config here that it is evaluated with.
        ap: box AP on COCO's ``val2017`` as its authors state it.
        overrides: of the config, for the numbers of the authors' code.
        note: what stands in the way; empty if nothing does.
    """

    url: str
    config: str
    ap: float
    overrides: tuple[str, ...] = ()
    note: str = ""

    @property
    def file(self) -> str:
        """Name of the file as it is downloaded."""
        return Path(urlparse(self.url).path).name

    def command(self) -> str:
        """The command that evaluates the file in the working folder."""
        weights = str(Path(self.file).with_suffix(".pth"))
        words = [
            "tokendetr evaluate --config-file",
            self.config,
            f"train.init_checkpoint={weights}",
        ]
        return " ".join([*words, *self.overrides])


@cache
def published_checkpoints() -> tuple[PublishedCheckpoint, ...]:
    """Return every file, in the order of the authors' tables."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        PublishedCheckpoint(**{**row, "overrides": tuple(row.get("overrides", ()))}) for row in rows
    )


def find_published(path: str) -> PublishedCheckpoint | None:
    """Return the published file of a path's or an address's name, None for another name."""
    stem = Path(urlparse(path).path).stem
    return next((row for row in published_checkpoints() if Path(row.file).stem == stem), None)
