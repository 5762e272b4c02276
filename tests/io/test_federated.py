"""Annotations of LVIS have lists of category ids, which its evaluation looks up."""

import re

import pytest

from tokendetr.io.annotation_checks import federated_faults


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([2], ""),
        ([], ""),
        (None, "there is no list"),
        ("2", "there is no list"),
        (["2"], "has '2', which is not a category's id"),
        ([1, 99], "has 99, which is not a category's id"),
        ([[2]], r"has \[2\]"),
        ([None], "has None"),
    ],
)
def test_ids_that_are_never_found_are_named(key, ids, words):
    image = {"id": 5, "file_name": "a.jpg", "neg_category_ids": []}
    image |= {"not_exhaustive_category_ids": [], key: ids}
    categories = [{"id": n, "name": f"c{n}", "frequency": "f"} for n in (1, 2)]
    faults = federated_faults({"images": [image], "categories": categories})
    assert len(faults) == bool(words)
    for fault in faults:
        assert key in fault and "image id 5" in fault and re.search(words, fault)
