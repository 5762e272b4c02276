"""Print and verify evaluation results."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results in lines that start with ``copypaste:``, easy to paste into a spreadsheet.

    Args:
        results: task -> metric -> number. Per-class metrics (with a dash in the name) are left out.
    """
    assert isinstance(results, Mapping) or not results, results
    logger = logging.getLogger(__name__)
    for task, metrics in (results or {}).items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        printed = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(printed))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in printed.values()))


def verify_results(cfg: Any, results: Mapping[str, Any]) -> bool:
    """Compare results with those that a yacs config expects; ends the program if they differ.

    Args:
        cfg: ``TEST.EXPECTED_RESULTS`` holds entries (task, metric, value, tolerance).
        results: task -> metric -> number.

    Returns:
        True: all match.
    """
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not len(expected_results):
        return True
    logger = logging.getLogger(__name__)
    matches = True
    for task, metric, expected, tolerance in expected_results:
        actual = results[task].get(metric, None)
        if actual is None or not np.isfinite(actual) or abs(actual - expected) > tolerance:
            matches = False
    if not matches:
        logger.error("The results are not as expected")
        logger.error("expected: %s", expected_results)
        logger.error("found: %s", pprint.pformat(results))
        sys.exit(1)
    logger.info("The results are as expected.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts: ``{"bbox": {"AP": 1}}`` becomes ``{"bbox/AP": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": v for name, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
