"""Read files of detections in COCO's result format."""

import json
from pathlib import Path
from typing import Any

from tokendetr.errors import DatasetError
from tokendetr.io._annotation_values import are_numbers, is_number

__all__ = ["RESULT_KEYS", "read_results"]

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
"""Keys of every record; others may be there as well."""

_SHOWN = 60  # characters of a value in a message


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON list of detections: ``image_id``, ``category_id``, ``bbox`` (xywh) and ``score``.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: it is something else; the message names the file and the record.
    """
    try:
        records = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"the results {path} do not exist") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(records, list):
        raise DatasetError(f"{path} holds a {type(records).__name__}, not a list of COCO results")
    for number, record in enumerate(records):
        if fault := _fault(record):
            raise DatasetError(f"{path}: record {number} {fault}")
    return records


def _fault(record: Any) -> str:
    """Return what is wrong with a record, "" if nothing is; ids become integers."""
    if not isinstance(record, dict):
        return f"is {record!r:.{_SHOWN}}, not a COCO result"
    if missing := sorted(set(RESULT_KEYS) - set(record)):
        return f"has no {', '.join(missing)}"
    for key in ("image_id", "category_id"):
        if isinstance(record[key], float) and record[key].is_integer():
            record[key] = int(record[key])  # as pandas writes them
        if isinstance(record[key], bool) or not isinstance(record[key], (int, str)):
            return f"has the {key} {record[key]!r:.{_SHOWN}}, which is not a number"
    box = record["bbox"]
    if not are_numbers(box, 4, 4) or len(box) > 4:
        return f"has the box {box!r:.{_SHOWN}}, which is not four finite numbers"
    if not is_number(record["score"]):
        return f"has the score {record['score']!r:.{_SHOWN}}, which is not a finite number"
    return ""
