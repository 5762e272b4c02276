"""Implementations of COCO's evaluation against each other."""

from tests.reliability.campaign import row
from tests.reliability.evaluators import compare_evaluators

row(
    "DA3",
    "COCO's evaluation by every backend: limits of detections, odd ids, missing fields",
    target="pycocotools' digits, or refused by all with the same words",
    default=1,
    nightly=45,
    unit="result sets",
)(compare_evaluators)
