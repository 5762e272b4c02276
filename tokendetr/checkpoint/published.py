"""Checkpoints published by the authors of detrex, Focus-DETR and Sparse DETR, and their configs.

URLs and AP are those of the authors' tables; nothing here was downloaded or measured.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

__all__ = ["PublishedCheckpoint", "find_published", "published_checkpoints"]


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint that its authors published.

    Attributes:
        url: its address; archives (``.zip``) have to be unpacked.
        config: name of the config of this project that evaluates it.
        ap: box AP on COCO's ``val2017`` as its authors state it.
        overrides: overrides of the config that reproduce the settings of the authors' code.
        note: what prevents its use; empty if nothing does.
    """

    url: str
    config: str
    ap: float
    overrides: tuple[str, ...] = ()
    note: str = ""

    @property
    def file(self) -> str:
        """File name of the download."""
        return Path(urlparse(self.url).path).name

    def command(self) -> str:
        """Return the command that evaluates the file in the working folder."""
        weights = str(Path(self.file).with_suffix(".pth"))
        words = [
            "tokendetr evaluate --config-file",
            self.config,
            f"train.init_checkpoint={weights}",
        ]
        return " ".join([*words, *self.overrides])


@cache
def published_checkpoints() -> tuple[PublishedCheckpoint, ...]:
    """Return all published checkpoints, in the order of the authors' tables."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        PublishedCheckpoint(**{**row, "overrides": tuple(row.get("overrides", ()))}) for row in rows
    )


def find_published(path: str) -> PublishedCheckpoint | None:
    """Return the published checkpoint with the file name of a path or URL, else None."""
    stem = Path(urlparse(path).path).stem
    return next((row for row in published_checkpoints() if Path(row.file).stem == stem), None)
